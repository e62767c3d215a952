"""ClusterService: what the cluster is made of and how it is."""
