"""Functions: names, rules, records in etcd, the view that invocations resolve against, and the service."""
