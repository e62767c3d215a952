"""Execution environments' sandboxes: zygotes, slots, the pool of ready-made sandboxes and their processes."""

from .errors import SandboxError
from .host import NEEDED_CONTROLLERS, SandboxConfig, SandboxHost
from .mounts import enter_private_mount_namespace
from .runtime_process import ExitStatus, RuntimeProcess
from .sandbox import Sandbox

__all__ = [
    "NEEDED_CONTROLLERS",
    "ExitStatus",
    "RuntimeProcess",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxHost",
    "enter_private_mount_namespace",
]
