"""Any vision model of ``transformers`` from a folder on this machine, such as DINOv2 or ConvNeXt.

The folder is what ``save_pretrained`` writes or what a download from Hugging Face holds:
``config.json``, the weights, and ``preprocessor_config.json`` for the normalisation. Nothing is
taken from the network, and code that lies in the folder is not run.

Taps are the model's hidden states from 1: blocks of a ViT, stages of a ConvNeXt or Swin (in Swin
after the stage's merging of patches, so taps 1 and 2 have strides 8 and 16). The last one is
taken before the final layer norm. Their layout (maps or tokens), width and stride are measured on a
small image when the model is built, and so is the module that each of them comes out of: nothing
behind the deepest tap is run, unless a hidden state is no module's output. ``weights_sha256`` is
over the names that the installed ``transformers`` gives to parameters: another version of it may
give another value.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from edgekd.contracts.artifacts import read_json
from edgekd.errors import CheckpointError, InputError
from edgekd.train.teachers._base import Teacher
from edgekd.train.teachers._folders import load, needed_by, settings
from edgekd.train.teachers._weights import refuse_not_finite, state_sha256

VARIANTS = (None,)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
#: most tokens (class, registers) in front of those of the patches.
MOST_PREFIX = 16
SEED = 0
_MODEL_ERRORS = (ValueError, RuntimeError, TypeError, AttributeError, LookupError)


class Tap(NamedTuple):
    """How a hidden state becomes a map.

    Attributes:
        layout: ``first`` for ``(N, C, h, w)``, ``last`` for ``(N, h, w, C)``, ``tokens`` for
            ``(N, prefix + h * w, C)``.
        prefix: tokens in front that belong to no place.
    """

    layout: str
    channels: int
    stride: int
    prefix: int = 0


class HfVision(Teacher):
    """A model of ``transformers`` with spatial hidden states; see :class:`Teacher`.

    Args:
        model: its ``forward`` takes ``pixel_values`` and gives hidden states.
        measured: what a small image told about it.
        places: tap -> name of the module that it comes out of, and its layout there.
    """

    def __init__(
        self,
        model: Any,
        measured: Measured,
        places: dict[int, tuple[str, Tap]],
    ) -> None:
        super().__init__()
        self.model = model
        taps = measured.taps
        self.taps, self.places = taps, places
        self.name, self.variant = "hf_vision", str(model.config.model_type)
        self.channels = {number: tap.channels for number, tap in taps.items()}
        self.strides = {number: tap.stride for number, tap in taps.items()}
        self.side_multiple = measured.multiple
        self.only_side, self.least_side = measured.only_side, measured.least_side
        self.report = []

    def features(self, image: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """Normalised image ``(N, 3, H, W)`` -> ``(N, C, H / stride, W / stride)`` per tap.

        Raises:
            InputError: no such tap, a side that the model does not take, or a hidden state that
                does not form the expected grid.
        """
        self.check_taps(taps)
        self.check_image(image)
        height, width = int(image.shape[2]), int(image.shape[3])
        if self.only_side and (height, width) != (self.only_side, self.only_side):
            raise InputError(
                f"teacher hf_vision ({self.variant}) takes {self.only_side} x {self.only_side} px "
                f"only, received {height} x {width} px; set distill.crop_px: {self.only_side}"
            )
        if min(height, width) < self.least_side:
            raise InputError(
                f"teacher hf_vision ({self.variant}) takes sides of {self.least_side} px or more, "
                f"received {height} x {width} px; raise distill.crop_px"
            )
        if taps[-1] < max(self.taps) and all(tap in self.places for tap in taps):
            outputs = self._until(image, taps)
            return [as_map(outputs[tap], self.places[tap][1], height, width) for tap in taps]
        states = hidden_states(self.model, image)
        return [as_map(states[tap], self.taps[tap], height, width) for tap in taps]

    def _until(self, image: Tensor, taps: Sequence[int]) -> dict[int, Tensor]:
        """What comes out of the taps' modules; the model is left behind the last of them."""
        states: dict[int, Tensor] = {}

        def keep(tap: int) -> Any:
            def hook(module: nn.Module, given: Any, output: Any) -> None:
                states[tap] = _first(output)
                if tap == taps[-1]:
                    raise _Enough

            return hook

        with contextlib.ExitStack() as stack:
            for tap in taps:
                module = self.model.get_submodule(self.places[tap][0])
                stack.callback(module.register_forward_hook(keep(tap)).remove)
            with contextlib.suppress(_Enough):
                self.model(pixel_values=image, return_dict=True, **_resized(self.model))
        return states


