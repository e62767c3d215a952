"""A function's /tmp: on disk, of a hard size, its own, and nothing of it left behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.sandbox_harness import OWN_RUNTIME, TIMEOUT_S, Lab, config, lab, pool_of, require_disk

from lambent_node_agent.sandbox import SandboxError, SandboxHost
from lambent_node_agent.sandbox.ephemeral_storage import (
    DEFAULT_SIZE_MIB,
    ImageStorage,
    MemoryStorage,
    Volume,
    btrfs,
    image,
)
from lambent_runtime import linux

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 1 << 20
TICK_NS = 10_000_000
"""Of the slowest clock that Linux is built with."""
SUPERBLOCK_AND_TREES_MIB = 8
"""What an empty file system takes, and how exact limits are: some blocks of metadata."""

FILL = """
import errno, os

def handler(event, context):
    if os.path.exists("/tmp/full"):
        os.unlink("/tmp/full")
    file = os.open("/tmp/full", os.O_WRONLY | os.O_CREAT)
    written = 0
    try:
        while written < event:
            written += os.write(file, bytes(1 << 20))
        return ["", written >> 20]
    except OSError as error:
        return [errno.errorcode[error.errno], written >> 20]
    finally:
        os.close(file)
"""
RESERVE = """
import errno, os

def handler(size, context):
    file = os.open("/tmp/reserved", os.O_WRONLY | os.O_CREAT)
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        os.close(file)
"""


def use_of(directory: Path) -> int:
    """What is on the disk of a directory, in MiB."""
    return shutil.disk_usage(directory).used // MIB


def loop_files(directory: Path) -> list[str]:
    """What loop devices of this machine are made of, below a directory."""
    texts = []
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just gone
            texts.append(path.read_text())
    return [text for text in texts if str(directory) in text]


async def until(condition: Callable[[], object]) -> None:
    """Let others run until it holds; the test's own deadline bounds it."""
    while not condition():  # noqa: ASYNC110 - there is no event to wait for
        await asyncio.sleep(0)


@contextlib.contextmanager
def disk(place: Path, size_mib: int) -> Iterator[Path]:
    """A disk of this size at a place."""
    place.mkdir()
    linux.mount("disk", str(place), "tmpfs", 0, f"mode=0755,size={size_mib}m")
    try:
        yield place
    finally:
        linux.umount(str(place))


@contextlib.contextmanager
def volume(directory: Path, capacity_mib: int = 1024) -> Iterator[tuple[Path, Volume]]:
    """A volume of a storage of its own, with its place."""
    place = directory / "place"
    place.mkdir(parents=True)
    with contextlib.closing(ImageStorage(directory, capacity_mib)) as storage:
        made = storage.volume(0, place)
        made.make()
        yield place, made
        made.remove()
    place.rmdir()


async def test_a_function_of_128_mib_fills_512_mib_and_goes_on(world: Lab) -> None:
    """What is in /tmp is never the function's memory, but for cached pages, which the kernel takes back."""
    require_disk(world.directory)
    async with world.function(FILL, memory_mib=128) as function:
        assert await function.invoke(4096 * MIB) == ["EDQUOT", 511]
        assert await function.invoke(100 * MIB) == ["", 100]
        assert not function.process.exit_status.done()
        assert function.sandbox.peak_memory_mib() <= 128


async def test_a_mapped_file_larger_than_the_memory_is_written(world: Lab) -> None:
    """Its dirty pages go to the disk when the memory is short."""
    require_disk(world.directory)
    code = """
import mmap
def handler(event, context):
    with open("/tmp/mapped", "w+b") as file:
        file.truncate(event)
        with mmap.mmap(file.fileno(), event) as mapped:
            for at in range(0, event, mmap.PAGESIZE):
                mapped[at] = 1
            return sum(mapped[::mmap.PAGESIZE])
"""
    async with world.function(code, memory_mib=128) as function:
        assert await function.invoke(300 * MIB) == 300 * MIB // os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("size_mib", [10, 513, 2048])
async def test_tmp_is_full_at_the_size_that_is_asked_for(world: Lab, size_mib: int) -> None:
    """Not a mebibyte earlier, and none later."""
    async with world.function(RESERVE, storage_mib=size_mib) as function:
        assert await function.invoke((size_mib + 1) * MIB) == "EDQUOT"
        assert await function.invoke((size_mib - 1) * MIB) is None


