"""What the agent measures: Prometheus metrics under our own prefix, and kube-proxy's that dashboards rely on."""
