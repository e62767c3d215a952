"""Which release this is."""

from importlib.metadata import version

VERSION = version("lambent")
"""Version of the installed package, as pyproject.toml has it."""
