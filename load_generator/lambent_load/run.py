"""One run: generator processes send, this process watches and puts the result together."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import signal
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from lambent_load.generators import connected
from lambent_load.nodes import watch_nodes
from lambent_load.result import make_result
from lambent_load.tally import Tally

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

    from lambent.client import AsyncClient
    from lambent_load.generators import Generators
    from lambent_load.nodes import NodeSample
    from lambent_load.plan import Plan
    from lambent_load.result import Result


@dataclass
class Progress:
    """What is known of a run while it goes on.

    Attributes:
        plan: What is sent.
        start: When it began, of `time.monotonic`.
        tally: The counts so far.
        samples: Of the nodes, oldest first.
    """

    plan: Plan
    start: float
    tally: Tally
    samples: list[NodeSample] = field(default_factory=list)


class View(Protocol):
    """Shows a run while it goes on."""

    async def watch(self, progress: Progress) -> None:
        """Show it until cancelled."""


async def run_load(
    plan: Plan,
    generators: Sequence[Sequence[str]],
    view: View,
    settings: Mapping[str, object],
    client: AsyncClient | None,
) -> Result:
    """Send a plan's calls and give the result; Ctrl-C and SIGTERM end it early, with the result so far.

    Args:
        plan: What to send.
        generators: Commands that start the processes that send; at least one.
        view: Shows the run.
        settings: Kept in the result.
        client: Of the cluster, for the nodes; None to leave them alone.

    Raises:
        ServiceError: The target cannot be reached, or a generator process failed.
    """
    async with connected(plan, generators) as running:
        progress = Progress(plan, time.monotonic(), Tally(plan.interval_s))
        started = dt.datetime.now(dt.UTC)
        with _stopped_by_signals(running):
            async with _beside(progress, view, client):
                cpu_s = await running.run(progress.tally.merge)
        elapsed_s = time.monotonic() - progress.start
    return make_result(
        progress.tally,
        progress.samples,
        started=started,
        settings=settings,
        interrupted=running.stopped,
        duration_s=plan.duration_s,
        elapsed_s=elapsed_s,
        processes=len(generators),
        cpu_s=cpu_s,
    )


@contextlib.asynccontextmanager
async def _beside(progress: Progress, view: View, client: AsyncClient | None) -> AsyncIterator[None]:
    """Watch the nodes and show the run inside the block."""
    beside = [asyncio.create_task(view.watch(progress))]
    if client is not None:
        beside.append(asyncio.create_task(watch_nodes(client, progress.start, progress.samples.append)))
    try:
        yield
    finally:
        for task in beside:
            task.cancel()
        ended = await asyncio.gather(*beside, return_exceptions=True)
    for outcome in ended:
        if not isinstance(outcome, asyncio.CancelledError | None):
            raise outcome


@contextlib.contextmanager
def _stopped_by_signals(generators: Generators) -> Iterator[None]:
    """Have the first signal stop the generators; the next one ends this process as usual."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop() -> None:
        generators.stop()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
