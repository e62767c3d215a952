"""Every error that we raise arrives at the caller as itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest

from lambent import errors
from lambent.rpc_errors import from_frame, from_rpc_error, to_frame
from lambent_common.grpc_server import GrpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CLASSES = sorted(errors.service_error_classes(), key=lambda cls: cls.aws_name)
_TOKEN = "secret"
_METADATA = (("authorization", f"Bearer {_TOKEN}"),)


async def _raise(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
    del context
    if request == b"defect":
        raise RuntimeError("not meant for callers")
    raise errors.service_error(request.decode(), "what and why", dispatched=True, details={"Reason": "x"})


@pytest.fixture
async def call() -> AsyncIterator[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]]:
    server = GrpcServer(token=_TOKEN, services=())
    handler = grpc.unary_unary_rpc_method_handler(_raise)
    server.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Errors", {"Raise": handler}),))
    port = await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.unary_unary("/test.Errors/Raise")
    await server.stop(0)


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
async def test_an_error_crosses_a_channel_as_its_own_class(
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], cls: type[errors.ServiceError]
) -> None:
    """A caller can catch what the server raised, and reads whether the function may have run."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(cls.aws_name.encode(), metadata=_METADATA)
    error = from_rpc_error(raised.value)
    assert type(error) is cls
    assert raised.value.code() is cls.status
    assert (error.message, error.dispatched, error.details) == ("what and why", True, {"Reason": "x"})


@pytest.mark.parametrize("cls", _CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_crosses_a_stream_as_its_own_class(cls: type[errors.ServiceError]) -> None:
    """A call on a session fails with the same class as a unary call."""
    error = from_frame(to_frame(cls("what and why", details={"Reason": "x"})))
    assert type(error) is cls
    assert (error.message, error.dispatched, error.details) == ("what and why", False, {"Reason": "x"})


def test_aws_names_are_unique() -> None:
    """A class is found by its name alone, so two must not share one."""
    names = [cls.aws_name for cls in _CLASSES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("metadata", [(), (("authorization", "Bearer wrong"),)], ids=["no token", "wrong token"])
async def test_a_call_without_the_token_is_refused(
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes], metadata: tuple[tuple[str, str], ...]
) -> None:
    """Loopback is not authentication: every local user can reach the port."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"ServiceException", metadata=metadata)
    error = from_rpc_error(raised.value)
    assert isinstance(error, errors.UnauthenticatedError)
    assert not error.dispatched


async def test_a_defect_becomes_an_internal_error_without_its_text(
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes],
) -> None:
    """Callers learn that it was our fault, not what was in our variables."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(b"defect", metadata=_METADATA)
    error = from_rpc_error(raised.value)
    assert isinstance(error, errors.InternalError)
    assert "not meant for callers" not in error.message
