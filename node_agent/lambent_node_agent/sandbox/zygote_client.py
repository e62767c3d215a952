"""The agent's end of a zygote."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING

import lambent_runtime
from lambent_runtime import messages

from . import mounts
from .errors import SandboxError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .interpreters import Interpreter
    from .uid_range import SandboxUid

# A cold start of an interpreter with a hundred modules, on a busy machine.
START_TIMEOUT_S = 30.0
FORK_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
# Orders wait in the socket's buffer, which holds about ninety; the zygote serves them one by one in any case.
MAX_FORKS_IN_FLIGHT = 16

_PACKAGE = Path(lambent_runtime.__file__).resolve().parent
_START = """
import sys
sys.path.insert(0, sys.argv[5])
from lambent_runtime import zygote
connection, agent, base, package, _path, filters, user_namespace, confined, merge_memory, *prefixes = sys.argv[1:]
zygote.main(int(connection), int(agent), base, package, filters=filters,
            user_namespace=user_namespace == "1", confined=confined == "1", merge_memory=merge_memory == "1",
            prefixes=prefixes)
"""


class Zygote:
    """A running fork server of one interpreter.

    Start it from the thread that lives longest: the kernel kills it when that thread ends.

    Attributes:
        exited: Set when the zygote and with it all its sandboxes have ended.
    """

    def __init__(self, interpreter: Interpreter, connection: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.interpreter = interpreter
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self._connection = connection
        self._process = process
        self._answers: deque[asyncio.Future[tuple[dict[str, object], list[int]]]] = deque()
        self._gate = asyncio.Semaphore(MAX_FORKS_IN_FLIGHT)
        self._loop.add_reader(connection.fileno(), self._read)

    @classmethod
    async def start(
        cls,
        interpreter: Interpreter,
        base: Path,
        filters: Sequence[bytes],
        *,
        user_namespace: bool,
        confined: bool,
        merge_memory: bool,
    ) -> Zygote:
        """Start a zygote and wait until it serves.

        Args:
            interpreter: What to run.
            base: Empty directory for its root; it is mounted over in the zygote's namespace only.
            filters: What its sandboxes install against system calls, in order.
            user_namespace: Give each a user namespace of its own.
            confined: This process is root in a user namespace alone.
            merge_memory: Let the kernel merge equal pages of all sandboxes.

        Raises:
            SandboxError: It did not come up; the reason is on the agent's stderr.
        """
        with mounts.reported("socket of a zygote"):
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        package = _PACKAGE
        arguments = [str(theirs.fileno()), str(os.getpid()), str(base), str(package), str(package.parent)]
        arguments += [",".join(program.hex() for program in filters)]
        arguments += [str(int(flag)) for flag in (user_namespace, confined, merge_memory)]
        command = [str(interpreter.executable), "-I", "-S", "-c", _START, *arguments, *interpreter.prefixes]
        try:
            # Blocking, for the two milliseconds of a vfork: asyncio's own way may fork from another thread.
            process = subprocess.Popen(  # noqa: ASYNC220
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={},
                cwd="/",
                start_new_session=True,  # Ctrl-C on the agent's terminal is the agent's to act on
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"start of {interpreter.executable}: {error}") from error
        finally:
            theirs.close()
        zygote = cls(interpreter, ours, process)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await zygote._next_answer()
        except TimeoutError as error:
            await zygote.stop()
            raise SandboxError(
                f"the zygote of {interpreter.runtime} did not serve within {START_TIMEOUT_S} s"
            ) from error
        except BaseException:
            await zygote.stop()
            raise
        return zygote

    async def fork(
        self,
        uid: SandboxUid,
        control: socket.socket,
        network: int | None,
        places: Sequence[tuple[int, str]],
        cgroups: Sequence[int],
    ) -> int:
        """Fork a sandbox; it sets itself up while this returns.

        The descriptors stay the caller's.

        Args:
            uid: UID and GID to run under.
            control: The sandbox's end of its control socket.
            network: Its network namespace.
            places: Detached mounts and where they go.
            cgroups: Entrances of its control groups.

        Returns:
            A pidfd of the sandbox's PID 1; the caller closes it.

        Raises:
            SandboxError: The zygote is gone, does not answer, or could not fork.
        """
        order: dict[str, object] = {
            "uid": uid.outside,
            "inside": uid.inside,
            "network": network is not None,
            "mounts": [target for _fd, target in places],
        }
        networks = [] if network is None else [network]
        descriptors = [control.fileno(), *networks, *(fd for fd, _target in places), *cgroups]
        async with self._gate:
            if self.exited.done():
                raise SandboxError(f"the zygote of {self.interpreter.runtime} has ended")
            try:
                messages.send(self._connection, order, descriptors)
            except OSError as error:
                raise SandboxError(f"order to the zygote of {self.interpreter.runtime}: {error}") from error
            try:
                async with asyncio.timeout(FORK_TIMEOUT_S):
                    answer, received = await self._next_answer()
            except TimeoutError as error:
                self._process.kill()  # it would answer later, for a sandbox that nobody waits for
                raise SandboxError(
                    f"the zygote of {self.interpreter.runtime} did not fork in {FORK_TIMEOUT_S} s"
                ) from error
        if answer.get("event") != "forked" or len(received) != 1:
            raise SandboxError(str(answer.get("error", answer)))
        return received[0]

    async def stop(self) -> None:
        """End the zygote, with whatever sandboxes it still has, and wait for it."""
        self._connection_lost()
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, STOP_TIMEOUT_S)

    async def _next_answer(self) -> tuple[dict[str, object], list[int]]:
        answer: asyncio.Future[tuple[dict[str, object], list[int]]] = self._loop.create_future()
        self._answers.append(answer)
        return await answer

    def _read(self) -> None:
        try:
            message, descriptors = messages.receive(self._connection)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, descriptors = None, []
        if message is None:
            self._connection_lost()
            self._process.poll()
            return
        answer = self._answers.popleft() if self._answers else None
        if answer is not None and not answer.done():
            answer.set_result((message, descriptors))
            return
        for fd in descriptors:
            os.close(fd)  # whoever asked was cancelled; the sandbox ends with its control socket

    def _connection_lost(self) -> None:
        if self.exited.done():
            return
        self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        while self._answers:
            answer = self._answers.popleft()
            if not answer.done():
                answer.set_exception(SandboxError(f"the zygote of {self.interpreter.runtime} has ended"))
        self.exited.set_result(None)
