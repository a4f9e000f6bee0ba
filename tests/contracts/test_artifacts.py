"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from edgekd.contracts import artifacts
from edgekd.contracts.artifacts import (
    canonical_json,
    publish_file,
    publish_folder,
    read_json,
    sha256_bytes,
    sha256_file,
    write_json,
)
from edgekd.errors import EdgeKDError, InputError, OutputError

NAMES = ["map.tif", "map[1].tif", "a*b?.tif", "no_suffix", ".hidden", "späte Karte.tif"]


def left(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_file_appears_whole_and_alone(tmp_path: Path, name: str) -> None:
    with publish_file(tmp_path / name) as part:
        assert part.parent == tmp_path and part.suffix == (Path(name).suffix or ".part")
        part.write_text("x")
        part.with_name(part.name + ".aux.xml").write_text("side file of a driver")
        assert not (tmp_path / name).exists()
    assert left(tmp_path) == [name] and (tmp_path / name).read_text() == "x"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, EdgeKDError, MemoryError])
def test_an_exception_leaves_nothing(
    tmp_path: Path, name: str, failure: type[BaseException]
) -> None:
    with pytest.raises(failure), publish_file(tmp_path / name) as part:
        part.write_text("half")
        part.with_name(part.name + ".aux.xml").write_text("side file of a driver")
        raise failure("in the middle")
    assert left(tmp_path) == []


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk and moved, in its order; a part is told without its number."""
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def named(path: Path) -> str:
        return re.sub(r"\.\d+-[0-9a-f]+\.", ".", path.name)

    def synced(number: int) -> None:
        done.append(f"sync {named(Path(f'/proc/self/fd/{number}').readlink())}")
        sync(number)

    def moved(self: Path, target: Path) -> Path:
        done.append(f"move {named(self)} to {named(Path(target))}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", moved)
    return done


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list[str]) -> None:
    """Else a power cut leaves the name of a file that is empty: its bytes first, then its name."""
    (tmp_path / "out").mkdir()
    for _ in range(2):
        write_json(tmp_path / "out/a.json", {})
        assert steps == ["sync .a.part.json", "move .a.part.json to a.json", "sync out"]
        steps.clear()


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, steps: list[str]) -> None:
    fill(tmp_path / "out/b", "old")
    move = ["move .b.part to b", "sync out"]
    assert set(steps[:3]) == {"sync m.json", "sync x", "sync .b.part"} and steps[3:] == move
    steps.clear()
    fill(tmp_path / "out/b", "new")
    assert len(steps) == 6 and steps[3:] == ["move b to .b.moved", *move]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "old.json"
    target.write_text("old")
    with pytest.raises(ValueError), publish_file(target) as part:
        part.write_text("new")
        raise ValueError
    assert target.read_text() == "old" and left(tmp_path) == ["old.json"]
    write_json(target, {"b": 1, "a": "ü"})
    assert target.read_text(encoding="utf-8") == '{\n  "a": "ü",\n  "b": 1\n}\n'
    with pytest.raises(ValueError):
        write_json(target, {"a": float("nan")})
    assert read_json(target) == {"a": "ü", "b": 1} and left(tmp_path) == ["old.json"]


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with publish_file(target) as one, publish_file(target) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert target.read_text() == "one" and left(tmp_path) == ["a.txt"]


def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No space left"), publish_file(tmp_path / "a") as part:
        part.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert left(tmp_path) == []


def test_the_error_of_another_file_keeps_its_name(tmp_path: Path) -> None:
    for name in ("absent", "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as caught, publish_file(tmp_path / "out.txt"):
            (tmp_path / name).read_text()
        assert not isinstance(caught.value, EdgeKDError)
        with pytest.raises(OSError) as caught, publish_folder(tmp_path / "out", "m"):
            (tmp_path / name).read_text()
        assert not isinstance(caught.value, EdgeKDError)
    assert left(tmp_path) == ["folder"]


def test_nothing_was_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError), publish_file(tmp_path / "a.txt"):
        pass
    assert left(tmp_path) == []


def test_places_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "b" / "a.txt"):
        with pytest.raises(OutputError, match="cannot be made"), publish_file(path):
            pytest.fail("the block must not start")
        with pytest.raises(OutputError, match="cannot be made"), publish_folder(path, "m"):
            pytest.fail("the block must not start")
    with pytest.raises(OutputError, match="is a folder"), publish_file(tmp_path):
        pytest.fail("the block must not start")
    with pytest.raises(OutputError, match="is a file"), publish_folder(tmp_path / "file", "m"):
        pytest.fail("the block must not start")
    # tests may run as root, for whom every folder is writable
    monkeypatch.setattr(artifacts.os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="is not writable"), publish_file(tmp_path / "a"):
        pytest.fail("the block must not start")
    with pytest.raises(OutputError, match="is not writable"), publish_folder(tmp_path / "d", "m"):
        pytest.fail("the block must not start")
    assert left(tmp_path) == ["file"]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o500)
    with pytest.raises(OutputError, match="is not writable"), publish_file(tmp_path / "ro" / "a"):
        pytest.fail("the block must not start")


def fill(path: Path, text: str) -> None:
    with publish_folder(path, "m.json") as part:
        (part / "m.json").write_text(text)
        (part / "sub").mkdir()
        (part / "sub" / "x").write_text(text)


def test_a_folder_appears_whole_and_replaces_its_own_kind(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "bundle-1.0"
    fill(target, "one")
    (target / "stale").write_text("from the first build")
    fill(target, "two")
    assert left(tmp_path / "deep") == ["bundle-1.0"]
    assert left(target) == ["m.json", "sub"] and (target / "sub" / "x").read_text() == "two"
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "three")
    assert (tmp_path / "empty" / "m.json").read_text() == "three"


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("dear")
    with pytest.raises(OutputError, match=r"holds no m\.json"):
        fill(tmp_path / "photos", "x")
    assert left(tmp_path) == ["photos"] and left(tmp_path / "photos") == ["a.jpg"]


def test_the_working_folder_as_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.jpg").write_text("dear")
    monkeypatch.chdir(tmp_path / "work")
    for name in (".", "..", ""):
        with pytest.raises(OutputError, match="not empty"):
            fill(Path(name), "x")


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_folder(tmp_path: Path, failure: type[BaseException]) -> None:
    fill(tmp_path / "b", "old")
    with pytest.raises(failure), publish_folder(tmp_path / "b", "m.json") as part:
        (part / "m.json").write_text("new")
        raise failure
    assert left(tmp_path) == ["b"] and (tmp_path / "b" / "m.json").read_text() == "old"


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
def test_an_interruption_between_the_moves_restores_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    fill(tmp_path / "b", "old")
    real, moves = Path.replace, []

    def replace(source: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 2:
            raise failure
        return real(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises((OutputError, KeyboardInterrupt)):
        fill(tmp_path / "b", "new")
    assert left(tmp_path) == ["b"] and (tmp_path / "b" / "m.json").read_text() == "old"


def test_hashes_and_json(tmp_path: Path) -> None:
    blob = bytes(range(256)) * 9000  # more than two read blocks
    (tmp_path / "blob").write_bytes(blob)
    assert sha256_file(tmp_path / "blob") == sha256_bytes(blob)
    assert sha256_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert canonical_json({"b": 1, "a": [1.5]}) == canonical_json({"a": [1.5], "b": 1})
    assert json.loads(canonical_json({"ü": None})) == {"ü": None}
    (tmp_path / "bad.json").write_text('{\n "a": 1,,\n}')
    with pytest.raises(InputError, match="is not JSON: line 2"):
        read_json(tmp_path / "bad.json")


def dead_process() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def leftover(folder: Path, name: str) -> Path:
    path = folder / name
    path.mkdir()
    (path / "m.json").write_text("left")
    return path


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    """Its number is free again; the parts of a living process and of other outputs are not ours."""
    dead, alive = dead_process(), os.getpid()
    gone = [
        leftover(tmp_path, f".b.{dead}-0a1b2c.part.v1"),
        leftover(tmp_path, f".b.{dead}-3d4e5f.moved.v1"),
    ]
    stay = [
        leftover(tmp_path, f".b.{alive}-0a1b2c.part.v1"),
        leftover(tmp_path, f".b.{dead}-0a1b2c.part.v2"),
        leftover(tmp_path, f".b.{dead}-0a1b2c.moved.v2"),
        leftover(tmp_path, f".c.{dead}-0a1b2c.part.v1"),
        leftover(tmp_path, f".b.x{dead}-0a1b2c.part.v1"),
        leftover(tmp_path, f".b.{10**30}-0a1b2c.part.v1"),
    ]
    (tmp_path / "b.v1").mkdir()
    (tmp_path / "b.v1" / "m.json").write_text("whole")
    with publish_folder(tmp_path / "b.v1", "m.json") as part:
        assert (tmp_path / "b.v1" / "m.json").read_text() == "whole"
        (part / "m.json").write_text("new")
    assert not [item for item in gone if item.exists()]
    assert all(item.exists() for item in stay)
    assert (tmp_path / "b.v1" / "m.json").read_text() == "new"


def test_what_a_killed_process_had_moved_away_comes_back(tmp_path: Path) -> None:
    """Killed between its two moves: the old folder is the only whole one there is."""
    moved = leftover(tmp_path, f".b.{dead_process()}-0a1b2c.moved")
    with pytest.raises(ValueError), publish_folder(tmp_path / "b", "m.json"):
        raise ValueError
    assert not moved.exists() and (tmp_path / "b" / "m.json").read_text() == "left"


def test_only_what_was_whole_comes_back(tmp_path: Path) -> None:
    """The part of an output with the suffix .moved, or a folder that was being removed."""
    pid = dead_process()
    part = leftover(tmp_path, f".b.{pid}-0a1b2c.part.moved")
    broken = leftover(tmp_path, f".b.{pid}-0a1b2c.moved")
    (broken / "m.json").unlink()
    with pytest.raises(ValueError), publish_folder(tmp_path / "b", "m.json"):
        raise ValueError
    assert part.exists() and not broken.exists() and not (tmp_path / "b").exists()


def test_another_user_s_process_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refused)
    assert artifacts._is_alive(1)


def test_a_file_s_parts_of_killed_processes_are_cleared(tmp_path: Path) -> None:
    """And side files that a driver had made; those of others stay."""
    dead, alive = dead_process(), os.getpid()
    gone = [
        f".m.{dead}-0a1b2c.part.tif", f".m.{dead}-0a1b2c.part.tif.aux.xml",
        f".m.{dead}-0a1b2c.part.tif-journal",  # SQLite's, of a GeoPackage
    ]  # fmt: skip
    stay = [
        f".m.{alive}-0a1b2c.part.tif", f".m.{dead}-0a1b2c.part.png", f".n.{dead}-0a1b2c.part.tif",
        "m.tif",
    ]  # fmt: skip
    for name in (*gone, *stay):
        (tmp_path / name).write_text("x")
    with publish_file(tmp_path / "m.tif") as part:
        part.write_text("new")
    assert left(tmp_path) == sorted(stay) and (tmp_path / "m.tif").read_text() == "new"