class _Enough(Exception):
    """The deepest tap is known."""


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) and output else output


def _resized(model: Any) -> dict[str, bool]:
    """What a ViT wants to be told to take an image of another size."""
    name = "interpolate_pos_encoding"
    return {name: True} if name in inspect.signature(model.forward).parameters else {}


def places(model: Any, taps: dict[int, Tap], size: tuple[int, int]) -> dict[int, tuple[str, Tap]]:
    """Tap -> name of the module whose output is its hidden state, and the output's layout.

    Tried on an image of ``size`` (height, width), px. A tap whose hidden state is made outside of
    a module, changed in place after it, or of a module that runs more than once, is left out.
    """
    outputs: list[tuple[str, Any, int]] = []
    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():

            def hook(module: nn.Module, given: Any, output: Any, name: str = name) -> None:
                first = _first(output)
                outputs.append((name, first, getattr(first, "_version", 0)))

            stack.callback(module.register_forward_hook(hook).remove)
        generator = torch.Generator().manual_seed(SEED)
        with torch.no_grad():
            states = hidden_states(model, torch.randn(1, 3, *size, generator=generator))
    calls = collections.Counter(name for name, _, _ in outputs)
    patch = _side(getattr(model.config, "patch_size", 0))
    found: dict[int, tuple[str, Tap]] = {}
    for tap, told in taps.items():
        state = as_map(states[tap], told, *size)
        for name, output, version in outputs:
            if not name or not isinstance(output, Tensor) or output.numel() < state.numel():
                continue
            if output._version != version or calls[name] > 1:  # changed later; run again later
                continue
            with contextlib.suppress(InputError):
                layout = _layout(output, *size, patch)
                if torch.equal(as_map(output, layout, *size), state):
                    found[tap] = name, layout
                    break
    return found


def hidden_states(model: Any, image: Tensor) -> Sequence[Tensor]:
    """Hidden states of a model, the embedding first; as maps where the model offers them."""
    asked: dict[str, Any] = {"output_hidden_states": True, "return_dict": True, **_resized(model)}
    output = model(pixel_values=image, **asked)
    states: Sequence[Tensor] | None = getattr(output, "reshaped_hidden_states", None)
    if states is None:
        states = getattr(output, "hidden_states", None)
    if not states or len(states) < 2:
        raise InputError(f"{type(model).__name__} gives no hidden states")
    return states


def as_map(state: Tensor, tap: Tap, height: int, width: int) -> Tensor:
    """A hidden state as ``(N, C, height / stride, width / stride)``; sides in pixels.

    Raises:
        InputError: the state does not form that grid.
    """
    rows, columns = height // tap.stride, width // tap.stride
    if tap.layout == "tokens":
        if state.ndim == 3 and state.shape[1] == tap.prefix + rows * columns:
            grid = state[:, tap.prefix :].transpose(1, 2)
            return grid.reshape(state.shape[0], tap.channels, rows, columns)
    else:
        found = state if tap.layout == "first" else state.permute(0, 3, 1, 2)
        if found.shape[1:] == (tap.channels, rows, columns):
            return found
    raise InputError(
        f"teacher hf_vision: a hidden state {tuple(state.shape)} is no grid of {rows} x {columns} "
        f"cells ({height} x {width} px, stride {tap.stride}, {tap.prefix} tokens in front)"
    )


