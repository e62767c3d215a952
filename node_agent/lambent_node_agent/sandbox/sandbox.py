"""One sandbox, from the agent's side."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

from lambent_node_agent.cgroups import CgroupError
from lambent_node_agent.network import NO_NETWORK, NetworkError
from lambent_runtime import messages

from . import mounts
from .ephemeral_storage import DEFAULT_SIZE_MIB
from .errors import SandboxError, SlotLostError
from .runtime_process import ExitStatus, RuntimeProcess, is_end
from .slots import PLACES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from lambent_node_agent.network import NetworkChoice

    from .slots import Slot
    from .zygote_client import Zygote

SETUP_TIMEOUT_S = 10.0
"""For the recipe, which takes milliseconds; a machine this far behind cannot run functions."""
KILL_TIMEOUT_S = 5.0
"""For SIGKILL to end every process: one stuck in the kernel beyond that costs the sandbox."""
FORK_END_TIMEOUT_S = 5.0
"""For a fork that failed halfway to end, once its zygote has been killed; milliseconds as a rule."""
_MIB = 1 << 20


async def fork_into(slot: Slot, zygote: Zygote) -> tuple[socket.socket, int]:
    """Fork a process that sets itself up as the slot's sandbox.

    Returns:
        The control socket and a pidfd of its PID 1, for `Sandbox`.

    Raises:
        SandboxError: The kernel or the zygote refused, and no process is in the slot.
        SlotLostError: A process may still enter the slot.
    """
    with mounts.reported("control socket of a sandbox"):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    try:
        return ours, await _order_fork(slot, zygote, theirs)
    except BaseException:
        await _wait_until_nobody_has(ours)
        raise


async def _order_fork(slot: Slot, zygote: Zygote, control: socket.socket) -> int:
    given: list[int] = []
    try:
        with mounts.reported("places of a sandbox"):
            given += slot.copy_places()
        places = list(zip(given, PLACES.values(), strict=True))
        entrances = slot.group.open_entrances()
        given += entrances
        return await zygote.fork(slot.uid, control, slot.network.namespace, places, entrances)
    except CgroupError as error:
        raise SandboxError(str(error)) from error
    finally:
        control.close()
        for fd in given:
            os.close(fd)


async def _wait_until_nobody_has(control: socket.socket) -> None:
    """Wait until neither an order on its way nor a process holds the other end of a control socket; closes this one.

    The process of a fork that failed halfway reads end of file and exits.
    """
    loop = asyncio.get_running_loop()
    try:
        control.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(FORK_END_TIMEOUT_S):
            while await loop.sock_recv(control, messages.MAX_MESSAGE_BYTES):
                continue  # what the process says of itself before it reads the end
    except TimeoutError as error:
        raise SlotLostError(f"a fork has neither come nor failed after {FORK_END_TIMEOUT_S} s") from error
    except OSError:
        return  # reset: the other end was closed with something unread in it
    finally:
        control.close()


class Sandbox:
    """Namespaces, control groups and a reaper, in which runtime processes of one function run one after the other.

    Make it with `SandboxHost.create`; then `specialise` once, `start_runtime` as often as the one before has ended, and
    `close`. Methods are called from the event loop that made it, one at a time.

    Attributes:
        runtime: Name of the runtime it can start.
        started: Set when init of its first runtime is over, well or not, so that others may have its CPU.
        exited: Set when the reaper, and so everything in the sandbox, has ended. `close` is still due.
        out_of_memory: The kernel killed its runtime process for want of memory, and with it the reaper; known once it
            has `exited`.
    """

    def __init__(
        self,
        runtime: str,
        slot: Slot,
        control: socket.socket,
        process_fd: int,
        release: Callable[[Sandbox, Slot], Awaitable[None]],
    ) -> None:
        self.runtime = runtime
        self._loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = self._loop.create_future()
        self.exited: asyncio.Future[None] = self._loop.create_future()
        self.out_of_memory = False
        self._slot = slot
        self._control = control
        self._process_fd = process_fd
        self._release = release
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._killed: asyncio.Future[None] | None = None
        self._process: RuntimeProcess | None = None
        self._waiting: socket.socket | None = None  # to the first runtime process, until it has its order
        self._generation = 0  # runtime processes so far, the waiting one included
        self._oom_kills = 0
        self._cpu_millis = 0
        self._cpu_limited = False
        self._was_frozen = False
        self._closing: asyncio.Task[None] | None = None
        self._released = False
        self._sizing: asyncio.Future[None] | None = None
        self._loop.add_reader(control.fileno(), self._read)
        self._loop.add_reader(process_fd, self._reaper_ended)

    @property
    def sound(self) -> bool:
        """False when it has ended, or its /tmp cannot be written to."""
        return not self.exited.done() and self._slot.sound

    async def wait_until_ready(self) -> None:
        """Wait until the recipe is through; on failure the sandbox is closed.

        Raises:
            SandboxError: A step of the recipe failed, or all took too long.
        """
        try:
            async with asyncio.timeout(SETUP_TIMEOUT_S):
                await self._ready
        except TimeoutError as error:
            await self.close()
            raise SandboxError(f"the sandbox's recipe took more than {SETUP_TIMEOUT_S} s") from error
        except BaseException:
            await self.close()
            raise

    async def specialise(
        self,
        code_dir: Path,
        memory_mib: int,
        cpu_millis: int,
        ephemeral_storage_mib: int,
        network: NetworkChoice = NO_NETWORK,
    ) -> None:
        """Give the blank sandbox its function: code at `/var/task`, an empty `/tmp`, network, limits but the CPU quota.

        Args:
            code_dir: Unpacked code; shown read-only.
            memory_mib: Limit of all its processes together, swap excluded.
            cpu_millis: Share in thousandths of a CPU; its quota holds from `limit_cpu` on.
            ephemeral_storage_mib: Size of `/tmp`.
            network: Where its connections may go.

        Raises:
            SandboxError: The code or a named network is not there, or the kernel refused.
        """
        self._require_life()
        self._cpu_millis = cpu_millis
        with mounts.reported("late binding"):
            self._slot.bind_code(code_dir)
            if ephemeral_storage_mib != DEFAULT_SIZE_MIB:
                self._sizing = self._loop.run_in_executor(None, self._slot.set_storage_size, ephemeral_storage_mib)
                await asyncio.shield(self._sizing)
                self._require_life()
        try:
            self._slot.group.limit_memory(memory_mib)
            self._slot.group.share_cpu(cpu_millis)
            await self._slot.connect(network)
        except (CgroupError, NetworkError) as error:
            raise SandboxError(str(error)) from error

    async def start_runtime(self, handler: str, environment: Mapping[str, str]) -> RuntimeProcess:
        """Start a runtime process; it loads the handler and says READY or INIT_ERROR on its channel.

        Args:
            handler: `module.function`, as configured.
            environment: All of the process's environment variables.

        Raises:
            SandboxError: The sandbox has ended, or the process before still runs.
        """
        self._require_life()
        if self._process is not None and not self._process.exit_status.done():
            raise SandboxError("a runtime process still runs in this sandbox")
        self._oom_kills = self._slot.group.oom_kills()
        ours, theirs, log_fd, write_fd = _open_channel()
        os.set_blocking(log_fd, False)
        ours.setblocking(False)
        order: dict[str, object] = {
            "order": "start",
            "handler": handler,
            "environment": dict(environment),
        }
        try:
            self._order_start(order, [theirs.fileno(), write_fd])
        except (OSError, ValueError) as error:
            ours.close()
            os.close(log_fd)
            raise SandboxError(f"order to start a runtime: {error}") from error
        finally:
            theirs.close()
            os.close(write_fd)
        self._process = RuntimeProcess(ours, log_fd, self._loop.create_future())
        return self._process

    def _order_start(self, order: dict[str, object], descriptors: list[int]) -> None:
        """Give the order to the process that waits for it; otherwise the reaper forks another."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            with waiting, contextlib.suppress(ConnectionError):  # it has died while it waited
                messages.send(waiting, order, descriptors)
                return
        messages.send(self._control, order, descriptors)
        self._generation += 1  # the reaper counts as well

    def end_start(self) -> None:
        """Say that init is over: its runtime has said READY. Its first invocation and its end tell that as well."""
        if not self.started.done():
            self.started.set_result(None)

    async def kill_runtime(self) -> None:
        """Kill every process but the reaper and wait until they are gone; the sandbox and `/tmp` stay.

        The CPU quota is lifted meanwhile: those who are to die may have used it up.

        Raises:
            SandboxError: The sandbox has ended, a process would not die, or the kernel refused.
        """
        self._require_life()
        self.end_start()
        if self._killed is None:
            if self._cpu_limited:
                self._set_cpu_quota(None)
            self._killed = self._loop.create_future()
            try:
                messages.send(self._control, {"order": "kill"})
            except OSError as error:
                self._killed = None
                raise SandboxError(f"order to the reaper: {error}") from error
        try:
            async with asyncio.timeout(KILL_TIMEOUT_S):
                await asyncio.shield(self._killed)
        except TimeoutError as error:
            raise SandboxError(f"a process of the sandbox is alive {KILL_TIMEOUT_S} s after SIGKILL") from error
        if self._cpu_limited and not self.exited.done():  # a sandbox that has ended may have given its groups back
            self._set_cpu_quota(self._cpu_millis)

    def limit_cpu(self) -> None:
        """Put the CPU quota in force, from the first invocation on; init runs at full speed, as on AWS.

        Raises:
            SandboxError: The kernel refused.
        """
        self.end_start()
        self._set_cpu_quota(self._cpu_millis)
        self._cpu_limited = True

    def _set_cpu_quota(self, cpu_millis: int | None) -> None:
        try:
            self._slot.group.limit_cpu(cpu_millis)
        except CgroupError as error:
            raise SandboxError(str(error)) from error

    async def freeze(self) -> None:
        """Stop every process in the sandbox, the reaper too: what is sent to them waits until `thaw`.

        Nothing of them is lost, but an end that they came to just before is told only then. Returns before the last one
        has stopped.

        Raises:
            SandboxError: The sandbox has ended, or the kernel refused.
        """
        self._require_life()
        self._was_frozen = True
        await self._order(self._slot.group.freeze())

    async def thaw(self) -> None:
        """Let the processes run again, if they do not. Raises as `freeze`, but not when the sandbox is being closed."""
        if self._was_frozen and self._closing is None:
            await self._order(self._slot.group.thaw())

    @staticmethod
    async def _order(done: Future[None]) -> None:
        try:
            await asyncio.wrap_future(done)
        except CgroupError as error:
            raise SandboxError(str(error)) from error

    def reclaim_memory(self, limit_bytes: int) -> int:
        """Have the kernel take back memory that can be read again; blocks, and may be called from any thread.

        Args:
            limit_bytes: See `Group.reclaim_memory`, as for the result.

        Raises:
            CgroupError: The kernel refused, or the sandbox has ended.
        """
        return self._slot.group.reclaim_memory(limit_bytes)

    def peak_memory_mib(self) -> int:
        """Return the most memory that the sandbox has used at once, rounded up; one read of an open descriptor."""
        return -(-self._slot.group.peak_memory_bytes() // _MIB)

    async def close(self) -> None:
        """Kill everything, take the mounts away and give the slot back.

        Goes on to its end when the caller is cancelled. After a SandboxError it may be called again, once the sandbox
        has `exited` after all.

        Raises:
            SandboxError: A process will not die, or the slot cannot be cleaned; the slot is not used again.
        """
        if self._closing is None or (self._closing.done() and self._closing.exception() is not None):
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._released:
            return
        if not self.exited.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._process_fd, signal.SIGKILL)
        if self._was_frozen:
            # What was killed while it was frozen dies of it now; and the next sandbox of these groups is to run.
            await self._order(self._slot.group.thaw())
        if not self.exited.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_TIMEOUT_S):
                    await asyncio.shield(self.exited)
        if not self.exited.done():
            raise SandboxError(f"the sandbox is alive {KILL_TIMEOUT_S} s after SIGKILL; its slot is not used again")
        if self._sizing is not None:
            await asyncio.wait([self._sizing])  # it would give its size to the slot's next sandbox
        self._released = True  # whether or not its slot can be cleaned
        await self._release(self, self._slot)

    def _require_life(self) -> None:
        if self.exited.done() or self._closing is not None:
            raise SandboxError("the sandbox has ended")

    def _read(self) -> None:
        """Take one event of the reaper's."""
        try:
            message, descriptors = messages.receive(self._control)
        except BlockingIOError:
            return
        except (OSError, ValueError):
            message, descriptors = None, []
        if descriptors and message == {"event": "ready"} and not self._ready.done():
            self._waiting, self._generation = socket.socket(fileno=descriptors.pop()), 1
            self._waiting.setblocking(False)
        for fd in descriptors:
            os.close(fd)
        if message is None:
            self._loop.remove_reader(self._control.fileno())  # the process's own end follows
            return
        match message:
            case {"event": "ready"} if not self._ready.done():
                self._ready.set_result(None)
            case {"event": "failed", "error": str(text)} if not self._ready.done():
                self._ready.set_exception(SandboxError(text))
            case {"event": "exit", "generation": int(generation), "status": int(status)} if (
                generation == self._generation and is_end(status)
            ):
                self._settle(status)
            case {"event": "killed"} if self._killed is not None:
                self._killed.set_result(None)
                self._killed = None

    def _settle(self, status: int) -> None:
        """The runtime process has ended."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None
        if self._process is None or self._process.exit_status.done():
            return
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        oom_killed = killed and self._slot.group.oom_kills() > self._oom_kills
        self._process.exit_status.set_result(ExitStatus.from_wait_status(status, oom_killed=oom_killed))

    def _reaper_ended(self) -> None:
        """PID 1 is gone, so everything in its namespace is."""
        self._read_rest()
        self._loop.remove_reader(self._process_fd)
        self._loop.remove_reader(self._control.fileno())
        os.close(self._process_fd)
        self._control.close()
        self.end_start()
        self.exited.set_result(None)
        error = SandboxError("the sandbox has ended")
        if not self._ready.done():
            self._ready.set_exception(error)
        if self._killed is not None:
            self._killed.set_result(None)
            self._killed = None
        self._settle(signal.SIGKILL)
        self.out_of_memory = self._process is not None and self._process.exit_status.result().oom_killed

    def _read_rest(self) -> None:
        """Take the events that the reaper sent before it ended; at most a few fit between two turns of the loop."""
        for _ in range(8):
            self._read()


def _open_channel() -> tuple[socket.socket, socket.socket, int, int]:
    """Return both ends of a channel and of a log pipe."""
    with mounts.reported("channel of a runtime"):
        ours, theirs = socket.socketpair()
        try:
            return (ours, theirs, *os.pipe2(os.O_CLOEXEC))
        except OSError:
            ours.close()
            theirs.close()
            raise
