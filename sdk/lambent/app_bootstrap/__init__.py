"""Files that travel in the package of an App's function. They run on the cluster, on the standard library alone."""
