"""scripts/soak: hours of churn, traffic and faults, and what became of the agent."""
