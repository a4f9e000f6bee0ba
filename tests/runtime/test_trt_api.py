"""Every name of TensorRT that builder and backend use exists in every version they may meet.

Read from the source: what is called ``builder``, ``config``, ... is an object of TensorRT,
``trt.X.Y`` a name of its class, and a branch under ``api.weak`` and the like counts only for
versions in which it is taken.
"""

from __future__ import annotations

import ast
import json
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekd.contracts.registry import package_root
from edgekd.runtime.backends.trt import Api
from tests.helpers.fake_cuda import fake_pycuda
from tests.helpers.tensorrt_api import TABLE, VERSIONS, names

FILES = [
    package_root() / "runtime" / "backends" / "trt.py",
    package_root() / "runtime" / "backends" / "_trt_slots.py",
    package_root() / "deploy" / "builders" / "trt.py",
]
#: what the code calls an object -> its class
OBJECTS = {
    "builder": "Builder", "config": "IBuilderConfig", "network": "INetworkDefinition",
    "parser": "OnnxParser", "profile": "IOptimizationProfile", "layer": "ILayer",
    "engine": "ICudaEngine", "_engine": "ICudaEngine", "context": "IExecutionContext",
    "_context": "IExecutionContext", "_runtime": "Runtime", "inspector": "EngineInspector",
    "kept": "ITimingCache", "item": "ITensor",
}  # fmt: skip
#: calls that give an object back -> its class
CALLS = {"get_output": "ITensor", "get_input": "ITensor", "get_error": "ParserError"}
#: names of the module that the table does not list: in all versions, or from 10 on.
MODULE = {"ILogger", "LayerInformationFormat", "Runtime", "Builder", "OnnxParser", "__version__"}
MODULE_FROM_10 = {"IProgressMonitor", "ExecutionContextAllocationStrategy"}
GENERATIONS = (
    "explicit_batch", "weak", "strong_flag", "sharing_flag", "monitored", "managed",
)  # fmt: skip
Use = tuple[str, str, int]


def api(version: str) -> Api:
    module = types.ModuleType("tensorrt")
    module.__version__ = VERSIONS[version]  # type: ignore[attr-defined]
    module.ILogger = type("ILogger", (), {"__init__": lambda self: None})  # type: ignore[attr-defined]
    return Api(module)


def verdict(test: ast.expr, here: Api) -> bool | None:
    """Whether a branch is taken with this TensorRT; None where that is not said."""
    if isinstance(test, ast.Attribute) and test.attr in GENERATIONS:
        return bool(getattr(here, test.attr))
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = verdict(test.operand, here)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        found = [verdict(value, here) for value in test.values]
        return False if False in found else None
    return None


def taken(body: list[ast.stmt], here: Api) -> Iterator[ast.AST]:
    """The nodes that this TensorRT gets to."""
    for statement in body:
        if isinstance(statement, ast.If):
            yield from ast.walk(statement.test)
            answer = verdict(statement.test, here)
            if answer is not False:
                yield from taken(statement.body, here)
            if answer is not True:
                yield from taken(statement.orelse, here)
            if answer is True and isinstance(statement.body[-1], ast.Return):
                return
            continue
        inner = [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
        handlers = [item.body for item in getattr(statement, "handlers", [])]
        parts = [part for part in (*inner, *handlers) if part]
        inside = {id(node) for part in parts for item in part for node in ast.walk(item)}
        yield from (node for node in ast.walk(statement) if id(node) not in inside)
        for part in parts:
            yield from taken(part, here)


def uses(path: Path, here: Api) -> list[Use]:
    """(class, name, line) of everything that is used of TensorRT."""
    found: list[Use] = []
    for node in taken(ast.parse(path.read_text(encoding="utf-8")).body, here):
        if not isinstance(node, ast.Attribute):
            continue
        value, line = node.value, node.lineno
        if isinstance(value, ast.Name) and value.id == "trt":
            found.append(("module", node.attr, line))
        elif (
            isinstance(value, ast.Attribute)
            and isinstance(value.value, ast.Name)
            and value.value.id == "trt"
            and value.attr in TABLE
        ):
            found.append((value.attr, node.attr, line))
        elif isinstance(value, ast.Name | ast.Attribute):
            called = value.id if isinstance(value, ast.Name) else value.attr
            if called in OBJECTS:
                found.append((OBJECTS[called], node.attr, line))
        elif isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute):
            kind = CALLS.get(value.func.attr)
            if kind is not None:
                found.append((kind, node.attr, line))
    return found


def missing(path: Path, version: str) -> list[str]:
    here, faults = api(version), []
    for kind, name, line in uses(path, here):
        if kind == "module":
            known = MODULE | set(TABLE) | (MODULE_FROM_10 if here.version >= (10,) else set())
        else:
            known = names(kind, version)
        if name not in known:
            faults.append(f"{path.name}:{line} {kind}.{name} is not in TensorRT {version}")
    return faults


