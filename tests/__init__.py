"""Tests of Lambent, against real etcd, nats-server, processes, cgroups and sockets."""
