"""The service behind our gRPC server: the client stream of an upload, and errors that arrive as what they were."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc.aio
import pytest
from tests.functions.cluster import Cluster, zipped

from lambent.errors import (
    FunctionNotFoundError,
    InvalidCodeError,
    InvalidParameterError,
    ResourceConflictError,
    UnavailableError,
)
from lambent.rpc_errors import from_rpc_error
from lambent.v1 import function_pb2 as pb
from lambent.v1 import function_pb2_grpc
from lambent_common.grpc_server import GrpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def chunks(data: bytes, size: int) -> AsyncIterator[pb.UploadCodeRequest]:
    for offset in range(0, len(data), size):
        yield pb.UploadCodeRequest(chunk=data[offset : offset + size])


async def test_function_is_deployed_over_grpc(lambent: Cluster) -> None:
    """Upload in pieces, create, and each refusal with its class and exact message on the caller's side."""
    account = lambent.account()
    server = GrpcServer(token="secret", services=["lambent.v1.FunctionService"])
    function_pb2_grpc.add_FunctionServiceServicer_to_server(lambent.service, server.server)
    port = await server.start("127.0.0.1:0")
    metadata = (("authorization", "Bearer secret"),)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = function_pb2_grpc.FunctionServiceStub(channel)
            uploaded = await stub.UploadCode(chunks(zipped(), 7), metadata=metadata)
            request = pb.CreateFunctionRequest(
                account=account, function_name="f", runtime="python3.11", handler="app.handler"
            )
            request.code_sha256 = uploaded.code_sha256
            created = await stub.CreateFunction(request, metadata=metadata)
            assert created.function.code_size_bytes == len(zipped())
            named = pb.GetFunctionRequest(account=account, function_name="missing")
            long = pb.GetFunctionRequest(account=account, function_name="ä" * 100_000)
            for call, kind, text in (
                (stub.CreateFunction(request, metadata=metadata), ResourceConflictError, "Function already exist: f"),
                (stub.GetFunction(named, metadata=metadata), FunctionNotFoundError, "Function not found: arn:aws:"),
                (stub.UploadCode(chunks(b"nonsense", 3), metadata=metadata), InvalidCodeError, "Could not unzip"),
                (stub.GetFunction(long, metadata=metadata), InvalidParameterError, "2 validation errors detected"),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await call
                rebuilt = from_rpc_error(error.value)
                assert type(rebuilt) is kind
                assert rebuilt.message.startswith(text)
    finally:
        await server.stop(0)


async def test_an_upload_is_refused_at_once_while_nats_is_away(lambent: Cluster) -> None:
    """Nobody sends a package only to be told that it cannot be kept."""
    asked = False

    async def pieces() -> AsyncIterator[pb.UploadCodeRequest]:
        nonlocal asked
        asked = True
        yield pb.UploadCodeRequest(chunk=zipped())

    await lambent.nats_server.kill()
    try:
        async with asyncio.timeout(10):
            with pytest.raises(UnavailableError, match="the package store is away: NATS does not answer within 3 s"):
                await lambent.service.UploadCode(pieces(), None)
        assert not asked
    finally:
        await lambent.nats_server.start()
        await lambent.scheduler.packages.check_available(timeout_s=20)
