"""The blocking client: an AsyncClient on an event loop in a thread of its own, and nothing more."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import queue
import threading
import weakref
from collections.abc import AsyncIterable, Sized
from typing import TYPE_CHECKING, Concatenate, Generic, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack, overload

from lambent.client import AsyncClient
from lambent.connection import client_closed
from lambent.errors import LambentError, UnavailableError
from lambent.functions import Functions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from lambent.endpoint import Endpoint
    from lambent.map_run import MapProgress
    from lambent.results import InvokeResult
    from lambent.stream import ResponseStream

_CLOSE_TIMEOUT_S = 10.0
"""Closing only cancels and says goodbye; a loop that takes longer is stuck."""

_CANCEL_TIMEOUT_S = 5.0
"""Ending a call sends one frame; a call that takes longer to end is left to itself."""

T = TypeVar("T")
P = ParamSpec("P")
InnerT = TypeVar("InnerT")


class _Running(Generic[T]):
    """A coroutine of the loop's, and the future that another thread waits for."""

    def __init__(self, coroutine: Coroutine[object, object, T], future: concurrent.futures.Future[T]) -> None:
        self._coroutine = coroutine
        self._future = future
        self._task: asyncio.Task[T] | None = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._future.done():
            self._coroutine.close()
            return
        self._task = loop.create_task(self._coroutine)
        self._task.add_done_callback(self._finish)

    def cancel(self) -> None:
        """On the loop: end it, whether or not it was handed over before the interrupt."""
        if self._task is not None:
            self._task.cancel()
        else:
            self.drop()

    def drop(self) -> None:
        """End what the loop has not got."""
        if self._task is None and not self._future.done():
            self._coroutine.close()
            self._future.set_exception(asyncio.CancelledError())

    def _finish(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self._future.set_exception(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(task.result())


class _Loop:
    """An event loop in a daemon thread. Closing it ends every call on it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        # Held while a call is handed over: none arrives behind the end, where nobody would answer it. Reentrant, since
        # the garbage collector may close a client anywhere.
        self._handing_over = threading.RLock()
        self._thread = threading.Thread(target=self._serve, name="lambent-client", daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """False once closed; then nothing can be run."""
        return not self._closed

    @property
    def is_here(self) -> bool:
        """Whether this is its own thread, which must not wait for it."""
        return threading.current_thread() is self._thread

    def run(self, coroutine: Coroutine[object, object, T]) -> T:
        """Run a coroutine there and wait for it here; an interrupt here cancels it there."""
        if self.is_here:
            coroutine.close()
            raise RuntimeError("the blocking client was called from its own event loop; use AsyncClient there")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        running = _Running(coroutine, future)
        try:
            self._hand_over(running.start, self._loop)
            return future.result()
        except asyncio.CancelledError as error:
            raise UnavailableError("this client was closed during the call", dispatched=True) from error
        except BaseException:
            # The call's own error, or an interrupt of this thread: then the call has to end before the next one.
            if not future.done():
                self._end(running, future)
            raise

    def _hand_over(self, callback: Callable[..., None], *arguments: object) -> None:
        with self._handing_over:
            if self._closed:
                raise client_closed()
            self._loop.call_soon_threadsafe(callback, *arguments)

    def _end(self, running: _Running[T], future: concurrent.futures.Future[T]) -> None:
        try:
            self._hand_over(running.cancel)
        except UnavailableError:
            running.drop()  # Closing ends what the loop has.
        concurrent.futures.wait((future,), _CANCEL_TIMEOUT_S)

    def shut_down(self, client: AsyncClient) -> None:
        """Close the client, fail what still runs, and end the thread.

        From any thread, any number of times, and at the interpreter's exit.
        """
        with self._handing_over:
            if self._closed:
                return
            self._closed = True
            self._loop.call_soon_threadsafe(self._begin_closing, client)
        if not self.is_here:  # The garbage collector may run anywhere.
            self._thread.join(_CLOSE_TIMEOUT_S)  # A daemon: one that is stuck does not keep the process.

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def _begin_closing(self, client: AsyncClient) -> None:
        self._closing = self._loop.create_task(self._close(client))
        self._closing.add_done_callback(lambda _: self._loop.stop())

    async def _close(self, client: AsyncClient) -> None:
        await client.close()
        # What does not wait for the connection: a call in back-off, a poll of a function's state.
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=_CANCEL_TIMEOUT_S)
        await self._loop.shutdown_asyncgens()


class _Wrapper(Generic[InnerT]):
    """Something asynchronous and the loop it lives on."""

    def __init__(self, inner: InnerT, loop: _Loop) -> None:
        self._inner = inner
        self._loop = loop


def _waiting(
    method: Callable[Concatenate[InnerT, P], Coroutine[object, object, T]],
) -> Callable[Concatenate[_Wrapper[InnerT], P], T]:
    """Make the blocking form of an asynchronous method: the same arguments, result, errors and documentation."""

    @functools.wraps(method)
    def call(self: _Wrapper[InnerT], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.run(method(self._inner, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[InnerT, P], AsyncIterator[T]],
) -> Callable[Concatenate[_Wrapper[InnerT], P], Iterator[T]]:
    """Make the blocking form of an asynchronous generator method."""

    @functools.wraps(method)
    def call(self: _Wrapper[InnerT], /, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        return _iterate(method(self._inner, *args, **kwargs), self._loop)

    return call


def _iterate(items: AsyncIterator[T], loop: _Loop) -> Iterator[T]:
    try:
        while True:
            item = loop.run(_next(items))
            if isinstance(item, _End):
                return
            yield item
    finally:
        close = getattr(items, "aclose", None)
        # The garbage collector may end it in the loop's own thread: then the loop itself closes what nobody holds.
        if close is not None and loop.running and not loop.is_here:
            loop.run(close())


class _End:
    """Stands for the end of an iteration, which cannot cross a future as StopAsyncIteration."""


_END = _End()


async def _next(items: AsyncIterator[T]) -> T | _End:
    return await anext(items, _END)


class BlockingFunctions(_Wrapper[Functions]):
    """The blocking form of `Functions`, method by method."""

    create = _waiting(Functions.create)
    get = _waiting(Functions.get)
    list = _iterating(Functions.list)
    update_code = _waiting(Functions.update_code)
    update_configuration = _waiting(Functions.update_configuration)
    delete = _waiting(Functions.delete)
    publish_version = _waiting(Functions.publish_version)
    list_versions = _iterating(Functions.list_versions)
    create_alias = _waiting(Functions.create_alias)
    get_alias = _waiting(Functions.get_alias)
    list_aliases = _iterating(Functions.list_aliases)
    update_alias = _waiting(Functions.update_alias)
    delete_alias = _waiting(Functions.delete_alias)
    rollback = _waiting(Functions.rollback)
    put_concurrency = _waiting(Functions.put_concurrency)
    get_concurrency = _waiting(Functions.get_concurrency)
    delete_concurrency = _waiting(Functions.delete_concurrency)
    wait_until_settled = _waiting(Functions.wait_until_settled)
    upload_code = _waiting(Functions.upload_code)


class BlockingStream:
    """The blocking form of `ResponseStream`: iterate it to the end, or close it to cancel the invocation."""

    def __init__(self, stream: ResponseStream, loop: _Loop) -> None:
        self._stream = stream
        self._loop = loop

    @property
    def result(self) -> InvokeResult | None:
        """The invocation's figures; None before the end."""
        return self._stream.result

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> bytes:
        item = self._loop.run(_next(self._stream))
        if isinstance(item, _End):
            raise StopIteration
        return item

    def close(self) -> None:
        """Stop reading; an invocation that still runs is cancelled."""
        if self._loop.running:
            self._loop.run(self._stream.aclose())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _streaming(
    method: Callable[Concatenate[AsyncClient, P], ResponseStream],
) -> Callable[Concatenate[_Wrapper[AsyncClient], P], BlockingStream]:
    @functools.wraps(method)
    def call(self: _Wrapper[AsyncClient], /, *args: P.args, **kwargs: P.kwargs) -> BlockingStream:
        return BlockingStream(method(self._inner, *args, **kwargs), self._loop)

    return call


class MapOptions(TypedDict, total=False):
    """Options of `map`, as `AsyncClient.map` describes them. `on_progress` is called on the client's thread."""

    concurrency: int
    ordered: bool
    on_progress: MapProgress | None
    qualifier: str
    timeout_s: float | None
    idempotent: bool


class Client(_Wrapper[AsyncClient]):
    """Talks to a Lambent cluster and blocks while it does. May be shared by threads.

    Arguments, results and errors are AsyncClient's. Close it, or use it as a context manager.
    """

    def __init__(
        self, endpoint: str = "", *, token: str = "", data_dir: Path | str | None = None, account: str = ""
    ) -> None:
        inner = AsyncClient(endpoint, token=token, data_dir=data_dir, account=account)
        super().__init__(inner, _Loop())
        self.functions = BlockingFunctions(inner.functions, self._loop)
        self._shut_down = weakref.finalize(self, self._loop.shut_down, inner)

    invoke = _waiting(AsyncClient.invoke)
    stream = _streaming(AsyncClient.stream)
    logs = _iterating(AsyncClient.logs)
    nodes = _iterating(AsyncClient.nodes)
    status = _waiting(AsyncClient.status)
    deploy = _waiting(AsyncClient.deploy)

    @property
    def endpoint(self) -> Endpoint:
        """The cluster that calls go to."""
        return self._inner.endpoint

    @overload
    def map(
        self,
        name: str,
        payloads: Iterable[object],
        *,
        return_errors: Literal[False] = False,
        **options: Unpack[MapOptions],
    ) -> Iterator[InvokeResult]: ...

    @overload
    def map(
        self, name: str, payloads: Iterable[object], *, return_errors: Literal[True], **options: Unpack[MapOptions]
    ) -> Iterator[InvokeResult | LambentError]: ...

    def map(
        self, name: str, payloads: Iterable[object], *, return_errors: bool = False, **options: Unpack[MapOptions]
    ) -> Iterator[InvokeResult | LambentError]:
        """Run a function once for each payload; see `AsyncClient.map`.

        Payloads without a length, such as a generator's, are taken in a thread of their own, so that they may block.
        """
        own_thread = None if isinstance(payloads, Sized) else _InThread(payloads)
        run = self._inner.map_run(name, own_thread or payloads, **options)
        self._loop.run(run.__aenter__())
        try:
            while batch := self._loop.run(run.next_batch()):
                for outcome in batch:
                    if isinstance(outcome, LambentError) and not return_errors:
                        raise outcome
                    yield outcome
        finally:
            if own_thread is not None:
                own_thread.close()
            if self._loop.running:
                self._loop.run(run.__aexit__(None, None, None))

    def close(self) -> None:
        """Close the connection and end the thread. Calls in flight fail; their functions finish."""
        self._shut_down()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _InThread(AsyncIterable[object]):
    """An iterable whose items are taken in a thread of its own, each when it is asked for.

    A daemon thread, not one of an executor: an iterable that blocks for ever must not keep the process from its end.
    """

    def __init__(self, items: Iterable[object]) -> None:
        self._items = items
        # One item is asked for at a time, so that at most one question and the word to end wait here.
        self._asked: queue.SimpleQueue[asyncio.Future[object] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> _InThread:
        return self

    async def __anext__(self) -> object:
        if self._thread is None:
            self._thread = threading.Thread(target=self._take, name="lambent-payloads", daemon=True)
            self._thread.start()
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asked.put(answer)
        if (item := await answer) is _END:
            raise StopAsyncIteration
        return item

    def close(self) -> None:
        """End the thread, once the iterable lets it go."""
        self._asked.put(None)

    def _take(self) -> None:
        items: Iterator[object] | None = None
        while (answer := self._asked.get()) is not None:
            give: Callable[[], None]
            try:
                items = iter(self._items) if items is None else items
                give = functools.partial(_resolve, answer, next(items, _END))
            except Exception as error:  # noqa: BLE001 - raised where the item was to be
                give = functools.partial(_reject, answer, error)
            except BaseException as error:  # noqa: BLE001 - as it is, it would end the event loop
                give = functools.partial(_reject, answer, RuntimeError(f"the payloads ended by {error!r}"))
            with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits any more.
                answer.get_loop().call_soon_threadsafe(give)


def _resolve(answer: asyncio.Future[object], item: object) -> None:
    if not answer.done():
        answer.set_result(item)


def _reject(answer: asyncio.Future[object], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
