"""Do the runtime's own tests pass as 64-bit Arm code? Asked without a board: ``make test-arm64``.

    apt-get install qemu-user-static; pip install uv
    python benchmarks/arm_tests.py [--folder out/arm64] [--cpu cortex-a72 ...] [--write] [TESTS ...]

Runs pytest, and every process that a test starts, under qemu's user mode: all of ``tests/runtime``,
``tests/contracts`` and ``tests/telemetry`` with every example, once with the CPU of a Raspberry
Pi 4 and once with that of a Pi 5, and once natively. Only the time limit of an example is lifted.
Ends with 1 when a test fails, or when one that passes natively is skipped or absent on Arm.

FOLDER gets an arm64 Python of the distribution and arm64 wheels (some 600 MB, ``_emulated.py``), in
the versions that this Python has, and pytest's logs. The CPUs run beside each other, ten minutes on
two idle cores; the seconds are the emulator's and say nothing about a board.
"""

from __future__ import annotations

import collections
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
from _emulated import (
    CPUS,
    REPOSITORY,
    Cpu,
    Emulator,
    check_seen,
    fetch_root,
    fetch_site,
    installed,
)

from edgekd.contracts.artifacts import write_json
from edgekd.errors import EdgeKDError, EnvironmentLacksError
from edgekd.telemetry.environment import read_environment

TESTS = ("tests/runtime", "tests/contracts", "tests/telemetry")
RECORD = REPOSITORY / "benchmarks" / "results" / "emulated-arm" / "runtime_tests.json"
EXTRAS = ("onnxrt", "geo", "trust", "text")
#: what the tests need beside the runtime; onnx makes their little models, scipy compiles rules.
MORE = ("pytest", "hypothesis", "onnx", "scipy")
_FACTS = "import json, _arm_child; print(json.dumps(_arm_child.machine()))"


