"""The code cache: bounded, safe, and one fetch for many."""

from __future__ import annotations

import asyncio
import hashlib
import io
import shutil
import zipfile
from pathlib import Path

import pytest

from lambent.errors import InvalidParameterError, NoCapacityError, ResourceNotFoundError
from lambent_node_agent.code_cache import CodeCache


class Shelf:
    """A directory of packages in the place of the cluster's store, which has tests of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()
        self.fetches = 0
        self.begun = asyncio.Semaphore(0)
        self.gate = asyncio.Event()
        self.gate.set()

    def add(self, entries: dict[str, bytes]) -> str:
        """Store a zip of these files; give its digest."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return self.add_raw(buffer.getvalue())

    def add_raw(self, data: bytes) -> str:
        """Store these bytes; give their digest."""
        digest = hashlib.sha256(data).hexdigest()
        (self._directory / digest).write_bytes(data)
        return digest

    async def fetch(self, sha256: str, destination: Path, timeout_s: float) -> None:
        """Copy a package, once the gate is open."""
        assert timeout_s > 0
        self.fetches += 1
        self.begun.release()
        await self.gate.wait()
        if not (self._directory / sha256).exists():
            raise ResourceNotFoundError(sha256)
        shutil.copy(self._directory / sha256, destination)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


async def cache_of(tmp_path: Path, shelf: Shelf, capacity_bytes: int = 1 << 20) -> CodeCache:
    cache = CodeCache(tmp_path / "code", shelf, capacity_bytes=capacity_bytes)
    await cache.open()
    return cache


def held(tmp_path: Path) -> list[str]:
    """What is in the cache's directory of this boot."""
    [boot] = (tmp_path / "code").iterdir()
    return sorted(path.name for path in boot.iterdir())


async def test_code_is_unpacked_once_for_all_who_wait(tmp_path: Path, shelf: Shelf) -> None:
    """A hundred environments of a new version start at once on a node."""
    cache = await cache_of(tmp_path, shelf)
    sha256 = shelf.add({"app.py": b"x = 1\n"})
    shelf.gate.clear()
    waiting = [asyncio.create_task(cache.acquire(sha256)) for _ in range(10)]
    waiting[0].cancel()
    shelf.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    paths = {result for result in results if isinstance(result, Path)}
    assert len(paths) == 1
    assert (paths.pop() / "app.py").read_bytes() == b"x = 1\n"
    assert shelf.fetches == 1


async def test_the_least_recently_used_goes_and_what_is_in_use_stays(tmp_path: Path, shelf: Shelf) -> None:
    """The disk is bounded, and no environment loses the code under its feet."""
    cache = await cache_of(tmp_path, shelf, capacity_bytes=250)
    first, second, third = (shelf.add({"app.py": bytes([65 + number]) * 100}) for number in range(3))
    path = await cache.acquire(first)
    await cache.acquire(second)
    cache.release(second)
    await cache.acquire(third)
    assert first in cache
    assert second not in cache
    assert path.exists()
    assert cache.size_bytes == 200
    with pytest.raises(NoCapacityError, match="in use"):
        await cache.acquire(second)
    cache.release(first)
    await cache.acquire(second)
    assert not path.exists()


async def test_a_restart_takes_over_what_is_complete(tmp_path: Path, shelf: Shelf) -> None:
    """An agent that died while it unpacked must not run half a package."""
    cache = await cache_of(tmp_path, shelf)
    sha256 = shelf.add({"app.py": b"x = 1\n"})
    await cache.acquire(sha256)
    [boot] = (tmp_path / "code").iterdir()
    (boot / ".unpacking-zzz").mkdir()
    again = await cache_of(tmp_path, shelf)
    assert sha256 in again
    assert again.size_bytes == 6
    assert held(tmp_path) == [sha256]
    await again.acquire(sha256)
    assert shelf.fetches == 1


