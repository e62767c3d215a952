"""A child: its word that it serves, its end, its restart, and its death with the supervisor."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lambent_supervisor.child import Child, ChildSpec, Ready
from lambent_supervisor.errors import ChildFailedError
from lambent_supervisor.processes import ProcessId

TIMEOUT_S = 20

# Says where it serves, as a daemon does, then waits for a signal.
SERVE = """
import os, signal, sys
with os.fdopen(int(sys.argv[sys.argv.index("--ready-fd") + 1]), "w") as ready:
    ready.write('{"grpc": "127.0.0.1:%d", "http": null}\\n' % (len(sys.argv)))
signal.pause()
"""


class Watcher:
    """Keeps what it is told; `said` waits for a notice."""

    def __init__(self) -> None:
        self.processes: list[ProcessId] = []
        self.notices: asyncio.Queue[str] = asyncio.Queue()

    def spawned(self, name: str, identity: ProcessId) -> None:
        """Note a process."""
        assert name == "trial"
        self.processes.append(identity)

    def notice(self, text: str) -> None:
        """Note a notice."""
        self.notices.put_nowait(text)

    async def said(self, words: str) -> str:
        """Wait for a notice with these words."""
        while words not in (text := await self.notices.get()):
            pass
        return text


def spec(log: Path, program: str, command: Callable[[Ready | None], tuple[str, ...]] | None = None) -> ChildSpec:
    return ChildSpec("trial", command or (lambda _: (sys.executable, "-c", program)), dict(os.environ), log)


@asynccontextmanager
async def kept(child: Child) -> AsyncIterator[None]:
    async with asyncio.timeout(TIMEOUT_S):
        keeper = asyncio.create_task(child.keep())
        try:
            yield
        finally:
            keeper.cancel()
            await child.stop(1)


async def test_a_child_says_where_it_serves(tmp_path: Path) -> None:
    """`up` prints it, and SDK and CLI find the cluster by it."""
    child = Child(spec(tmp_path / "log", SERVE), Watcher())
    assert (await child.start()).grpc.startswith("127.0.0.1:")
    await child.stop(1)


async def test_a_child_that_fails_to_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    """The reason is what the operator wants to read, not the name of a file."""
    (tmp_path / "log").write_text("of an earlier run\n")
    program = "import sys; sys.exit('the store is corrupt')"
    with pytest.raises(ChildFailedError, match=r"trial exited with status 1(?s:.*)the store is corrupt") as caught:
        await Child(spec(tmp_path / "log", program), Watcher()).start()
    assert "of an earlier run" not in caught.value.message
    assert str(tmp_path / "log") in caught.value.help


async def test_a_program_that_cannot_be_executed_is_named(tmp_path: Path) -> None:
    """It may be removed between the check and the start."""
    broken = spec(tmp_path / "log", "", lambda _: (str(tmp_path / "gone"),))
    with pytest.raises(ChildFailedError, match="gone"):
        await Child(broken, Watcher()).start()


class UnwritableWatcher(Watcher):
    """Cannot record what it is told."""

    def spawned(self, name: str, identity: ProcessId) -> None:
        """Fail behind the spawn, as on a full disk."""
        super().spawned(name, identity)
        raise OSError(errno.ENOSPC, "No space left on device")


async def test_a_child_that_cannot_be_recorded_is_not_left_running(tmp_path: Path) -> None:
    """The next start would find its port and its files in use, for ever."""
    watcher = UnwritableWatcher()
    with pytest.raises(ChildFailedError, match=r"cannot be started: .*No space left"):
        await Child(spec(tmp_path / "log", SERVE), watcher).start()
    assert not watcher.processes[0].is_running()


async def test_a_child_that_cannot_be_probed_is_not_left_running(tmp_path: Path) -> None:
    """As when the certificate that the probe shows cannot be read."""

    async def probe() -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", "etcd-client.key")

    watcher = Watcher()
    probed = dataclasses.replace(spec(tmp_path / "log", "import signal; signal.pause()"), probe=probe)
    with pytest.raises(ChildFailedError, match=r"etcd-client\.key"):
        await Child(probed, watcher).start()
    assert not watcher.processes[0].is_running()


async def test_nonsense_in_place_of_an_address_is_a_failure(tmp_path: Path) -> None:
    """A wrong program at the right path shall not pass for a daemon."""
    program = SERVE.replace('{"grpc"', "[{").replace('"http": null}', "}]")
    watcher = Watcher()
    with pytest.raises(ChildFailedError, match="instead of where it serves"):
        await Child(spec(tmp_path / "log", program), watcher).start()
    assert not watcher.processes[0].is_running()


async def test_a_child_that_dies_is_started_again_and_said_so(tmp_path: Path) -> None:
    """With what it announced before, so that it can take the same port."""
    commands: list[Ready | None] = []

    def command(announced: Ready | None) -> tuple[str, ...]:
        commands.append(announced)
        return (sys.executable, "-c", SERVE)

    watcher = Watcher()
    child = Child(spec(tmp_path / "log", "", command), watcher)
    first = await child.start()
    async with kept(child):
        watcher.processes[0].send(signal.SIGKILL)
        assert "was killed by SIGKILL; starting it again" in await watcher.said("trial")
        await watcher.said("ready again")
    assert commands == [None, first]
    assert len(watcher.processes) == 2


async def test_a_child_that_cannot_come_back_is_tried_with_growing_pauses(tmp_path: Path) -> None:
    """And each try says why."""
    programs = iter([SERVE, "raise SystemExit(3)", "raise SystemExit(4)", SERVE])
    watcher = Watcher()
    child = Child(spec(tmp_path / "log", "", lambda _: (sys.executable, "-c", next(programs))), watcher)
    await child.start()
    async with kept(child):
        watcher.processes[0].send(signal.SIGTERM)
        assert "SIGTERM; starting it again in 0.2 s" in await watcher.said("trial")
        assert "status 3; starting it again in 0.4 s" in await watcher.said("trial")
        assert "status 4; starting it again in 0.8 s" in await watcher.said("trial")
        await watcher.said("ready again")


async def test_a_child_that_ignores_the_order_to_stop_is_killed(tmp_path: Path) -> None:
    """`down` has an end."""
    watcher = Watcher()
    child = Child(spec(tmp_path / "log", "import signal\nsignal.signal(15, signal.SIG_IGN)" + SERVE), watcher)
    await child.start()
    async with asyncio.timeout(TIMEOUT_S):
        await child.stop(0.05)
    assert not watcher.processes[0].is_running()


SUPERVISE = f"""
import asyncio, os, sys
from pathlib import Path
from lambent_supervisor.spawn import spawn

async def main():
    process = spawn([sys.executable, "-c", "import signal; signal.pause()"], log=Path("/dev/null"), environment={{}})
    print(process.identity.encode().decode(), flush=True)
    await asyncio.wait_for(asyncio.Event().wait(), {TIMEOUT_S})

asyncio.run(main())
"""


def test_children_die_with_a_killed_supervisor() -> None:
    """The kernel sees to it: nobody else is left to."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISE], stdout=subprocess.PIPE)
    assert supervisor.stdout is not None
    child = ProcessId.decode(supervisor.stdout.readline())
    assert child is not None
    assert child.is_running()
    supervisor.kill()
    supervisor.communicate()
    assert child.wait_until_ended(TIMEOUT_S)