def environment() -> dict[str, str]:
    """Nothing of this Python or its loader may reach the other one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_", "PYTEST"))}
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])
    return kept | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def read_junit(text: str) -> dict[str, Any]:
    """What became of each test: ``passed`` names, ``failed`` and ``skipped`` name -> message."""
    found: dict[str, Any] = {"passed": [], "failed": {}, "skipped": {}}
    for case in ET.fromstring(text).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [item for item in case if item.tag in ("failure", "error")]
        skipped = case.find("skipped")
        if bad:
            found["failed"][name] = (bad[0].get("message") or "").strip()[:300]
        elif skipped is not None:
            found["skipped"][name] = skipped.get("message") or ""
        else:
            found["passed"].append(name)
    return found


def run_tests(python: Path, tests: Sequence[str], log: Path, timeout: float) -> dict[str, Any]:
    """Run pytest by an interpreter; see :func:`read_junit`, with ``seconds``.

    Args:
        python: interpreter.
        tests: paths.
        log: what pytest says; replaced.
        timeout: s.

    Raises:
        EnvironmentLacksError: pytest did not come to its end.
    """
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        report = Path(folder) / "report.xml"
        start = time.monotonic()
        command = [
            python, "-m", "pytest", "-q", "-p", "_arm_plugin", "-p", "no:cacheprovider",
            f"--junitxml={report}", f"--basetemp={folder}/tests", *tests,
        ]  # fmt: skip
        try:
            with log.open("wb") as said:
                done = subprocess.run(
                    [str(word) for word in command], cwd=REPOSITORY, env=environment(),
                    stdin=subprocess.DEVNULL, stdout=said, stderr=said, timeout=timeout,
                )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            raise EnvironmentLacksError(f"not done after {timeout:.0f} s, see {log}") from err
        if done.returncode not in (0, 1) or not report.exists():
            raise EnvironmentLacksError(f"pytest ended with {done.returncode}, see {log}")
        found = read_junit(report.read_text(encoding="utf-8"))
        return {**found, "seconds": round(time.monotonic() - start, 1)}


def run_emulated(
    emulator: Emulator, cpu: Cpu, tests: Sequence[str], log: Path, timeout: float
) -> dict[str, Any]:
    """:func:`run_tests` on an emulated CPU, and under ``saw`` what a process took it for."""
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        python = emulator.interpreter(cpu, Path(folder))
        said = subprocess.run(
            [python, "-c", _FACTS], env=environment(), capture_output=True, text=True, check=True
        ).stdout
        facts = json.loads(said)
        check_seen(facts, cpu)
        click.echo(f"{cpu.model}: emulating, see {log}", err=True)
        return {"saw": facts, **run_tests(python, tests, log, timeout)}


def judge(native: dict[str, Any], arm: dict[str, Any]) -> tuple[bool, list[str]]:
    """Whether Arm did all that x86 did, and the tests that passed there alone."""
    missing = sorted(set(native["passed"]) - set(arm["passed"]) - set(arm["failed"]))
    return bool(arm["passed"]) and not (native["failed"] or arm["failed"] or missing), missing


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """For the record: counts, failures whole, reasons of skips."""
    reasons = collections.Counter(found["skipped"].values())
    return {
        "passed": len(found["passed"]), "failed": found["failed"], "skipped": dict(reasons),
        "seconds": found["seconds"],
    }  # fmt: skip


@click.command()
@click.argument("tests", nargs=-1)
@click.option("--folder", type=click.Path(path_type=Path), default=REPOSITORY / "out" / "arm64",
              help="Where the other computer is, or is made.")  # fmt: skip
@click.option("--cpu", "models", multiple=True, type=click.Choice([c.model for c in CPUS.values()]))
@click.option("--timeout", type=float, default=7200.0, show_default=True, help="Per CPU, s.")
@click.option("--write", is_flag=True, help="Write benchmarks/results/emulated-arm/.")
def main(
    tests: tuple[str, ...], folder: Path, models: tuple[str, ...], timeout: float, write: bool
) -> None:
    """Run the tests natively and emulated, print counts, and end with 1 when Arm does less."""
    if write and (tests or models):
        raise click.UsageError("a record holds every test on every CPU; leave the choice out")
    wanted = list(tests or TESTS)
    try:
        if platform.machine() != "x86_64":
            raise EnvironmentLacksError("compares with x86-64 and must run on such a machine")
        root, site = folder.resolve() / "root", folder.resolve() / "site"
        emulator = Emulator.find(root, site)
        fetch_root(root)
        fetch_site(root, site, EXTRAS, MORE)
        chosen = {target: cpu for target, cpu in CPUS.items() if not models or cpu.model in models}
        logs = folder.resolve()
        native = run_tests(Path(sys.executable), wanted, logs / "x86-64.log", timeout)
        results: dict[str, Any] = {}
        passed = True
        with ThreadPoolExecutor(len(chosen)) as pool:  # each is one busy process
            running = {
                target: pool.submit(
                    run_emulated, emulator, cpu, wanted, logs / f"{cpu.model}.log", timeout
                )
                for target, cpu in chosen.items()
            }
        for target, future in running.items():
            found = future.result()
            good, missing = judge(native, found)
            passed &= good
            results[chosen[target].model] = {
                "target": target, "saw": found["saw"], **summary(found),
                "passed_on_x86_alone": missing, "holds": good,
            }  # fmt: skip
    except EdgeKDError as err:
        click.echo(f"error: {err}", err=True)
        sys.exit(err.exit_code)
    rows = {"x86-64": summary(native), **results}
    for name, row in rows.items():
        click.echo(
            f"{name:11s} {row['passed']} passed, {len(row['failed'])} failed, "
            f"{sum(row['skipped'].values())} skipped, {row['seconds']:.0f} s"
        )
        for case, message in row["failed"].items():
            click.echo(f"  FAILED {case}: {message.splitlines()[0] if message else ''}")
        for case in row.get("passed_on_x86_alone", []):
            click.echo(f"  passes on x86 alone: {case}")
        for reason, count in row["skipped"].items():
            click.echo(f"  skipped {count}: {reason}")
    click.echo(f"the runtime's tests as emulated Arm code: {'ok' if passed else 'FAILED'}")
    if write:
        record = {
            "question": "do the runtime's own tests pass as 64-bit Arm code?",
            "command": "make test-arm64 ARM_ARGS=--write", "tests": wanted,
            "emulated": "CPU emulated by qemu in user mode, no board; the seconds are those of the "
            "emulator and say nothing about a board",
            "emulator": emulator.version(), "arm_packages": installed(site),
            "x86": summary(native), "arm": results, "passed": passed,
            "emulated_on": read_environment().model_dump(mode="json"),
        }  # fmt: skip
        write_json(RECORD, record)
        click.echo(f"written: {RECORD.relative_to(REPOSITORY)}", err=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
