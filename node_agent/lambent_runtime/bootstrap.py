"""The runtime process: loads the handler, then answers invocations one at a time until the channel closes."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.machinery
import inspect
import io
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NoReturn

from . import handler as handlers
from . import linux, log_format, messages, snapshot_hooks
from .channel import (
    HEADER,
    MAX_CHUNK_BYTES,
    MAX_RESULT_BYTES,
    BlockingChannel,
    InvokeHeader,
    Kind,
    ProtocolError,
    decode_invoke,
    encode_invoke,
    encode_ready,
)
from .context import FunctionFacts, LambdaContext
from .faults import ErrorReport, FaultError
from .plan import Plan, Register
from .rehearsal import rehearse_while_idle

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterator

EXIT_INIT_ERROR = 1
"""AWS's Python runtime exits with 1 after an init error."""
EXIT_CHANNEL_LOST = 1
"""The function closed or took the channel: for the caller, an exit with an error."""

DEFAULT_TIME_ZONE = ":UTC"
"""AWS Lambda's `TZ`; the zygote has set it, so that only another one has to be."""
_OOM_SCORE = b"1000"
_PLAIN = frozenset((type(None), bool, int, float, str, list, dict, bytes))
"""Types of results that are neither generators nor awaitable, told apart without looking closer."""


_WARM_UPS = 20
"""CPython 3.11 adapts code to what it meets at the eighth run, other versions sooner."""

_current = log_format.CurrentRequest()
_ordinary = Plan()


def prepare() -> None:
    """Do, in the zygote, all that is the same in every runtime process, and leave to the fork what is not.

    It also runs what forks will run, for the interpreter to adapt the code before it is shared: a page that a fork
    writes to is copied for it.
    """
    _prepare_ordinary()
    _open_streams()
    log_format.install(_current)
    header = InvokeHeader("00000000-0000-0000-0000-000000000000", 0, "")
    [frame] = encode_invoke(header, json.dumps({"warm": [1, 2.5, None, "up"]}).encode())
    for _ in range(_WARM_UPS):
        header, event = decode_invoke(frame[HEADER.size :])
        encode_result(parse_event(event))
        LambdaContext(header, FunctionFacts()).get_remaining_time_in_millis()
        compile("import os\ndef handler(event, context):\n    return {'a': f'{event}'}\n", "warm", "exec")
        importlib.machinery.PathFinder.find_spec("warm", [handlers.TASK_ROOT])
    # The importer of the code's directory stays; what it has seen there goes.
    finder = sys.path_importer_cache[handlers.TASK_ROOT]
    assert isinstance(finder, importlib.machinery.FileFinder)
    finder.invalidate_caches()


def run(orders: socket.SocketType) -> None:
    """Run as the runtime process; returns when the agent has closed the channel.

    Args:
        orders: Where the reaper sends what to run: `handler`, `environment`, and the descriptors of channel and log
        pipe.

    Raises:
        SystemExit: Init failed, the channel is gone, or the function's code asked for it.
    """
    _become_ordinary()
    rehearse_while_idle(orders, _serve)
    message, descriptors = messages.receive(orders)
    if message is None:
        return  # the sandbox ends
    orders.close()
    _serve(message, descriptors)


