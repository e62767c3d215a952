"""What forks write lies side by side: the zygote's heap has no holes that their objects would go to."""

from __future__ import annotations

import subprocess
import sys

from lambent_runtime import heap

COUNT = """
from lambent_runtime import heap
kept = [[bytes(size) for size in range(16, 480, 16)] for _ in range(500)]
del kept[::3]
free = lambda: sum(size * count for size, count in heap._free_blocks())
before = free()
heap.fill_holes()
print(before, free())
"""


def test_holes_are_filled() -> None:
    """In a process of its own, whose heap nobody else fills meanwhile."""
    done = subprocess.run([sys.executable, "-c", COUNT], check=True, capture_output=True, text=True)
    before, after = map(int, done.stdout.split())
    assert before > 1_000_000
    assert after < before / 10
    assert done.stderr == ""


def test_each_size_has_an_object_of_it() -> None:
    """A block of another size would fill another hole."""
    sizes = [size for size, _count in heap._free_blocks()]
    assert sizes[0] == 16
    assert sizes[-1] == 512
    assert [sys.getsizeof(heap._block(size, 1)) for size in sizes] == sizes


def test_an_allocator_that_says_nothing_is_left_alone() -> None:
    """With PYTHONMALLOC=malloc there are no size classes."""
    code = "from lambent_runtime import heap\nheap.fill_holes()\nprint(heap._fillings)"
    environment = {"PYTHONMALLOC": "malloc", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert done.stdout == "[]\n"
