"""The live source: lists and watches at an API server, and hands what it learns to one consumer.

`connection` is the one door to the package `kubernetes`; `reflector` is the protocol without I/O (bytes to events),
with `listing` for its pages and `witness` for restored backups; `source.ApiSource` runs one for each kind.
"""
