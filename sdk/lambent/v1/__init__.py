"""Generated protobuf and gRPC code of package lambent.v1; `make proto` renews it."""
