"""Named inputs and outputs of a model: what the training side promises and the runtime checks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from edgekd.contracts.datum import Datum
from edgekd.contracts.schema import Document

Dimension = Annotated[int, pydantic.Field(ge=1)] | Literal["N"]
Triple = Annotated[list[float], pydantic.Field(min_length=1)]
Pair = Annotated[list[float], pydantic.Field(min_length=2, max_length=2)]


def _check_ranges(
    ranges: dict[str, list[float]], info: pydantic.ValidationInfo
) -> dict[str, list[float]]:
    features = info.data.get("features", list(ranges))  # absent where it has a fault of its own
    for name, (low, high) in ranges.items():
        if name not in features:
            raise ValueError(f"there is no feature '{name}' (there are: {', '.join(features)})")
        if not low < high:
            raise ValueError(f"the range of {name} goes from {low:g} to {high:g}: lowest first")
    return ranges


#: feature -> ``[lowest, highest]``, of a document that names its ``features`` before
Ranges = Annotated[dict[str, Pair], pydantic.AfterValidator(_check_ranges)]


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


class SeriesInput(Document):
    """A sensor series of fixed length: scaled values, and beside them what was measured.

    Attributes:
        name: tensor name in the graph, of shape ``[N, days, 2 * features]``: first the values,
            ``(value - mean) / std`` and 0 where none was measured, then 1 where one was.
        days: rows; the last is the newest.
        features: names of the values of a day.
        mean, std: per feature in its own unit; absent in a recipe, for training finds them.
        ranges: feature -> ``[lowest, highest]`` value that it can have, in its own unit; a value
            outside is refused. Of features without one, see :mod:`edgekd.contracts.plausible`.
        unmeasured: features of which training had no value; one that is given is refused, for what
            it means was never learned. Training finds them.
        datum: what levels are heights above, e.g. ``MHHW``; absent in a recipe, training takes the
            set's. Series above another datum are refused.
    """

    name: str = "series"
    days: int = pydantic.Field(ge=7, le=10_000)
    features: list[str] = pydantic.Field(min_length=1, max_length=1000)
    mean: list[float] | None = None
    std: list[Annotated[float, pydantic.Field(gt=0)]] | None = pydantic.Field(
        default=None, validate_default=True
    )

    @pydantic.field_validator("std")
    @classmethod
    def _both(cls, value: list[float] | None, info: pydantic.ValidationInfo) -> list[float] | None:
        features, mean = info.data.get("features"), info.data.get("mean")
        if features is None:
            return value
        if len(set(features)) < len(features):
            raise ValueError("a feature stands twice")
        if (mean is None) != (value is None):
            raise ValueError("mean and std come together")
        if mean is not None and value is not None and not len(mean) == len(value) == len(features):
            raise ValueError(
                f"there are {len(features)} features, mean has {len(mean)} values and std "
                f"{len(value)}; all must agree"
            )
        return value

    ranges: Ranges = {}
    datum: Datum | None = None
    unmeasured: list[str] = pydantic.Field(default=[], validate_default=True)

    @pydantic.field_validator("unmeasured")
    @classmethod
    def _there(cls, value: list[str], info: pydantic.ValidationInfo) -> list[str]:
        for name in value:
            if name not in info.data.get("features", value):
                raise ValueError(f"there is no feature '{name}'")
        return value

    @pydantic.model_serializer(mode="wrap")
    def _without_nothing(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Where none is declared the key is left out: files from before read and hash the same."""
        values: dict[str, Any] = handler(self)
        for key in ("ranges", "datum", "unmeasured"):
            if not getattr(self, key):
                values.pop(key, None)
        return values


class TextInput(Document):
    """The embedding of a text.

    Attributes:
        name: tensor name in the graph, of shape ``[N, width]``.
        width: of the embedding.
    """

    name: str = "text"
    width: int = pydantic.Field(default=384, ge=1, le=65_536)


class RulesInput(Document):
    """Rules as inputs of the engine, so that new rules need no new engine.

    The tensors ``rules [N, rows, classes]``, ``bounds [N, rows]`` and ``inside [N, classes]`` are
    what :class:`edgekd.contracts.projection.Limits` holds.

    Attributes:
        rows: rules that there is room for, of one zone on one day.
    """

    rows: int = pydantic.Field(default=32, ge=1, le=256)


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
