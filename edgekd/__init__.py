"""edgekd: from a big teacher model to a small student that runs on a board.

Three machines, three folders, and one set of things they agree on::

    train/      workstation   datasets, students, tuning, evaluation          extra: train
    deploy/     build host    export, parity, builders, bundle                extra: deploy
    runtime/    edge device   sessions, tiling, georeferenced maps            extras: onnxrt, geo
    telemetry/  edge device   sensors, environment
    report/     edge device   benchmark records, checks, pages
    contracts/  everywhere    the formats that all of them share
    cli/        everywhere    one file per command

Importing this package loads none of them; the public names below are loaded on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "EdgeKDError": "edgekd.errors",
    "Prediction": "edgekd.runtime.session",
    "SceneResult": "edgekd.runtime.session",
    "Session": "edgekd.runtime.session",
    "load": "edgekd.runtime.session",
    "load_recipe": "edgekd.contracts.recipe",
}

__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from edgekd.contracts.recipe import load_recipe as load_recipe
    from edgekd.errors import EdgeKDError as EdgeKDError
    from edgekd.runtime.session import Prediction as Prediction
    from edgekd.runtime.session import SceneResult as SceneResult
    from edgekd.runtime.session import Session as Session
    from edgekd.runtime.session import load as load


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'edgekd' has no attribute '{name}'")
    import importlib

    value = getattr(importlib.import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
