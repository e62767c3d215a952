"""Attempts to get out of a sandbox or to harm those beside it, as functions on a real cluster."""
