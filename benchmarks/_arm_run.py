"""One bundle, run natively and as emulated Arm code by a child program, and what both left behind.

What is INT8 for Arm runs natively with ``any_device=True``, as its graph is written.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from _emulated import CPUS, REPOSITORY, Emulator, check_seen

from edgekd.contracts.manifest import Manifest
from edgekd.errors import InputError
from edgekd.runtime.bundle import read_manifest

#: part of the classes that must be the same.
BOUND = 0.995
#: ONNX Runtime's operators whose sums are integers.
INTEGER_OPERATORS = (
    "ConvInteger", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QGemm",
    "QLinearConv", "QLinearMatMul",
)  # fmt: skip

Arrays = dict[str, npt.NDArray[Any]]


class ChildFailed(Exception):
    """The program under test did not finish; the text says how it ended."""


class Result(NamedTuple):
    """What the child left behind."""

    facts: dict[str, Any]
    arrays: Arrays
    integer: dict[str, int] | None


def run_child(
    command: Sequence[str | Path],
    path: Sequence[Path],
    child: Path,
    words: Sequence[str | Path],
    timeout: float,
) -> Result:
    """Run a child program by ``command`` and read its results.

    Args:
        command: interpreter with its options.
        path: for ``PYTHONPATH``.
        child: the program, called as ``CHILD BUNDLE GIVEN.npz OUT [OPTION ...]``.
        words: bundle, what is given, and options.
        timeout: s.
    """
    # Nothing of this Python or its loader may reach the other one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LD_"))}
    environment["PYTHONPATH"] = os.pathsep.join(str(item.resolve()) for item in path)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    bundle, given, *options = words
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        out = Path(folder)
        parts = [*command, child, bundle, given, out, *options]
        try:
            done = subprocess.run(
                [str(word) for word in parts], env=environment, cwd=out,  # qemu drops cores here
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                text=True, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired as err:
            raise ChildFailed(f"not done after {timeout:.0f} s") from err
        if done.returncode:
            how = f"ended with {done.returncode}"
            if done.returncode < 0:
                how = f"died of {signal.Signals(-done.returncode).name}"
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise ChildFailed(": ".join([how, *said[-1:]]))
        with np.load(out / "outputs.npz") as stored:
            arrays = dict(stored)
        graph = out / "graph.onnx"
        integer = count_integer(graph) if graph.exists() else None
        return Result(json.loads((out / "facts.json").read_text()), arrays, integer)


def run_both(
    child: Path,
    bundle: Path,
    given: Mapping[str, npt.NDArray[Any]],
    name: str,
    emulator: Emulator,
    timeout: float,
) -> tuple[Result, Result | str]:
    """The child's results on this machine, and on the emulated CPU of a board.

    Args:
        child, bundle: see :func:`run_child`.
        given: arrays for it.
        name: target, which says the CPU.
        timeout: of each run, s.

    Returns:
        Of x86 and of Arm, the latter as a sentence where it did not finish.

    Raises:
        InputError: the bundle does not run on this machine.
        EnvironmentLacksError: the emulated process did not see the CPU.
    """
    cpu = CPUS[name]
    with tempfile.TemporaryDirectory(prefix="edgekd-arm-") as folder:
        file = Path(folder) / "given.npz"
        np.savez(file, **given)  # type: ignore[arg-type]
        words: list[str | Path] = [bundle, file]
        python = [sys.executable]
        try:
            x86 = run_child(python, [REPOSITORY], child, [*words, "--any-device"], timeout)
        except ChildFailed as err:
            raise InputError(f"{bundle} does not run on this machine: {err}") from err
        emulated = emulator.interpreter(cpu, Path(folder))
        try:
            arm = run_child([emulated], [REPOSITORY], child, words, timeout)
        except ChildFailed as err:
            return x86, str(err)
    check_seen(arm.facts, cpu)
    return x86, arm


def read_int8(name: str, bundle: Path) -> Manifest:
    """The manifest of an INT8 bundle for a target.

    Raises:
        InputError: it is for another one, or of another precision.
    """
    manifest = read_manifest(bundle)
    if manifest.target.name != name or manifest.precision.done != "int8":
        raise InputError(
            f"{bundle} is {manifest.precision.done} for {manifest.target.name}, expected int8 for "
            f"{name}; build it with: --set 'precision.allowed=[int8]' --target {name}"
        )
    return manifest


def head(name: str, manifest: Manifest) -> dict[str, Any]:
    """What a record says of every bundle."""
    cpu, student = CPUS[name], manifest.provenance.student
    return {
        "target": name,
        "emulated_cpu": cpu.model,
        "dot_product": cpu.dot_product,
        "bundle": manifest.name,
        "student": {key: student[key] for key in ("name", "options", "parameters")
                    if key in student},
        "model_sha256": manifest.files[manifest.model],
        "golden_source": manifest.golden.source,
    }  # fmt: skip


def count_integer(graph: Path) -> dict[str, int]:
    """Operator -> nodes with integer sums in a graph that ONNX Runtime has rewritten."""
    import onnx

    model = onnx.load(graph)
    counts = collections.Counter(node.op_type for node in model.graph.node)
    return {name: counts[name] for name in INTEGER_OPERATORS if counts[name]}
