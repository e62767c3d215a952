"""Execution environments' sandboxes: zygotes, slots, the pool of ready-made sandboxes and their processes."""

from .errors import SandboxError
from .host import DISK, NEEDED_CONTROLLERS, NEEDED_PROTECTIONS, SECCOMP, SandboxConfig, SandboxHost
from .mounts import enter_private_mount_namespace
from .runtime_process import ExitStatus, RuntimeProcess
from .sandbox import Sandbox

__all__ = [
    "DISK",
    "NEEDED_CONTROLLERS",
    "NEEDED_PROTECTIONS",
    "SECCOMP",
    "ExitStatus",
    "RuntimeProcess",
    "Sandbox",
    "SandboxConfig",
    "SandboxError",
    "SandboxHost",
    "enter_private_mount_namespace",
]
