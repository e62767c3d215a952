"""One runtime process as the agent holds it: its channel, its log pipe and its exit."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final, Protocol

from lambent_node_agent.environment import failures
from lambent_node_agent.environment.channel import RuntimeChannel
from lambent_node_agent.environment.turns import Allowance
from lambent_node_agent.logs.line_assembler import MAX_OUTPUT_BYTES

if TYPE_CHECKING:
    from lambent_node_agent.environment.model import RuntimeFailure
    from lambent_node_agent.environment.turns import Turns
    from lambent_node_agent.logs.environment_log import EnvironmentLog
    from lambent_node_agent.sandbox import ExitStatus, RuntimeProcess

# A drain ends even when somebody goes on printing: all that a pipe of the largest unprivileged size can hold.
_MAX_DRAINED_READS: Final = 16
# In 50 ms; beyond that the output is read by turns. Neither a flood, of which a read takes 64 KiB, nor one byte at a
# time may take the event loop from everybody else. By turns a function can still print 60 MB/s; its budget is 5.
_READS_A_WINDOW: Final = 64
# After the process has ended the rest of its answer is in the socket; a process that it left behind may hold the
# other end open for ever.
_LAST_WORDS_S: Final = 0.2
# How long a runtime that has closed its channel may take to end by itself.
_EXIT_AFTER_CLOSE_S: Final = 1.0


class LinkListener(Protocol):
    """Hears what happens to a runtime process; nothing any more once the link is closed."""

    def frame_received(self, kind: int, body: bytes) -> None:
        """A frame within the bound of its kind."""

    def result_too_large(self) -> None:
        """A RESULT over the limit was thrown away."""

    def stray_frame(self, kind: int) -> None:
        """A frame that does not belong to the invocation that was sent last is thrown away."""

    def runtime_failed(self, failure: RuntimeFailure) -> None:
        """The process exited, closed its channel, or broke the protocol. Told once."""


class RuntimeLink:
    """Owns the descriptors of a runtime process.

    Args:
        process: Its channel, log pipe and exit status; the descriptors belong to the link from now on.
        log: Takes what the process prints.
        listener: Hears the rest.
        turns: The line for what it brings over its allowance.
    """

    def __init__(self, process: RuntimeProcess, log: EnvironmentLog, listener: LinkListener, turns: Turns) -> None:
        self._process = process
        self._log = log
        self._listener: LinkListener | None = listener
        self._loop = asyncio.get_running_loop()
        self._log_fd = process.log_fd
        self._turns = turns
        self._channel = RuntimeChannel(self, turns)
        self._ended = False
        self._timer: asyncio.TimerHandle | None = None
        self._log_allowance = Allowance(_READS_A_WINDOW)

    async def open(self) -> None:
        """Begin to listen."""
        self._loop.add_reader(self._log_fd, self._log_readable)
        await self._loop.create_unix_connection(lambda: self._channel, sock=self._process.channel)
        self._process.exit_status.add_done_callback(self._exited)

    def send(self, frame: list[bytes], key: bytes) -> None:
        """Write an INVOKE frame to the runtime, given in pieces; frames with its key are heard from now on."""
        self._channel.send(frame, key)

    def pause(self) -> None:
        """Stop reading the channel."""
        self._channel.pause()

    def resume(self) -> None:
        """Read the channel again."""
        self._channel.resume()

    def drain_log(self) -> None:
        """Read what the process has printed so far, without waiting."""
        if self._log_fd < 0:
            return
        for _ in range(_MAX_DRAINED_READS):
            try:
                data = os.read(self._log_fd, MAX_OUTPUT_BYTES)
            except BlockingIOError:
                break
            if not data:
                break
            self._log.output(data)
        self._log.end_output()

    def silence(self) -> None:
        """Close the channel and hear nothing more; the output is still read."""
        self._listener = None
        self._channel.close()
        if self._timer is not None:
            self._timer.cancel()
        self._process.exit_status.remove_done_callback(self._exited)

    def close(self) -> None:
        """Read the last output and close everything."""
        self.silence()
        if self._log_fd >= 0:
            self.drain_log()
            self._loop.remove_reader(self._log_fd)
            os.close(self._log_fd)
            self._log_fd = -1

    # What the channel says

    def frame_received(self, kind: int, body: bytes) -> None:
        """Pass on a frame."""
        if self._listener is not None:
            self._listener.frame_received(kind, body)

    def result_too_large(self) -> None:
        """Pass it on."""
        if self._listener is not None:
            self._listener.result_too_large()

    def stray_frame(self, kind: int) -> None:
        """Pass it on."""
        if self._listener is not None:
            self._listener.stray_frame(kind)

    def protocol_violated(self, what: str) -> None:
        """Pass on that the runtime is to be killed."""
        self._failed(failures.violation_failure(what))

    def channel_ended(self) -> None:
        """Wait a little for the process to end too."""
        self._ended = True
        if self._process.exit_status.done():
            self._report_exit()
        elif self._timer is None:
            self._timer = self._loop.call_later(_EXIT_AFTER_CLOSE_S, self.protocol_violated, "it closed its channel")

    def _exited(self, _status: asyncio.Future[ExitStatus]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._ended:
            self._report_exit()
        else:
            self._timer = self._loop.call_later(_LAST_WORDS_S, self._report_exit)

    def _report_exit(self) -> None:
        status = self._process.exit_status.result()
        self._failed(failures.exit_failure(status.code, status.signal, oom_killed=status.oom_killed))

    def _failed(self, failure: RuntimeFailure) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.runtime_failed(failure)

    # What the log pipe says

    def _log_readable(self) -> None:
        if not self._log_allowance.left():
            self._loop.remove_reader(self._log_fd)
            self._turns.wait(self._take_log_turn)
            return
        self._log_allowance.spend()
        if self._read_log() == b"":
            self._loop.remove_reader(self._log_fd)

    def _take_log_turn(self) -> None:
        if self._log_fd < 0:
            return
        data = self._read_log()
        if data is None:  # the flood is over
            self._loop.add_reader(self._log_fd, self._log_readable)
        elif data:
            self._turns.wait(self._take_log_turn)

    def _read_log(self) -> bytes | None:
        """Pass on what one read gives: nothing when the pipe has no writer any more, None when nothing is there yet."""
        try:
            data = os.read(self._log_fd, MAX_OUTPUT_BYTES)
        except BlockingIOError:
            return None
        if data:
            self._log.output(data)
        return data
