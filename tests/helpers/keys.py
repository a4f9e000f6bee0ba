"""Key pairs for tests, and a machine without the library for them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekd.deploy.signing import KeyPair, load_private_key, sign_bundle, write_key_pair


def make_pair(folder: Path, name: str = "fleet") -> KeyPair:
    """``NAME.key`` and ``NAME.pub`` in ``folder``."""
    return write_key_pair(folder / name)


def sign(bundle: Path, pair: KeyPair, replace: bool = False) -> Path:
    """Sign a bundle and return it."""
    sign_bundle(bundle, load_private_key(pair.private), replace)
    return bundle


class _Wall:
    """Finds that there is no ``cryptography``."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "cryptography":
            raise ModuleNotFoundError(f"No module named {name!r}", name="cryptography")


def without_library(patch: pytest.MonkeyPatch) -> None:
    """Make ``cryptography`` look as if it was never installed."""
    for name in list(sys.modules):
        if name.split(".")[0] == "cryptography":
            patch.delitem(sys.modules, name)
    patch.setattr(sys, "meta_path", [_Wall(), *sys.meta_path])
