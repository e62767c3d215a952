"""Invocations through a real agent: what callers and log readers see, in the contract's words."""

from __future__ import annotations

import asyncio
import re

import pytest
from tests.agent.harness import RUNTIME, Scheduler, World

from lambent.framing import INITIAL_CREDIT_BYTES, PIECE_BYTES
from lambent.v1 import frame_pb2

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT = 6_291_556


async def test_an_invocation_is_answered_with_its_figures_and_log(agent: World, scheduler: Scheduler) -> None:
    """The whole path once: payload in, result, report and tail out, lines in JetStream in the contract's order."""
    function = await agent.function("def handler(event, context):\n    print('hello')\n    return event['x']\n")
    environment = await scheduler.start(function)
    cold = await scheduler.invoke(environment, {"x": 7}, log_tail=True, queue_us=42)
    assert cold.json() == 7
    assert cold.end is not None
    report = cold.end.report
    assert report.cold_start
    assert report.init_duration_us > 0
    assert report.billed_duration_ms == -(-(report.duration_us + report.init_duration_us) // 1000)
    assert (report.memory_size_mib, report.queue_us, report.executed_version) == (256, 42, "$LATEST")
    assert report.max_memory_used_mib > 0
    warm = await scheduler.invoke(environment, {"x": 8})
    assert warm.end is not None
    assert not warm.end.report.cold_start
    assert not warm.end.report.log_tail
    lines = await agent.logged(function, f"REPORT RequestId: {warm.end.report.request_id}")
    request_id = report.request_id
    assert [line.partition("\t")[0] for line in lines[:5]] == [
        f"INIT_START Runtime Version: {RUNTIME.replace('python', 'python:')}.v1",
        f"START RequestId: {request_id} Version: $LATEST",
        "hello",
        f"END RequestId: {request_id}",
        f"REPORT RequestId: {request_id}",
    ]
    assert report.log_tail.decode() == "".join(f"{line}\n" for line in lines[1:5])
    await scheduler.stop(environment)


async def test_a_timeout_keeps_tmp_and_resets_globals(agent: World, scheduler: Scheduler) -> None:
    """AWS kills the processes and keeps the sandbox; the next call waits for the new runtime inside the agent."""
    source = """
        import os, time
        count = 0
        def handler(event, context):
            global count
            count += 1
            if event == "hang":
                open("/tmp/left", "w").close()
                print("hanging")
                time.sleep(60)
            return [count, os.path.exists("/tmp/left")]
    """
    function = await agent.function(_dedent(source), timeout_us=1_000_000)
    environment = await scheduler.start(function)
    assert (await scheduler.invoke(environment, "ok")).json() == [1, False]
    hung = await scheduler.invoke(environment, "hang", log_tail=True)
    assert hung.end is not None
    request_id = hung.end.report.request_id
    assert hung.error() == {
        "errorType": "Sandbox.Timedout",
        "errorMessage": f"RequestId: {request_id} Error: Task timed out after 1.00 seconds",
    }
    tail = hung.end.report.log_tail.decode()
    timed_out = rf"hanging\n\d{{4}}-\d\d-\d\dT[\d:.]+Z {request_id} Task timed out after 1\.00 seconds\n\nEND "
    assert re.search(timed_out, tail), tail
    assert tail.endswith("\tStatus: timeout\n")
    assert (await scheduler.invoke(environment, "ok")).json() == [1, True]
    await scheduler.stop(environment)


async def test_the_callers_time_is_enforced_when_it_is_shorter(agent: World, scheduler: Scheduler) -> None:
    """A caller who gives up in 0.3 s must not hold an environment for the function's 10 s."""
    function = await agent.function("import time\ndef handler(event, context):\n    time.sleep(30)\n")
    environment = await scheduler.start(function)
    answer = await scheduler.invoke(environment, timeout_us=300_000, log_tail=True)
    assert answer.end is not None
    assert answer.end.service_error.reason == "DeadlineExceededException"
    assert answer.end.service_error.dispatched
    assert not answer.end.function_error
    assert b"Task timed out after 0.30 seconds" in answer.end.report.log_tail
    await scheduler.stop(environment)


@pytest.mark.parametrize(
    ("statement", "error_type", "message"),
    [
        ("os._exit(0)", "Runtime.ExitError", "Runtime exited without providing a reason"),
        ("os._exit(7)", "Runtime.ExitError", "Runtime exited with error: exit status 7"),
        ("sys.exit(3)", "Runtime.ExitError", "Runtime exited with error: exit status 3"),
        ("os.kill(os.getpid(), 9)", "Runtime.ExitError", "Runtime exited with error: signal: killed"),
        ("os.kill(os.getpid(), 11)", "Runtime.ExitError", "Runtime exited with error: signal: segmentation fault"),
        ("hold = bytearray(1 << 30)", "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"),
    ],
)
async def test_a_runtime_that_ends_fails_its_invocation_and_is_replaced(
    agent: World, scheduler: Scheduler, statement: str, error_type: str, message: str
) -> None:
    """The caller learns how it ended, the log tells it before END, and the environment serves on."""
    source = f"import os, sys\ndef handler(event, context):\n    print('last words')\n    {statement}\n"
    function = await agent.function(source, memory_mib=128)
    environment = await scheduler.start(function)
    for _ in range(2):
        answer = await scheduler.invoke(environment, log_tail=True)
        assert answer.end is not None
        request_id = answer.end.report.request_id
        assert answer.error() == {"errorType": error_type, "errorMessage": f"RequestId: {request_id} Error: {message}"}
        tail = answer.end.report.log_tail.decode()
        assert f"last words\nRequestId: {request_id} Error: {message}\n{error_type}\nEND RequestId" in tail
        assert tail.endswith(f"\tStatus: error\tError Type: {error_type}\n")
    await scheduler.stop(environment)


async def test_tmp_is_empty_after_an_oom_kill(agent: World, scheduler: Scheduler) -> None:
    """Kept, what is in it might have every later runtime killed in its init; the environment itself stays."""
    source = """
        import os
        def handler(event, context):
            if event == "fill":
                open("/tmp/input", "w")
                bytearray(256 << 20)
            return os.listdir("/tmp")
    """
    function = await agent.function(_dedent(source), memory_mib=128)
    environment = await scheduler.start(function)
    filled = await scheduler.invoke(environment, "fill")
    assert filled.error()["errorType"] == "Runtime.OutOfMemory"
    again = await scheduler.invoke(environment)
    assert again.json() == []
    assert again.end is not None
    assert not again.end.report.cold_start
    await scheduler.stop(environment)


async def test_an_exception_keeps_the_environment(agent: World, scheduler: Scheduler) -> None:
    """Globals, connections and caches of a function survive its errors, as on AWS."""
    source = "n = 0\ndef handler(event, context):\n    global n\n    n += 1\n    raise ValueError(n)\n"
    environment = await scheduler.start(await agent.function(source))
    for expected in ("1", "2"):
        answer = await scheduler.invoke(environment)
        assert (answer.error()["errorType"], answer.error()["errorMessage"]) == ("ValueError", expected)
    await scheduler.stop(environment)


async def test_an_import_error_reaches_the_caller_in_awss_order(agent: World, scheduler: Scheduler) -> None:
    """The environment is ready all the same; each call tries the init again and gets its error."""
    function = await agent.function("import no_such_module\n")
    environment = await scheduler.start(function)
    answer = await scheduler.invoke(environment)
    assert answer.error()["errorType"] == "Runtime.ImportModuleError"
    assert answer.end is not None
    lines = await agent.logged(function, "REPORT")
    marks = [line for line in lines if re.match(r"INIT_|START|END|REPORT|RequestId", line)]
    assert [re.split(r"[ \t]", mark)[0] for mark in marks] == [
        "INIT_START",
        "INIT_REPORT",
        "INIT_REPORT",
        "START",
        "RequestId:",
        "END",
        "REPORT",
    ]
    assert marks[1].endswith("\tPhase: init\tStatus: error\tError Type: Runtime.ImportModuleError")
    assert marks[2].endswith("\tPhase: invoke\tStatus: error\tError Type: Runtime.ImportModuleError")
    assert (await scheduler.invoke(environment)).error()["errorType"] == "Runtime.ImportModuleError"
    await scheduler.stop(environment)


async def test_a_streamed_answer_arrives_while_the_handler_runs(agent: World, scheduler: Scheduler) -> None:
    """Streaming is for the first byte's sake."""
    source = """
        import time
        def handler(event, context):
            yield "first"
            time.sleep(1)
            yield "last"
    """
    environment = await scheduler.start(await agent.function(_dedent(source)))
    call_id = scheduler.open(environment, streaming=True)
    answer = scheduler.answers[call_id]
    async with asyncio.timeout(5):
        await answer.first.wait()
    assert answer.end is None
    assert (await scheduler.answer(call_id)).body == b"firstlast"
    whole = await scheduler.invoke(environment)
    assert whole.body == b"firstlast"
    await scheduler.stop(environment)


async def test_a_slow_reader_stops_the_handler_and_nobody_else(agent: World, scheduler: Scheduler) -> None:
    """Without credit the agent must not collect what a generator yields without end."""
    source = """
        def handler(event, context):
            for number in range(event):
                print(number)
                yield b"x" * 65536
    """
    function = await agent.function(_dedent(source))
    environment = await scheduler.start(function)
    other = await scheduler.start(await agent.function("def handler(event, context): return event"))
    scheduler.auto_credit = False
    call_id = scheduler.open(environment, 100, streaming=True)
    answer = scheduler.answers[call_id]
    async with asyncio.timeout(5):
        await answer.first.wait()
    for number in range(50):
        assert (await scheduler.invoke(other, number)).json() == number
    assert len(answer.body) <= INITIAL_CREDIT_BYTES
    assert answer.end is None
    scheduler.auto_credit = True
    scheduler.grant(call_id, 100 * 65536)
    assert len((await scheduler.answer(call_id)).body) == 100 * 65536
    await scheduler.stop(environment)
    await scheduler.stop(other)


async def test_large_payloads_and_answers_travel_in_pieces(agent: World, scheduler: Scheduler) -> None:
    """6 MiB both ways is the contract; no piece is over 32 KiB."""
    source = "def handler(event, context): return event * 62"
    environment = await scheduler.start(await agent.function(source))
    answer = await scheduler.invoke(environment, "y" * 96_000)
    assert answer.json() == "y" * 5_952_000
    assert answer.pieces >= 5_952_000 // PIECE_BYTES
    await scheduler.stop(environment)


@pytest.mark.parametrize("how", ["return", "forge"])
async def test_an_answer_over_the_limit_is_a_function_error(agent: World, scheduler: Scheduler, how: str) -> None:
    """The environment is kept, also when the size slips past the runtime's own check."""
    source = f"""
        import os, socket, struct, sys
        def handler(event, context):
            if event == "small":
                return os.getpid()
            size = {LIMIT} + 1
            if "{how}" == "return":
                return "x" * (size - 2)
            channel = next(s for s in channels())
            key = sys._getframe(1).f_locals["header"].key
            channel.sendall(struct.pack(">IB8s", size, 12, key) + bytes(size))
            key = channel.recv(1 << 16)[5:13]  # swallows the next invocation
            channel.sendall(struct.pack(">IB8s", 4, 12, key) + b'"ok"')
            import time; time.sleep(60)
        def channels():
            for fd in range(3, 64):
                try:
                    yield socket.socket(fileno=os.dup(fd))
                except OSError:
                    pass
    """
    environment = await scheduler.start(await agent.function(_dedent(source)))
    answer = await scheduler.invoke(environment)
    assert answer.error()["errorType"] == "Function.ResponseSizeTooLarge"
    message = f"Response payload size exceeded maximum allowed payload size ({LIMIT} bytes)."
    assert answer.error()["errorMessage"] == message
    small = await scheduler.invoke(environment, "small")
    assert small.json() == "ok" if how == "forge" else isinstance(small.json(), int)
    await scheduler.stop(environment)


@pytest.mark.parametrize(
    "action",
    [
        "channel().sendall(b'\\x00\\x00\\x00\\x01\\x63z' * 1000)",
        "channel().sendall(b'\\xff' * 100000)",
        "channel().sendall(b'\\x00\\x00\\x00\\x00\\x0a' + sys._getframe(1).f_locals['header'].key)",  # READY once more
        "channel().sendall(b'\\x7f\\xff\\xff\\xff\\x0d' + bytes(8))",  # an ERROR of 2 GiB
        "[os.close(fd) for fd in range(3, 256) if is_open(fd)]; time.sleep(60)",
    ],
    ids=["unknown-kind", "noise", "second-ready", "too-long", "closed"],
)
async def test_garbage_on_the_channel_ends_the_runtime_and_not_the_agent(
    agent: World, scheduler: Scheduler, action: str
) -> None:
    """Function code holds the runtime's descriptor and may write anything to it, or close it."""
    source = f"""
        import os, socket, sys, time
        def is_open(fd):
            try:
                os.fstat(fd)
            except OSError:
                return False
            return True
        def channel():
            for fd in range(3, 64):
                try:
                    return socket.socket(fileno=os.dup(fd))
                except OSError:
                    pass
        def handler(event, context):
            if event == "well":
                return "well"
            {action}
            time.sleep(60)
    """
    environment = await scheduler.start(await agent.function(_dedent(source)))
    answer = await scheduler.invoke(environment)
    assert answer.error()["errorType"] == "Runtime.ExitError"
    assert "protocol violation" in str(answer.error()["errorMessage"])
    assert (await scheduler.invoke(environment, "well")).json() == "well"
    await scheduler.stop(environment)


async def test_a_flood_of_output_stands_before_end_and_is_bounded(agent: World, scheduler: Scheduler) -> None:
    """Print as fast as you like: the invocation is answered, others are served, and what is dropped is counted."""
    source = """
        def handler(event, context):
            for number in range(400_000):
                print("x" * 99)
            print("the end")
            return "done"
    """
    function = await agent.function(_dedent(source), memory_mib=1769)
    environment = await scheduler.start(function)
    other = await scheduler.start(await agent.function("def handler(event, context): return event"))
    call_id = scheduler.open(environment, log_tail=True)
    for number in range(20):
        assert (await scheduler.invoke(other, number)).json() == number
    answer = await scheduler.answer(call_id)
    assert answer.json() == "done"
    assert answer.end is not None
    tail = answer.end.report.log_tail.decode()
    assert "the end\nEND RequestId" in tail
    lines = await agent.logged(function, "REPORT")
    assert any("platform.logsDropped" in line for line in lines)
    await scheduler.stop(environment)
    await scheduler.stop(other)


async def test_a_cancel_ends_the_invocation(agent: World, scheduler: Scheduler) -> None:
    """The caller is answered that it may have run, and the environment is ready for the next."""
    source = "import time\ndef handler(event, context):\n    print('on')\n    time.sleep(event)\n    return event\n"
    function = await agent.function(source)
    environment = await scheduler.start(function)
    call_id = scheduler.open(environment, 60)
    await agent.logged(function, "on")
    scheduler.cancel(call_id)
    answer = await scheduler.answer(call_id)
    assert answer.end is not None
    assert answer.end.service_error.reason == "CancelledException"
    assert answer.end.service_error.dispatched
    assert (await scheduler.invoke(environment, 0)).json() == 0
    await scheduler.stop(environment)


async def test_the_function_sees_the_contracts_variables_and_context(agent: World, scheduler: Scheduler) -> None:
    """Libraries written for AWS look for these."""
    source = """
        import os
        def handler(event, context):
            return [dict(os.environ), context.invoked_function_arn, context.client_context.custom]
    """
    function = await agent.function(_dedent(source), environment_variables={"MINE": "1", "AWS_REGION": "forged"})
    environment = await scheduler.start(function)
    answer = await scheduler.invoke(
        environment,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        client_context=b'{"custom": {"k": "v"}}',
    )
    result = answer.json()
    assert isinstance(result, list)
    variables, arn, custom = result
    assert custom == {"k": "v"}
    assert arn.endswith(":function:f")
    expected = {
        "MINE": "1",
        "AWS_REGION": "eu-test-1",
        "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "256",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.runtime}",
        "_HANDLER": "app.handler",
        "_X_AMZN_TRACE_ID": "Root=1-0af76519-16cd43dd8448eb211c80319c;Parent=b7ad6b7169203331;Sampled=1",
        "TZ": ":UTC",
    }
    assert {name: variables.get(name) for name in expected} == expected
    assert re.fullmatch(r"\d{4}/\d\d/\d\d/\[\$LATEST\][0-9a-f]{32}", variables["AWS_LAMBDA_LOG_STREAM_NAME"])
    await scheduler.stop(environment)


async def test_frames_for_calls_that_are_over_do_no_harm(agent: World, scheduler: Scheduler) -> None:
    """Frames cross on the wire."""
    environment = await scheduler.start(await agent.function("def handler(event, context): return event"))
    call_id = scheduler.open(environment, 1)
    await scheduler.answer(call_id)
    scheduler.grant(call_id, 1000)
    scheduler.cancel(call_id)
    scheduler.grant(999_999, 1000)
    assert (await scheduler.invoke(environment, 2)).json() == 2
    busy = await scheduler.invoke("no-such-environment", 1)
    assert busy.end is not None
    assert busy.end.service_error == frame_pb2.ServiceError(
        reason="ServiceUnavailableException",
        message="the node has no environment no-such-environment",
        status_code=14,
    )
    await scheduler.stop(environment)


def _dedent(source: str) -> str:
    lines = source.strip("\n").splitlines()
    margin = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[margin:] for line in lines) + "\n"
