"""The Python runtime behaves as AWS's does, seen from the agent's side of the channel."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re

import pytest
from tests.sandbox_harness import ARN, REQUEST_ID, Function, Lab

from lambent_runtime.bootstrap import parse_event
from lambent_runtime.channel import MAX_ERROR_BYTES, MAX_RESULT_BYTES, Kind
from lambent_runtime.faults import FaultError

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "def handler(event, context):\n    return event\n"


async def collect(function: Function, event: object = None) -> tuple[list[bytes], Kind, bytes]:
    """Invoke for streaming; return chunks, kind and body of the last frame."""
    await function.send(event, streaming=True)
    chunks: list[bytes] = []
    while True:
        kind, body = await function.frame()
        if kind is not Kind.CHUNK:
            return chunks, kind, body
        chunks.append(body)


@pytest.mark.parametrize("event", [None, 1, "ü\u2028\x00", [1, {"a": None}], {"x": 1.5}, True])
async def test_an_event_comes_back_as_it_was_sent(world: Lab, event: object) -> None:
    """JSON in, JSON out."""
    async with world.function(ECHO) as function:
        assert await function.invoke(event) == event


async def test_large_events_use_the_same_memory_again(world: Lab) -> None:
    """Memory that went back to the kernel after each event would be faulted in anew for the next, page by page."""
    code = """
import resource
def handler(event, context):
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
"""
    async with world.function(code) as function:
        faults = [await function.invoke("x" * 6_000_000) for _ in range(4)]
    assert isinstance(faults[3], int)
    assert isinstance(faults[2], int)
    assert faults[3] - faults[2] < 6_000_000 // 4096


@pytest.mark.parametrize("event", [b"[1]", b"\xff", b"["])
async def test_the_bytes_of_an_event_are_let_go(event: bytes) -> None:
    """Six mebibytes of JSON are not kept beside what they say, or for the next invocation when they say nothing."""
    view = memoryview(event)
    with contextlib.suppress(FaultError):
        parse_event(view)
    with pytest.raises(ValueError, match="released"):
        view.tobytes()


async def test_no_event_is_an_empty_object(world: Lab) -> None:
    """AWS hands `{}` to the handler when the caller sent nothing."""
    async with world.function(ECHO) as function:
        assert await function.invoke(b"") == {}


async def test_bytes_go_out_as_they_are(world: Lab) -> None:
    """As AWS's Python runtime interface client does."""
    async with world.function("def handler(event, context):\n    return b'\\xffraw'\n") as function:
        await function.send()
        assert await function.frame() == (Kind.RESULT, b"\xffraw")


async def test_decimals_are_numbers(world: Lab) -> None:
    """Handlers return what they read from databases."""
    code = "from decimal import Decimal\ndef handler(event, context):\n    return [Decimal('1.5'), Decimal(3)]\n"
    async with world.function(code) as function:
        assert await function.invoke() == [1.5, 3]


async def test_the_context_has_the_attributes_of_aws(world: Lab) -> None:
    """Existing functions read them."""
    code = """
def handler(event, context):
    names = ("function_name", "function_version", "invoked_function_arn", "memory_limit_in_mb", "aws_request_id",
             "log_group_name", "log_stream_name")
    left = context.get_remaining_time_in_millis()
    return {**{name: getattr(context, name) for name in names}, "left": left,
            "identity": context.identity.cognito_identity_id, "custom": context.client_context.custom,
            "title": context.client_context.client.app_title}
"""
    environment = {
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
        "AWS_LAMBDA_LOG_GROUP_NAME": "/aws/lambda/f",
        "AWS_LAMBDA_LOG_STREAM_NAME": "2024/01/01/[$LATEST]0",
    }
    async with world.function(code, environment=environment) as function:
        context = '{"custom": {"k": "v"}, "client": {"app_title": "t"}}'
        seen = await function.invoke(client_context=context)
    assert 0 < seen.pop("left") <= 3000
    assert seen == {
        "function_name": "f",
        "function_version": "$LATEST",
        "invoked_function_arn": ARN,
        "memory_limit_in_mb": "128",
        "aws_request_id": REQUEST_ID,
        "log_group_name": "/aws/lambda/f",
        "log_stream_name": "2024/01/01/[$LATEST]0",
        "identity": None,
        "custom": {"k": "v"},
        "title": "t",
    }


