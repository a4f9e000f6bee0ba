"""The journal: whatever is cut off or changed at its end, it opens at the last commit."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.errors import InputError, OutputError
from edgekd.runtime.journal import (
    ROWS_NAME,
    Commit,
    Journal,
    count_starts,
    discard_journal,
    journal_folder,
)

WIDTH = 37
JOB = {"scene": "a.tif", "scene_mtime_ns": 1, "overlap_px": 8}


def rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (count, WIDTH), dtype=np.uint8)


def fill(output: Path, commits: int, scores: bool, planes: int = 0) -> list[int]:
    """A journal of ``commits`` rows of windows, each of two blocks; the byte behind each commit."""
    ends = []
    with Journal(output, JOB, WIDTH) as journal:
        for number in range(commits):
            for part in range(2):
                y0 = 10 * number + 5 * part
                for x0, x1 in ((0, 20), (20, WIDTH)):
                    classes, codes, *chances = (
                        rows(5, y0 + seed)[:, x0:x1] for seed in range(0, 1000 * (planes + 2), 1000)
                    )
                    journal.append(
                        y0, x0, classes, codes if scores else None,
                        np.stack(chances) if chances else None,
                    )  # fmt: skip
            state = replace(
                journal.state, windows=number + 1, rows=10 * (number + 1), run=number,
                read=[[10 * number, 10 * number + 10, 0, WIDTH, number]],
            )  # fmt: skip
            journal.commit(state)
            ends.append((journal.folder / ROWS_NAME).stat().st_size)
        journal.append(10 * commits, 0, rows(5, 0))  # never committed
    return ends


def opened(output: Path, planes: int = 0) -> tuple[Commit, np.ndarray]:
    with Journal(output, JOB, WIDTH, resume=True) as journal:
        blocks = list(journal.blocks())
        for block in blocks:
            if block.scores is not None:
                np.testing.assert_array_equal(block.scores, rows(5, block.y0 + 1000))
        for plane in range(planes):
            chances = list(journal.blocks(plane))
            assert [block.y0 for block in chances] == [block.y0 for block in blocks]
            for block in chances:
                wanted = rows(5, block.y0 + 1000 * (plane + 2))
                np.testing.assert_array_equal(block.classes, wanted)
        parts = [block.classes for block in blocks]
        return journal.state, np.concatenate(parts) if parts else np.empty((0, WIDTH), np.uint8)


@pytest.fixture(
    scope="module", params=[(True, 0), (False, 0), (True, 3)],
    ids=["scores", "classes alone", "probabilities"],
)  # fmt: skip
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int], int]:
    output = tmp_path_factory.mktemp("j") / "m.tif"
    scores, planes = request.param
    return output, fill(output, 4, scores, planes), planes


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1), flip=st.booleans(), garbage=st.binary(max_size=60))
def test_cut_or_changed_anywhere_it_opens_at_the_last_commit(
    filled: tuple[Path, list[int], int],
    tmp_path_factory: pytest.TempPathFactory,
    place: float,
    flip: bool,
    garbage: bytes,
) -> None:
    source, ends, planes = filled
    output = tmp_path_factory.mktemp("c") / "m.tif"
    shutil.copytree(journal_folder(source), journal_folder(output))
    path = journal_folder(output) / ROWS_NAME
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    if flip:
        content[at] ^= 0x41
    else:
        content[at:] = garbage
    path.write_bytes(content)
    whole = sum(end <= at for end in ends)
    state, found = opened(output, planes)
    assert state.rows == 10 * whole and state.windows == whole
    assert [item[-1] for item in state.read] == list(range(whole))
    expected = [rows(5, y0) for y0 in range(0, 10 * whole, 5)]
    np.testing.assert_array_equal(
        found, np.concatenate([np.empty((0, WIDTH), np.uint8), *expected])
    )
    # and goes on from there
    with Journal(output, JOB, WIDTH, resume=True) as journal:
        assert journal.state.attempts == 2
        journal.append(10 * whole, 0, rows(3, 1))
        journal.commit(replace(journal.state, rows=10 * whole + 3, read=[]))
    state, found = opened(output)
    assert len(found) == state.rows == 10 * whole + 3 and state.attempts == 3


def test_an_earlier_run_needs_a_word(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    fill(output, 2, False)
    with pytest.raises(InputError, match=r"did not end \(20 rows are done.*add --resume .*--resta"):
        Journal(output, JOB, WIDTH)
    with pytest.raises(InputError, match=r"had another overlap \(8, now 9\).*--restart"):
        Journal(output, JOB | {"overlap_px": 9}, WIDTH, resume=True)
    with pytest.raises(InputError, match="had another scale"):
        Journal(output, JOB | {"scale": [[0, 1]]}, WIDTH, resume=True)
    with Journal(output, JOB | {"scene_mtime_ns": 2}, WIDTH, resume=True) as journal:
        assert journal.state.rows == 20 and journal.earlier["scene_mtime_ns"] == 1
    with Journal(output, JOB | {"overlap_px": 9}, WIDTH, restart=True) as journal:
        assert journal.state == Commit() and list(journal.blocks()) == []
    with Journal(tmp_path / "n.tif", JOB, WIDTH, resume=True) as journal:  # nothing to go on with
        assert journal.state == Commit()
        journal.discard()
    assert sorted(item.name for item in tmp_path.iterdir()) == [".m.tif.edgekd"]


def test_killed_before_the_job_was_written(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    fill(output, 1, False)
    (journal_folder(output) / "job.json").unlink()
    with Journal(output, JOB, WIDTH) as journal:
        assert journal.state == Commit()


def test_a_damaged_job_is_told_and_its_rows_are_not_dropped(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    fill(output, 1, False)
    before = (journal_folder(output) / ROWS_NAME).read_bytes()
    (journal_folder(output) / "job.json").write_text("{")
    with pytest.raises(InputError, match="job.json is damaged, so nothing says .* --restart"):
        Journal(output, JOB, WIDTH, resume=True)
    assert (journal_folder(output) / ROWS_NAME).read_bytes() == before
    with Journal(output, JOB, WIDTH, restart=True) as journal:
        assert journal.state == Commit()


def test_nothing_is_committed_behind_a_piece_that_was_not_written(tmp_path: Path) -> None:
    """Room may come back between two writes; a commit would promise what is not there."""
    output = tmp_path / "m.tif"
    fill(output, 1, False)
    with Journal(output, JOB, WIDTH, resume=True) as journal:
        with pytest.raises(OutputError, match="No space left"), full_disk(journal):
            journal.append(10, 0, rows(5, 10))
        with pytest.raises(OutputError, match="an earlier part of it could not be written"):
            journal.append(15, 0, rows(5, 15))
        with pytest.raises(OutputError, match="an earlier part of it could not be written"):
            journal.commit(replace(journal.state, rows=20, read=[]))
        assert journal.state.rows == 10
    assert opened(output)[0].rows == 10


@contextlib.contextmanager
def full_disk(journal: Journal) -> Iterator[None]:
    class Full:
        def write(self, content: bytes) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file, journal._file = journal._file, Full()  # type: ignore[assignment]
    try:
        yield
    finally:
        journal._file = file


def test_one_process_at_a_time(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    with Journal(output, JOB, WIDTH):
        for way in ({}, {"resume": True}, {"restart": True}):
            with pytest.raises(OutputError, match="another process is writing"):
                Journal(output, JOB, WIDTH, **way)
    with Journal(output, JOB, WIDTH, resume=True):
        pass


def test_rows_that_were_changed_after_the_opening(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    ends = fill(output, 2, False)
    with Journal(output, JOB, WIDTH, resume=True) as journal:
        path = journal.folder / ROWS_NAME
        content = bytearray(path.read_bytes())
        content[ends[0] + 40] ^= 1
        path.write_bytes(content)
        with pytest.raises(OutputError, match="was changed: it gives 10 of 20 rows"):
            list(journal.blocks())


def test_planes_that_were_never_asked_for(tmp_path: Path) -> None:
    fill(tmp_path / "m.tif", 2, True, 3)
    with Journal(tmp_path / "m.tif", JOB, WIDTH, resume=True) as journal:
        assert len(list(journal.blocks(2))) == 4
        with pytest.raises(OutputError, match="it gives 0 of 20 rows"):
            list(journal.blocks(3))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be written"):
        Journal(tmp_path / "file" / "m.tif", JOB, WIDTH)


def test_what_kills_left_in_the_folder_is_cleared(tmp_path: Path) -> None:
    """Products are written in there, and a part of a large map takes room."""
    output = tmp_path / "m.tif"
    fill(output, 2, False)
    (journal_folder(output) / ".m.123-ab.part.tif").write_bytes(b"x" * 1000)
    (journal_folder(output) / ".m.123-ab.part.tif.ovr").write_bytes(b"x" * 1000)
    state, _ = opened(output)
    assert state.rows == 20
    found = {item.name for item in journal_folder(output).iterdir()}
    assert found == {"job.json", ROWS_NAME, "starts"}


def test_a_journal_goes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while it is removed leaves none, or none of its name."""
    output = tmp_path / "m.tif"
    fill(output, 2, False)
    with monkeypatch.context() as patch:
        real = shutil.rmtree

        def half(path: Path, **_: object) -> None:
            if Path(path).exists():
                (Path(path) / ROWS_NAME).unlink()
                raise KeyboardInterrupt

        patch.setattr("edgekd.runtime.journal.shutil.rmtree", half)
        with pytest.raises(KeyboardInterrupt):
            discard_journal(output)
        patch.setattr("edgekd.runtime.journal.shutil.rmtree", real)
    assert not journal_folder(output).exists() and len(list(tmp_path.iterdir())) == 1
    with Journal(output, JOB, WIDTH) as journal:
        assert journal.state.rows == 0
    assert [item.name for item in tmp_path.iterdir()] == [journal_folder(output).name]


def test_starts_are_counted_until_one_gets_further(tmp_path: Path) -> None:
    output = tmp_path / "m.tif"
    assert count_starts(output) == 0
    fill(output, 1, False)
    assert count_starts(output) == 0, "it got somewhere"
    for count in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt), Journal(output, JOB, WIDTH, resume=True):
            assert count_starts(output) == count
            raise KeyboardInterrupt  # as near to a kill as a test comes
    assert count_starts(output) == 3
    with pytest.raises(OutputError), Journal(output, JOB, WIDTH, resume=True):
        raise OutputError("the disk is full")
    assert count_starts(output) == 0, "who says why is no kill"
    with Journal(output, JOB, WIDTH, resume=True) as journal:
        journal.commit(replace(journal.state, read=[]))
    assert count_starts(output) == 0
