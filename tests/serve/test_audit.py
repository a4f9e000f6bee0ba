"""The trail: on the disk before it is told, and nobody who reads waits for the disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from edgekd.errors import EnvironmentLacksError, OutputError, RecipeError
from edgekd.serve import audit
from edgekd.serve.audit import Event, Trail
from edgekd.serve.rules import RuleStore
from edgekd.serve.wire import HistorySaid
from tests.helpers.rules import store, towers
from tests.helpers.serving import YAML, Process, Served, series

ASKED = {"places": [{"zone": "A", "series": series()}]}
LEFT = "the store was closed ({} refused or unchanged before it were not written)"


def event(number: int) -> Event:
    return Event(
        when="2026-06-01T12:00:00.000+00:00", who="Ana", event="unchanged", version_before=1,
        version_after=1, digest=None, sentence=f"line {number}",
    )  # fmt: skip


def name_of(number: int) -> str:
    """Of a file that is open."""
    return Path(f"/proc/self/fd/{number}").readlink().name


def read(trail: Trail) -> list[Event]:
    """What it tells, in a thread of its own: at once, or it waits for the disk."""
    found: list[Event] = []
    reader = threading.Thread(target=lambda: found.extend(trail.last(9)), daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive(), "waits for the disk"
    return found


class Disk:
    """``os.fsync`` of files of one name, which a test holds up."""

    def __init__(self, name: str) -> None:
        self.name, self.begun, self.go = name, threading.Event(), threading.Event()
        self.at: Callable[[], object] = lambda: None
        self._real = os.fsync

    def __call__(self, number: int) -> None:
        if name_of(number) == self.name:
            self.at()
            self.begun.set()
            assert self.go.wait(20), "nobody let the disk go on"
        self._real(number)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    found = Disk("audit.jsonl")
    monkeypatch.setattr(os, "fsync", found)
    yield found
    found.go.set()


def test_a_line_is_on_the_disk_before_it_is_told(tmp_path: Path, disk: Disk) -> None:
    """Each is whole in the file when it is brought to the disk, and told by nobody before."""
    path, seen = tmp_path / "audit.jsonl", list[tuple[str, list[Event]]]()
    trail = Trail(path)
    disk.at = lambda: seen.append((path.read_text(), read(trail)))
    disk.go.set()
    for number in (1, 2):
        trail.append(event(number))
    told = [[item.sentence for item in known] for _, known in seen]
    assert told == [[], ["line 1"]]
    assert [[json.loads(line)["sentence"] for line in text.splitlines()] for text, _ in seen] == [
        ["line 1"], ["line 1", "line 2"],
    ]  # fmt: skip
    trail.take_back()
    assert [item.sentence for item in trail.last(9)] == ["line 1"]
    assert path.read_text() == seen[0][0]
    trail.close()


def test_who_reads_does_not_wait_for_the_disk_and_who_writes_does(
    tmp_path: Path, disk: Disk
) -> None:
    path = tmp_path / "audit.jsonl"
    trail = Trail(path)
    writers = [threading.Thread(target=trail.append, args=(event(n),)) for n in (1, 2)]
    writers[0].start()
    assert disk.begun.wait(5)
    size = path.stat().st_size
    assert read(trail) == []
    writers[1].start()
    time.sleep(0.1)
    assert path.stat().st_size == size > 0, "one line at a time"
    disk.go.set()
    for writer in writers:
        writer.join(5)
    assert [item.sentence for item in trail.last(5)] == ["line 2", "line 1"]
    trail.close()


def test_a_slow_disk_holds_up_the_change_and_nothing_else(tmp_path: Path, disk: Disk) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        put = asyncio.create_task(client.put("/v1/constraints", content=towers(0.4), headers=YAML))
        while not disk.begun.is_set():
            await asyncio.sleep(0.01)
        paths = ("/v1/status", "/v1/constraints/history", "/v1/constraints",
                 "/v1/constraints/text", "/readyz", "/healthz", "/metrics", "/")  # fmt: skip
        found = []
        for path in paths:
            begun_s = time.monotonic()
            found.append((await client.get(path)).status_code)
            assert time.monotonic() - begun_s < 5, path
        answer = await client.post("/v1/predict", json=ASKED)
        assert answer.json()["rules"]["version"] == 1 and not put.done()
        told = (await client.get("/v1/constraints/history")).json()["events"]
        assert [item["version_after"] for item in told] == [1], "not before it is on the disk"
        disk.go.set()
        assert (await put).json()["version"] == 2
        return found

    disk.go.set()
    with Served(tmp_path, towers(0.5)) as served:
        disk.go.clear()
        disk.begun.clear()
        assert served.run(talk) == [200] * 8


def test_rows_that_are_made_again_do_not_hold_up_the_loop(tmp_path: Path) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(lock: threading.Lock) -> None:
        with lock:  # as who makes the rows of another zone does
            held.set()
            go.wait(5)

    async def talk(client: httpx.AsyncClient) -> None:
        asked = asyncio.create_task(client.get("/v1/constraints"))
        await asyncio.sleep(0.1)
        for path in ("/healthz", "/v1/status"):
            assert (await client.get(path)).status_code == 200
        assert not asked.done(), "it waited in the loop"
        go.set()
        assert (await asked).status_code == 200

    with Served(tmp_path, towers(0.5)) as served:
        lock = served.service.store.current()._compiled._lock
        holder = threading.Thread(target=hold, args=(lock,))
        holder.start()
        assert held.wait(5)
        served.run(talk)
        holder.join(5)


def test_what_is_on_the_disk_before_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text, who and when, the line, and last which version is in force: each before the next,
    its bytes before its name, and its name before anything that stands on it."""
    done: list[str] = []
    sync, replace = os.fsync, Path.replace

    def named(name: str) -> str:
        return re.sub(r"^\.(\w+)\.\d+-[0-9a-f]+\.part", r"part of \1", name)

    def synced(number: int) -> None:
        done.append(f"sync {named(name_of(number))}")
        sync(number)

    def moved(self: Path, target: Path) -> Path:
        done.append(f"move {named(self.name)}")
        return replace(self, target)

    folder = tmp_path / "rules"
    with store(folder) as kept:
        kept.put(towers(0.1), "Ana")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(Path, "replace", moved)
        kept.put(towers(0.2), "Ana")
    assert done == [
        "sync part of 000002.yaml", "move part of 000002.yaml", "sync versions",
        "sync part of 000002.json", "move part of 000002.json", "sync versions",
        "sync audit.jsonl",
        "sync part of current.json", "move part of current.json", "sync rules",
    ]  # fmt: skip


