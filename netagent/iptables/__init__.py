"""The iptables backend: Frontends to xtables rules, for hosts whose other software needs them."""
