"""Ephemeral storage: the `/tmp` of every sandbox, with a hard size, on the node's disk."""

from .image import ImageStorage, file_mib
from .memory import MemoryStorage
from .storage import DEFAULT_SIZE_MIB, Storage, Volume

__all__ = ["DEFAULT_SIZE_MIB", "ImageStorage", "MemoryStorage", "Storage", "Volume", "file_mib"]
