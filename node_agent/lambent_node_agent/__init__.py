"""The node agent: one on every machine; makes execution environments and runs invocations in them."""