def layouts(states: Sequence[Tensor], height: int, width: int, patch: int) -> dict[int, Tap]:
    """Layout of each hidden state behind the embedding.

    Args:
        states: of an image of ``height`` x ``width`` px, the embedding first.
        patch: side of the model's patches in pixels, 0 where it says none.

    Raises:
        InputError: a state is neither a map nor a grid of tokens.
    """
    return {
        number: _layout(state, height, width, patch)
        for number, state in enumerate(states)
        if number > 0
    }


def _stride(height: int, width: int, rows: int, columns: int) -> int:
    """Pixels per cell, or 0 where the sides do not give the same whole number."""
    if rows < 1 or height % rows or columns * (height // rows) != width:
        return 0
    return height // rows


def _layout(state: Tensor, height: int, width: int, patch: int) -> Tap:
    shape = [int(side) for side in state.shape]
    if len(shape) == 4:
        if stride := _stride(height, width, shape[2], shape[3]):
            return Tap("first", shape[1], stride)
        if stride := _stride(height, width, shape[1], shape[2]):
            return Tap("last", shape[3], stride)
    if len(shape) == 3:
        count, channels = shape[1], shape[2]
        if patch:
            prefix = count - (height // patch) * (width // patch)
            if 0 <= prefix <= MOST_PREFIX:
                return Tap("tokens", channels, patch, prefix)
        rows = math.isqrt(count * height // width)
        if rows * (rows * width // height) == count and (
            stride := _stride(height, width, rows, rows * width // height)
        ):
            return Tap("tokens", channels, stride)
    raise InputError(
        f"a hidden state {tuple(shape)} of an image of {height} x {width} px is neither a map nor "
        "a grid of tokens"
    )


class Measured(NamedTuple):
    """What a small image told about a model; sides in pixels.

    Attributes:
        taps: layout of each.
        multiple: sides must be multiples of it.
        only_side: the one side that the model takes; 0 where it takes any.
        least_side: smaller sides do not pass.
        size: height and width of the image that passed.
    """

    taps: dict[int, Tap]
    multiple: int
    only_side: int
    least_side: int
    size: tuple[int, int]


def measure(model: Any) -> Measured:
    """Run a small image and look at what comes out; larger ones where it does not pass.

    Raises:
        InputError: no image of a plain size passes, or the states are no maps.
    """
    config = model.config
    patch = _side(getattr(config, "patch_size", 0))
    image_side = _side(getattr(config, "image_size", 0))
    small = 16 * patch if patch else 64
    first = ""
    for height, width in ((small, 2 * small), (image_side, 2 * image_side), (image_side,) * 2):
        if not height:
            continue
        try:
            # A copy: some models (Swin) change themselves when an image is too small for them.
            tried = copy.deepcopy(model)
            with torch.no_grad():
                states = hidden_states(tried, torch.zeros(1, 3, height, width))
        except _MODEL_ERRORS as err:
            first = first or " ".join(str(err).split())[:160]
            continue
        taps = layouts(states, height, width, patch)
        multiple = max(tap.stride for tap in taps.values())
        only = height if height == width else 0
        least = 1 if height == small else height
        return Measured(taps, multiple, only, least, (height, width))
    vision = (
        "; it is a model of images and text: save the part for images alone, e.g. "
        "CLIPVisionModel.from_pretrained(FOLDER).save_pretrained(OTHER)"
        if hasattr(config, "vision_config")
        else ""
    )
    raise InputError(f"an image of {small} x {2 * small} px does not pass: {first}{vision}")


def _side(value: Any) -> int:
    """A size of a configuration: a number, or a list of one number or two equal ones."""
    if isinstance(value, list | tuple):
        value = value[0] if len(set(value)) == 1 else 0
    return value if isinstance(value, int) else 0


def normalisation(
    folder: Path, report: list[str]
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation in units of 0-255 pixel values, from ``preprocessor_config.json``.

    Without that file they are ImageNet's, and ``report`` says so.

    Raises:
        InputError: the file is damaged, or asks for what this teacher does not do.
    """
    path = folder / "preprocessor_config.json"
    values: dict[str, Any] = {}
    if path.is_file():
        values = read_json(path)
    else:
        report.append("no preprocessor_config.json: mean and std of ImageNet")
    if values.get("do_flip_channel_order"):
        raise InputError(f"{path}: the model takes blue, green, red; this teacher gives RGB")
    mean, std = values.get("image_mean", IMAGENET_MEAN), values.get("image_std", IMAGENET_STD)
    if not values.get("do_normalize", True):
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    factor = values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 1.0
    try:
        (m0, m1, m2), (s0, s1, s2) = mean, std
        full = 1 / float(factor)  # the pixel value that the model sees as 1
        return (
            (float(m0) * full, float(m1) * full, float(m2) * full),
            (float(s0) * full, float(s1) * full, float(s2) * full),
        )
    except (TypeError, ValueError, ZeroDivisionError) as err:
        raise InputError(f"{path} lacks image_mean and image_std of three channels") from err


def check_missing(
    model: Any,
    missing: dict[str, Tensor],
    taps: dict[int, Tap],
    size: tuple[int, int],
    folder: Path,
) -> list[str]:
    """Zero what the folder lacks where no feature needs it, such as a pooler.

    Args:
        size: height and width of an image that the model takes, px.

    Raises:
        CheckpointError: some feature depends on one of the tensors.
    """
    if not missing:
        return []
    names = f"{len(missing)} tensors ({', '.join(list(missing)[:3])})"
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(SEED))
    needing = needed_by(missing, lambda: hidden_states(model, image))
    spoilt = [tap for tap in taps if tap in needing]
    if spoilt:
        raise CheckpointError(
            f"{folder} lacks {names}, and features from tap {spoilt[0]} on need them; copy it again"
        )
    return [f"{names} missing and set to 0, features do not need them"]


def build(variant: str | None, weights: str | Path) -> HfVision:
    """Make the teacher, in float32 on the CPU.

    Args:
        variant: must be None, the folder says what the model is.
        weights: path of the folder.

    Raises:
        InputError: a variant, ``package`` or ``random``; or the model has no spatial features.
        CheckpointError: the folder is missing, incomplete or damaged.
        EnvironmentLacksError: transformers is not installed.
    """
    if variant is not None:
        raise InputError(
            f"teacher hf_vision got variant '{variant}', but its folder says what the model is; "
            "remove the key"
        )
    if str(weights) in ("package", "random"):
        raise InputError(
            f"teacher hf_vision got weights: {weights}, but only a folder says what the model is; "
            "give the path of one (config.json and model.safetensors)"
        )
    folder = Path(weights)
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder} is no folder; give one with config.json and model.safetensors, e.g. a "
            "download of facebook/dinov2-base from Hugging Face"
        )
    report: list[str] = []
    model, missing = load(folder, report, "teacher hf_vision")
    config = model.config
    if getattr(config, "num_channels", 3) != 3:
        raise InputError(f"{folder}: the model takes {config.num_channels} channels instead of 3")
    try:
        found = measure(model)
    except InputError as err:
        raise InputError(f"{folder} ({config.model_type}) cannot be a teacher: {err}") from err
    report += check_missing(model, missing, found.taps, found.size, folder)
    refuse_not_finite(model.state_dict(), str(folder))
    teacher = HfVision(model, found, places(model, found.taps, found.size))
    teacher.mean, teacher.std = normalisation(folder, report)
    teacher.report = report
    about = {
        "teacher": "hf_vision",
        "config": settings(config.to_dict()),
        "mean": teacher.mean,
        "std": teacher.std,
    }
    teacher.weights_sha256 = state_sha256(model.state_dict(), about)
    teacher.freeze()
    return teacher