async def test_the_environment_is_what_was_configured_and_nothing_else(world: Lab) -> None:
    """The agent's own variables hold paths and secrets of the node."""
    code = "import os\ndef handler(event, context):\n    return dict(os.environ)\n"
    async with world.function(code, environment={"A": "1", "TZ": ":UTC"}) as function:
        assert await function.invoke() == {"A": "1", "TZ": ":UTC"}
        assert await function.invoke(trace_id="Root=1-2-3") == {
            "A": "1",
            "TZ": ":UTC",
            "_X_AMZN_TRACE_ID": "Root=1-2-3",
        }
        assert await function.invoke() == {"A": "1", "TZ": ":UTC"}


async def test_a_time_zone_is_applied(world: Lab) -> None:
    """`TZ` counts only once the C library has been told."""
    code = "import time\ndef handler(event, context):\n    return time.strftime('%H', time.localtime(0))\n"
    async with world.function(code, environment={"TZ": "Asia/Tokyo"}) as function:
        assert await function.invoke() == "09"


async def test_a_raising_handler_gives_type_message_and_its_own_frames(world: Lab) -> None:
    """The exact payload of AWS, so that clients can rebuild the exception."""
    code = "def handler(event, context):\n    raise ValueError('Handler fails')\n"
    async with world.function(code) as function:
        assert await function.fail() == {
            "errorMessage": "Handler fails",
            "errorType": "ValueError",
            "requestId": REQUEST_ID,
            "stackTrace": [
                "  File \"/var/task/handler.py\", line 2, in handler\n    raise ValueError('Handler fails')\n"
            ],
        }
        line = (
            '[ERROR] ValueError: Handler fails\rTraceback (most recent call last):\r\xa0\xa0File "/var/task/handler.py"'
        )
        assert function.output().startswith(line)
        assert (await function.fail())["errorType"] == "ValueError"  # the environment lives on


@pytest.mark.parametrize(
    "code", ["async def handler(event, context):\n    {}\n", "def handler(event, context):\n    {}\n    yield 1\n"]
)
async def test_coroutines_and_generators_show_no_frame_of_ours(world: Lab, code: str) -> None:
    """A remote stack trace is read by the function's author."""
    async with world.function(code.format("raise KeyError('k')")) as function:
        failure = await function.fail()
    assert failure["errorType"] == "KeyError"
    assert [line.split('"')[1] for line in failure["stackTrace"]] == ["/var/task/handler.py"]


