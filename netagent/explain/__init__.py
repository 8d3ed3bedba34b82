"""Why a connection ends where it ends, in words that need no knowledge of netfilter. Pure: no I/O."""
