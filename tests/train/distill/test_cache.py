"""Features on disk: exact enough, never more than allowed, never damaged, by several processes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from edgekd.errors import InputError, OutputError
from edgekd.train.distill.cache import FeatureCache

MIB = 1 << 20
VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-(2.0**17), 2.0**17, width=32),
    st.floats(-(2.0**-12), 2.0**-12, width=32),
)


def features(seed: int, side: int = 8) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 4, side, side, generator=generator) * 10 for _ in range(2)]


def name(number: int) -> str:
    return FeatureCache.key("t", [1], np.array([number]))


def on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another process evicts it meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.feat") if path.name[0] != ".")


def equal(first: list[Tensor] | None, second: list[Tensor]) -> bool:
    assert first is not None
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# ---------------------------------------------------------------- keys and precision


def test_the_key_is_everything_that_decides_the_features(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    pixels = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    base = cache.key("ab", [1, 2], pixels)
    assert len(base) == 64 and base == cache.key("ab", (1, 2), torch.from_numpy(pixels.copy()))
    other = pixels.copy()
    other[2, 3, 3] ^= 1
    turned = np.asfortranarray(pixels)
    assert cache.key("ab", [1, 2], turned) == base, "memory layout is no content"
    different = [
        cache.key("ac", [1, 2], pixels),
        cache.key("ab", [2, 1], pixels),
        cache.key("ab", [12], pixels),
        cache.key("ab", [1, 2], other),
        cache.key("ab", [1, 2], pixels.reshape(3, 2, 8)),
        cache.key("ab", [1, 2], pixels.view(np.int8)),
    ]
    assert len({base, *different}) == 7


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(VALUES, min_size=1, max_size=40))
def test_stored_values_keep_the_stated_bound(tmp_path: Path, values: list[float]) -> None:
    cache = FeatureCache(tmp_path / "c", 16)
    given_ = torch.tensor(values, dtype=torch.float32)
    key = cache.key("t", [1], given_.numpy())
    cache.put(key, [given_])
    found = cache.get(key)
    assert found is not None and found[0].dtype == torch.float32
    error = (found[0].double() - given_.double()).abs()
    assert bool((error <= torch.clamp(given_.double().abs() * 2**-11, min=2**-25)).all())
    if bool((given_.abs() > 65520).any()):
        assert torch.equal(found[0], given_), "float32 where float16 overflows"
    assert equal(found, cache.as_stored([given_]))


def test_round_trip_of_shapes_and_types(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "deep" / "c", 4)
    given_ = [torch.randn(2, 5, 3).bfloat16(), torch.randn(4, 6).t(), torch.tensor(7.0)]
    given_.append(torch.full((2, 2), 1e6, requires_grad=True))
    cache.put("aa" * 32, given_)
    found = cache.get("aa" * 32)
    assert found is not None and [item.shape for item in found] == [item.shape for item in given_]
    assert equal(found, cache.as_stored(given_)) and found[3][0, 0] == 1e6
    found[0].zero_()
    assert equal(cache.get("aa" * 32), cache.as_stored(given_))
    assert entries(tmp_path)[0].stat().st_size < 400
    assert cache.get("bb" * 32) is None
    wanted = {"hits": 2, "misses": 1, "rejected": 0, "declined": 0, "evicted": 0, "bytes": 4096}
    assert cache.stats == wanted


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_not_kept(tmp_path: Path, bad: float) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put(name(1), [torch.ones(3), torch.tensor([1.0, bad])])
    assert cache.get(name(1)) is None and cache.stats["declined"] == 1


# ---------------------------------------------------------------- bounded


def test_the_bound_holds_at_every_moment_and_this_runs_entries_stay(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    cache = FeatureCache(folder, 1)
    for number in range(60):  # 40 KiB each: 25 fit
        cache.put(name(number), features(number, 50))
        assert on_disk(folder) <= MIB and cache.stats["bytes"] <= MIB
    kept = [number for number in range(60) if cache.get(name(number)) is not None]
    assert kept == list(range(len(kept))) and 18 <= len(kept) <= 26
    assert cache.stats["declined"] == 60 - len(kept) and cache.stats["evicted"] == 0
    assert cache.stats["bytes"] == sum(-(-p.stat().st_size // 4096) * 4096 for p in entries(folder))


def test_a_pool_a_quarter_larger_than_the_cache_is_found_for_four_fifths(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    holds = MIB // (-(-(50 * 50 * 4 * 2 * 2 + 200) // 4096) * 4096)
    for _ in range(4):
        for number in range(holds * 5 // 4):
            if cache.get(name(number)) is None:
                cache.put(name(number), features(number, 50))
    assert cache.stats["hits"] == 3 * holds


def test_an_earlier_runs_entries_give_way_the_longest_unused_first(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    first = FeatureCache(folder, 1)
    for number in range(12):
        first.put(name(number), features(number, 50))
    count = len(entries(folder))
    second = FeatureCache(folder, 1)
    assert second.get(name(0)) is not None, "used again: the last to go"
    for number in range(100, 112 + 3):
        second.put(name(number), features(number, 50))
        assert on_disk(folder) <= MIB
    assert count == 12 and second.stats["evicted"] >= 1
    left = [number for number in range(12) if second.get(name(number)) is not None]
    gone = second.stats["evicted"]
    assert left == [0, *range(1 + gone, 12)]
    assert all(second.get(name(number)) is not None for number in range(100, 112 + 3))


def test_a_smaller_limit_shrinks_what_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    large = FeatureCache(folder, 4)
    for number in range(60):
        large.put(name(number), features(number, 50))
    assert on_disk(folder) > 2 * MIB
    small = FeatureCache(folder, 1)
    assert on_disk(folder) <= MIB and small.get(name(59)) is not None
    assert small.get(name(0)) is None


def test_an_entry_larger_than_the_limit_is_declined(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put(name(1), features(1))
    cache.put(name(2), [torch.zeros(1 << 20)])
    assert cache.stats["declined"] == 1 and cache.get(name(1)) is not None


def test_the_space_that_a_damaged_entry_took_is_used_again(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    for number in range(60):
        cache.put(name(number), features(number, 50))
    path = next(path for path in entries(tmp_path) if path.stem == name(3))
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.get(name(3)) is None
    cache.put(name(3), features(3, 50))
    assert equal(cache.get(name(3)), cache.as_stored(features(3, 50)))
    assert on_disk(tmp_path) <= MIB


# ---------------------------------------------------------------- verified


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_any_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put(name(1), features(1, 2))
    path = entries(tmp_path)[0]
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(changed))
    assert cache.get(name(1)) is None and cache.stats["rejected"] == 1
    assert not path.exists() and cache.stats["misses"] == 1
    cache.put(name(1), features(1, 2))
    assert path.read_bytes() == whole and cache.get(name(1)) is not None


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 36, 60, 150, -1, "longer"])
def test_a_cut_or_longer_entry_is_found(tmp_path: Path, length: int | str) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put(name(1), features(1, 4))
    path = entries(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"x" if isinstance(length, str) else whole[:length])
    assert cache.get(name(1)) is None and cache.stats["rejected"] == 1


def test_an_entry_under_another_name_is_found(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put("aa" * 32, features(1))
    path = entries(tmp_path)[0]
    path.rename(path.with_name("aab" + path.name[3:]))
    assert cache.get("aab" + "aa" * 30 + "a") is None and cache.stats["rejected"] == 1


def test_a_folder_of_another_version_or_of_something_else_is_refused(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "c", 1).put(name(1), features(1))
    (tmp_path / "c" / "format.json").write_text('{"edgekd_features": 2}')
    with pytest.raises(InputError, match="of another version .* remove the folder"):
        FeatureCache(tmp_path / "c", 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no feature cache"):
        FeatureCache(tmp_path / "thesis", 1)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="0 MiB"):
        FeatureCache(tmp_path / "d", 0)


# ---------------------------------------------------------------- the disk


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "c", 1)
    cache.put(name(1), features(1))

    def full(path: Path, data: bytes) -> int:
        with path.open("wb") as stream:
            stream.write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"c cannot be written: .*No space left.*cache.mib"):
            cache.put(name(2), features(2))
    assert len(entries(tmp_path)) == 1 and not list(tmp_path.rglob("*.part*"))
    assert cache.get(name(2)) is None and cache.get(name(1)) is not None
    cache.put(name(2), features(2))
    assert cache.get(name(2)) is not None


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path / "file" / "c", tmp_path / "file", Path("/proc/edgekd")):
        with pytest.raises(OutputError, match="cannot be written: .*distill.cache.mib"):
            FeatureCache(folder, 1)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    FeatureCache(folder, 1)
    folder.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            FeatureCache(folder, 1).put(name(1), features(1))
    finally:
        folder.chmod(0o700)


# ---------------------------------------------------------------- several processes


def _write(folder: Path, start: int, count: int) -> None:
    torch.set_num_threads(1)
    cache = FeatureCache(folder, 1)
    for number in range(start, start + count):
        cache.put(name(number), features(number, 40))
        found = cache.get(name(number))
        assert found is None or equal(found, cache.as_stored(features(number, 40)))
        assert on_disk(folder) <= MIB
    assert cache.stats["rejected"] == 0


def test_processes_that_write_at_once_keep_the_bound_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [
        context.Process(target=_write, args=(tmp_path / "c", start, 60)) for start in (0, 30, 90)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    cache = FeatureCache(tmp_path / "c", 1)
    found = {number: cache.get(name(number)) for number in range(150)}
    kept = {number: item for number, item in found.items() if item is not None}
    assert len(kept) == len(entries(tmp_path)) >= 30 and cache.stats["rejected"] == 0
    assert all(equal(item, cache.as_stored(features(n, 40))) for n, item in kept.items())


_ENDLESS = """
import sys, itertools, numpy, torch
from contextlib import suppress
from pathlib import Path
from edgekd.train.distill.cache import FeatureCache
cache = FeatureCache(Path(sys.argv[1]), 64)
value = torch.ones(300_000)
print("ready", flush=True)
for number in itertools.count():
    cache.put(cache.key("t", [1], numpy.array([number])), [value * (number % 7)])
