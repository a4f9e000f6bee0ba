"""Does the service hold? ``python benchmarks/serve_load.py BUNDLE --rules RULES.yaml``.

Starts ``edgekd serve BUNDLE`` as a process, asks it so many times a second whether or not it keeps
up (a request's time runs from when it was due), and puts other rules all the while: each version
bounds the class that the model likes best by another number. Every answer is held against the
rules whose hash it names, compiled here when all have come. Requests are made up (noise), the rules
are yours with one more.

Ends with 1 where it does not hold, which is where

- a request failed, or none was answered;
- an answer is past a rule by more than the product's own bound;
- fewer changes were accepted than were asked for;
- an answer names a version older than one that was in force before it was asked for;
- fewer than half of the versions that were in force for longer than three requests are apart were
  named by any answer: a service that keeps to old rules obeys them all the same;
- memory grew by more than 8 MiB from the second quarter to the last. That is judged where it was
  watched for ten minutes or longer; a shorter run's record says that it was not.

``--fake`` serves the arithmetic of the tests in place of a bundle, to try the service alone.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
#: bodies that are made before, and asked in turn
BODIES = 24
#: memory may grow by as much between the second quarter and the last, MiB, over so long or longer,
#: s: a heap settles for minutes, and what grows slower than this is not seen in a shorter run
GROWTH_MIB, WATCHED_S = 8.0, 600
#: a version that was in force for longer than so many requests are apart is likely to be named, and
#: so large a part of those is
PERIODS, NAMED = 3, 0.5
#: what the digits of a number of single precision leave out; rules are weighed sums of a few
ROUNDING = 1e-7
FAKE_RULES = {"schema": 1, "name": "bay", "zones": {"A": "a zone", "B": "another"},
              "texts": {"A": "Buildings need a permit."}, "rules": []}  # fmt: skip


@dataclass
class Law:
    """The versions that were put, by hash, and their rows by zone and day.

    Args:
        base: a file of rules, as plain values.
        facts: class -> what rules ask of it.
    """

    base: dict[str, Any]
    facts: dict[str, Any]
    texts: dict[str, str] = field(default_factory=dict)
    rows: dict[tuple[str, str, str], tuple[Any, Any]] = field(default_factory=dict)

    def version(self, liked: str, bound: float) -> str:
        """A text in which the class has this probability at most."""
        rule = {"id": "load-test", "type": "linear", "coefficients": {liked: 1.0}, "max": bound,
                "priority": 99, "source": "benchmarks/serve_load.py"}  # fmt: skip
        text = yaml.safe_dump({**self.base, "rules": [*self.base["rules"], rule]}, sort_keys=False)
        self.texts[hashlib.sha256(text.encode()).hexdigest()] = text
        return text

    def past(self, named: dict[str, Any], answer: dict[str, Any]) -> float:
        """How far an answer is past the worst rule of the version that it names."""
        import datetime

        from edgekd.contracts.policy import ClassFacts
        from edgekd.contracts.policy_rows import compile_zone
        from edgekd.contracts.projection import past_bounds
        from edgekd.serve.rule_text import parse_rules

        classes = list(answer["probabilities"])
        key = (named["sha256"], answer["zone"], named["day"])
        if key not in self.rows:
            policy = parse_rules(self.texts[named["sha256"]].encode())
            facts = {name: ClassFacts(**value) for name, value in self.facts.items()}
            day = datetime.date.fromisoformat(named["day"])
            rows = max(len(policy.rules), 1)
            limits = compile_zone(policy, answer["zone"], day, classes, facts, rows).limits
            self.rows[key] = (limits.rules, limits.bounds)
        values = np.array([list(answer["probabilities"].values())])
        return float(past_bounds(values, *self.rows[key])[0])


@dataclass
class Tally:
    """What came back.

    Attributes:
        took_s: from when a request was due to its answer, s.
        bodies: of answers, each with the version that was in force before it was asked for.
        past: how far each answer is past the worst rule.
        versions: that answers name.
        older: answers that name a version before the one that was in force when they were asked.
        begun: (version, when its PUT was answered, s) in their order, the first as it was found.
        end_s: when the last request was due, by the same clock.
        asked_changes, changes: PUTs, and those that were accepted.
        rss_mib: of the service, once a second.
    """

    took_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bodies: list[tuple[int, bytes]] = field(default_factory=list)
    past: list[float] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    older: int = 0
    begun: list[tuple[int, float]] = field(default_factory=list)
    end_s: float = 0.0
    asked_changes: int = 0
    changes: int = 0
    rss_mib: list[float] = field(default_factory=list)

    def judge(self, law: Law) -> None:
        """Hold every answer against the version it names; after the load, whose machine this is."""
        for least, body in self.bodies:
            value = json.loads(body)
            version = value["rules"]["version"]
            self.versions.add(version)
            self.older += version < least
            for answer in value["answers"]:
                self.past.append(law.past(value["rules"], answer))


def make_bodies(described: dict[str, Any], zones: list[str]) -> list[bytes]:
    """Requests of noise in the numbers that OpenAPI tells."""
    import cv2

    place = described["components"]["schemas"]["PlaceAsked"]["properties"]
    rows = place["series"]["anyOf"][0]
    days = int(rows["minItems"])
    low, high = np.array(rows["items"]["x-ranges"], float).T
    found = re.search(r"(\d+) x \d+ px", place["image"]["description"])
    assert found is not None
    side = int(found[1])
    rng = np.random.default_rng(0)
    bodies = []
    for number in range(BODIES):
        cells = rng.integers(0, 256, (side // 8, side // 8, 3), np.uint8)
        picture = np.kron(cells, np.ones((8, 8, 1), np.uint8))
        value = {
            "zone": zones[number % len(zones)],
            "image": base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode(),
            "series": rng.uniform(low, high, (days, len(low))).round(3).tolist(),
        }
        bodies.append(json.dumps({"places": [value]}).encode())
    return bodies


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


async def drive(
    url: str, pid: int, law: Law, seconds: float, rate: float, changes: int, say: Any
) -> Tally:
    """Ask and change, by the clock."""
    import httpx

    tally = Tally()
    kind = {"content-type": "application/json"}
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.1)
        zones = list((await client.get("/v1/constraints")).json()["zones"])
        bodies = make_bodies((await client.get("/openapi.json")).json(), zones)
        first = await client.post("/v1/predict", content=bodies[0], headers=kind)
        first.raise_for_status()
        liked = first.json()["answers"][0]["top_before"]
        begun = time.perf_counter()
        tally.begun.append((int(first.json()["rules"]["version"]), begun))
        tally.asked_changes, tally.end_s = changes, begun + seconds

        async def ask(number: int, due_s: float) -> None:
            least = tally.begun[-1][0]  # is in force, and was before this is sent
            try:
                response = await client.post(
                    "/v1/predict", content=bodies[number % BODIES], headers=kind
                )
            except httpx.HTTPError as err:
                tally.failures.append(f"{type(err).__name__}: {err}")
                return
            tally.took_s.append(time.perf_counter() - due_s)
            if response.status_code != 200:
                tally.failures.append(f"{response.status_code}: {response.text[:200]}")
                return
            tally.bodies.append((least, response.content))

        async def change() -> None:
            headers = {"content-type": "application/yaml", "x-who": "serve_load.py"}
            for number in range(changes):
                pause = begun + (number + 0.5) * seconds / changes - time.perf_counter()
                await asyncio.sleep(max(pause, 0))
                text = law.version(liked, round(0.05 + 0.9 * ((number * 37) % 101) / 101, 4))
                try:
                    response = await client.put("/v1/constraints", content=text, headers=headers)
                except httpx.HTTPError as err:
                    tally.failures.append(f"PUT {type(err).__name__}: {err}")
                    continue
                if response.status_code == 200:
                    tally.changes += 1
                    tally.begun.append((int(response.json()["version"]), time.perf_counter()))
                else:
                    tally.failures.append(f"PUT {response.status_code}: {response.text[:200]}")

        async def look() -> None:
            while len(tally.rss_mib) < seconds:
                try:
                    tally.rss_mib.append(round(rss_mib(pid), 2))
                except (OSError, IndexError) as err:  # no process, or one that has ended
                    tally.failures.append(f"the memory of the service cannot be read: {err}")
                    return
                due_s = begun + len(tally.rss_mib)  # by the clock: as many as there are seconds
                await asyncio.sleep(max(due_s - time.perf_counter(), 0))
                if len(tally.rss_mib) % 30 == 0:
                    say(f"{len(tally.rss_mib)} s: {len(tally.took_s)} answers, "
                        f"{len(tally.failures)} failed, {tally.rss_mib[-1]:.0f} MiB")  # fmt: skip

        asked = []
        looking = asyncio.create_task(look())
        changing = asyncio.create_task(change())
        for number in range(int(seconds * rate)):
            due_s = begun + number / rate
            await asyncio.sleep(max(due_s - time.perf_counter(), 0))
            asked.append(asyncio.create_task(ask(number, due_s)))
        await asyncio.gather(changing, *asked)
        await asyncio.sleep(max(tally.end_s - time.perf_counter(), 0))
        looking.cancel()
    tally.judge(law)
    return tally


def likely_versions(tally: Tally, rate: float) -> set[int]:
    """Those in force for longer than :data:`PERIODS` requests are apart."""
    ends = [*(at_s for _, at_s in tally.begun[1:]), tally.end_s]
    return {
        version
        for (version, at_s), end_s in zip(tally.begun, ends, strict=True)
        if end_s - at_s > PERIODS / rate
    }


def rank_ms(took_s: list[float], percent: int) -> float | None:
    """Nearest rank, ms."""
    if not took_s:
        return None
    at = max(0, -(-percent * len(took_s) // 100) - 1)
    return round(1e3 * sorted(took_s)[at], 2)


def growth_mib(rss: list[float]) -> float | None:
    """Mean of the last quarter less that of the second; the first one warms up.

    Args:
        rss: once a second.

    Returns:
        None for less than :data:`WATCHED_S`, which tells nothing.
    """
    quarter = len(rss) // 4
    if len(rss) < WATCHED_S:
        return None
    return float(np.mean(rss[-quarter:]) - np.mean(rss[quarter : 2 * quarter]))


def figures_of(tally: Tally, seconds: float, rate: float) -> dict[str, Any]:
    """The record's figures, whether it holds, and every reason why not.

    Args:
        tally: judged.
        seconds, rate: of the load.
    """
    from edgekd.contracts.projection import OBEYED

    wrong = sum(not past <= OBEYED + ROUNDING for past in tally.past)
    likely = likely_versions(tally, rate)
    named = len(likely & tally.versions)
    growth, watched = growth_mib(tally.rss_mib), len(tally.rss_mib)
    memory = f"grew by {growth:.2f} MiB in {watched} s" if growth is not None else (
        f"not judged: it was watched for {watched} s, expected {WATCHED_S} or longer"
    )  # fmt: skip
    reasons = {
        f"{len(tally.failures)} requests or readings of memory failed": tally.failures,
        "nothing was answered": not tally.past,
        f"{wrong} answers do not obey": wrong,
        f"{tally.changes} of {tally.asked_changes} changes of the rules were accepted":
            tally.changes < tally.asked_changes,
        f"{tally.older} answers name rules before those in force when they were asked for":
            tally.older,
        f"{named} of {len(likely)} versions that were in force for longer than {PERIODS} requests "
        f"are apart were named, expected {NAMED:g} of them or more": named < NAMED * len(likely),
        f"memory {memory}, expected {GROWTH_MIB:g} at most": growth is not None
            and growth > GROWTH_MIB,
    }  # fmt: skip
    said = [words for words, bad in reasons.items() if bad]
    return {
        "requests": len(tally.took_s),
        "answers_per_s": round(len(tally.past) / seconds, 2),
        "p50_ms": rank_ms(tally.took_s, 50),
        "p99_ms": rank_ms(tally.took_s, 99),
        "slowest_ms": rank_ms(tally.took_s, 100),
        "failures": len(tally.failures),
        "first_failures": tally.failures[:5],
        "changes_asked": tally.asked_changes,
        "changes_done": tally.changes,
        "versions_seen": len(tally.versions),
        "versions_likely": len(likely),
        "versions_likely_seen": named,
        "answers_by_older_rules": tally.older,
        "answers_that_do_not_obey": wrong,
        "farthest_past_a_rule": max(tally.past, default=None),
        "rss_mib": tally.rss_mib,
        "rss_growth_mib": None if growth is None else round(growth, 2),
        "memory": memory,
        "why_not": said,
        "holds": not said,
    }


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--rules", type=click.Path(path_type=Path), help="To begin with.")
@click.option("--fake", is_flag=True, help="Without a bundle.")
@click.option("--seconds", default=600.0, show_default=True)
@click.option("--rate", default=50.0, show_default=True, help="Requests a second.")
@click.option("--changes", default=100, show_default=True, help="Of the rules, spread evenly.")
@click.option("--waiting", default=32, show_default=True, help="Passed to edgekd serve.")
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(
    bundle: Path | None, rules: Path | None, fake: bool, seconds: float, rate: float, changes: int,
    waiting: int, write: bool,
) -> None:  # fmt: skip
    from _records import here

    from edgekd.contracts.artifacts import write_json

    if fake == (bundle is not None and rules is not None):
        raise click.UsageError("give BUNDLE and --rules, or --fake")
    with tempfile.TemporaryDirectory(prefix="edgekd-serve-") as name:
        folder = Path(name)
        if fake:
            from tests.helpers.rules import FACTS

            law = Law(FAKE_RULES, {k: v.model_dump() for k, v in FACTS.items()})
            bundle, module = folder / "bundle", ["tests.helpers.places"]
            bundle.mkdir()
        else:
            assert bundle is not None and rules is not None
            manifest = json.loads((bundle / "manifest.json").read_text())
            law = Law(yaml.safe_load(rules.read_text()), manifest["evidence"]["facts"])
            module = ["edgekd", "serve"]
        text = yaml.safe_dump(law.base, sort_keys=False)
        law.texts[hashlib.sha256(text.encode()).hexdigest()] = text
        (folder / "rules.yaml").write_text(text)
        process = subprocess.Popen(
            [sys.executable, "-m", *module, str(bundle.resolve()), "--port", "0", "--json",
             "--store", str(folder / "store"), "--rules", str(folder / "rules.yaml"), "--waiting",
             str(waiting), "--threads", "1", "--any-device"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line == "}\n":
                    break
            if not said:
                raise click.ClickException("the service did not begin; what it said is above")
            told = json.loads(said)
            tally = asyncio.run(
                drive(told["url"], process.pid, law, seconds, rate, changes,
                      lambda words: click.echo(words, err=True))
            )  # fmt: skip
            process.send_signal(signal.SIGTERM)
            code = process.wait(60)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    figures = figures_of(tally, seconds, rate) | {"exit_code_on_sigterm": code}
    if code:
        figures["why_not"].append(f"the service ended with {code} on SIGTERM, expected 0")
    holds = figures["holds"] = not figures["why_not"]
    click.echo(
        f"{figures['requests']} requests in {seconds:g} s, {figures['failures']} failed; p50 "
        f"{figures['p50_ms']} ms, p99 {figures['p99_ms']} ms; {figures['changes_done']} changes of "
        f"the rules, {figures['versions_seen']} versions answered by, "
        f"{figures['answers_that_do_not_obey']} answers do not obey; memory "
        f"{max(tally.rss_mib, default=0.0):.0f} MiB, {figures['memory']}: "
        f"{'holds' if holds else 'FAILED'}"
    )
    for words in (*figures["why_not"], *figures["first_failures"]):
        click.echo(f"  {words}")
    if write:
        place, environment = here()
        record = {
            "question": "does edgekd serve answer all requests by the rules it names, which are "
            "those in force, while they change, and with flat memory where it was watched for long "
            "enough?",
            "command": "python benchmarks/serve_load.py "
            f"{'--fake' if fake else 'BUNDLE --rules RULES'} --seconds {seconds:g} "
            f"--rate {rate:g} --changes {changes} --write",
            "model": "arithmetic of the tests, no bundle" if fake else told["bundle"],
            "simulated": told["simulated"], "requests_are": "noise", "waiting": waiting,
            "seconds": seconds, "rate_per_s": rate, "changes": changes, "power": "not measured",
            **figures, "cpu": environment.cpu_model, "packages": environment.packages,
        }  # fmt: skip
        target = place / f"serve_load{'-fake' if fake else ''}.json"
        write_json(target, record)
        click.echo(f"record: {target.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
