"""Packages: the same code is the same zip, and what cannot travel is refused."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lambent
from lambent import packaging
from lambent.packaging import Entry, build_package, folder_entries, write_zip
from lambent.requirements import installer_command

names = st.lists(st.sampled_from(["a", "b", "c.py", "ä", "with space"]), min_size=1, max_size=3).map("/".join)
trees = st.dictionaries(names, st.tuples(st.binary(max_size=60), st.booleans()), min_size=1, max_size=6).filter(
    lambda tree: not any(PurePosixPath(other).is_relative_to(name) for name in tree for other in tree if other != name)
)


@settings(max_examples=40)
@given(trees, st.randoms(use_true_random=False), st.integers(0, 2_000_000_000))
def test_same_names_and_bytes_give_the_same_zip(tree: dict[str, tuple[bytes, bool]], random: object, when: int) -> None:
    """The digest tells whether code changed; order, times and place on disk must not."""
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        _write(Path(first), list(tree.items()), 1_000_000_000)
        shuffled = list(tree.items())
        random.shuffle(shuffled)  # type: ignore[attr-defined]  # hypothesis gives a random.Random
        _write(Path(second), shuffled, when)
        with build_package(first) as one, build_package(second) as two:
            assert one.sha256 == two.sha256
            content = b"".join(one.chunks())
            assert content == b"".join(two.chunks())
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == sorted(tree)
        for name, (data, executable) in tree.items():
            assert archive.read(name) == data
            assert (archive.getinfo(name).external_attr >> 16) & 0o777 == (0o755 if executable else 0o644)


def test_caches_version_control_and_environments_stay_behind(tmp_path: Path) -> None:
    """They change without the code and make packages large."""
    for name in (
        "app.py",
        "__pycache__/app.pyc",
        ".git/config",
        "env/pyvenv.cfg",
        "env/lib/x.py",
        ".DS_Store",
        "b.pyc",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    assert [entry.name for entry in folder_entries(tmp_path)] == ["app.py"]


def test_link_inside_the_folder_travels_as_its_content(tmp_path: Path) -> None:
    """A zip with links is refused by the cluster; the content is what is meant."""
    (tmp_path / "app.py").write_text("x = 1")
    (tmp_path / "link.py").symlink_to("app.py")
    with build_package(tmp_path) as package, zipfile.ZipFile(io.BytesIO(b"".join(package.chunks()))) as archive:
        assert archive.read("link.py") == b"x = 1"


def test_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    """Nobody means to publish /etc/passwd."""
    (tmp_path / "app.py").symlink_to("/etc/passwd")
    with pytest.raises(lambent.InvalidCodeError, match="leads out of"):
        build_package(tmp_path)


def test_link_to_a_folder_is_refused(tmp_path: Path) -> None:
    """It may lead round in a circle."""
    (tmp_path / "loop").symlink_to(".")
    with pytest.raises(lambent.InvalidCodeError, match="link to a folder"):
        build_package(tmp_path)


def test_pipe_is_refused(tmp_path: Path) -> None:
    """Reading it would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(lambent.InvalidCodeError, match="not a regular file"):
        build_package(tmp_path)


@pytest.mark.parametrize("source", [b"not a zip", "/does/not/exist"])
def test_what_is_no_code_is_refused(source: bytes | str) -> None:
    """Here, not after an upload."""
    with pytest.raises(lambent.InvalidCodeError):
        build_package(source)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    """A function without a file cannot run."""
    with pytest.raises(lambent.InvalidCodeError, match="no file"):
        build_package(tmp_path)


def test_zip_is_sent_as_it_is(tmp_path: Path) -> None:
    """Bytes or path, the digest is the file's own."""
    buffer = io.BytesIO()
    write_zip([Entry("app.py", b"x = 1")], buffer)
    (tmp_path / "code.zip").write_bytes(buffer.getvalue())
    with build_package(buffer.getvalue()) as from_bytes, build_package(tmp_path / "code.zip") as from_path:
        assert from_bytes.sha256 == from_path.sha256
        assert from_bytes.size_bytes == len(buffer.getvalue())


def test_zip_takes_no_requirements() -> None:
    """Silently leaving them out would fail at the first import, on the cluster."""
    with pytest.raises(lambent.InvalidCodeError, match="folder instead"):
        build_package(b"PK", requirements=["requests"])


def test_single_file_is_a_package(tmp_path: Path) -> None:
    """The smallest function is one file."""
    (tmp_path / "hello.py").write_text("def handler(event, context): return 1")
    with build_package(tmp_path / "hello.py") as package:
        assert zipfile.ZipFile(io.BytesIO(b"".join(package.chunks()))).namelist() == ["hello.py"]


