"""A real cluster for tests: `lambent up --detach` in its own directory, `lambent down`, and a look at what is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lambent_supervisor.data_directory import DataDirectory
from lambent_supervisor.processes import ProcessId
from tests.patience import PATIENCE

LAMBENT = Path(sysconfig.get_path("scripts")) / "lambent"
COMMAND_TIMEOUT_S = 90 * PATIENCE


@dataclass(frozen=True)
class Cluster:
    """A running cluster.

    Attributes:
        grpc: host:port of the scheduler's gRPC server.
        http: URL of its HTTP server.
        data_dir: Its data directory; `Client(data_dir=...)` and `lambent --data-dir` take it.
    """

    grpc: str
    http: str
    data_dir: Path

    @property
    def token(self) -> str:
        """The bearer token."""
        return DataDirectory(self.data_dir).token.read_text().strip()

    @property
    def supervisor(self) -> ProcessId:
        """The process that keeps it."""
        holder = DataDirectory(self.data_dir).holder()
        assert holder is not None
        return holder

    def process(self, name: str) -> ProcessId:
        """A child: etcd, nats-server, scheduler, node-1, ..."""
        found = ProcessId.decode(json.loads(DataDirectory(self.data_dir).processes.read_text())[name].encode())
        assert found is not None
        return found

    def lambent(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the command line against this cluster."""
        return lambent(*arguments, data_dir=self.data_dir, check=check)


def lambent(
    *arguments: str, data_dir: Path | None = None, check: bool = True, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `lambent` to its end; `check` asserts that it succeeds."""
    done = subprocess.run(
        [LAMBENT, *arguments],
        env=command_environment(data_dir) | (environment or {}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=False,
    )
    assert not check or done.returncode == 0, f"lambent {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done


def command_environment(data_dir: Path | None = None) -> dict[str, str]:
    """The environment of a command that knows of this cluster alone, or of none."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("LAMBENT_")}
    return own if data_dir is None else own | {"LAMBENT_DATA_DIR": str(data_dir)}


class RunningCommand:
    """A command that goes on; `said` waits for its lines.

    Attributes:
        process: The command itself.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._seen: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def said(self, *words: str) -> str:
        """Wait for the next line that has all these words."""
        deadline = time.monotonic() + COMMAND_TIMEOUT_S
        while line := self._lines.get(timeout=max(0.0, deadline - time.monotonic())):
            self._seen.append(line)
            if all(word in line for word in words):
                return line
        raise AssertionError(f"{words} were never said: {''.join(self._seen)}")

    def end(self) -> int:
        """Stop it with SIGTERM if it has not ended; gives its exit status."""
        if self.process.poll() is None:
            self.process.terminate()
        status = self.process.wait(COMMAND_TIMEOUT_S)
        self._reader.join()
        return status


@contextlib.contextmanager
def running_command(*arguments: str, data_dir: Path | None = None) -> Iterator[RunningCommand]:
    """Run `lambent` inside the block, with output and errors as one stream of lines."""
    with subprocess.Popen(
        [LAMBENT, *arguments],
        env=command_environment(data_dir),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        command = RunningCommand(process)
        try:
            yield command
        finally:
            command.end()


@contextlib.contextmanager
def foreground_cluster(data_dir: Path, *flags: str) -> Iterator[tuple[Cluster, RunningCommand]]:
    """`lambent up` on free ports as at a terminal: the cluster, once ready, and what is said of it."""
    ports = ("--grpc-port=0", "--http-port=0")
    with (
        _logs_shown(data_dir),
        running_command("up", "--output=json", *ports, f"--data-dir={data_dir}", *flags) as command,
    ):
        ready = json.loads(command.said('"grpc":'))
        yield Cluster(grpc=ready["grpc"], http=ready["http"], data_dir=Path(ready["data_dir"])), command


def start_cluster(data_dir: Path, *flags: str) -> Cluster:
    """Start one on free ports; `stop_cluster` ends it."""
    ports = ("--grpc-port=0", "--http-port=0")
    done = lambent("up", "--detach", "--output=json", *ports, f"--data-dir={data_dir}", *flags)
    ready = json.loads(done.stdout)
    return Cluster(grpc=ready["grpc"], http=ready["http"], data_dir=Path(ready["data_dir"]))


def stop_cluster(data_dir: Path) -> None:
    """Stop it and assert that nothing of it is left on the machine."""
    lambent("down", f"--data-dir={data_dir}")
    assert leftovers(data_dir) == []


def leftovers(data_dir: Path) -> list[str]:
    """Processes, mounts and control groups of a cluster that does not run; looked for without the supervisor's help."""
    mark = DataDirectory(data_dir).mark()
    own = str(data_dir.resolve())
    found = []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            mounts = (process / "mountinfo").read_text()
        except (FileNotFoundError, ProcessLookupError, OSError):
            continue
        if own in command or (mark is not None and mark in command):
            found.append(f"process {process.name}: {command}")
        if any(own in line.split()[4] for line in mounts.splitlines()):
            found.append(f"mount in the namespace of process {process.name}: {command}")
    if mark is not None:
        found += [f"control group {path}" for path in control_groups(f"lambent-{mark}")]
    return found


def control_groups(beginning: str) -> list[Path]:
    """Control groups of names that begin so, in all hierarchies."""
    # Others come and go meanwhile, which os.walk does not mind.
    walked = os.walk("/sys/fs/cgroup")
    return [Path(parent, name) for parent, names, _ in walked for name in names if name.startswith(beginning)]


@contextlib.contextmanager
def running_cluster(*flags: str) -> Iterator[Cluster]:
    """A cluster in a temporary directory, one node of 2 GiB unless the flags say otherwise; nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix="lambent-test-") as directory:
        data_dir = Path(directory) / "data"
        with _logs_shown(data_dir):
            try:
                yield start_cluster(data_dir, "--memory=2048", *flags)
            finally:
                stop_cluster(data_dir)


@contextlib.asynccontextmanager
async def running_cluster_async(flags: Sequence[str] = ()) -> AsyncIterator[Cluster]:
    """`running_cluster` for a test with an event loop that must go on while the cluster starts and stops."""
    stack = contextlib.ExitStack()
    try:
        yield await asyncio.to_thread(stack.enter_context, running_cluster(*flags))
    finally:
        await asyncio.to_thread(stack.close)


@contextlib.contextmanager
def _logs_shown(data_dir: Path) -> Iterator[None]:
    """Print the ends of the children's logs, which pytest shows with a failure."""
    try:
        yield
    except BaseException:
        _print_logs(data_dir)
        raise


def _print_logs(data_dir: Path) -> None:
    for log in sorted((data_dir / "logs").glob("*.log")):
        print(f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-20:], sep="\n")