async def test_files_without_bytes_fill_it_as_well_and_can_be_removed(world: Lab) -> None:
    """Inodes and names are counted; what is full is not full for ever."""
    code = """
import errno, os
def handler(event, context):
    made = 0
    try:
        while made < 100_000:
            os.close(os.open(f"/tmp/{made:0200d}", os.O_WRONLY | os.O_CREAT))
            made += 1
    except OSError as error:
        answer = errno.errorcode[error.errno]
    for number in range(made):
        os.unlink(f"/tmp/{number:0200d}")
    with open("/tmp/again", "w") as file:
        return [answer, made, file.write("x" * 1000)]
"""
    async with world.function(code, storage_mib=4) as function:
        answer, made, written = await function.invoke()
        assert (answer, written) == ("EDQUOT", 1000)
        assert 100 < made < 10_000


async def test_the_next_environment_has_neither_the_files_nor_the_size_of_the_last(world: Lab) -> None:
    """Slots are used again; a volume is not."""
    code = (
        "import os\ndef handler(e, c):\n    open('/tmp/left', 'w')\n    return [os.getuid(), os.stat('/tmp').st_ino]\n"
    )
    async with world.function(code, storage_mib=2048) as function:
        before = await function.invoke()
    async with world.function(RESERVE + "    return os.getuid(), os.listdir('/tmp')\n") as function:
        assert await function.invoke((DEFAULT_SIZE_MIB + 1) * MIB) == "EDQUOT"
        assert await function.invoke(1) == [before[0], ["reserved"]]


def leave(place: Path) -> None:
    """Make a file, and leave it."""
    (place / "left").touch()


def leave_nothing(place: Path) -> None:
    """Make a file, and remove it; not within the tick in which the volume was made, where that would not show."""
    made_ns = place.stat().st_ctime_ns
    while time.time_ns() - made_ns < TICK_NS:
        continue
    (place / "left").touch()
    (place / "left").unlink()


def look(place: Path) -> None:
    """See that nothing is there, as functions do that want a place for a file and do not write it after all."""
    assert os.listdir(place) == []


@pytest.mark.parametrize(("use", "as_new"), [(look, True), (leave, False), (leave_nothing, False)])
async def test_a_volume_is_as_new_until_something_is_made_in_it(
    mount_namespace: None, place: Path, use: Callable[[Path], None], as_new: bool
) -> None:
    """Also when it is gone again: its space may not be free yet. In memory as on the disk."""
    (place / "memory").mkdir()
    in_memory = MemoryStorage().volume(0, place / "memory")
    in_memory.make()
    with volume(place / "storage") as (tmp, on_disk):
        for where, made in ((tmp, on_disk), (place / "memory", in_memory)):
            assert made.as_new
            use(where)
            assert made.as_new is as_new
    in_memory.remove()
    assert not in_memory.as_new


async def test_files_without_a_name_leave_all_room(mount_namespace: None, place: Path) -> None:
    """They do not show, so that the next function gets the same volume; more than half of what there is, both times."""
    with volume(place / "storage", capacity_mib=32) as (tmp, made):
        for _ in range(2):
            with tempfile.TemporaryFile(dir=tmp, buffering=0) as file:
                assert [file.write(bytes(MIB)) for _ in range(20)] == [MIB] * 20
                os.fsync(file.fileno())
            assert made.as_new


async def test_a_volume_of_another_size_is_not_as_new(mount_namespace: None, place: Path) -> None:
    """Also when the kernel has refused the change halfway."""
    with volume(place / "storage") as (_, made):
        made.set_size(1024)
        assert not made.as_new


async def test_a_tmp_that_nobody_has_used_is_the_next_environment_s(world: Lab) -> None:
    """Most functions leave it alone; each volume is a device of its own."""
    code = "import os\ndef handler(e, c): return [os.getuid(), os.stat('/tmp').st_dev, os.listdir('/tmp')]\n"
    seen = []
    for _ in range(2):
        async with world.function(code) as function:
            seen.append(await function.invoke())
    assert seen[0] == seen[1]
    assert seen[0][2] == []


async def test_tmp_is_root_s_and_everybody_may_write_there_but_run_nothing_as_root(world: Lab) -> None:
    """As on any machine: sticky; and what is made in it is neither a device nor setuid. Its owner may be nobody."""
    code = """
import os
def handler(event, context):
    there = os.stat("/tmp")
    options = [line.split()[5] for line in open("/proc/self/mountinfo") if line.split()[4] == "/tmp"]
    return [oct(there.st_mode), there.st_uid, options]
"""
    async with world.function(code) as function:
        mode, owner, options = await function.invoke()
        assert (mode, options) == ("0o41777", ["rw,nosuid,nodev,relatime"])
        assert owner in (0, 65534)


