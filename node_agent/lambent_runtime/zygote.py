"""The fork server: one warm interpreter of one CPython version, whose forks become sandboxes.

Started by the node agent as `PYTHON -I -S -c ... ` with one end of a SOCK_SEQPACKET pair. It loads the useful part of
the standard library, freezes the garbage collector's view of it, builds the root that all its sandboxes share and then
serves fork orders one by one. It is single-threaded, so that a fork is a whole copy.

The call stack of every process stays flat: `main` goes on as zygote, as reaper in a fork of the zygote, and as runtime
in a fork of the reaper, so that the runtime ends as an ordinary interpreter does.
"""

from __future__ import annotations

import gc
import importlib
import os
import random
import signal
import socket
import struct
import sys
import time
from functools import partial
from typing import TYPE_CHECKING

from . import bootstrap, handler, heap, linux, messages, reaper, root, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

PRELOADED = (
    "ast", "asyncio", "base64", "bisect", "calendar", "collections.abc", "concurrent.futures",
    "concurrent.futures.thread", "configparser", "contextlib", "contextvars", "copy", "csv", "ctypes",
    "dataclasses", "datetime", "decimal", "email.message", "email.parser", "encodings.ascii", "encodings.idna",
    "encodings.latin_1", "encodings.utf_8_sig", "enum", "functools", "glob", "gzip", "hashlib", "heapq", "hmac",
    "http.client", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging", "math", "mimetypes",
    "numbers", "operator", "pathlib", "pickle", "platform", "queue", "random", "re", "secrets", "select",
    "selectors", "shutil", "signal", "socket", "ssl", "string", "struct", "subprocess", "tempfile", "textwrap",
    "threading", "traceback", "types", "typing", "urllib.error", "urllib.parse", "urllib.request", "uuid",
    "warnings", "weakref", "xml.etree.ElementTree", "zipfile", "zlib", "zoneinfo", "_strptime",
)  # fmt: skip
"""What the handlers of the world import first, and clients of AWS. Time is paid once a zygote, not once an environment;
but each fork copies the page tables of all of it, so that what few use is not here."""

_FORKED = messages.pack({"event": "forked"})
"""Made once: what the zygote writes to between two forks is a page less that it shares with the first of them."""

_KEPT_BYTES = 16 * 1024 * 1024
"""What glibc may keep of freed memory in a runtime before it gives some back: an event of 6 MiB and what the handler
gets of it. Given back, each page is cleared and faulted in anew for the next event: three times the work of parsing."""


def main(
    connection_fd: int,
    agent_pid: int,
    base: str,
    package: str,
    *,
    filters: str,
    user_namespace: bool,
    confined: bool,
    merge_memory: bool,
    prefixes: list[str],
) -> None:
    """Run as zygote until the agent closes the connection; in forks, as reaper and runtime.

    Args:
        connection_fd: SOCK_SEQPACKET socket to the agent.
        agent_pid: The agent; when it is no longer the parent, it died before the death signal was set.
        base: Empty directory to build the root on.
        package: Directory of this package.
        filters: What sandboxes install against system calls, in order: hexadecimal, between commas.
        user_namespace: Give each sandbox a user namespace of its own.
        confined: This process is root in a user namespace alone.
        merge_memory: Let the kernel merge equal pages of all sandboxes.
        prefixes: Directories outside `/usr` that this interpreter needs.
    """
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != agent_pid:
        return
    linux.set_process_name("lambent-zygote")
    linux.hide_arguments()  # they tell of the host
    if confined:
        _enter_pid_namespace()
    sys.dont_write_bytecode = True  # it runs as root, in directories of others
    _preload()
    # The package's place on the host is nothing that a function should look for modules in.
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(package)]
    namespace = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    maps = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    root.enter(base, package, prefixes, confined=confined)
    linux.ignore_signal(signal.SIGCHLD)  # the kernel reaps; the agent watches each sandbox through its pidfd
    bootstrap.prepare()
    gc.collect()
    heap.fill_holes()
    gc.disable()
    gc.freeze()
    # glibc adapts to the largest block of its own that a program has freed: it then keeps twice as much (mallopt(3)).
    bytes(_KEPT_BYTES // 2)
    with open(maps, "rb") as mappings:
        if merge_memory:
            linux.merge_memory(mappings.readlines())

    programs = tuple(bytes.fromhex(program) for program in filters.split(",") if program)
    new_recipe = partial(sandbox.Recipe, filters=programs, user_namespace=user_namespace, confined=confined)
    recipe, control = _serve(socket.socket(fileno=connection_fd), namespace, new_recipe)

    # From here on: PID 1 of a sandbox.
    try:
        recipe.enter()
    except OSError as error:
        os.write(control, messages.pack({"event": "failed", "error": str(error)}))
        os._exit(1)
    orders = reaper.Reaper(sandbox.CONTROL, sandbox.CHILDREN).run()

    # From here on: the runtime process of the sandbox.
    bootstrap.run(orders)


def _enter_pid_namespace() -> None:
    """Go on as PID 1 of a PID namespace that belongs to our user namespace, while the process so far waits for our end.

    The zygote goes back to its PID namespace after each fork, and to the machine's nobody may but root.
    """
    linux.unshare(linux.CLONE_NEWPID)
    pid = os.fork()
    if pid:
        os._exit(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))
    linux.set_parent_death_signal(signal.SIGKILL)


def _preload() -> None:
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue  # an interpreter built without that library; a function that needs it sees the same error
    # Under `-S` nobody has called these; AWS's runtimes have `exit`, `quit` and `help`.
    site = importlib.import_module("site")
    site.setquit()
    site.setcopyright()
    site.sethelper()
    handler.remember_preloaded()
    os.environ.clear()  # the function has its own
    os.environ["TZ"] = bootstrap.DEFAULT_TIME_ZONE
    time.tzset()
    # Tables that the first use would build in every environment anew.
    time.strptime("2000", "%Y")
    random.getrandbits(1)


def _serve(
    connection: socket.socket, namespace: int, new_recipe: Callable[[tuple[str, ...], int], sandbox.Recipe]
) -> tuple[sandbox.Recipe, int]:
    """Serve fork orders; returns only in a forked child, with its recipe and the descriptor of its control socket."""
    recipe, prepared_for = new_recipe((), 0), ((), 0)
    messages.send(connection, {"event": "ready"})
    while True:
        message, descriptors = messages.receive(connection)
        if message is None:
            os._exit(0)
        targets = message["mounts"]
        assert isinstance(targets, list)
        control, *others = descriptors
        network = others.pop(0) if message["network"] else -1
        mounts, groups = others[: len(targets)], others[len(targets) :]
        if prepared_for != (tuple(targets), len(groups)):  # as a rule, only before the first fork
            prepared_for = tuple(targets), len(groups)
            recipe = new_recipe(*prepared_for)
        recipe.fill_in((int(str(message["inside"])), int(str(message["uid"]))), control, network, groups, mounts)
        try:
            linux.unshare(linux.CLONE_NEWPID)
            pid = linux.fork()
            if pid == 0:
                connection.detach()  # the recipe closes the descriptor; this object must not do it later
                return recipe, control
            linux.setns(namespace, linux.CLONE_NEWPID)
            process = os.pidfd_open(pid)
        except OSError as error:
            linux.setns(namespace, linux.CLONE_NEWPID)
            messages.send(connection, {"event": "failed", "error": f"fork of a sandbox: {error}"})
        else:
            connection.sendmsg([_FORKED], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", process))])
            os.close(process)
        for fd in descriptors:
            os.close(fd)
