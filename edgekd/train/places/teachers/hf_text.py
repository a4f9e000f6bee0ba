"""Any encoder of texts of ``transformers`` from a folder on this machine, such as BGE or E5.

What the folder must hold stands in :mod:`edgekd.train.places.text`. Networks that are like BERT
pass: tokens and a mask in, hidden states out.
"""

from __future__ import annotations

from pathlib import Path

from edgekd.errors import InputError
from edgekd.train.places.text import TextEncoder, from_folder

SEES = "text"


def encoder(variant: str | None, weights: str | Path) -> TextEncoder:
    """Make the encoder, in float32 on the CPU.

    Args:
        variant: must be None, the folder says what the model is.
        weights: path of the folder.

    Raises:
        InputError: a variant, ``package`` or ``random``; or a folder that asks for what is not
            computed here.
        CheckpointError: the folder is missing, incomplete or damaged.
        EnvironmentLacksError: transformers is not installed.
    """
    if variant is not None:
        raise InputError(
            f"encoder hf_text got variant '{variant}', but its folder says what the model is; "
            "remove the key"
        )
    if str(weights) in ("package", "random"):
        raise InputError(
            f"encoder hf_text got weights: {weights}, but only a folder says what the model is; "
            "give the path of one (config.json, model.safetensors, tokenizer.json)"
        )
    return from_folder("hf_text", Path(weights))
