"""Tests of the project's own rules."""
