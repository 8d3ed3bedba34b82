"""What the kernel really does with the packets of one flow, told by the kernel itself (nftrace), in words.

`arming` makes the rules that switch tracing on, `events` decodes what the kernel tells, `story` makes sense of it with
the rules that `rules` read back and the words of `words`; `live` is the only module with a socket and a clock.
"""
