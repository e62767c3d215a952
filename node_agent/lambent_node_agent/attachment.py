"""One scheduler's stream, as the node sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lambent.framing import FrameWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from lambent.v1 import node_pb2
    from lambent_node_agent.environment.call import Call


class Attachment:
    """A scheduler that is attached: its calls in flight and the writer of its events.

    Args:
        scheduler_id: Identity of the scheduler instance.
        write: Sends a batch of events as one message.
    """

    def __init__(self, scheduler_id: str, write: Callable[[list[node_pb2.NodeEvent]], Awaitable[None]]) -> None:
        self.scheduler_id = scheduler_id
        self.calls: dict[int, Call] = {}
        self.writer: FrameWriter[node_pb2.NodeEvent] = FrameWriter(write, lambda: len(self.calls))
        self.lost = False

    def forget(self, call: Call) -> None:
        """The END of a call has left, so that its id may be used again."""
        self.calls.pop(call.call_id, None)

    def send(self, event: node_pb2.NodeEvent) -> None:
        """Put an event that belongs to no call into the outgoing batch."""
        self.writer.send(event)

    def abandon(self) -> None:
        """The stream is gone: calls go on, their answers are dropped."""
        self.lost = True
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.abandon()
