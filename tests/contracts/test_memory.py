"""Freed memory goes back to the system; in processes of their own, as it is the whole process."""

from __future__ import annotations

import mmap
import subprocess
import sys

import pytest

_CHILD = """
import sys
import numpy as np
from edgekd.contracts.memory import give_back_memory, separate_large_memory

def held():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

if sys.argv[1] == "separate":
    separate_large_memory()
before = held()
for size in (30 << 20, 20 << 20):  # the first, freed, raises glibc's limit
    block = np.ones(size, np.uint8)
    pin = np.ones(1000, np.uint8)
    pins = [np.ones(90_000, np.uint8) for _ in range(20)]
    del block
if sys.argv[1] == "give back":
    del pins
    give_back_memory()
print(held() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's habits")
def test_large_memory_is_given_back() -> None:
    def left(way: str) -> int:
        command = [sys.executable, "-c", _CHILD, way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return int(done.stdout)

    kept = left("keep")
    assert kept > 20 << 20, "glibc kept nothing here: the two others prove nothing"
    assert left("separate") < 12 << 20
    own = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # as glibc does it; qemu's user mode only says so
    with mmap.mmap(-1, mmap.PAGESIZE, own) as page:
        page[0] = 1
        page.madvise(mmap.MADV_DONTNEED)
        if page[0]:
            pytest.skip("MADV_DONTNEED is not carried out here: nothing can be given back")
    assert left("give back") < 4 << 20