def test_limits_are_aws_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a limit the caller learns it before the upload, in AWS's words."""
    (tmp_path / "app.py").write_bytes(os.urandom(2000))
    monkeypatch.setattr(packaging, "MAX_ZIP_BYTES", 1000)
    with pytest.raises(lambent.CodeTooLargeError, match="Zipped size must be smaller than 1000 bytes"):
        build_package(tmp_path)
    monkeypatch.setattr(packaging, "MAX_UNZIPPED_BYTES", 1000)
    with pytest.raises(lambent.CodeTooLargeError, match="Unzipped size must be smaller than 1000 bytes"):
        build_package(tmp_path)


def test_file_over_the_limit_is_never_read(tmp_path: Path) -> None:
    """Data beside the code may be larger than the memory of the machine."""
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(20 * 2**30)
    with pytest.raises(lambent.CodeTooLargeError, match="Unzipped size must be smaller"):
        build_package(tmp_path)


def test_files_are_packed_in_pieces(tmp_path: Path) -> None:
    """What is allowed is a quarter of a gigabyte, which nobody has to hold at once."""
    with (tmp_path / "data.bin").open("wb") as file:
        file.truncate(48 * 2**20)
    tracemalloc.start()
    try:
        with build_package(tmp_path) as package:
            assert package.size_bytes < 2**20
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_folder_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """Left out silently, it would be missed on the cluster."""
    script = """
import os, tempfile
import lambent, lambent.packaging
from pathlib import Path
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
with tempfile.TemporaryDirectory() as root:
    (Path(root) / "app.py").write_text("x = 1")
    locked = Path(root) / "locked"
    locked.mkdir(mode=0)
    try:
        lambent.build_package(root)
    except lambent.InvalidCodeError as error:
        print(str(error).replace(root, "ROOT"))
    locked.chmod(0o700)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == ("ROOT/locked cannot be read: Permission denied\n", "")


def test_requirements_are_installed_beside_the_code(tmp_path: Path) -> None:
    """By the real installer, from a package of this test's own, so that no network is needed."""
    archive = _package_with_colours(tmp_path)
    assert archive.read("colours.py") == b"RED = 1\n"
    assert "app.py" in archive.namelist()
    assert not any(name.endswith(".pyc") for name in archive.namelist())


def test_requirements_leave_nothing_of_this_machine_in_the_package(tmp_path: Path) -> None:
    """Two machines that deploy the same function must get the same digest, or they redeploy it for ever."""
    archive = _package_with_colours(tmp_path)
    assert sorted(archive.namelist()) == [
        "app.py",
        *(f"colours-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
        "colours.py",
    ]
    recorded = archive.read("colours-1.0.dist-info/RECORD").decode().splitlines()
    assert [row.partition(",")[0] for row in recorded] == [
        *(f"colours-1.0.dist-info/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt")),
        "colours.py",
    ]


def test_failed_installation_shows_the_installer_s_words(tmp_path: Path) -> None:
    """The cause stands at the end of what pip prints."""
    (tmp_path / "app.py").write_text("")
    with pytest.raises(lambent.InvalidCodeError, match="installing the requirements"):
        build_package(tmp_path / "app.py", requirements=["./does-not-exist.whl"])


def test_other_runtime_gets_wheels_of_its_own_version(tmp_path: Path) -> None:
    """Building from source would build for this interpreter."""
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "--python-version" not in installer_command(tmp_path, tmp_path, own)
    other = installer_command(tmp_path, tmp_path, "3.9")
    assert other[other.index("--python-version") + 1] == "3.9"
    assert ":all:" in other


def _package_with_colours(tmp_path: Path) -> zipfile.ZipFile:
    """Package a file with a requirement that has a script."""
    wheel = tmp_path / "colours-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as made:
        made.writestr("colours.py", "RED = 1\n")
        made.writestr("colours-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: colours\nVersion: 1.0\n")
        made.writestr(
            "colours-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        made.writestr("colours-1.0.dist-info/entry_points.txt", "[console_scripts]\ncolours = colours:main\n")
        made.writestr("colours-1.0.dist-info/RECORD", "")
    (tmp_path / "app.py").write_text("import colours\n")
    with build_package(tmp_path / "app.py", requirements=[str(wheel)]) as package:
        return zipfile.ZipFile(io.BytesIO(b"".join(package.chunks())))


def _write(root: Path, tree: list[tuple[str, tuple[bytes, bool]]], when: int) -> None:
    for name, (data, executable) in tree:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o700 if executable else 0o600)
        os.utime(path, (when, when))
