"""The nftables backend: Frontends lowered to elements of shared maps, compared with the kernel's, committed."""
