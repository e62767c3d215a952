"""What the node does with environments that nobody uses: they are frozen, and give memory back when it is short."""