"""


def test_killed_in_the_middle_of_writing_it_opens_again(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    with subprocess.Popen(
        [sys.executable, "-c", _ENDLESS, str(folder)], stdout=subprocess.PIPE
    ) as job:
        assert job.stdout is not None and job.stdout.readline() == b"ready\n"
        time.sleep(0.33)
        job.send_signal(signal.SIGKILL)
    count = len(entries(folder))
    assert count > 2
    cache = FeatureCache(folder, 64)
    for number in range(count):
        key = cache.key("t", [1], np.array([number]))
        assert equal(cache.get(key), [torch.ones(300_000) * (number % 7)])
    assert cache.stats["hits"] == count and not list(folder.rglob("*.part*"))
    cache.put(name(1), features(1))
    assert cache.get(name(1)) is not None


def test_what_a_killed_process_left_is_counted_and_removed(tmp_path: Path) -> None:
    """Killed between the reservation and the rename, at worst with a number half written."""
    folder = tmp_path / "c"
    cache = FeatureCache(folder, 1)
    cache.put(name(1), features(1))
    left = entries(folder)[0].with_name(".x.1-abc.part.feat")
    left.write_bytes(bytes(900 << 10))
    (folder / ".used").write_text(str((900 << 10) + 4096))
    cache.put(name(2), [torch.zeros(80_000)])  # 160 kB: room only without what was left
    assert not left.exists() and cache.get(name(2)) is not None
    for text in ("", "12x"):
        (folder / ".used").write_text(text)
        cache.put(name(3 + len(text)), features(3))
        assert int((folder / ".used").read_text()) == sum(
            -(-path.stat().st_size // 4096) * 4096 for path in entries(folder)
        )
