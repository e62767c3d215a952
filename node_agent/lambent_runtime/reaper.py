"""PID 1 of a sandbox: starts and kills the runtime process, reaps what is left over, and nothing else.

It runs under the function's UID, but the function cannot harm it: PID 1 gets no signal from inside its namespace for
which it has no handler, and it is not dumpable, so that there is no ptrace. When it ends the kernel kills the whole
sandbox.

A runtime process is forked before it is asked for and waits for its order with all done that does not depend on it: the
fork and the first touch of its pages are most of a start.

Orders on the control socket: `start` (descriptors: channel, log pipe), `kill`. Events: `ready` once, `exit` of the
runtime process with its wait status, `killed` when nothing but the reaper is left. End of file is the order to exit.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket

from . import linux, messages

EXIT_FORK_FAILED = 71
"""Status reported for a runtime process that could not be forked: `EX_OSERR` of sysexits.h."""


class Reaper:
    """Serves the control socket until end of file.

    Args:
        control: Socket to the agent; owned from now on.
    """

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._runtime_pid = 0
        self._generation = 0  # of the order that the runtime process has; 0 while it waits for one
        self._orders: socket.socket | None = None  # to the runtime process that waits
        # No handler, or PID 1 would accept the signal; blocked, so that it is kept for the descriptor.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        self._children = linux.signal_descriptor({signal.SIGCHLD})

    def run(self) -> socket.socket:
        """Serve; returns only in a forked runtime process, with the socket on which its order comes."""
        messages.send(self._control, {"event": "ready"})
        orders = self._fork_runtime()
        if orders is not None:
            return orders
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._children, select.POLLIN)
        while True:
            for fd, _events in poll.poll():
                if fd == self._children:
                    self._take_signals()
                    self._reap(os.WNOHANG)
                else:
                    orders = self._serve_order()
                    if orders is not None:
                        return orders

    def _fork_runtime(self) -> socket.socket | None:
        """Fork a runtime process that waits for its order.

        Returns:
            The socket on which the order comes, in the child; None in the reaper.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()  # the pids limit, or no memory: the next start order tries again and reports
            theirs.close()
            return None
        if pid:
            theirs.close()
            self._orders, self._runtime_pid, self._generation = ours, pid, 0
            return None
        ours.close()
        self._control.close()
        os.close(self._children)
        return theirs

    def _take_signals(self) -> None:
        try:
            os.read(self._children, 4096)
        except BlockingIOError:
            return

    def _serve_order(self) -> socket.socket | None:
        """Serve one order; the result is as of `run`."""
        message, descriptors = messages.receive(self._control)
        if message is None:
            os._exit(0)  # the agent has closed the sandbox, or is gone
        if message["order"] == "kill":
            self._kill_all()
            return None
        if self._orders is None:
            orders = self._fork_runtime()
            if orders is not None:
                for fd in descriptors:
                    os.close(fd)  # they come again with the order
                return orders
        self._generation = int(str(message["generation"]))
        self._give_order(message, descriptors)
        return None

    def _give_order(self, message: dict[str, object], descriptors: list[int]) -> None:
        try:
            if self._orders is None:
                raise BrokenPipeError
            messages.send(self._orders, message, descriptors)
            self._orders.close()
            self._orders = None
        except OSError:
            # It could not be forked, or died while it waited: for the agent it has failed to start.
            self._forget_waiting()
            self._report_exit(EXIT_FORK_FAILED << 8)
        for fd in descriptors:
            os.close(fd)

    def _forget_waiting(self) -> None:
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all of this PID namespace but PID 1
        self._reap(0)
        messages.send(self._control, {"event": "killed"})

    def _reap(self, options: int) -> None:
        """Collect the dead: with WNOHANG those that there are, with 0 until there is no child left."""
        while True:
            try:
                pid, status = os.waitpid(-1, options)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self._runtime_pid:
                self._runtime_pid = 0
                self._forget_waiting()
                if self._generation:
                    self._report_exit(status)

    def _report_exit(self, status: int) -> None:
        self._runtime_pid = 0
        messages.send(self._control, {"event": "exit", "generation": self._generation, "status": status})
