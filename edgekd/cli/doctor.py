"""``edgekd doctor``: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import dataclasses
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
_ADVICE = (
    "what to do: mend a reason above, or measure with an external meter and read its file: "
    "edgekd power import"
)


@click.command("doctor")
@click.option("--root", type=click.Path(path_type=Path), metavar="FOLDER",
              help="Describe the board whose file system is there, e.g. a card of it; programs "
              "below it may be run.")  # fmt: skip
@shared_options
def command(root: Path | None, as_json: bool) -> None:
    """Say what this machine can do: board, sensors, extras, targets, places to write.

    Ends with 3 when bundles cannot run here.
    """
    from edgekd import __version__
    from edgekd.errors import EnvironmentLacksError, InputError
    from edgekd.telemetry.environment import OF_THIS_MACHINE, read_environment

    if root is not None:
        if not root.is_dir():
            raise InputError(f"--root: {root} is not a folder; give one that holds /proc or /sys")
        root = root.resolve()
    if root is not None and root != Path("/"):
        facts, lines = _board(root)
        other = read_environment(root).model_dump(mode="json", exclude={*OF_THIS_MACHINE})
        other["absent"].pop("hostname")
        left = "extras, signer, targets and places to write are of this machine, so they are left "
        left += f"out, and of the environment: {', '.join(OF_THIS_MACHINE)}"
        payload = {"root": str(root), "edgekd": __version__, **facts, "environment": other}
        emit({**payload, "left_out": left}, [f"root             {root}", *lines, "", left], as_json)
        return

    environment = read_environment()
    facts, board_lines = _board(Path("/"))
    core = [_try_import(module) for module in _CORE]
    extras = _extras()
    targets = _targets()
    places = {name: _writable(path) for name, path in _places().items()}
    signer, signer_fault = _signer()
    faults = [fault for fault in (*core, *_engine_faults(), signer_fault) if fault is not None]
    device = environment.board or environment.cpu_model or environment.arch
    payload = {
        "runtime_works": not faults,
        "faults": faults,
        "edgekd": __version__,
        "environment": environment.model_dump(mode="json"),
        "extras": extras,
        "signer": signer,
        "targets": targets,
        **facts,
        "writable": places,
    }
    head = [["edgekd", __version__], ["Python", f"{environment.python} ({sys.executable})"]]
    head += [["device", f"{device}, {environment.arch}"], ["system", f"{environment.os}"]]
    head += [["running bundles", "no: " + "; ".join(faults) if faults else "works"]]
    head += [["signer", "anybody (EDGEKD_SIGNER is not set)" if signer is None else signer]]
    lines = [f"{name.ljust(16)} {value}" for name, value in head]
    lines += ["", *board_lines, "", "extras"]
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
    lines += ["", "places to write"]
    lines += [f"  {name}: {item['path']}: {item['verdict']}" for name, item in places.items()]
    emit(payload, lines, as_json)
    if faults:
        raise EnvironmentLacksError(f"bundles cannot run here: {'; '.join(faults)}")
    if not as_json:
        note("next: edgekd ls recipes")


def _board(root: Path) -> tuple[dict[str, Any], list[str]]:
    """Board, power modes, state and power sensors below a root: as values, and as lines."""
    from edgekd.contracts.board import Absent
    from edgekd.telemetry.boards import identify
    from edgekd.telemetry.modes import list_modes, read_mode
    from edgekd.telemetry.power import find_sensors
    from edgekd.telemetry.state import read_state

    board, state = identify(root), read_state(root)
    found, reasons = find_sensors(root)
    modes: dict[str, Any] = {"now": None, "all": None, "absent": {}}
    try:
        modes["now"] = read_mode(root).model_dump()
    except Absent as err:
        modes["absent"]["now"] = str(err)
    try:
        modes["all"] = [item.model_dump() for item in list_modes(root)]
    except Absent as err:
        modes["absent"]["all"] = str(err)
    sensors = [{**dataclasses.asdict(item.info), "taken": item is found[0]} for item in found]
    why = {"status": "unavailable", "reason": "no power sensor can be read here"}
    facts = {
        "board": board.model_dump(mode="json"),
        "power_modes": modes,
        "state": state.model_dump(mode="json"),
        "power": (
            {"status": "available", "sensor": found[0].info.name, "scope": found[0].info.scope}
            if found
            else {**why, "sensors": reasons}
        ),
        "sensors": {
            "found": sensors,
            "unavailable": reasons,
            "advice": None if found else _ADVICE,
        },
    }
    return facts, [*_board_lines(facts), "", *_sensor_lines(facts["sensors"])]


def _board_lines(facts: dict[str, Any]) -> list[str]:
    """What there is with its value, and what is not known with the reason."""
    board, modes, state = facts["board"], facts["power_modes"], facts["state"]
    rows = [("board", board["name"], board["absent"].get("name"))]
    if board["family"] == "jetson":
        rows += [(text, board[field], board["absent"].get(field))
                 for field, text in (("module", "module"), ("l4t", "L4T"),
                                     ("jetpack", "JetPack"))]  # fmt: skip
        now, every = modes["now"], modes["all"]
        rows.append(("power mode", now and now["name"], modes["absent"].get("now")))
        text = every and ", ".join(f"{item['name']} ({item['id']})" for item in every)
        rows.append(("power modes", text, modes["absent"].get("all")))
    governors = state["governors"] and ", ".join(sorted(set(state["governors"].values())))
    fans = state["fans"] and ", ".join(f"{name} {x:g}" for name, x in state["fans"].items())
    zones = state["temperatures_c"]
    warm = zones and ", ".join(f"{name} {value:.1f} °C" for name, value in zones.items())
    held = state["throttling"]
    shown = {
        "governors": ("CPU governor", governors),
        "gpu_mhz": ("GPU clock", state["gpu_mhz"] and f"{state['gpu_mhz']:g} MHz"),
        "gpu_max_mhz": ("GPU at most", state["gpu_max_mhz"] and f"{state['gpu_max_mhz']:g} MHz"),
        "fans": ("fan", fans),
        "temperatures_c": ("temperatures", warm),
        "throttling": ("throttled by", None if held is None else ", ".join(held) or "nothing"),
    }
    rows += [(text, value, state["absent"].get(field)) for field, (text, value) in shown.items()]
    return [f"{name.ljust(16)} {f'unknown: {why}' if value is None else value}"
            for name, value, why in rows]  # fmt: skip


def _sensor_lines(sensors: dict[str, Any]) -> list[str]:
    lines = ["power sensors"]
    for item in sensors["found"]:
        taken = "taken" if item["taken"] else "could be taken"
        step, lag = item["resolution_w"], item["lag_s"]
        lines.append(
            f"  {item['name']} ({taken}): {item['scope']}, {' + '.join(item['total'])}, "
            f"{item['source']}, resolution {'not known' if step is None else f'{step:g} W'}, "
            f"lag {'not known' if lag is None else f'{lag:g} s'}"
        )
        lines += [f"    {key}: {value}" for key, value in item["config"].items()]
    if not sensors["found"]:
        lines.append("  unavailable: no power sensor can be read here")
    lines += [f"  {name}: {why}" for name, why in sensors["unavailable"].items() if name != "null"]
    return lines + ([f"  {sensors['advice']}"] if sensors["advice"] else [])


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
