"""The system call filters of a sandbox: what functions may ask of the kernel, and its form for the kernel."""

from .filters import compile_filters

__all__ = ["compile_filters"]
