"""Execution environments: a pure state machine, and the shell that acts for it."""
