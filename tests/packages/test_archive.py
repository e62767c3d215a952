"""Code packages made by others: what is sound comes out as it went in, and nothing else comes out at all."""

from __future__ import annotations

import io
import stat
import struct
import time
import zipfile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambent.errors import CodeTooLargeError, InvalidCodeError, InvalidParameterError
from lambent_common import archive

if TYPE_CHECKING:
    from pathlib import Path

NOT_A_ZIP = "Could not unzip uploaded file. Please check your file, then try to upload again."


def write_zip(path: Path, entries: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def refused(path: Path) -> str:
    """The message with which both check and extract refuse."""
    with pytest.raises(InvalidCodeError) as checked:
        archive.check(path)
    destination = path.parent / "out"
    destination.mkdir()
    with pytest.raises(InvalidCodeError) as extracted:
        archive.extract(path, destination)
    assert checked.value.message == extracted.value.message
    return checked.value.message


def test_sound_package_is_extracted_as_it_was(tmp_path: Path) -> None:
    """Code, folders, empty files and the executable bit arrive; set-id bits do not."""
    path = write_zip(
        tmp_path / "a.zip",
        [
            ("app.py", b"print(1)\n" * 1000),
            ("lib/", b""),
            ("lib/deep/er/module.py", b""),
            (entry("bin/run", stat.S_IFREG | stat.S_ISUID | 0o755), b"#!/bin/sh\n"),
        ],
    )
    destination = tmp_path / "out"
    destination.mkdir()
    summary = archive.extract(path, destination)
    assert summary == archive.check(path)
    assert (summary.unzipped_bytes, summary.entries) == (9010, 4)
    assert (destination / "app.py").read_bytes() == b"print(1)\n" * 1000
    assert (destination / "lib/deep/er/module.py").read_bytes() == b""
    assert stat.S_IMODE((destination / "bin/run").stat().st_mode) == 0o755
    assert stat.S_IMODE((destination / "app.py").stat().st_mode) == 0o644
    assert stat.S_IMODE((destination / "lib/deep").stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("/etc/passwd", "absolute"),
        ("../up.py", "leads out"),
        ("a/../../up.py", "leads out"),
        ("a\\b.py", "backslash"),
        ("x" * 256, "too long"),
        ("/".join(["d" * 200] * 20), "too long"),
        (".", "no name"),
        ("d/" * 129 + "x.py", "more than 128 folders"),
    ],
)
def test_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str, what: str) -> None:
    """A package must not write outside of its own folder."""
    assert what in refused(write_zip(tmp_path / "a.zip", [(name, b"x")]))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFDIR])
def test_link_or_device_is_refused(tmp_path: Path, kind: int) -> None:
    """A link could point to the host's files, a device at its disks."""
    message = refused(write_zip(tmp_path / "a.zip", [(entry("x", kind | 0o777), b"/etc/passwd")]))
    assert "neither a file nor a folder" in message


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["a.py", "a.py"], "occurs twice"),
        (["a.py", "./a.py"], "occurs twice"),
        (["a//b.py", "a/b.py"], "occurs twice"),
        (["caf\u00e9.py", "cafe\u0301.py"], "differs from another"),
        (["caf\u00e9/a.py", "cafe\u0301/b.py"], "differs from another"),
        (["a", "a/b"], "is inside of another"),
        (["a/b", "a"], "both a file and a folder"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_entries_for_one_place_are_refused(tmp_path: Path, names: list[str], what: str) -> None:
    """Which of them runs would depend on the reader."""
    assert what in refused(write_zip(tmp_path / "a.zip", [(name, b"x") for name in names]))


def test_folder_may_be_listed_twice_and_late(tmp_path: Path) -> None:
    """Real archivers do so; it changes nothing."""
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write_zip(tmp_path / "a.zip", [("a/b.py", b""), ("a/", b""), ("a/", b"")])
    assert archive.check(path).entries == 3


@pytest.mark.parametrize("content", [b"not a zip", b"PK\x03\x04" + b"\0" * 100, b"PK\x05\x06" + b"\xff" * 18])
def test_what_is_no_zip_gets_the_message_of_aws(tmp_path: Path, content: bytes) -> None:
    """Tools look for this sentence."""
    (tmp_path / "a.zip").write_bytes(content)
    assert refused(tmp_path / "a.zip") == NOT_A_ZIP


def test_empty_upload_and_empty_zip_are_refused(tmp_path: Path) -> None:
    """Neither can hold a handler."""
    (tmp_path / "a.zip").write_bytes(b"")
    for path in (tmp_path / "a.zip", write_zip(tmp_path / "b.zip", [])):
        with pytest.raises(InvalidParameterError, match="must be a non-empty zip"):
            archive.check(path)


def test_encrypted_entry_is_refused(tmp_path: Path) -> None:
    """Nobody could give the password."""
    path = write_zip(tmp_path / "a.zip", [("a.py", b"x")])
    data = bytearray(path.read_bytes())
    data[6] |= 1  # general purpose flags of the local header, then of the central one
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in refused(path)


def test_method_other_than_deflate_is_refused(tmp_path: Path) -> None:
    """A node's Python may lack it."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as file:
        file.writestr("a.py", b"x")
    assert "other than deflate" in refused(tmp_path / "a.zip")


def test_bomb_is_stopped_at_the_limit(tmp_path: Path) -> None:
    """300 MB of zeros are 300 kB zipped."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("zeros", "w") as zeros:
        for _ in range(300):
            zeros.write(bytes(1024 * 1024))
    with pytest.raises(InvalidParameterError) as error:
        archive.check(path)
    assert error.value.message == "Unzipped size must be smaller than 262144000 bytes"
    assert not isinstance(error.value, InvalidCodeError)


@pytest.mark.parametrize("claim", [0, 10, 100_000_000])
def test_bomb_that_lies_about_its_size_gets_nowhere(tmp_path: Path, claim: int) -> None:
    """What the headers claim decides nothing: the content must match its checksum within the real limit."""
    path = write_zip(tmp_path / "a.zip", [("zeros", bytes(20_000_000))])
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 22, claim)
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, claim)
    path.write_bytes(data)
    if claim <= 10:
        assert refused(path) == NOT_A_ZIP
    else:
        assert archive.check(path).unzipped_bytes == 20_000_000


