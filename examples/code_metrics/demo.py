"""`make demo`: a real cluster of two nodes measures every file of the standard library.

Starts `lambent up` with two nodes in a directory of its own, deploys the function, maps it over every source file,
checks the answers against the same code run here, and shows a streamed call, a failing call and a timeout.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lambent import AsyncClient, FunctionError, InvokeResult

sys.path.insert(0, str(Path(__file__).parent))

import handler as local

NODES = 2
IN_FLIGHT = 64
COLD_CALLS = 15
WARM_CALLS = 300
CODE = Path(__file__).parent / "handler.py"
COUNTS = ("lines", "functions", "classes", "branches")

console = Console()


@dataclass
class Local:
    """What one local process made of the sources.

    Attributes:
        events: Those that this Python can parse, as the function takes them.
        rows: The function's answers to them.
        seconds: How long that took.
    """

    events: list[dict[str, str]] = field(default_factory=list)
    rows: list[dict[str, object]] = field(default_factory=list)
    seconds: float = 0.0


def main() -> int:
    """Run the demo; 1 when the cluster's answers differ from the local ones."""
    with running_cluster() as data_dir:
        return 0 if asyncio.run(demo(data_dir, source_files())) else 1


@contextmanager
def running_cluster() -> Iterator[Path]:
    """Start a cluster inside the block, and take it down again."""
    with tempfile.TemporaryDirectory(prefix="lambent-demo-") as directory:
        data_dir = Path(directory) / "data"
        ports = ["--grpc-port", "0", "--http-port", "0"]
        console.print(f"[bold]lambent up[/] --nodes {NODES}: etcd, nats-server, a scheduler, {NODES} node agents ...")
        start = time.perf_counter()
        up = lambent("up", "--nodes", str(NODES), *ports, "--detach", "--output", "json", data_dir=data_dir)
        cluster = json.loads(up)
        console.print(f"ready after {time.perf_counter() - start:.1f} s at {cluster['grpc']} and {cluster['http']}\n")
        try:
            yield data_dir
        finally:
            lambent("down", data_dir=data_dir)


def lambent(*words: str, data_dir: Path) -> str:
    """Run a command of the CLI and give its output."""
    command = [sys.executable, "-m", "lambent", *words, "--data-dir", str(data_dir)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"lambent {words[0]} failed with status {done.returncode}")
    return done.stdout


async def demo(data_dir: Path, files: dict[str, Path]) -> bool:
    """Do everything that the demo shows, with these files; False when the cluster's answers are not the local ones."""
    here = analyse_here(files)
    async with AsyncClient(data_dir=data_dir) as client:
        for name, function, timeout_s in (
            ("code-metrics", "handler", 30),
            ("report", "stream_report", 10),
            ("broken", "broken", 10),
            ("endless", "endless", 1),
        ):
            await client.deploy(name, CODE, handler=f"handler.{function}", memory_mib=512, timeout_s=timeout_s)
        results, seconds = await analyse(client, here.events)
        rows = [result.json() for result in results]
        show_totals(rows)
        same = show_comparison(rows, here)
        await show_figures(client, results, seconds)
        await show_stream(client, rows)
        await show_failure(client)
        await show_timeout(client)
    return same


def source_files() -> dict[str, Path]:
    """Give every source file of the standard library by its path in there, and say which folders they are in.

    Debian's Python comes without most of its tests, which are half of the library's files; the set-up of the demo puts
    them into a folder of the virtual environment.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files: dict[str, Path] = {}
    for folder in (library, Path(sys.prefix) / "testsuite" / library.relative_to("/")):
        found = {
            str(path.relative_to(folder)): path
            for path in folder.rglob("*.py")
            if not {"site-packages", "dist-packages"} & set(path.parts[len(folder.parts) :])
        }
        added = found.keys() - files.keys()
        if added:
            where = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
            console.print(f"{len(added):,} source files of Python {sys.version.split()[0]} in {where}", soft_wrap=True)
        files = found | files
    if "test/test_ast.py" not in files and "test/test_ast/test_ast.py" not in files:
        console.print("the standard library's tests are not here: Debian has them in libpython3.*-testsuite")
    console.print()
    return dict(sorted(files.items()))


def progress_bar(text: str) -> Progress:
    """Give a bar that counts files."""
    columns = (TextColumn(text.ljust(24)), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console)


def analyse_here(files: dict[str, Path]) -> Local:
    """Run the function's code over the files in this process; what this Python cannot parse is named and left out."""
    done = Local()
    left_out = []
    with progress_bar("in one local process") as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of the sources, not ours
        warnings.simplefilter("ignore", DeprecationWarning)  # invalid escapes in them, before Python 3.12
        for name, path in progress.track(files.items()):
            event = {"path": name, "source": path.read_text(encoding="utf-8", errors="replace")}
            start = time.perf_counter()
            try:
                done.rows.append(local.handler(event))
            except (SyntaxError, ValueError):
                left_out.append(name)  # test data that is broken on purpose
            else:
                done.events.append(event)
            done.seconds += time.perf_counter() - start
    if left_out:
        console.print(f"left out, since this Python cannot parse them: {', '.join(left_out)}", highlight=False)
    return done


