"""The load generator: `lambent load` sends calls by a schedule and tells how they fared (docs/load.md)."""