def _serve(message: dict[str, object], descriptors: list[int]) -> None:
    """Start the function that an order names, and serve until its channel is closed."""
    channel_fd, log_fd = descriptors
    environment, name = message["environment"], str(message["handler"])
    assert isinstance(environment, dict)
    _redirect_output(log_fd)
    _configure(name, environment)
    channel = BlockingChannel(socket.SocketType(fileno=channel_fd))
    snap_start = environment.get("AWS_LAMBDA_INITIALIZATION_TYPE") == snapshot_hooks.SNAP_START
    began_ns = time.monotonic_ns()
    try:
        function = handlers.load_handler(name)
        if snap_start:
            snapshot_hooks.run_before_snapshot()
    except Exception as error:  # noqa: BLE001 - importing a module runs the function's code, which may raise anything
        _refuse(channel, error)
    _flush()
    try:
        channel.send(Kind.READY, encode_ready((time.monotonic_ns() - began_ns) // 1000))
        if snap_start and not _restore(channel):
            return
        Server(channel, function, _current).serve()
    except (OSError, ProtocolError):
        sys.exit(EXIT_CHANNEL_LOST)


def _restore(channel: BlockingChannel) -> bool:
    """Wait until the first call has come, and run the hooks that stand before it; False when none will come."""
    if not channel.receive_restore():
        return False
    try:
        snapshot_hooks.run_after_restore()
    except Exception as error:  # noqa: BLE001 - as above
        _refuse(channel, error)
    _flush()
    channel.send(Kind.RESTORED)
    return True


def _refuse(channel: BlockingChannel, error: Exception) -> NoReturn:
    """Report that init, or the restore, failed, and exit."""
    report = ErrorReport.of(error)
    _write_log(report.to_log_line())
    _flush()
    with contextlib.suppress(OSError):  # the module closed the channel before it raised
        channel.send(Kind.INIT_ERROR, report.to_json())
    sys.exit(EXIT_INIT_ERROR)


def _become_ordinary() -> None:
    """Undo what the zygote and the reaper have set for themselves."""
    _ordinary.carry_out()
    threading.main_thread()._set_native_id()  # type: ignore[attr-defined] # noqa: SLF001 - as `os.fork` has it done
    gc.enable()


def _prepare_ordinary() -> None:
    call = _ordinary.add
    call("setsid")
    # The function's own process may be traced by its children and has its /proc files for itself, as anywhere.
    call("prctl", linux.PR_SET_DUMPABLE, 1, 0, 0, 0)
    call("sigprocmask", signal.SIG_SETMASK, bytes(128), None)
    call("setpriority", os.PRIO_PROCESS, 0, 0)
    call("sigaction", signal.SIGINT, linux.signal_action(signal.SIGINT), None)
    call("prctl", linux.PR_SET_NAME, b"python%d.%d" % sys.version_info[:2], 0, 0, 0)
    # The kernel is to kill the function before its reaper, and before anything else of the machine.
    victim = Register()
    call("open", b"/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, result=victim)
    call("write", victim, _OOM_SCORE, len(_OOM_SCORE))
    call("close", victim)


def _configure(handler: str, environment: dict[str, str]) -> None:
    """Apply the function's configuration."""
    for name in list(os.environ):
        del os.environ[name]
    for name, value in environment.items():
        os.environ[name] = value
    if environment.get("TZ", DEFAULT_TIME_ZONE) != DEFAULT_TIME_ZONE:
        time.tzset()
    os.chdir(handlers.TASK_ROOT)
    sys.argv = ["/var/runtime/bootstrap", handler]
    sys.path[:] = handlers.search_path(sys.path, environment.get("PYTHONPATH"))
    handlers.forget_shadowed(handlers.TASK_ROOT)
    log_format.configure(environment.get("AWS_LAMBDA_LOG_FORMAT"), environment.get("AWS_LAMBDA_LOG_LEVEL"))
    random.seed()  # every environment of a zygote would draw the same numbers


def _open_streams() -> None:
    """Give Python streams for descriptors 0 to 2, whatever those will be."""
    sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, "r", closefd=False)), encoding="utf-8")
    sys.stdout = sys.__stdout__ = _open_text(1)  # type: ignore[misc] # final in typeshed
    sys.stderr = sys.__stderr__ = _open_text(2)  # type: ignore[misc] # as above


def _redirect_output(log_fd: int) -> None:
    """Make the log pipe the standard output and error."""
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)


def _open_text(fd: int) -> io.TextIOWrapper:
    raw = io.BufferedWriter(io.FileIO(fd, "w", closefd=False))
    return io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)


