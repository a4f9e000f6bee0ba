"""Descriptor of a data set that is kept with the project: ids, hashes, split, source, licence.

The same file serves tuning and evaluation today and names the samples of INT8 calibration.
"""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from edgekd.contracts.schema import Document
from edgekd.contracts.tensors import Classes

Sha256 = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
Split = Literal["train", "val", "test"]


class SampleSpec(Document):
    """One region of one image with its labels.

    Attributes:
        id: unique name of the sample.
        image, image_sha256: file below the set's root, and its hash.
        mask, mask_sha256: index mask of the same size (``labels: masks``).
        boxes, boxes_sha256: CSV with columns xmin, ymin, xmax, ymax, label in pixels
            (``labels: boxes``).
        box_labels: label text of the CSV -> class index; a label that is not named is a fault.
        split: what the sample is for.
        region_xyxy: ``[x0, y0, x1, y1]`` px, exclusive end; None is the whole image.
        weight: how often it is drawn in tuning, relative to its area.
    """

    id: str
    image: str
    image_sha256: Sha256
    mask: str | None = None
    mask_sha256: Sha256 | None = None
    boxes: str | None = None
    boxes_sha256: Sha256 | None = None
    box_labels: dict[str, int] = {}
    split: Split
    region_xyxy: Annotated[list[int], pydantic.Field(min_length=4, max_length=4)] | None = None
    weight: float = pydantic.Field(default=1.0, gt=0)

    @pydantic.field_validator("region_xyxy")
    @classmethod
    def _ordered(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and not (0 <= value[0] < value[2] and 0 <= value[1] < value[3]):
            raise ValueError(f"region_xyxy must be [x0, y0, x1, y1] with x0 < x1, y0 < y1: {value}")
        return value


class CalibrationSet(Document):
    """A described data set.

    Attributes:
        root: folder of the files, relative to the descriptor.
        labels: ``masks`` or ``boxes``.
        box_shape: what a box stands for: the ``ellipse`` inscribed in it, or the ``box``.
        ignore_index: mask value that counts neither way.
        gsd_m: ground sampling distance, m per px, where it is known.
    """

    schema_version: Literal[1] = pydantic.Field(alias="schema")
    name: str
    title: str = ""
    root: str
    source: str
    licence: str
    attribution: str = ""
    gsd_m: float | None = pydantic.Field(default=None, gt=0)
    labels: Literal["boxes", "masks"]
    box_shape: Literal["ellipse", "box"] = "box"
    classes: Classes
    ignore_index: int | None = pydantic.Field(default=None, ge=0, le=255)
    samples: list[SampleSpec] = pydantic.Field(min_length=1)

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> CalibrationSet:
        ids = [sample.id for sample in self.samples]
        twice = sorted({name for name in ids if ids.count(name) > 1})
        if twice:
            raise ValueError(f"sample id {', '.join(twice)} stands twice")
        key = "mask" if self.labels == "masks" else "boxes"
        for sample in self.samples:
            if getattr(sample, key) is None:
                raise ValueError(f"sample {sample.id} lacks '{key}' (labels: {self.labels})")
        known = {item.index for item in self.classes}
        for sample in self.samples:
            for label, index in sample.box_labels.items():
                if index not in known:
                    raise ValueError(f"sample {sample.id}: label {label} -> unknown class {index}")
        if self.ignore_index is not None and any(
            item.index == self.ignore_index for item in self.classes
        ):
            raise ValueError(f"ignore_index {self.ignore_index} is also a class")
        return self
