"""PID 1 of a sandbox: starts and kills the runtime process, reaps what is left over, and nothing else.

It runs under the function's UID, but the function cannot harm it: PID 1 gets no signal from inside its namespace for
which it has no handler, and it is not dumpable, so that there is no ptrace. When it ends the kernel kills the whole
sandbox.

The first runtime process is forked before it is asked for and waits for its order with all done that does not depend on
it: the fork and the first touch of its pages are most of a start. The agent gives it the order itself, on a socket that
comes with `ready`: a reaper that passed it on would be woken for that alone, and touch its own pages first.

Orders on the control socket: `start` (descriptors: channel, log pipe) of a further runtime process, which gets it as it
is, and `kill`. Events: `ready` once (descriptor: the first runtime process's socket, unless it could not be forked),
`exit` of the n-th runtime process with its wait status, `killed` when nothing but the reaper is left. End of file is
the order to exit.

Little is done here in Python, and nothing in much of it: see `plan`, what a page costs that a forked process writes to.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import signal
from _socket import socketpair  # the classes of `socket` do more than is needed here
from socket import AF_UNIX, CMSG_SPACE, MSG_CMSG_CLOEXEC, SCM_RIGHTS, SOCK_SEQPACKET, SOL_SOCKET, SocketType

from . import linux, messages

EXIT_FORK_FAILED = 71
"""Status reported for a runtime process that could not be forked: `EX_OSERR` of sysexits.h."""

_READY = messages.pack({"event": "ready"})
_KILL = messages.pack({"order": "kill"})
_KILLED = messages.pack({"event": "killed"})
_EXIT = b'{"event": "exit", "generation": %d, "status": %d}'
_SPACE = CMSG_SPACE(messages.MAX_DESCRIPTORS * array.array("i").itemsize)


class Reaper:
    """Serves the control socket until end of file.

    Args:
        control: Descriptor of the socket to the agent; owned from now on.
        children: Descriptor that is readable while a child has ended; owned from now on.
    """

    def __init__(self, control: int, children: int) -> None:
        self._control = SocketType(fileno=control)
        self._runtime_pid = 0
        self._generation = 0  # runtime processes so far
        self._orders: SocketType | None = None  # to the runtime process that has just been forked
        self._children = children

    def run(self) -> SocketType:
        """Serve; returns only in a forked runtime process, with the socket on which its order comes."""
        orders = self._fork_runtime()
        if orders is not None:
            return orders
        self._tell_ready()
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

    def _fork_runtime(self) -> SocketType | None:
        """Fork a runtime process that waits for its order.

        Returns:
            The socket on which the order comes, in the child; None in the reaper.
        """
        ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
        try:
            pid = linux.fork()
        except OSError:
            ours.close()  # the pids limit, or no memory: the next start order tries again and reports
            theirs.close()
            return None
        if pid:
            theirs.close()
            self._orders, self._runtime_pid = ours, pid
            return None
        ours.close()
        self._control.close()
        os.close(self._children)
        return theirs

    def _tell_ready(self) -> None:
        if self._orders is None:
            self._control.send(_READY)
            return
        self._generation = 1
        descriptors = array.array("i", [self._orders.fileno()])
        self._control.sendmsg([_READY], [(SOL_SOCKET, SCM_RIGHTS, descriptors)])
        self._orders.close()
        self._orders = None

    def _take_signals(self) -> None:
        try:
            os.read(self._children, 4096)
        except BlockingIOError:
            return

    def _serve_order(self) -> SocketType | None:
        """Serve one order; the result is as of `run`."""
        order, attached, _flags, _address = self._control.recvmsg(messages.MAX_MESSAGE_BYTES, _SPACE, MSG_CMSG_CLOEXEC)
        if not order:
            os._exit(0)  # the agent has closed the sandbox, or is gone
        if order == _KILL:
            self._kill_all()
            return None
        descriptors = array.array("i")
        for _level, _kind, data in attached:
            descriptors.frombytes(data)
        self._generation += 1
        orders = self._fork_runtime()
        if orders is not None:
            for fd in descriptors:
                os.close(fd)  # they come again with the order
            return orders
        self._give_order(order, descriptors)
        for fd in descriptors:
            os.close(fd)
        return None

    def _give_order(self, order: bytes, descriptors: array.array[int]) -> None:
        try:
            if self._orders is None:
                raise BrokenPipeError
            self._orders.sendmsg([order], [(SOL_SOCKET, SCM_RIGHTS, descriptors)])
        except OSError:
            # It could not be forked, or died at once: for the agent it has failed to start.
            self._report_exit(EXIT_FORK_FAILED << 8)
        if self._orders is not None:
            self._orders.close()
            self._orders = None

    def _kill_all(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)  # all of this PID namespace but PID 1
        self._reap(0)
        self._control.send(_KILLED)

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
                self._report_exit(status)

    def _report_exit(self, status: int) -> None:
        self._runtime_pid = 0
        self._control.send(_EXIT % (self._generation, status))
