"""A start and an invocation for nothing, which a runtime process of the pool makes before its order comes.

A forked process shares the pages of its parent until it writes to them, and CPython writes to every object that it
touches, for it counts references. A start writes to some five hundred pages, each of which the kernel then copies: half
the time from order to READY. Whoever has made a start before has copied them.
"""

from __future__ import annotations

import importlib.machinery
import os
import select
import socket
import sys
from typing import TYPE_CHECKING

from . import handler as handlers
from . import messages
from .channel import InvokeHeader, encode_invoke

if TYPE_CHECKING:
    from collections.abc import Callable

IDLE_MS = 20
"""How long no order may come before there is time for a rehearsal: one that somebody waits for is there sooner."""

CODE = "/var/runtime/lambent_runtime/rehearsed"
"""Where the rehearsed function is, in the sandbox."""

_ENVIRONMENT = {
    "AWS_REGION": "us-east-1",
    "AWS_LAMBDA_FUNCTION_NAME": "rehearsed",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
    "LANG": "en_US.UTF-8",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "PYTHONPATH": CODE,
}
_EVENT = b'{"key": "' + b"x" * 88 + b'"}'


def rehearse_while_idle(orders: socket.SocketType, serve: Callable[[dict[str, object], list[int]], None]) -> None:
    """Let `serve` carry out an order for nothing, if none comes for a while.

    Args:
        orders: Where the order will come.
        serve: Carries out an order, to the end of its channel.
    """
    idle = select.poll()
    idle.register(orders, select.POLLIN)
    if idle.poll(IDLE_MS):
        return
    path, modules = list(sys.path), set(sys.modules)
    _carry_out(serve)
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path
    sys.path_importer_cache.pop(CODE, None)
    finder = sys.path_importer_cache.get(handlers.TASK_ROOT)
    if isinstance(finder, importlib.machinery.FileFinder):
        finder.invalidate_caches()  # it has seen the directory empty
    os.chdir("/")


def _carry_out(serve: Callable[[dict[str, object], list[int]], None]) -> None:
    agent, runtime = socket.socketpair()
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_WRONLY)
    with agent, sender, receiver:
        with runtime:
            order: dict[str, object] = {"order": "start", "handler": "rehearsed.handler", "environment": _ENVIRONMENT}
            messages.send(sender, order, [runtime.fileno(), null])
        os.close(null)
        agent.sendall(b"".join(encode_invoke(InvokeHeader("", 0, "rehearsed"), _EVENT)))
        agent.shutdown(socket.SHUT_WR)
        message, descriptors = messages.receive(receiver)
        assert message is not None
        serve(message, descriptors)
