"""What the daemons share: configuration, clock, etcd, NATS, gRPC start-up, logging."""