def refuse(kept: RuleStore, times: int) -> None:
    for _ in range(times):
        with contextlib.suppress(RecipeError):
            kept.put("nothing", "Mallory")


def test_a_store_that_is_closed_says_what_was_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "AT_ONCE", 2)
    trail = tmp_path / "rules/audit.jsonl"
    kept = store(tmp_path / "rules")
    kept.put(towers(0.1), "Ana")
    refuse(kept, 50)
    shutil.copytree(tmp_path / "rules", tmp_path / "killed")
    kept.close()
    kept.close()
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["accepted", "refused", "refused", "closed"]
    assert lines[-1]["sentence"] == LEFT.format(48) and lines[-1]["who"] is None
    HistorySaid.model_validate({"events": lines})
    with store(tmp_path / "rules") as again:
        assert again.version == again.history(1)[0].version_after == 1
        assert again.put(towers(0.2), "Rui").version == 2
        assert "not written" not in again.history(1)[0].sentence, "told once"
        refuse(again, 2)
    assert json.loads(trail.read_text().splitlines()[-1])["event"] == "refused", "all were written"
    with store(tmp_path / "killed") as rest:  # what kill -9 leaves: every line, and no count
        assert [item.event for item in rest.history()] == ["refused", "refused", "accepted"]


def test_a_full_disk_does_not_hold_the_end_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(number: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit, "AT_ONCE", 1)
    kept = store(tmp_path)
    refuse(kept, 3)
    with pytest.raises(EnvironmentLacksError):
        store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        kept.close()
    with pytest.raises(OutputError, match="is closed"):
        kept.put(towers(0.1), "Ana")
    with store(tmp_path) as again:
        assert [item.event for item in again.history()] == ["refused"]


def test_a_model_that_hangs_does_not_take_the_count_with_it(tmp_path: Path) -> None:
    with Process(tmp_path, "--timeout", "0.3", rules=towers(0.2), broken="stuck") as served:
        served.ready()
        assert httpx.post(f"{served.url}/v1/predict", json=ASKED).status_code == 503
        with httpx.Client(base_url=served.url, headers=YAML) as client:
            for _ in range(audit.AT_ONCE + 3):
                assert client.put("/v1/constraints", content="nothing").status_code == 422
        assert served.end() == 0
    lines = (tmp_path / "store/audit.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["sentence"] == LEFT.format(3)
