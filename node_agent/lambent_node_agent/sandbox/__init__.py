"""Execution environments' sandboxes: zygotes, slots, the pool of ready-made sandboxes and their processes."""

from .confinement import Confinement
from .errors import SandboxError
from .host import DEFAULT_LOCK_DIR, NETWORK, SandboxConfig, SandboxHost
from .mounts import enter_private_mount_namespace
from .runtime_process import ExitStatus, RuntimeProcess
from .sandbox import Sandbox
from .uid_range import FIRST_UID, UIDS_PER_AGENT

__all__ = [
    "DEFAULT_LOCK_DIR",
    "NETWORK",
    "FIRST_UID",
    "UIDS_PER_AGENT",
    "Confinement",
    "ExitStatus",
    "RuntimeProcess",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxHost",
    "enter_private_mount_namespace",
]
