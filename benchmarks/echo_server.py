"""The floor for invocations: a unary echo on `grpc.aio`, in a process of its own. Prints its port."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio

METHOD = "/lambent.benchmark.Echo/Echo"


async def _echo(request: bytes, context: object) -> bytes:
    del context
    return request


async def _serve() -> None:
    server = grpc.aio.server()
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_echo)
    service, _, method = METHOD.strip("/").partition("/")
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