async def analyse(client: AsyncClient, events: list[dict[str, str]]) -> tuple[list[InvokeResult], float]:
    """Map the function over the files with a progress bar; gives the results and the seconds it took."""
    with progress_bar(f"on {NODES} nodes") as progress:
        bar = progress.add_task("", total=len(events))
        start = time.perf_counter()
        results = [
            result
            async for result in client.map(
                "code-metrics",
                events,
                concurrency=IN_FLIGHT,
                on_progress=lambda done, _: progress.update(bar, completed=done),
            )
        ]
        return results, time.perf_counter() - start


def show_totals(rows: list[dict[str, object]]) -> None:
    """Print totals and the most complex functions."""
    console.print()
    table = Table(title=f"{len(rows):,} files", title_justify="left")
    for name in COUNTS:
        table.add_column(name, justify="right")
    totals = totals_of(rows)
    table.add_row(*(f"{totals[name]:,}" for name in COUNTS))
    console.print(table)

    ranked = sorted(
        (row for row in rows if row["most_complex"]), key=lambda row: row["most_complex"]["complexity"], reverse=True
    )
    table = Table(title="the ten most complex functions", title_justify="left")
    table.add_column("function")
    table.add_column("file")
    table.add_column("complexity", justify="right")
    for row in ranked[:10]:
        table.add_row(row["most_complex"]["name"], row["path"], str(row["most_complex"]["complexity"]))
    console.print(table)


def show_comparison(rows: list[dict[str, object]], here: Local) -> bool:
    """Say whether the cluster's answers are those of the same code here."""
    if rows == here.rows:
        console.print(f"[green]the same code in one local process gives the same, in {here.seconds:.1f} s[/]\n")
        return True
    console.print(f"[red]the same code in one local process gives other totals: {totals_of(here.rows)}[/]\n")
    return False


def totals_of(rows: list[dict[str, object]]) -> dict[str, int]:
    """Sum the counts over all files."""
    return {name: sum(int(row[name]) for row in rows) for name in COUNTS}


async def show_figures(client: AsyncClient, results: list[InvokeResult], seconds: float) -> None:
    """Print how the cluster did: the map as it ran, and first and later calls one at a time after it."""
    cold = await cold_ms(client)
    warm = [await timed_ms(client, "code-metrics") for _ in range(WARM_CALLS)]
    table = Table(show_header=False)
    for name, value in (
        ("invocations", f"{len(results):,}"),
        ("invocations per second", f"{len(results) / seconds:,.0f}"),
        ("cold starts among them", f"{sum(result.cold_start for result in results):,}"),
        ("environments used", str(len({result.environment_id for result in results}))),
        ("nodes used", str(len({result.node_id for result in results}))),
        (f"cold p50, the first calls of {len(cold)} more functions", f"{statistics.median(cold):.1f} ms"),
        (f"warm p50, {len(warm)} calls one after another", f"{statistics.median(warm):.2f} ms"),
        ("warm p99 of these", f"{statistics.quantiles(warm, n=100, method='inclusive')[98]:.2f} ms"),
    ):
        table.add_row(name, value)
    console.print(table)


async def cold_ms(client: AsyncClient) -> list[float]:
    """Time the first calls of some new functions, in milliseconds each."""
    durations = []
    for number in range(COLD_CALLS):
        await client.deploy(f"cold-{number}", CODE, handler="handler.handler", memory_mib=512, timeout_s=30)
        durations.append(await timed_ms(client, f"cold-{number}"))
    return durations


async def timed_ms(client: AsyncClient, name: str) -> float:
    """Time one call with a tiny source, in milliseconds."""
    start = time.perf_counter()
    await client.invoke(name, {"path": "tiny.py", "source": "x = 1\n"})
    return (time.perf_counter() - start) * 1e3


async def show_stream(client: AsyncClient, rows: list[dict[str, object]]) -> None:
    """Read a generator's answer as it comes."""
    console.print("\n[bold]a streamed call[/]  async for piece in client.stream('report', ...)")
    names = [f"{row['path']}: {row['lines']} lines" for row in rows[:3]]
    async for piece in client.stream("report", {"rows": names}):
        console.print(f"  {piece.decode().rstrip()}", highlight=False)


async def show_failure(client: AsyncClient) -> None:
    """Meet a function that raises."""
    console.print("\n[bold]a failing call[/]  await client.invoke('broken')")
    try:
        result = await client.invoke("broken")
    except FunctionError as error:
        console.print(f"  FunctionError: {error}", highlight=False, markup=False, soft_wrap=True)
        for frame in error.stack_trace:
            console.print(f"  {frame.rstrip()}", highlight=False, markup=False, soft_wrap=True)
    else:
        raise RuntimeError(f"'broken' did not fail, it answered {result.json()}")


async def show_timeout(client: AsyncClient) -> None:
    """Meet a function that never returns."""
    console.print("\n[bold]a timeout[/]  await client.invoke('endless')")
    try:
        result = await client.invoke("endless")
    except FunctionError as error:
        console.print(f"  FunctionError: {error}", highlight=False, markup=False, soft_wrap=True)
    else:
        raise RuntimeError(f"'endless' did not run out of time, it answered {result.json()}")


if __name__ == "__main__":
    sys.exit(main())
