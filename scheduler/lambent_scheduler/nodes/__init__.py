"""Which nodes are in the cluster."""