class Server:
    """Answers invocations with one handler.

    Args:
        channel: To the agent.
        function: The handler.
        current: Told the request id of each invocation.
    """

    def __init__(
        self, channel: BlockingChannel, function: Callable[[Any, Any], object], current: log_format.CurrentRequest
    ) -> None:
        self._channel = channel
        self._function = function
        self._current = current
        self._facts = FunctionFacts()
        self._trace_id = ""
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    def serve(self) -> None:
        """Serve until the agent closes the channel.

        Raises:
            OSError: The channel is gone.
            ProtocolError: Something else than the agent wrote to it.
        """
        while True:
            invocation = self._channel.receive_invoke()
            if invocation is None:
                return
            header, event = invocation
            self._current.request_id = header.request_id
            if header.trace_id != self._trace_id:
                self._set_trace_id(header.trace_id)
            self._answer(header, event)

    def _set_trace_id(self, trace_id: str) -> None:
        self._trace_id = trace_id
        if trace_id:
            os.environ["_X_AMZN_TRACE_ID"] = trace_id
        else:
            os.environ.pop("_X_AMZN_TRACE_ID", None)

    def _answer(self, header: InvokeHeader, event: memoryview) -> None:
        """Run the handler once and send its answer."""
        try:
            result = self._function(parse_event(event), LambdaContext(header, self._facts))
            chunks = None if type(result) in _PLAIN else self._chunks_of(result)
            if chunks is None:
                if type(result) not in _PLAIN and inspect.isawaitable(result):
                    result = self._run(result)
                kind, body = Kind.RESULT, encode_result(result)
            elif header.streaming:
                kind, body = self._stream(chunks), b""
            else:
                kind, body = Kind.RESULT, _join(chunks)
        except ChannelLostError:
            raise
        except TooLargeError:
            kind, body = Kind.TOO_LARGE, b""
        except StreamFailedError as failure:
            kind, body = Kind.STREAM_ERROR, self._report(failure.error, header)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - a handler may raise anything
            kind, body = Kind.ERROR, self._report(error, header)
        self._finish(kind, body)

    def _stream(self, chunks: Iterator[bytes]) -> Kind:
        try:
            for chunk in chunks:
                self._leave_if_forked()
                self._send_chunk(chunk)
        except ChannelLostError:
            raise
        except (Exception, asyncio.CancelledError) as error:
            raise StreamFailedError(error) from error
        return Kind.STREAM_END

    def _send_chunk(self, chunk: bytes) -> None:
        for start in range(0, len(chunk), MAX_CHUNK_BYTES):
            try:
                self._channel.send(Kind.CHUNK, chunk[start : start + MAX_CHUNK_BYTES])
            except OSError as error:
                raise ChannelLostError(*error.args) from error

    def _report(self, error: BaseException, header: InvokeHeader) -> bytes:
        report = ErrorReport.of(error, header.request_id)
        _write_log(report.to_log_line())
        return report.to_json()

    def _finish(self, kind: Kind, body: bytes) -> None:
        self._leave_if_forked()
        _flush()
        self._channel.send(kind, body)

    def _leave_if_forked(self) -> None:
        """A child that the handler forked and that ran on into our code has no answer to give."""
        if os.getpid() != self._pid:
            _flush()
            os._exit(0)

    def _chunks_of(self, result: object) -> Iterator[bytes] | None:
        """Return what a generator handler yields, as bytes; None when the handler is none."""
        if inspect.isgenerator(result):
            return _encode_chunks(result)
        if inspect.isasyncgen(result):
            return _encode_chunks(self._iterate(result))
        return None

    def _iterate(self, generator: AsyncIterator[object]) -> Generator[object, None, None]:
        while True:
            try:
                yield self._run(generator.__anext__())
            except StopAsyncIteration:
                return

    def _run(self, awaitable: Any) -> object:
        """Run an awaitable on this environment's loop, which lives on between invocations as its clients do."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        return self._loop.run_until_complete(_await(awaitable))


class TooLargeError(Exception):
    """The answer is larger than a response may be; the agent says so to the caller, in AWS's words."""


class StreamFailedError(Exception):
    """The handler raised after its answer had become a stream; `error` is what it raised."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(str(type(error)))
        self.error = error


class ChannelLostError(OSError):
    """The channel failed while an answer was sent, as opposed to an OSError of the handler."""


async def _await(awaitable: Any) -> object:
    return await awaitable


def parse_event(event: memoryview) -> object:
    """Return the event as the handler gets it, and let go of its bytes; none at all are an empty object, as on AWS.

    Raises:
        FaultError: It is not JSON, in UTF-8 as RFC 8259 has it.
    """
    if not event:
        return {}
    try:
        with event:
            text = str(event, "utf-8")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultError("Runtime.UnmarshalError", f"Unable to unmarshal input: {error}") from error


def encode_result(result: object) -> bytes:
    """Return a handler's result as JSON; bytes go as they are, as with AWS's Python runtime.

    Raises:
        FaultError: It cannot be JSON.
        TooLargeError: It is larger than a response may be.
    """
    if isinstance(result, bytes):
        body = result
    else:
        try:
            body = _ENCODER.encode(result).encode("utf-8")
        except Exception as error:
            raise FaultError("Runtime.MarshalError", f"Unable to marshal response: {error}") from error
    _check_size(len(body))
    return body


def _encode_unusual(value: object) -> object:
    if isinstance(value, Decimal):
        return float(value) if value != value.to_integral_value() else int(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


_ENCODER = json.JSONEncoder(default=_encode_unusual, ensure_ascii=False)


def _check_size(size: int) -> None:
    if size > MAX_RESULT_BYTES:
        raise TooLargeError


def _encode_chunks(values: Iterator[object]) -> Iterator[bytes]:
    for value in values:
        if isinstance(value, str):
            yield value.encode("utf-8", "surrogatepass")
        elif isinstance(value, (bytes, bytearray, memoryview)):
            yield bytes(value)
        else:
            message = f"Unable to marshal response: a generator handler yields bytes or str, not {type(value).__name__}"
            raise FaultError("Runtime.MarshalError", message)


def _join(chunks: Iterator[bytes]) -> bytes:
    """Buffer a streamed answer for a caller who wants it whole."""
    body = bytearray()
    for chunk in chunks:
        body += chunk
        _check_size(len(body))
    return bytes(body)


def _write_log(text: str) -> None:
    """Write to the log, whatever the function has done to its standard streams."""
    try:
        sys.stdout.write(text)
    except Exception:  # noqa: BLE001 - `sys.stdout` may be the function's own object, or closed
        return


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # noqa: BLE001, S112 - as in _write_log
            continue
