"""What the agent tells over HTTP: its own health, its metrics, and to load balancers the health of Services."""
