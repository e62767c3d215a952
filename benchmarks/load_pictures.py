"""Draw the pictures of docs/load.md from a real run: `python -m benchmarks.load_pictures`."""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path

from rich.console import Console

from benchmarks.cluster import cluster
from benchmarks.invocations import Suite
from lambent import AsyncClient
from lambent_load.generators import OWN
from lambent_load.plan import OpenLoop, Plan
from lambent_load.report import PLOT_STYLE, plots
from lambent_load.run import Progress, run_load
from lambent_load.svg import HEIGHT, WIDTH
from lambent_load.view import glance, table

_FOLDER = Path(__file__).resolve().parents[1] / "docs" / "pictures"

_DURATION_S = 30.0
_LOOK_S = 19.9
"""In the second burst."""

_COLUMNS = 2

_TERMINAL = """<svg viewBox="0 0 {terminal_width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font: {char_height}px monospace; line-height: {line_height}px; white-space: pre; }}
{styles}</style><rect width="100%" height="100%" rx="6" fill="#14171d"/>
<g transform="translate(9, 4)" class="{unique_id}-matrix">{backgrounds}{matrix}</g></svg>"""
"""As rich draws a terminal, without its window and without fonts from elsewhere."""


class _Picture:
    """A view that is looked at once."""

    def __init__(self) -> None:
        self.console = Console(record=True, width=92, file=io.StringIO(), force_terminal=True)

    async def watch(self, progress: Progress) -> None:
        await asyncio.sleep(progress.start + _LOOK_S - time.monotonic())
        self.console.print(table(glance(progress, time.monotonic())))


async def _draw() -> None:
    load = OpenLoop("burst", 100, to_rate=1500, period_s=10.0, burst_s=2.0, poisson_arrivals=True)
    picture = _Picture()
    async with cluster(16_384) as running, AsyncClient(data_dir=running.data_dir) as client:
        await Suite(running, client).prepare_empty()
        data_dir = str(running.data_dir)
        plan = Plan("cluster", "empty", b"{}", load, duration_s=_DURATION_S, data_dir=data_dir)
        result = await run_load(plan, [OWN], picture, {"function": "empty"}, client)
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / "load-live.svg").write_text(picture.console.export_svg(code_format=_TERMINAL, unique_id="live") + "\n")
    drawn = [svg.replace("<svg ", f"<svg {_place(number)} ") for number, svg in enumerate(plots(result))]
    height = HEIGHT * -(-len(drawn) // _COLUMNS)
    (_FOLDER / "load-report.svg").write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH * _COLUMNS} {height}" font-family="sans-serif">\n'
        f'<style>{PLOT_STYLE}</style><rect width="100%" height="100%" style="fill: var(--paper)"/>\n'
        + "\n".join(drawn)
        + "</svg>\n"
    )


def _place(number: int) -> str:
    x, y = WIDTH * (number % _COLUMNS), HEIGHT * (number // _COLUMNS)
    return f'x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}"'


if __name__ == "__main__":
    asyncio.run(_draw())