async def test_files_share_no_extents_and_programs_copy_all_the_same(world: Lab) -> None:
    """Calls that would have files share are answered as by a file system that cannot."""
    code = """
import errno, fcntl, os, shutil, subprocess
def attempt(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
def handler(event, context):
    with open("/tmp/a", "w+b") as source, open("/tmp/b", "w+b") as target:
        source.write(b"x" * 100_000)
        source.flush()
        answers = [attempt(fcntl.ioctl, target, 0x40049409, source.fileno())]
        answers.append(attempt(os.copy_file_range, source.fileno(), target.fileno(), 1000, 0, 0))
    subprocess.run(["/bin/cp", "/tmp/a", "/tmp/c"], check=True)
    shutil.copy("/tmp/a", "/tmp/d")
    return answers + [os.path.getsize("/tmp/c"), os.path.getsize("/tmp/d")]
"""
    async with world.function(code) as function:
        assert await function.invoke() == ["ENOTSUP", "EXDEV", 100_000, 100_000]


async def test_all_together_hold_no_more_than_the_capacity(mount_namespace: None, place: Path) -> None:
    """A node's disk is overcommitted: who comes late finds /tmp full, but it starts."""
    small = dataclasses.replace(config(place, "capacity"), disk_mib=600)
    async with SandboxHost(small) as host:
        world = Lab(host, place)
        async with world.function(RESERVE) as first, world.function(RESERVE) as second:
            assert await first.invoke(500 * MIB) is None
            assert await second.invoke(500 * MIB) == "EDQUOT"
            assert await second.invoke(80 * MIB) is None
            async with world.function(RESERVE) as third:
                assert await third.invoke(80 * MIB) == "EDQUOT"


async def test_a_full_disk_of_the_host_is_an_error_of_its_functions_and_not_of_the_node(
    mount_namespace: None, place: Path
) -> None:
    """What fails is replaced once there is room: environments, also ready-made ones, then have a /tmp that works."""
    code = """
import errno, os
def handler(event, context):
    try:
        with open("/tmp/big", "wb", buffering=0) as file:
            for _ in range(event):
                file.write(bytes(1 << 20))
                os.fsync(file.fileno())
        os.sync()
    except OSError as error:
        return errno.errorcode[error.errno]
    return os.access("/tmp", os.W_OK)
"""
    with disk(place / "disk", 256) as host_disk:
        large = dataclasses.replace(config(host_disk, "full-disk", 1), disk_mib=1024)
        async with asyncio.timeout(TIMEOUT_S), SandboxHost(large) as host:
            await host.wait_until_filled()
            [ready_made] = pool_of(host)
            world = Lab(host, place)
            other = os.open(host_disk, os.O_TMPFILE | os.O_RDWR)
            async with world.function(code) as function:
                assert function.sandbox is ready_made
                await host.wait_until_filled()
                os.posix_fallocate(other, 0, shutil.disk_usage(host_disk).free - MIB)
                assert await function.invoke(300) in ("EIO", "EROFS")
                while await function.invoke(1) != "EROFS":
                    continue  # it turns read-only when it cannot write its own trees
                slots = host._supplies[OWN_RUNTIME]._slots
                assert not any(slot.sound for slot in slots._free), "each had an unused /tmp"
            os.close(other)
            async with world.function(code) as function:
                assert await function.invoke(10) is True
        assert os.listdir(host_disk / "state") == []


async def test_nothing_is_left_of_it(mount_namespace: None, place: Path) -> None:
    """The file has no name from the start, and its device goes with the mount."""
    async with lab(place, "nothing-left") as made:
        assert loop_files(place)
        names = os.listdir(place / "state" / f"lambent-nothing-left-{os.getpid()}")
        assert [name for name in names if name.startswith("ephemeral")] == ["ephemeral-storage"]
        async with made.function(FILL) as function:
            assert await function.invoke(10 * MIB) == ["", 10]
    assert loop_files(place) == []
    assert os.listdir(place / "state") == []


STORAGE = """
import sys
from pathlib import Path
from lambent_node_agent.sandbox import enter_private_mount_namespace
from lambent_node_agent.sandbox.ephemeral_storage import ImageStorage
enter_private_mount_namespace()
storage = ImageStorage(Path(sys.argv[1]), 256)
storage.volume(0, Path(sys.argv[1], "place")).make()
print("made", flush=True)
input()
"""