@pytest.mark.parametrize("version", VERSIONS)
def test_every_name_exists(version: str) -> None:
    assert [fault for path in FILES for fault in missing(path, version)] == []


#: what the backend calls an object of pycuda -> its class
PYCUDA_OBJECTS = {
    "cuda": "module", "event_flags": "event_flags", "copies": "Stream", "compute": "Stream",
    "_compute": "Stream", "arrived": "Event", "done": "Event", "back": "Event",
    "_primary": "Context", "Context": "Context", "allocation": "DeviceAllocation",
    "_activations": "DeviceAllocation",
}  # fmt: skip
PYCUDA = json.loads(
    (Path(__file__).resolve().parents[1] / "data" / "pycuda_api.json").read_text("utf-8")
)["classes"]


def pycuda_uses(text: str) -> set[tuple[str, str]]:
    """(class, name) of everything that is used of pycuda."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
            value = node.value
            called = value.id if isinstance(value, ast.Name) else value.attr
            if called in PYCUDA_OBJECTS:
                found.add((PYCUDA_OBJECTS[called], node.attr))
    return found


def test_every_name_of_pycuda_exists() -> None:
    found = pycuda_uses("".join(path.read_text(encoding="utf-8") for path in FILES[:2]))
    assert [use for use in sorted(found) if use[1] not in PYCUDA[use[0]]] == []
    assert {kind for kind, _ in found} == set(PYCUDA) - {"Device"} and len(found) >= 22
    assert pycuda_uses("slot.copies.begin_capture()") == {("Stream", "begin_capture")}
    assert "begin_capture" not in PYCUDA["Stream"]


def test_the_made_up_pycuda_has_no_name_that_pycuda_lacks() -> None:
    cuda = fake_pycuda()
    assert {name for name in vars(cuda) if not name.startswith("_")} <= set(PYCUDA["module"])


def test_the_names_are_seen() -> None:
    """An empty list of faults would also come of looking at nothing."""
    counted = {
        version: {u[:2] for p in FILES for u in uses(p, api(version))} for version in VERSIONS
    }
    assert {version: len(found) >= 55 for version, found in counted.items()} == dict.fromkeys(
        VERSIONS, True
    )
    assert {kind for kind, _ in counted["10.3"]} >= {*OBJECTS.values(), "module", "BuilderFlag"}
    flags = {v: {n for k, n in found if k == "BuilderFlag"} for v, found in counted.items()}
    assert "FP16" in flags["8.6"] & flags["10.3"]
    assert "FP16" not in flags["10.13"] | flags["11.4"]
    assert ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") in counted["8.6"]
    assert ("NetworkDefinitionCreationFlag", "EXPLICIT_BATCH") not in counted["11.4"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("builder.platform_has_fast_fp16", ["11.4"]),
        ("config.max_workspace_size", ["10.3", "10.13", "11.4"]),
        ("config.set_flag(trt.BuilderFlag.FP16)", ["11.4"]),
        ("if api.weak:\n    config.set_flag(trt.BuilderFlag.FP16)", []),
        ("if api.weak and x:\n    config.set_flag(trt.BuilderFlag.FP16)", []),
        ("if api.weak:\n    pass\nelse:\n    trt.BuilderFlag.INT8", ["11.4"]),
        ("def f():\n    if not api.weak:\n        return 1\n    trt.BuilderFlag.INT8", []),
        ("trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", ["11.4"]),
        ("trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED", ["8.6"]),
        ("self._engine.get_binding_index('x')", ["10.3", "10.13", "11.4"]),
        ("with x:\n    self._context.execute_async_v2()", ["10.3", "10.13", "11.4"]),
        ("network.get_layer(0).get_output(0).dynamic_range", ["11.4"]),
        ("trt.IProgressMonitor", ["8.6"]),
        ("trt.IInt8EntropyCalibrator2", ["8.6", "10.3", "10.13", "11.4"]),
        ("config.progress_monitor = 1", ["8.6"]),
    ],
)
def test_a_name_that_is_gone_is_found(tmp_path: Path, text: str, wrong: list[str]) -> None:
    path = tmp_path / "x.py"
    path.write_text(text)
    assert [version for version in VERSIONS if missing(path, version)] == wrong


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        ("8.6", (True, True, False, True, False, False)),
        ("10.3", (False, True, True, False, True, True)),
        ("10.13", (False, False, True, False, True, True)),
        ("11.4", (False, False, False, False, True, True)),
    ],
)
def test_generations(version: str, generation: tuple[bool, ...]) -> None:
    here = api(version)
    assert tuple(getattr(here, name) for name in GENERATIONS) == generation