def test_entries_that_share_their_data_are_refused(tmp_path: Path) -> None:
    """The way a small zip becomes an endless one: many names for one piece of data."""
    path = write_zip(tmp_path / "a.zip", [("a", bytes(1_000_000))])
    data = path.read_bytes()
    central, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    header = data[central:end]
    tail = bytearray(data[end:])
    struct.pack_into("<HHI", tail, 8, 50, 50, len(header) * 50)
    path.write_bytes(data[:central] + header * 50 + bytes(tail))
    assert refused(path) == NOT_A_ZIP


def test_too_many_entries_are_refused_quickly(tmp_path: Path) -> None:
    """A directory of millions would fill memory before anybody counted; folders that are only implied count as well."""
    started = time.process_time()
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for number in range(700):
            file.writestr(f"{number}/" + "/".join(["d"] * 100), b"")
    (tmp_path / "a.zip").write_bytes(data.getvalue())
    assert "65536" in refused(tmp_path / "a.zip")
    (tmp_path / "b.zip").write_bytes(b"PK\x01\x02" * 200_000)
    with pytest.raises(InvalidCodeError, match="65536 entries"):
        archive.check(tmp_path / "b.zip")
    assert time.process_time() - started < 10


def test_zip_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    """50 MiB is AWS's limit for a direct upload."""
    with (tmp_path / "a.zip").open("wb") as file:
        file.truncate(archive.ZIPPED_LIMIT_BYTES + 1)
    with pytest.raises(CodeTooLargeError) as error:
        archive.check(tmp_path / "a.zip")
    assert error.value.message == "Zipped size must be smaller than 52428800 bytes"


NAMES = st.lists(st.sampled_from(["a", "b", "c.py", "d e", "é", "x" * 40]), min_size=1, max_size=4).map("/".join)


@settings(max_examples=50)
@given(files=st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=8))
def test_what_is_accepted_is_extracted_unchanged(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    """Any set of names that fits a file system round-trips; one that does not is refused, not damaged."""
    directory = tmp_path_factory.mktemp("zip")
    path = write_zip(directory / "a.zip", list(files.items()))
    clash = any(other.startswith(f"{name}/") for name in files for other in files)
    if clash:
        refused(path)
        return
    (directory / "out").mkdir()
    archive.extract(path, directory / "out")
    found = {
        str(p.relative_to(directory / "out")): p.read_bytes() for p in (directory / "out").rglob("*") if p.is_file()
    }
    assert found == files


@settings(max_examples=300)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 10_000)),
)
def test_damaged_zip_never_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[int, int]], cut: int | None
) -> None:
    """Whatever the bytes are: accepted, or one of our errors. A parser's own exception would be an internal error."""
    directory = tmp_path_factory.mktemp("zip")
    source = write_zip(directory / "a.zip", [("app.py", b"hello " * 50), ("lib/", b""), ("lib/é.py", b"x" * 99)])
    data = bytearray(source.read_bytes())
    for offset, value in edits:
        data[offset % len(data)] = value
    source.write_bytes(data[: None if cut is None else cut % len(data)])
    (directory / "out").mkdir()
    try:
        checked = archive.check(source)
    except (InvalidCodeError, InvalidParameterError, CodeTooLargeError):
        return
    assert archive.extract(source, directory / "out") == checked