async def test_nothing_is_left_of_it_after_sigkill(mount_namespace: None, place: Path) -> None:
    """Not a file, not a device: the kernel frees both with the mount namespace."""
    (place / "place").mkdir()
    command = [sys.executable, "-c", STORAGE, str(place)]
    process = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while (line := await process.stdout.readline()) != b"made\n":
        assert b"ephemeral_storage_without_direct_io" in line  # where the disk is memory
    assert loop_files(place)
    process.kill()
    await process.wait()
    async with asyncio.timeout(TIMEOUT_S):
        await until(lambda: not loop_files(place))
    assert sorted(os.listdir(place)) == ["ephemeral-storage", "place"]
    with volume(place / "next"):
        pass


async def test_what_is_freed_goes_back_to_the_disk(mount_namespace: None, place: Path) -> None:
    """The file shrinks again, some seconds after a volume has been emptied."""
    with disk(place / "disk", 512) as host_disk, volume(host_disk) as (tmp, made):
        with (tmp / "big").open("wb") as file:
            file.write(bytes(200 * MIB))
            os.fsync(file.fileno())
        assert use_of(host_disk) > 200
        made.remove()
        made.make()
        assert os.listdir(tmp) == []
        async with asyncio.timeout(TIMEOUT_S):
            await until(lambda: use_of(host_disk) < SUPERBLOCK_AND_TREES_MIB)


async def test_emptying_does_not_follow_what_is_in_it(mount_namespace: None, place: Path) -> None:
    """A tree is dropped whole: neither links nor depth nor number of files count."""
    (place / "of-the-host").write_text("kept")
    with volume(place / "storage") as (tmp, made):
        (tmp / "link").symlink_to(place)
        directory = tmp
        for _ in range(200):
            directory /= "x" * 10
            directory.mkdir()
        made.remove()
        made.make()
        assert os.listdir(tmp) == []
        assert made.sound
    assert (place / "of-the-host").read_text() == "kept"


MISSING = """
import asyncio, os, sys
from pathlib import Path
from lambent_node_agent.sandbox import SandboxConfig, SandboxHost, enter_private_mount_namespace
from lambent_runtime import linux
from tests.sandbox_harness import Lab

async def main(place, program, runtime, code, *allowed):
    config = SandboxConfig(place / "state", f"no-disk-{os.getpid()}", 0, allow_missing=frozenset(allowed))
    async with SandboxHost(config) as host:
        async with Lab(host, place).function(code, memory_mib=256, storage_mib=20) as function:
            print(await function.invoke(64 << 20))

enter_private_mount_namespace()
linux.mount("/dev/null", sys.argv[2], None, linux.MS_BIND)
asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
"""


async def test_a_machine_without_it_is_refused_unless_allowed_by_name(mount_namespace: None, place: Path) -> None:
    """Then /tmp is memory of the function, of the same hard size."""
    program = shutil.which("mkfs.btrfs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program is not None
    command = [sys.executable, "-c", MISSING, str(place), program, OWN_RUNTIME, FILL]
    refused, allowed = [
        await asyncio.to_thread(subprocess.run, arguments, capture_output=True, text=True, check=False, timeout=60)
        for arguments in (command, [*command, "disk"])
    ]
    assert "mkfs.btrfs is not installed" in refused.stderr
    assert "--allow-missing disk" in refused.stderr
    assert "['ENOSPC', 20]" in allowed.stdout, allowed.stderr
    assert "missing=disk" in allowed.stdout


async def test_a_volume_that_could_not_be_made_can_be_made_later(
    mount_namespace: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The subvolume was there already: its slot must not stumble over it for ever."""
    with volume(place / "storage") as (tmp, made):
        made.remove()
        with monkeypatch.context() as patch:
            patch.setattr(image, "DIRECTORY_MODE", -1 << 64)
            with pytest.raises(OverflowError):
                made.make()
        made.remove()
        made.make()
        assert os.listdir(tmp) == []


async def test_an_image_that_could_not_be_prepared_is_gone(
    mount_namespace: None, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk each start tries again."""

    def refuse(fs_fd: int, number: int, size_mib: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(btrfs, "make_group", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(SandboxError, match="No space left"):
        ImageStorage(place, 256)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(place) == []
    async with asyncio.timeout(TIMEOUT_S):
        await until(lambda: not loop_files(place))
