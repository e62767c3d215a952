"""Reading what functions wrote."""
