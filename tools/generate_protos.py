"""Generate the protobuf and gRPC code of protos/ into a directory; `make proto` and the test that it is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def generate(destination: Path) -> None:
    """Write lambent/v1/*_pb2.py, *_pb2_grpc.py and their stubs under `destination`, which exists.

    Raises:
        subprocess.CalledProcessError: protoc refused a file; its message is on stderr.
    """
    protos = ROOT / "protos"
    programs = Path(sys.executable).parent
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={protos}",
            f"--plugin=protoc-gen-mypy={programs / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={programs / 'protoc-gen-mypy_grpc'}",
            f"--python_out={destination}",
            f"--grpc_python_out={destination}",
            f"--mypy_out=quiet,readable_stubs:{destination}",
            f"--mypy_grpc_out=quiet,readable_stubs,only_async:{destination}",
            *sorted(str(path) for path in protos.rglob("*.proto")),
        ],
        check=True,
        timeout=120,
    )


if __name__ == "__main__":
    generate(ROOT / sys.argv[1])
