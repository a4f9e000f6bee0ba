"""A target: a declared class of device, one YAML in ``engines/targets/``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from edgekd.contracts import registry
from edgekd.contracts.schema import Document, load_document
from edgekd.errors import InputError


class Target(Document):
    """What a class of device has, as far as a build needs to know it.

    Attributes:
        backend: what runs the model there.
        arch: ``platform.machine()`` of the device.
        memory_mib: memory that the device has, for information.
        threads: threads that the backend uses; 0 asks the backend for its own choice.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    name: str
    title: str
    arch: Literal["x86_64", "aarch64"]
    backend: Literal["onnxrt", "trt"]
    memory_mib: int | None = None
    threads: int = pydantic.Field(default=0, ge=0)
    compute_capability: str | None = None


def target_names() -> list[str]:
    """Names of the declared targets, sorted."""
    return registry.yaml_names(registry.engines_root() / "targets")


def load_target(name: str) -> Target:
    """Read a target by name.

    Raises:
        InputError: no such target; names the nearest and all valid ones.
    """
    valid = target_names()
    if name not in valid:
        raise InputError(
            f"target '{name}' does not exist{registry.nearest(name, valid)} "
            f"(valid: {', '.join(valid)})"
        )
    path: Path = registry.engines_root() / "targets" / f"{name}.yaml"
    target = load_document(Target, path)
    if target.name != name:
        raise InputError(f"{path} calls itself '{target.name}'; the name must be the file's name")
    return target
