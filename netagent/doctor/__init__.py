"""What keeps a host from serving Services well, found before somebody's packets find it.

`gather` looks at the host and notes evidence, `judge` turns evidence into findings and does nothing else: every finding
can be provoked with planted evidence. `examination` joins the two.
"""