async def test_coroutine_handlers_share_one_loop(world: Lab) -> None:
    """Clients kept in globals belong to the loop that they were made on."""
    code = """
import asyncio
loops = []
async def handler(event, context):
    await asyncio.sleep(0)
    loops.append(id(asyncio.get_running_loop()))
    return len(set(loops))
"""
    async with world.function(code) as function:
        assert [await function.invoke() for _ in range(3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("code", "handler", "error_type", "message"),
    [
        (ECHO, "nodots", "Runtime.MalformedHandlerName", "Bad handler 'nodots'"),
        (
            ECHO,
            "missing.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'missing': No module named 'missing'",
        ),
        (ECHO, "handler.absent", "Runtime.HandlerNotFound", "Handler 'absent' missing on module 'handler'"),
        (ECHO, "sys.exit", "Runtime.BuiltInModuleConflict", "Cannot use built-in module sys as a handler module"),
        ("import nothing_there\n", "handler.handler", "Runtime.ImportModuleError", "Unable to import module 'handler'"),
        ("def handler(:\n", "handler.handler", "Runtime.UserCodeSyntaxError", "Syntax error in module 'handler'"),
    ],
)
async def test_a_bad_handler_fails_init_with_the_type_of_aws(
    world: Lab, code: str, handler: str, error_type: str, message: str
) -> None:
    """Each mistake has its own name, which people search for."""
    error, output, status = await world.init_error(code, handler)
    assert error["errorType"] == error_type
    assert error["errorMessage"].startswith(message)
    assert error["requestId"] == ""
    assert output.startswith(f"[ERROR] {error_type}: {message}")
    assert status == 1


async def test_a_module_that_raises_fails_init_with_its_own_error(world: Lab) -> None:
    """The stack trace starts in the function's module, without the import machinery."""
    error, _output, status = await world.init_error("def f():\n    raise RuntimeError('no')\nf()\n")
    assert (error["errorType"], error["errorMessage"], status) == ("RuntimeError", "no", 1)
    assert [line.split(",")[1] for line in error["stackTrace"]] == [" line 3", " line 2"]


async def test_handlers_in_packages_are_found_by_path_or_dots(world: Lab) -> None:
    """AWS accepts both spellings."""
    code = {"pkg/sub/mod.py": "def f(event, context):\n    return __name__\n"}
    for handler in ("pkg/sub/mod.f", "pkg.sub.mod.f"):
        async with world.function(code, handler=handler) as function:
            assert await function.invoke() == "pkg.sub.mod"


async def test_a_module_of_the_function_comes_before_the_standard_library(world: Lab) -> None:
    """The zygote has loaded `queue` already; on AWS the function's own `queue.py` wins."""
    code = {"queue.py": "MARK = 'mine'\n", "handler.py": "import queue\ndef handler(e, c):\n    return queue.MARK\n"}
    async with world.function(code) as function:
        assert await function.invoke() == "mine"


@pytest.mark.parametrize(
    ("name", "module"), [("queue/__init__.py", "queue"), ("asyncio.py", "asyncio"), ("email/__init__.py", "email")]
)
async def test_a_package_of_the_function_comes_before_the_standard_library(world: Lab, name: str, module: str) -> None:
    """Whatever its form: a file or a folder that Python imports."""
    handler = f"import {module}\ndef handler(e, c):\n    return {module}.MARK\n"
    async with world.function({name: "MARK = 'mine'\n", "handler.py": handler}) as function:
        assert await function.invoke() == "mine"


@pytest.mark.parametrize("name", ["asyncio.md", "asyncio/note.txt", "asyncio.py.orig", "asyncio.data.csv"])
async def test_files_that_are_no_module_replace_none(world: Lab, name: str) -> None:
    """A second copy of asyncio has another CancelledError than the one that the runtime answers for."""
    code = "import asyncio\nasync def handler(event, context):\n    raise asyncio.CancelledError('gone')\n"
    async with world.function({name: "", "handler.py": code}) as function:
        assert (await function.fail())["errorType"] == "CancelledError"


@pytest.mark.parametrize(
    "value", ["object()", "{1, 2}", "{(1, 2): 3}", "[b'x']", "float", "(lambda x: x.append(x) or x)([])"]
)
async def test_a_result_that_is_no_json_is_a_marshal_error(world: Lab, value: str) -> None:
    """The function's fault, told as such."""
    async with world.function(f"def handler(event, context):\n    return {value}\n") as function:
        failure = await function.fail()
    assert failure["errorType"] == "Runtime.MarshalError"
    assert failure["errorMessage"].startswith("Unable to marshal response: ")
    assert failure["stackTrace"] == []


@pytest.mark.parametrize("event", [b"{", b"\xff\xfe\xfd", b"[" * 100_000])
async def test_an_event_that_is_no_json_is_an_unmarshal_error(world: Lab, event: bytes) -> None:
    """The payload is opaque up to here."""
    async with world.function(ECHO) as function:
        assert (await function.fail(event))["errorType"] == "Runtime.UnmarshalError"
        assert await function.invoke(1) == 1


async def test_a_result_up_to_the_bound_arrives_and_one_byte_more_is_refused(world: Lab) -> None:
    """6,291,556 bytes, as AWS checks; the environment stays."""
    code = "def handler(event, context):\n    return 'x' * (event - 2)\n"
    async with world.function(code) as function:
        assert len(await function.invoke(MAX_RESULT_BYTES)) == MAX_RESULT_BYTES - 2
        await function.send(MAX_RESULT_BYTES + 1)
        assert await function.frame() == (Kind.TOO_LARGE, b"")
        assert await function.invoke(3) == "x"


async def test_a_huge_error_is_cut_with_a_mark(world: Lab) -> None:
    """An error travels in one frame; nobody reads a thousand equal lines."""
    code = """
def deeper(n):
    return still_deeper(n + 1)
def still_deeper(n):
    return deeper(n + 1)
def handler(event, context):
    if event:
        raise ValueError("\\x00" * 10_000_000)
    deeper(0)
"""
    async with world.function(code) as function:
        await function.send(1)
        kind, body = await function.frame()
        assert kind is Kind.ERROR
        assert len(body) <= MAX_ERROR_BYTES
        assert "more characters left out]" in json.loads(body)["errorMessage"]
        assert any("frames left out" in line for line in (await function.fail(0))["stackTrace"])


async def test_an_exception_without_a_text_is_reported(world: Lab) -> None:
    """`__str__` is the function's code too."""
    code = """
class Odd(Exception):
    def __str__(self):
        raise RuntimeError
def handler(event, context):
    raise Odd
"""
    async with world.function(code) as function:
        assert (await function.fail())["errorMessage"] == "<Odd whose text cannot be made: RuntimeError>"


@pytest.mark.parametrize(
    ("statement", "code"), [("sys.exit(0)", 0), ("sys.exit(3)", 3), ("exit(4)", 4), ("os._exit(5)", 5)]
)
async def test_an_exit_in_the_handler_ends_the_process(world: Lab, statement: str, code: int) -> None:
    """AWS reports Runtime.ExitError with the status; no answer comes."""
    text = f"import atexit, os, sys\natexit.register(print, 'bye')\ndef handler(event, context):\n    {statement}\n"
    async with world.function(text) as function:
        await function.send()
        assert (await function.process.exit_status).code == code
        with pytest.raises(EOFError):
            await function.frame()
        assert ("bye" in function.output()) == (statement != "os._exit(5)")


async def test_a_signal_ends_the_process(world: Lab) -> None:
    """A crash of an extension module is told from an exit."""
    code = "import os, signal\ndef handler(event, context):\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    async with world.function(code) as function:
        await function.send()
        assert (await function.process.exit_status).signal == 11


async def test_output_is_complete_before_the_answer(world: Lab) -> None:
    """All that a handler printed stands before its END line."""
    code = """
import sys
def handler(event, context):
    print("out", end="")
    print("err", end="", file=sys.stderr)
    sys.stdout.buffer.write(b"\\xffraw")
"""
    async with world.function(code) as function:
        await function.send()
        await function.frame()
        assert pieces_of(function) == {"out", "err", "raw"}


def pieces_of(function: Function) -> set[str]:
    """Return which of the expected pieces have arrived."""
    data = os.read(function.process.log_fd, 4096)
    return {piece for piece in ("out", "err", "raw") if piece.encode() in data}


async def test_log_records_have_the_format_of_aws(world: Lab) -> None:
    """`[INFO]`, time, request id and message, tab-separated; tools split them."""
    code = """
import logging
logging.getLogger().setLevel("INFO")
logging.info("init")
def handler(event, context):
    logging.info("hello %s", event)
    logging.debug("hidden")
"""
    async with world.function(code) as function:
        await function.invoke(7)
        lines = function.output().splitlines()
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"
    assert re.fullmatch(rf"\[INFO\]\t{stamp}\t\tinit", lines[0])
    assert re.fullmatch(rf"\[INFO\]\t{stamp}\t{REQUEST_ID}\thello 7", lines[1])
    assert len(lines) == 2


async def test_json_logs_have_the_members_of_aws(world: Lab) -> None:
    """With LogFormat JSON each record is one object."""
    code = """
import logging
def handler(event, context):
    try:
        1 / 0
    except ZeroDivisionError:
        logging.exception("oops", extra={"order": 5})
"""
    async with world.function(code, environment={"AWS_LAMBDA_LOG_FORMAT": "JSON"}) as function:
        await function.invoke()
        entry = json.loads(function.output())
    assert {"level": "ERROR", "message": "oops", "requestId": REQUEST_ID, "order": 5}.items() <= entry.items()
    assert entry["errorType"] == "ZeroDivisionError"


@pytest.mark.parametrize("prefix", ["", "async "])
async def test_a_generator_streams_bytes_and_text(world: Lab, prefix: str) -> None:
    """Chunks leave as they are made; a large one is cut into frames."""
    code = f"{prefix}def handler(event, context):\n    yield 'ü'\n    yield b'x' * 100_000\n    yield b''\n"
    async with world.function(code) as function:
        chunks, kind, body = await collect(function)
        assert (kind, body) == (Kind.STREAM_END, b"")
        assert [len(chunk) for chunk in chunks] == [2, 65_536, 34_464]
        await function.send()
        assert await function.frame() == (Kind.RESULT, "ü".encode() + b"x" * 100_000)


async def test_the_first_chunk_does_not_wait_for_the_second(world: Lab) -> None:
    """Streaming is for the time to the first byte."""
    code = """
import os
def handler(event, context):
    yield "first"
    with open("/tmp/gate") as gate:
        yield gate.read()
"""
    async with world.sandbox(code) as sandbox, world.start(sandbox) as function, asyncio.timeout(20):
        gate = sandbox._slot._directory / "tmp" / "gate"
        os.mkfifo(gate, 0o644)
        assert (await function.frame())[0] is Kind.READY
        await function.send(streaming=True)
        assert await function.frame() == (Kind.CHUNK, b"first")
        await asyncio.to_thread(gate.write_text, "second")
        assert await function.frame() == (Kind.CHUNK, b"second")


async def test_a_generator_that_raises_ends_its_stream_with_an_error(world: Lab) -> None:
    """The reader has the chunks that were made, and knows that there are none to come."""
    code = "def handler(event, context):\n    yield 'a'\n    raise OSError('disk')\n"
    async with world.function(code) as function:
        chunks, kind, body = await collect(function)
        assert (chunks, kind) == ([b"a"], Kind.STREAM_ERROR)
        assert json.loads(body)["errorType"] == "OSError"
        assert (await collect(function))[0] == [b"a"]


async def test_a_generator_that_yields_something_else_is_a_marshal_error(world: Lab) -> None:
    """Only bytes and text can be streamed."""
    async with world.function("def handler(event, context):\n    yield 1\n") as function:
        _chunks, kind, body = await collect(function)
        assert (kind, json.loads(body)["errorType"]) == (Kind.STREAM_ERROR, "Runtime.MarshalError")


async def test_a_plain_handler_invoked_for_streaming_answers_once(world: Lab) -> None:
    """As on AWS: one chunk, then completion; the agent makes it of the RESULT."""
    async with world.function(ECHO) as function:
        assert await collect(function, 5) == ([], Kind.RESULT, b"5")


async def test_a_handler_that_forks_answers_once(world: Lab) -> None:
    """The child runs on into the runtime's own code, where it must not answer as well."""
    code = "import os\ndef handler(event, context):\n    return os.fork() and event\n"
    async with world.function(code) as function:
        assert [await function.invoke(n) for n in (1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("statement", ["os.closerange(0, 1024)", "os.closerange(3, 1024)", "os.dup2(0, context_fd)"])
async def test_a_handler_that_closes_its_channel_ends(world: Lab, statement: str) -> None:
    """It must be a failed invocation, not one that nobody hears of again."""
    code = f"""
import os, socket
context_fd = next(fd for fd in range(3, 64) if os.path.realpath(f"/proc/self/fd/{{fd}}").count("socket:"))
def handler(event, context):
    {statement}
"""
    async with world.function(code) as function:
        await function.send()
        assert (await function.process.exit_status).code == 1


async def test_a_handler_that_closes_its_standard_streams_still_answers(world: Lab) -> None:
    """Nothing of an answer goes through them."""
    async with world.function(
        "import os\ndef handler(event, context):\n    os.closerange(0, 3)\n    return 1\n"
    ) as function:
        assert [await function.invoke(), await function.invoke()] == [1, 1]


async def test_environments_draw_different_random_numbers(world: Lab) -> None:
    """Forks of one zygote share its memory; tokens and ids made of randomness must differ."""
    code = """
import random, secrets, ssl, tempfile, uuid
def handler(event, context):
    return [random.random(), secrets.token_hex(), str(uuid.uuid4()), ssl.RAND_bytes(16).hex(), tempfile.mktemp()]
"""
    drawn = []
    for _ in range(2):
        async with world.function(code) as function:
            drawn.append(await function.invoke())
    assert all(first != second for first, second in zip(*drawn, strict=True))


async def test_every_runtime_of_the_node_serves(world: Lab) -> None:
    """What a node offers is what it can run."""
    code = """
import asyncio, ctypes, hashlib, ssl, sys, zoneinfo
async def handler(event, context):
    await asyncio.sleep(0)
    return [sys.version_info[:2], len(ssl.create_default_context().get_ca_certs()) >= 0, sys.path[0]]
"""
    assert world.host.runtimes
    for runtime in world.host.runtimes:
        async with world.function(code, runtime=runtime) as function:
            version = [int(part) for part in runtime.removeprefix("python").split(".")]
            assert await function.invoke() == [version, True, "/var/task"]
