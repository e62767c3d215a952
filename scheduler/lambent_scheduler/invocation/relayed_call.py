"""One invocation on its way through the scheduler: a caller on one side, a node on the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from lambent.errors import InvalidRequestContentError, RequestTooLargeError
from lambent.framing import GRANT_AT_BYTES, INITIAL_CREDIT_BYTES, MAX_FRAME_BYTES, MAX_PAYLOAD_BYTES, Body
from lambent.v1 import frame_pb2, node_pb2

if TYPE_CHECKING:
    from lambent.v1 import invocation_pb2
    from lambent_scheduler.core.call import Call
    from lambent_scheduler.invocation.node_link import NodeLink


class Reply(Protocol):
    """The caller's side of a call: where its answer goes. A caller that is gone drops what it is given."""

    def data(self, call: RelayedCall, payload: bytes) -> None:
        """Pass on a piece of the answer; `call.answer_sent` is to be told when it has left."""

    def end(self, end: frame_pb2.End) -> None:
        """Pass on the outcome; nothing follows."""

    def window(self, credit_bytes: int) -> None:
        """Let the caller send more of the payload."""

    def discard(self) -> None:
        """Drop the pieces that have not left yet; `answer_sent` is not told of them."""


class EndOnly:
    """The reply of a caller who no longer wants the answer, and waits for the outcome alone."""

    __slots__ = ("_reply",)

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def data(self, call: RelayedCall, payload: bytes) -> None:
        """Drop it, and let the node go on."""
        call.answer_sent(len(payload))

    def end(self, end: frame_pb2.End) -> None:
        """Pass it on."""
        self._reply.end(end)

    def window(self, credit_bytes: int) -> None:
        """Nobody sends more."""

    def discard(self) -> None:
        """Nothing is kept."""


class _Gone:
    """The reply of a caller that has left."""

    def data(self, call: RelayedCall, payload: bytes) -> None:
        """Drop it, and let the node go on."""
        call.answer_sent(len(payload))

    def end(self, end: frame_pb2.End) -> None:
        """Drop it."""

    def window(self, credit_bytes: int) -> None:
        """Nobody sends more."""

    def discard(self) -> None:
        """Nothing is kept."""


GONE: Reply = _Gone()


