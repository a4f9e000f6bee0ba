"""``edgekd doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from edgekd.cli._common import emit, note, shared_options

#: modules without which no bundle runs; the package itself brings them.
_CORE = ("numpy", "cv2")
#: extra -> what its engine needs; one engine is enough, on a Jetson it is TensorRT alone.
_ENGINES = {"onnxrt": ("onnxruntime",), "trt": ("tensorrt", "pycuda.driver")}
#: module -> distributions that may bring it, where the names differ.
_DISTRIBUTIONS = {
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python"),
    "lightning_fabric": ("lightning-fabric",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "jtop": ("jetson-stats",),
    "pynvml": ("nvidia-ml-py",),
    "tensorrt_rtx": ("tensorrt-rtx",),
}


@click.command("doctor")
@shared_options
def command(as_json: bool) -> None:
    """Say what this machine can do: extras, targets, sensors, places to write.

    Ends with 3 when bundles cannot run here.
    """
    from edgekd import __version__
    from edgekd.errors import EnvironmentLacksError
    from edgekd.telemetry.environment import read_environment
    from edgekd.telemetry.power import PowerUnavailable, find_power

    environment = read_environment()
    core = [_try_import(module) for module in _CORE]
    extras = _extras()
    targets = _targets()
    found = find_power()
    power = (
        found.model_dump(mode="json")
        if isinstance(found, PowerUnavailable)
        else {"status": "available", "sensor": found.info.name, "scope": found.info.scope}
    )
    places = {name: _writable(path) for name, path in _places().items()}
    signer, signer_fault = _signer()
    faults = [fault for fault in (*core, *_engine_faults(), signer_fault) if fault is not None]
    device = environment.board or environment.cpu_model or environment.arch
    payload: dict[str, Any] = {
        "runtime_works": not faults,
        "faults": faults,
        "edgekd": __version__,
        "environment": environment.model_dump(mode="json"),
        "extras": extras,
        "signer": signer,
        "targets": targets,
        "power": power,
        "writable": places,
    }
    head = [["edgekd", __version__], ["Python", f"{environment.python} ({sys.executable})"]]
    head += [["device", f"{device}, {environment.arch}"], ["system", f"{environment.os}"]]
    head += [["running bundles", "no: " + "; ".join(faults) if faults else "works"]]
    head += [["signer", "anybody (EDGEKD_SIGNER is not set)" if signer is None else signer]]
    lines = [f"{name.ljust(16)} {value}" for name, value in head]
    lines += ["", "extras"]
    for name, item in extras.items():
        have = ", ".join(f"{module} {version}" for module, version in item["has"].items())
        text = have if item["complete"] else f"lacks {', '.join(item['lacks'])}; {item['install']}"
        lines.append(f"  {name.ljust(8)} {'yes' if item['complete'] else 'no '}  {text}")
    lines += ["", "targets"]
    if isinstance(targets, str):
        lines.append(f"  {targets}")
    else:
        width = max((len(row["name"]) for row in targets), default=0)
        lines += [
            f"  {row['name'].ljust(width)}  {'fits' if row['fits'] else 'no  '}  {row['why']}"
            for row in targets
        ]
    lines += ["", "power sensors"]
    if isinstance(found, PowerUnavailable):
        lines.append(f"  unavailable: {found.reason}")
        lines += [f"  {name}: {reason}" for name, reason in found.sensors.items()]
    else:
        lines.append(f"  {found.info.name} ({found.info.scope})")
    lines += ["", "places to write"]
    lines += [f"  {name}: {item['path']}: {item['verdict']}" for name, item in places.items()]
    emit(payload, lines, as_json)
    if faults:
        raise EnvironmentLacksError(f"bundles cannot run here: {'; '.join(faults)}")
    if not as_json:
        note("next: edgekd ls recipes")


def _engine_faults() -> list[str]:
    """Why no engine works; nothing where one does. One that is not installed is not asked for."""
    from edgekd.contracts.optional import available

    found: dict[str, list[str]] = {}
    for extra, modules in _ENGINES.items():
        said = (_try_import(module, extra) for module in modules)
        found[extra] = [fault for fault in said if fault is not None]
    if not all(found.values()):
        return []
    tried = [extra for extra, modules in _ENGINES.items() if available(modules[0])]
    return [found[extra][0] for extra in tried or ["onnxrt"]]


def _try_import(module: str, extra: str = "onnxrt") -> str | None:
    """Import a module; None, or the sentence that says what is wrong."""
    from edgekd.contracts.optional import require
    from edgekd.errors import EnvironmentLacksError

    try:
        require(module, extra, "run bundles")
        if module == "cv2":
            importlib.import_module("edgekd.runtime.session")
    except EnvironmentLacksError as err:
        return str(err)
    return None


def _signer() -> tuple[str | None, str | None]:
    """Whose signature every bundle must have here, and why none can be loaded if it is a fault."""
    from edgekd.contracts.trust import requirements
    from edgekd.errors import EdgeKDError

    try:
        required = requirements()
    except EdgeKDError as err:
        return "not readable", str(err)
    return " and ".join(map(str, required)) or None, None


#: libraries that may live in another Python, and the variable that names it
_ELSEWHERE = {"tensorrt_rtx": "EDGEKD_TRT_RTX_PYTHON"}


def _extras() -> dict[str, dict[str, Any]]:
    """Per extra: versions of what is there, what is not, and what to type."""
    from edgekd.contracts.optional import EXTRAS, available
    from edgekd.telemetry.environment import package_version

    result: dict[str, dict[str, Any]] = {}
    for extra, modules in EXTRAS.items():
        has: dict[str, str] = {}
        lacks: list[str] = []
        for module in modules:
            given = os.environ.get(_ELSEWHERE.get(module, ""))
            if given:
                has[module] = f"in {given} ({_ELSEWHERE[module]})"
            elif available(module):
                has[module] = package_version(*_DISTRIBUTIONS.get(module, (module,))) or "?"
            else:
                lacks.append(module)
        result[extra] = {
            "complete": not lacks,
            "has": has,
            "lacks": lacks,
            "install": f'type: pip install "edgekd[{extra}]"' if lacks else None,
        }
    return result


def _targets() -> list[dict[str, Any]] | str:
    """Declared targets and whether this machine could be one, or why they cannot be read."""
    from edgekd.contracts.target import load_target, target_names
    from edgekd.errors import EdgeKDError

    arch = platform.machine()
    try:
        targets = [load_target(name) for name in target_names()]
    except EdgeKDError as err:
        return str(err)
    return [
        {
            "name": target.name,
            "arch": target.arch,
            "fits": target.arch == arch,
            "why": f"{target.arch}, this is {arch}; backend {target.backend}",
        }
        for target in targets
    ]


def _places() -> dict[str, str]:
    return {"working folder": str(Path.cwd()), "temporary files": tempfile.gettempdir()}


def _writable(path: str) -> dict[str, str]:
    """Write a file and remove it: permissions alone say nothing about a full or read-only disk."""
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix=".edgekd-doctor-") as stream:
            stream.write(b"x" * 4096)
            stream.flush()
    except OSError as err:
        return {"path": path, "verdict": f"not writable: {err.strerror}"}
    return {"path": path, "verdict": "writable"}
