"""How an agent runs without root: in a user namespace in which it is root."""

from .namespace import enter_user_namespace, is_root, lock_dir

__all__ = ["enter_user_namespace", "is_root", "lock_dir"]
