"""Calls that wait for an environment: how many may, until when, and whose turn it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.errors import NoCapacityError
from lambent_scheduler.core.heaps import LazyHeap

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from lambent_scheduler.core.call import Call
    from lambent_scheduler.core.concurrency import FunctionState
    from lambent_scheduler.core.headroom import Shape
    from lambent_scheduler.core.limits import Limits
    from lambent_scheduler.core.version_state import VersionState

_LEAST_HOLD_S = 1.0
"""How often it is looked at whether an environment is still being made for a call that would else have to go."""


class WaitingRoom:
    """All calls that wait, bounded in number and bytes, per function and in all.

    Attributes:
        calls: Calls that wait.
        payload_bytes: Their payloads.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_expiry: LazyHeap[Call] = LazyHeap(self.expiry)
        self.calls = 0
        self.payload_bytes = 0

    def expiry(self, call: Call) -> float:
        """Give the time at which the call has waited long enough."""
        return min(call.deadline, max(call.arrived + self._limits.max_queue_wait_s, call.held_until))

    def refusal(self, call: Call, function: FunctionState) -> NoCapacityError | None:
        """Give the reason why one more call may not wait, or None when it may."""
        limits = self._limits
        size = call.payload_bytes
        if function.waiting >= limits.waiting_calls_per_function:
            what = f"{function.waiting} calls of function {function.function_name} wait already"
        elif function.waiting_bytes + size > limits.waiting_bytes_per_function:
            what = f"{function.waiting_bytes} bytes of payload of function {function.function_name} wait already"
        elif self.calls >= limits.waiting_calls:
            what = f"{self.calls} calls wait already"
        elif self.payload_bytes + size > limits.waiting_bytes:
            what = f"{self.payload_bytes} bytes of payload wait already"
        else:
            return None
        return NoCapacityError(f"{what}; try again later, or add nodes")

    def add(self, call: Call, version: VersionState) -> None:
        """Let a call wait; after `refusal` gave None."""
        function = version.function
        call.waiting = True
        version.waiting[call] = None
        function.waiting += 1
        function.waiting_bytes += call.payload_bytes
        self.calls += 1
        self.payload_bytes += call.payload_bytes
        self._by_expiry.add(call)

    def add_first(self, call: Call, version: VersionState) -> None:
        """Let a call wait before all others, since it had its turn. No bound refuses it: it was admitted already."""
        self.add(call, version)
        version.waiting.move_to_end(call, last=False)

    def remove(self, call: Call, version: VersionState) -> None:
        """Take a call out, whether it is served or has given up."""
        function = version.function
        call.waiting = False
        del version.waiting[call]
        function.waiting -= 1
        function.waiting_bytes -= call.payload_bytes
        self.calls -= 1
        self.payload_bytes -= call.payload_bytes
        self._by_expiry.discard(call)

    def hold(self, call: Call, now: float) -> None:
        """Let a call wait on for the environment that is being made for it; then it is looked at again."""
        call.held_until = now + max(self._limits.max_queue_wait_s, _LEAST_HOLD_S)

    def take(self, version: VersionState) -> Call:
        """Take out the call of a version that has waited longest. There must be one."""
        call = next(iter(version.waiting))
        self.remove(call, version)
        return call

    def next_expiry(self) -> float | None:
        """Give the time at which the next call has waited long enough, or None when none waits."""
        call = self._by_expiry.first()
        return None if call is None else self.expiry(call)

    def expired(self, now: float) -> Iterator[Call]:
        """Give the calls that have waited long enough; each must be removed or held before the next is asked for."""
        while (call := self._by_expiry.first()) is not None and self.expiry(call) <= now:
            yield call


DemandClass = tuple["Shape", int]
"""Shape and memory in MiB: what one version of a class cannot get, no other can."""


def demand_class(version: VersionState) -> DemandClass:
    """Give the class of a version."""
    return (version.request.shape, version.request.memory_mib)


def _ticket(version: VersionState) -> float:
    return version.function.ticket


class MemoryLine:
    """Versions whose calls wait for memory that no node has, in round robin over their functions.

    A function that has got an environment goes behind all others. Versions are kept by class, so that a look at the
    first of each class finds every one that could be served, and the cost does not grow with the number of functions.
    """

    def __init__(self) -> None:
        self._classes: dict[DemandClass, LazyHeap[VersionState]] = {}
        self._tickets = 0
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def add(self, version: VersionState) -> None:
        """Put a version in line, if it is not in it: behind all, unless its function stands there already."""
        if version.queued:
            return
        function = version.function
        if not function.queued:
            self.served(function)
        self.restore(version)

    def restore(self, version: VersionState) -> None:
        """Put a version back where it stood."""
        version.queued = True
        version.function.queued += 1
        self._length += 1
        line = self._classes.get(demand_class(version))
        if line is None:
            line = self._classes[demand_class(version)] = LazyHeap(_ticket)
        line.add(version)

    def discard(self, version: VersionState) -> None:
        """Take a version out, if it is in line."""
        if not version.queued:
            return
        version.queued = False
        version.function.queued -= 1
        self._length -= 1
        line = self._classes[demand_class(version)]
        line.discard(version)
        if not line:
            del self._classes[demand_class(version)]

    def served(self, function: FunctionState) -> None:
        """Send a function behind all others."""
        self._tickets += 1
        function.ticket = self._tickets

    def first(self, passed: Collection[DemandClass] = ()) -> VersionState | None:
        """Give the version whose turn it is, of the classes not in `passed`; None when there is none."""
        best: VersionState | None = None
        for key, line in self._classes.items():
            if key in passed:
                continue
            version = line.first()
            if version is not None and (best is None or version.function.ticket < best.function.ticket):
                best = version
        return best

    def heads(self) -> list[VersionState]:
        """Give the first of each class, in order of turn."""
        heads = [version for line in self._classes.values() if (version := line.first()) is not None]
        return sorted(heads, key=_ticket)