async def test_code_of_another_boot_is_not_trusted(tmp_path: Path, shelf: Shelf) -> None:
    """The machine lost its power: a file of the package has its name and its size, and nothing in it."""
    cache = await cache_of(tmp_path, shelf)
    sha256 = shelf.add({"app.py": b"x = 1\n"})
    path = await cache.acquire(sha256)
    (path / "app.py").write_bytes(bytes(6))
    path.parent.rename(path.parent.with_name("another-boot"))
    again = await cache_of(tmp_path, shelf)
    assert sha256 not in again
    assert held(tmp_path) == []
    assert ((await again.acquire(sha256)) / "app.py").read_bytes() == b"x = 1\n"
    assert len(list((tmp_path / "code").iterdir())) == 1


async def test_a_full_cache_takes_many_packages_at_once(tmp_path: Path, shelf: Shelf) -> None:
    """A busy node: everything that is not in use goes, once, and no more comes than there is room for."""
    cache = await cache_of(tmp_path, shelf, capacity_bytes=400)
    old = [shelf.add({"app.py": bytes([65 + number]) * 100}) for number in range(4)]
    new = [shelf.add({"app.py": bytes([97 + number]) * 100}) for number in range(4)]
    for sha256 in old:
        await cache.acquire(sha256)
        cache.release(sha256)
    await asyncio.gather(*(cache.acquire(sha256) for sha256 in new))
    assert held(tmp_path) == sorted(new)
    assert cache.size_bytes == 400


async def test_a_package_on_a_slow_link_holds_up_no_other(tmp_path: Path, shelf: Shelf) -> None:
    """Two large ones arrive for a minute; a small function starts meanwhile."""
    cache = await cache_of(tmp_path, shelf)
    shelf.gate.clear()
    slow = [asyncio.create_task(cache.acquire(shelf.add({"app.py": bytes([number])}))) for number in range(4)]
    async with asyncio.timeout(10):
        for _ in slow:
            await shelf.begun.acquire()
        shelf.gate.set()
        await asyncio.gather(*slow)


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "a/../../evil.py"])
async def test_a_package_that_points_outside_is_refused_whole(tmp_path: Path, shelf: Shelf, name: str) -> None:
    """The agent is root: nothing that a zip says may make it write elsewhere, whoever checked the zip before."""
    cache = await cache_of(tmp_path, shelf)
    sha256 = shelf.add({"app.py": b"", name: b"evil"})
    with pytest.raises(InvalidParameterError):
        await cache.acquire(sha256)
    assert held(tmp_path) == []
    assert not await asyncio.to_thread(lambda: list(tmp_path.rglob("evil.py")))


async def test_a_bomb_is_refused_and_leaves_nothing(tmp_path: Path, shelf: Shelf) -> None:
    """A megabyte that unpacks to more than 250 MiB must not fill the disk."""
    cache = await cache_of(tmp_path, shelf, capacity_bytes=1 << 30)
    sha256 = shelf.add({"zeros": bytes(262_144_001)})
    with pytest.raises(InvalidParameterError, match="262144000"):
        await cache.acquire(sha256)
    assert held(tmp_path) == []


async def test_a_link_is_refused(tmp_path: Path, shelf: Shelf) -> None:
    """A link in /var/task would point into the host at the moment of unpacking."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.create_system = 3
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    cache = await cache_of(tmp_path, shelf)
    with pytest.raises(InvalidParameterError):
        await cache.acquire(shelf.add_raw(buffer.getvalue()))


@pytest.mark.parametrize("sha256", ["", "../x", "0" * 63, "G" * 64, "A" * 64])
async def test_only_a_digest_names_a_package(tmp_path: Path, shelf: Shelf, sha256: str) -> None:
    """The name becomes a path."""
    cache = await cache_of(tmp_path, shelf)
    with pytest.raises(InvalidParameterError):
        await cache.acquire(sha256)
    assert shelf.fetches == 0


async def test_a_package_that_is_not_stored_can_be_asked_for_again(tmp_path: Path, shelf: Shelf) -> None:
    """A failure is not remembered: the next start may be luckier."""
    cache = await cache_of(tmp_path, shelf)
    with pytest.raises(ResourceNotFoundError):
        await cache.acquire("0" * 64)
    with pytest.raises(ResourceNotFoundError):
        await cache.acquire("0" * 64)
    assert shelf.fetches == 2
