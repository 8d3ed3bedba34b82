"""netagent: Kubernetes Services as a constant number of nftables rules."""

__version__ = "0.1.0"
