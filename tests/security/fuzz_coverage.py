"""Fuzzes a target guided by coverage: `python -m tests.security.fuzz_coverage channel --inputs 1000000`.

It needs atheris, an extra of its own (`pip install --editable ".[fuzz]"`): its wheels are for CPython 3.11 to 3.13 on
x86-64 alone. What libFuzzer says is explained at https://llvm.org/docs/LibFuzzer.html. An input that fails is left in
the current directory; `--input FILE` tries it again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Final

import atheris

with atheris.instrument_imports(
    include=["lambent", "lambent_node_agent", "lambent_runtime"], enable_loader_override=False
):
    from tests.security.fuzz_targets import SEEDS, TARGETS

_MAX_INPUT_BYTES: Final = 256
"""Some twenty frames: what takes more of them is for `fuzz_channel`, and short inputs are quicker."""
_MAX_INPUT_S: Final = 5
_MAX_MEMORY_MIB: Final = 512
"""A parser that keeps what it should not keep is over this; Python, protobuf and atheris take a quarter of it."""


def main() -> None:
    """Run until so many inputs are through, or one fails; libFuzzer then ends the process with its own status."""
    parser = argparse.ArgumentParser(description="Fuzz a reader of untrusted bytes, guided by coverage.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="only this one, which a run has left")
    options = parser.parse_args()
    target = TARGETS[options.target]

    def test_one(data: bytes) -> None:
        if len(data) >= 2:
            target(data)

    if options.input is not None:
        test_one(options.input.read_bytes())
        return
    corpus = Path(tempfile.mkdtemp(prefix=f"fuzz-{options.target}-"))
    for number, seed in enumerate(SEEDS[options.target]):
        (corpus / f"seed-{number}").write_bytes(bytes([number % 256, number % 7]) + seed)
    limits = [f"-max_len={_MAX_INPUT_BYTES}", f"-timeout={_MAX_INPUT_S}", f"-rss_limit_mb={_MAX_MEMORY_MIB}"]
    atheris.Setup([sys.argv[0], f"-runs={options.inputs}", f"-seed={options.seed}", *limits, str(corpus)], test_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