class RelayedCall:
    """What the scheduler holds of a call between its opening and its END.

    The payload is held here until an environment is bound, never more than its first piece and its credit; then it
    flows to the node.

    Attributes:
        invoked_arn: ARN as the caller named the function, with the qualifier if there was one.
        answer_taken_bytes: How much of the answer in pieces has left for the caller.
        looked_at: The relay's note: `answer_taken_bytes`, and since when it is so much.
    """

    __slots__ = (
        "_answer_credit",
        "_body",
        "_complete",
        "_epoch",
        "_payload_credit",
        "_pieces",
        "_received_bytes",
        "_unread_bytes",
        "answer_taken_bytes",
        "call",
        "invoked_arn",
        "link",
        "looked_at",
        "node_call_id",
        "opening",
        "reply",
    )

    _epoch: int

    def __init__(self, opening: invocation_pb2.InvocationOpen, reply: Reply, invoked_arn: str) -> None:
        self.opening = opening
        self.reply = reply
        self.invoked_arn = invoked_arn
        self.call: Call | None = None
        self.link: NodeLink | None = None
        self.node_call_id = 0
        self._pieces: list[bytes] = []
        self._received_bytes = len(opening.payload)
        self._complete = opening.complete
        self._body: Body[node_pb2.NodeOrder] | None = None
        self._payload_credit = 0
        self._answer_credit = 0
        self._unread_bytes = 0
        self.answer_taken_bytes = 0
        self.looked_at: tuple[int, float] | None = None

    @property
    def held_bytes(self) -> int:
        """Payload bytes that this call may hold while it waits."""
        return self._received_bytes if self._complete else 2 * MAX_FRAME_BYTES + INITIAL_CREDIT_BYTES

    @property
    def payload_complete(self) -> bool:
        """True once the caller has sent the whole payload."""
        return self._complete

    @property
    def waits_for_caller(self) -> bool:
        """True while the caller has more of the payload to send, or pieces of the answer to take."""
        return (not self._complete or self._unread_bytes > 0) and not isinstance(self.reply, EndOnly | _Gone)

    @property
    def can_be_sent_again(self) -> bool:
        """True while all that was sent to a node is still here, and the caller has not cancelled."""
        return self.opening.complete and not isinstance(self.reply, EndOnly)

    # ---- payload: caller to node

    def payload_piece(self, payload: bytes) -> None:
        """Take a further piece of the payload.

        Raises:
            RequestTooLargeError: The payload is over 6 MiB.
            InvalidRequestContentError: The payload had already ended, or its sender exceeded the credit.
        """
        # Credit is given anew for what has left alone, so that nobody who keeps to it has more under way.
        if self._take(payload) > INITIAL_CREDIT_BYTES:
            raise InvalidRequestContentError("the payload was sent faster than its credit allows")

    def payload_end(self, payload: bytes) -> None:
        """Take the end of the payload, with its last piece, which needs no credit. Raises as `payload_piece`."""
        if len(payload) > MAX_FRAME_BYTES:
            raise RequestTooLargeError(f"the end of a payload holds at most {MAX_FRAME_BYTES} bytes")
        self._take(payload)
        self._complete = True
        if self._body is not None:
            self._body.finish(self._end_order())

    def bind(self, link: NodeLink, node_call_id: int, epoch: int, order: node_pb2.NodeOrder) -> None:
        """Send the opening to the node that runs the call, and let the payload follow under the same epoch."""
        self.link = link
        self.node_call_id = node_call_id
        self._epoch = epoch
        link.writer.send(order, len(self.opening.payload))
        if self.opening.complete:
            return
        self._body = Body(link.writer, self._data_order, self._payload_sent)
        for piece in self._pieces:
            self._body.push(piece)
        self._pieces = []
        if self._complete:
            self._body.finish(self._end_order())

    def _take(self, payload: bytes) -> int:
        """Keep or pass on a piece; gives the bytes behind the opening that have not left for a node."""
        if self._complete:
            raise InvalidRequestContentError("a frame of payload came after the end of the payload")
        self._received_bytes += len(payload)
        if self._received_bytes > MAX_PAYLOAD_BYTES:
            raise RequestTooLargeError(
                f"Request must be smaller than {MAX_PAYLOAD_BYTES} bytes for the InvokeFunction operation"
            )
        if self._body is not None:
            self._body.push(payload)
            return self._body.buffered_bytes
        self._pieces.append(payload)
        return self._received_bytes - len(self.opening.payload)

    def unbind(self) -> None:
        """The node gave the call back: it waits again. Only while it can be sent again."""
        self.link = None

    def payload_granted(self, credit_bytes: int) -> None:
        """The node can take more of the payload."""
        if self._body is not None:
            self._body.grant(credit_bytes)

    def close(self) -> None:
        """The call has ended: send nothing more of the payload."""
        if self._body is not None:
            self._body.abandon()

    def cancel(self) -> None:
        """Tell the node that the caller no longer wants the call."""
        if self.link is not None:
            self.close()
            order = self._order()
            order.cancel.SetInParent()
            self.link.writer.send(order)

    # ---- answer: node to caller

    def answer_piece(self, payload: bytes) -> None:
        """Take a piece of the answer."""
        self._unread_bytes += len(payload)
        self.reply.data(self, payload)

    def answer_sent(self, size: int) -> None:
        """A piece of the answer has left for the caller: give the node credit for more."""
        self._unread_bytes -= size
        self.answer_taken_bytes += size
        self._answer_credit += size
        if self._answer_credit >= GRANT_AT_BYTES:
            self._grant_answer()

    def drop_answer(self, reply: Reply) -> None:
        """Send no more of the answer to the caller; what comes goes to `reply`.

        The node gets all its credit back, that of what is dropped here too: its END stands behind the answer.
        """
        self.reply.discard()
        self.reply = reply
        self._answer_credit += self._unread_bytes
        self._unread_bytes = 0
        if self._answer_credit:
            self._grant_answer()

    def _grant_answer(self) -> None:
        if self.link is not None:
            order = self._order()
            order.window.credit_bytes = self._answer_credit
            self.link.writer.send(order)
            self._answer_credit = 0

    # ---- orders of this call

    def _payload_sent(self, size: int) -> None:
        self._payload_credit += size
        if self._payload_credit >= GRANT_AT_BYTES:
            self.reply.window(self._payload_credit)
            self._payload_credit = 0

    def _data_order(self, piece: bytes) -> node_pb2.NodeOrder:
        order = self._order()
        order.data.payload = piece
        return order

    def _end_order(self) -> node_pb2.NodeOrder:
        order = self._order()
        order.end.SetInParent()
        return order

    def _order(self) -> node_pb2.NodeOrder:
        """Give an order of this call to fill in: docs/adr/0002 says what protobuf's constructors cost."""
        assert self.call is not None
        return node_pb2.NodeOrder(
            call_id=self.node_call_id, partition=self.call.spec.partition, owner_epoch=self._epoch
        )
