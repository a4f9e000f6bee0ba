"""``kill -9`` of a process that puts rules: at every line that it executes, and at any time."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.helpers.rules import store

ROOT = Path(__file__).resolve().parents[2]

#: puts version 2 over version 1 and is killed before the n-th line that it executes in the files of
#: the store, from where it begins to write, for every n; a second child opens what is left, unless
#: it was left before, and says what it found. Nothing waits for the disk: a kill loses nothing of
#: what was written.
_EVERY_LINE = """
import json, os, re, shutil, signal, sys
from pathlib import Path
import scipy.optimize
import edgekd.contracts.artifacts, edgekd.contracts.projection
from edgekd.serve import audit, rules
from tests.helpers.rules import store, towers

root = Path(sys.argv[1])
os.fsync = lambda number: None
WATCHED = {audit.__file__, rules.__file__, edgekd.contracts.artifacts.__file__}

def child(work):
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            work()
            code = 0
        finally:
            sys.settrace(None)
            os._exit(code)
    return os.waitpid(pid, 0)[1]

def first():
    with store(root / "begun") as kept:
        kept.put(towers(0.1), "Ana")

def put(folder, line):
    left, writes = [line], [False]
    def watch(frame, event, _):
        writes[0] = writes[0] or frame.f_code.co_name == "_begin"
        if not writes[0] or frame.f_code.co_filename not in WATCHED:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return watch
    with store(folder) as kept:
        sys.settrace(watch)
        kept.put(towers(0.2), "Rui")
        sys.settrace(None)

def look(folder):
    with store(folder) as kept:
        found = kept.current()
        told = [[e.event, e.version_after] for e in kept.history()]
        bound = float(found.limits("A").limits.bounds[0])
        after = kept.put(towers(0.3), "Ana").version
    said = {"version": found.version, "bound": bound, "told": told, "after": after}
    (folder / "said").write_text(json.dumps(said))

def state(folder):
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return str([(re.sub(r"\\d+-[0-9a-f]{6}", "", p.name), p.read_bytes()) for p in files])

assert child(first) == 0
line = 0
seen = {}
while True:
    line += 1
    folder = root / "one"
    shutil.copytree(root / "begun", folder)
    status = child(lambda: put(folder, line))
    left = state(folder)
    if left not in seen:
        assert child(lambda: look(folder)) == 0, (line, status)
        seen[left] = json.loads((folder / "said").read_text())
    said = seen[left]
    print(json.dumps({"killed": status == signal.SIGKILL, **said}), flush=True)
    shutil.rmtree(folder)
    if status != signal.SIGKILL:
        assert status == 0, status
        break
"""

#: puts versions in a loop, and says each one that it was told of.
_PUTS = """
import sys
from pathlib import Path
from tests.helpers.rules import store, towers
with store(Path(sys.argv[1])) as kept:
    print("open", flush=True)
    while True:
        number = kept._next
        assert kept.put(towers(number / 10_000), "child").version == number
        print(number, flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_line_leaves_the_old_rules_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_LINE, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(runs) > 100 and all(run["killed"] for run in runs[:-1])
    assert not runs[-1]["killed"] and runs[-1]["version"] == 2
    versions = [run["version"] for run in runs]
    assert versions == sorted(versions) and {*versions} == {1, 2}, "old, then new"
    for run in runs:
        assert abs(run["bound"] - {1: 0.1, 2: 0.2}[run["version"]]) < 1e-6
        told = run["told"]
        if run["version"] == 2:
            assert told[0] == ["accepted", 2], "nothing is in force that the trail does not tell"
        else:
            assert told[0][1] == 1 and (["accepted", 2] in told) == (len(told) == 3)
        assert run["after"] > run["version"]
        if ["accepted", 2] in told:
            assert run["after"] == 3, "a number never stands for two texts"
    undone = [run for run in runs if len(run["told"]) == 3]
    assert undone and all(run["told"][0] == ["opened", 1] for run in undone)


def test_kills_at_any_time_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    chance = random.Random(4)
    last = 0
    for _ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", _PUTS, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
            child.stdout.readline()
            time.sleep(chance.uniform(0.05, 0.6))
        finally:
            child.send_signal(signal.SIGKILL)
            said, err = child.communicate(timeout=60)
        assert child.returncode == -signal.SIGKILL, err
        numbers = [int(line) for line in said.splitlines()]
        acknowledged = max(numbers, default=last)
        with store(tmp_path) as kept:
            found = kept.current()
            assert found.version in (acknowledged, acknowledged + 1) or not numbers
            assert found.version >= acknowledged and found.version > last
            assert yaml.safe_load(found.text)["rules"][0]["max"] == found.version / 10_000
            assert found.who == "child"
            told = [e for e in kept.history(1000) if e.event == "accepted"]
            assert told[0].version_after in (found.version, found.version + 1)
            assert any(e.version_after == found.version for e in told)
            last = found.version
