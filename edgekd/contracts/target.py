"""A target: a declared class of device, one YAML in ``engines/targets/``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pydantic

from edgekd.contracts import registry
from edgekd.contracts.schema import Document, load_document
from edgekd.errors import InputError

Precision = Literal["fp32", "fp16", "bf16", "int8"]
#: ``major.minor`` or longer, as a library prints it: "10.3", "1.17".
VersionText = Annotated[str, pydantic.Field(pattern=r"^\d+\.\d+(\.\d+)*$")]


class PowerMode(Document):
    """A power mode that the board offers, in the words of its ``nvpmodel``.

    Attributes:
        id: what ``nvpmodel -m`` takes.
        name: what ``nvpmodel -q`` prints; it is looked up by name, as ids differ between releases.
        budget_w: power that the mode is meant to keep to, W; None where it has no bound.
    """

    id: int = pydantic.Field(ge=0)
    name: str = pydantic.Field(pattern=r"^[A-Z0-9_]+$")
    budget_w: float | None = pydantic.Field(default=None, gt=0)


class CpuTraits(Document):
    """What decides how INT8 runs on the CPU.

    Attributes:
        model: core or class of cores, e.g. ``Cortex-A76``.
        cores: of the smallest board of the class; None where the class has no one number.
        int8_dot_product: has instructions that sum products of 8-bit numbers into 32 bits
            (Arm ``asimddp``, x86 VNNI). Without them INT8 is often no faster than FP32.
        int8_weight_bits: bits that weights may use. x86 without VNNI adds pairs of products in
            16 bits and saturates with more than 7; Arm never does.
    """

    model: str
    cores: int | None = pydantic.Field(default=None, ge=1)
    int8_dot_product: bool
    int8_weight_bits: Literal[7, 8]

    @pydantic.field_validator("int8_weight_bits")
    @classmethod
    def _no_reason_for_7(cls, value: int, info: pydantic.ValidationInfo) -> int:
        if value == 7 and info.data.get("int8_dot_product"):
            raise ValueError(
                "int8_weight_bits is 7 with int8_dot_product; a CPU that sums products in 32 bits "
                "does not saturate: write 8"
            )
        return value


class Target(Document):
    """What a class of device has, as far as a build needs to know it.

    Attributes:
        board: the board or module, for a person.
        arch: ``platform.machine()`` of the device.
        backend: what runs the model there.
        memory_mib: of the smallest board of the class, MiB; a Jetson's GPU shares it with the
            system. Bounds the activation memory of a check; None where the class has no one number.
        threads: threads that the backend uses; 0 asks the backend for its own choice.
        precisions: what a model for this target may hold.
        cpu: traits that decide INT8 there.
        compute_capability: of the GPU, e.g. ``8.7``.
        jetpack, l4t: NVIDIA's releases that ``tensorrt`` belongs to.
        tensorrt: the oldest TensorRT that models for this target must suit.
        onnxruntime: the oldest ONNX Runtime that models for this target must suit.
        power_modes: of a Jetson, by id.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    name: str
    title: str
    board: str = ""
    arch: Literal["x86_64", "aarch64"]
    backend: Literal["onnxrt", "trt"]
    memory_mib: int | None = pydantic.Field(default=None, ge=256)
    threads: int = pydantic.Field(default=0, ge=0)
    precisions: list[Precision] = pydantic.Field(default=["fp32"], min_length=1)
    cpu: CpuTraits | None = None
    compute_capability: str | None = pydantic.Field(default=None, pattern=r"^\d+\.\d$")
    jetpack: VersionText | None = None
    l4t: VersionText | None = None
    tensorrt: VersionText | None = None
    onnxruntime: VersionText | None = None
    power_modes: list[PowerMode] = []

    @pydantic.field_validator("precisions")
    @classmethod
    def _once(cls, value: list[Precision]) -> list[Precision]:
        if len(set(value)) != len(value):
            raise ValueError(f"a precision stands twice in {', '.join(value)}")
        return value

    @pydantic.field_validator("power_modes")
    @classmethod
    def _distinct(cls, value: list[PowerMode]) -> list[PowerMode]:
        if len({mode.id for mode in value}) < len(value) or len({m.name for m in value}) < len(
            value
        ):
            raise ValueError("every power mode must have its own id and name")
        return value

    @pydantic.model_validator(mode="after")
    def _fits_the_backend(self) -> Target:
        needs = {"trt": ("tensorrt", "compute_capability"), "onnxrt": ("onnxruntime",)}
        for backend, keys in needs.items():
            for key in keys:
                present = getattr(self, key) is not None
                if present != (backend == self.backend):
                    verb = "needs" if backend == self.backend else "has no use for"
                    raise ValueError(f"backend {self.backend} {verb} the key '{key}'")
        if self.backend == "onnxrt" and (self.jetpack or self.l4t or self.power_modes):
            raise ValueError("jetpack, l4t and power_modes belong to a Jetson, backend trt")
        return self


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
