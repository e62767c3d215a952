"""What functions print and what the platform adds to it, on its way to the log streams."""
