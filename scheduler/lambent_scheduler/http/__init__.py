"""The HTTP side of the scheduler: health, readiness and metrics."""
