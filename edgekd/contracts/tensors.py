"""Named inputs and outputs of a model: what the training side promises and the runtime checks."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from edgekd.contracts.schema import Document

Dimension = Annotated[int, pydantic.Field(ge=1)] | Literal["N"]
Triple = Annotated[list[float], pydantic.Field(min_length=1)]


class ImageInput(Document):
    """An image input of the engine, fed tile by tile.

    Attributes:
        name: tensor name in the graph.
        shape: ``[N, C, H, W]``; ``N`` is the free batch dimension, H = W is the tile's side, px.
        dtype: element type of the tensor that the engine takes.
        channels: order of the channels.
        mean, std: per channel, in units of 0-255 pixel values; the engine's input is
            ``(pixel - mean) / std``.
    """

    name: str = "image"
    shape: list[Dimension] = pydantic.Field(min_length=4, max_length=4)
    dtype: Literal["float32"] = "float32"
    channels: Literal["RGB"] = "RGB"
    mean: Triple
    std: Triple

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> ImageInput:
        _, channels, height, width = self.shape
        if self.shape[0] != "N" or "N" in self.shape[1:]:
            raise ValueError(f"shape must be [N, channels, side, side], received {self.shape}")
        if height != width:
            raise ValueError(f"tiles are square, received {height} x {width} px")
        if not (len(self.mean) == len(self.std) == channels == len(self.channels)):
            raise ValueError(
                f"shape has {channels} channels, {self.channels} names {len(self.channels)}, mean "
                f"has {len(self.mean)} values and std {len(self.std)}; all must agree"
            )
        if min(self.std) <= 0:
            raise ValueError("std must be above 0 for every channel")
        return self

    @property
    def tile_px(self) -> int:
        """Side of the tile, px."""
        return int(self.shape[2])

    @property
    def channel_count(self) -> int:
        """Number of channels."""
        return int(self.shape[1])


class LogitsOutput(Document):
    """Per-class logits of the engine.

    Attributes:
        name: tensor name in the graph.
        meaning: raw scores; softmax over axis 1 gives probabilities.
        dtype: element type of the tensor.
        stride_px: input pixels per logit, filled in by export from the student that was built.
    """

    name: str = "logits"
    meaning: Literal["class_logits"] = "class_logits"
    dtype: Literal["float32"] = "float32"
    stride_px: int | None = pydantic.Field(default=None, ge=1)


class ClassSpec(Document):
    """A class of the map.

    Attributes:
        index: value in label masks and in the map, 0-254 (255 is nodata in every map).
        name: short English name.
        color: ``#rrggbb`` of the palette.
    """

    index: int = pydantic.Field(ge=0, le=254)
    name: str = pydantic.Field(min_length=1)
    color: str = pydantic.Field(pattern=r"^#[0-9A-Fa-f]{6}$")

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Colour as three values of 0-255."""
        return tuple(int(self.color[i : i + 2], 16) for i in (1, 3, 5))  # type: ignore[return-value]


#: value of pixels without data in every class map; no class may use it.
MAP_NODATA = 255


def check_classes(classes: list[ClassSpec]) -> list[ClassSpec]:
    """Indices and names must be unique; for use in pydantic validators.

    Raises:
        ValueError: two classes share an index or a name.
    """
    for attribute in ("index", "name"):
        values = [getattr(item, attribute) for item in classes]
        twice = sorted({str(value) for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"class {attribute} used twice: {', '.join(twice)}")
    return classes


Classes = Annotated[
    list[ClassSpec], pydantic.Field(min_length=2), pydantic.AfterValidator(check_classes)
]
