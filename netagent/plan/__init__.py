"""The meaning of a Service on this node, and nothing about netfilter: objects in, Frontends out, no I/O."""
