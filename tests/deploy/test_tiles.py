"""How many tiles a set has room for, told before anything is exported."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.contracts.labelled import open_labelled
from edgekd.deploy.tiles import check_enough, labelled_tiles
from edgekd.errors import InputError
from tests.helpers.labelled import make_set


def test_room_for_tiles_is_counted_without_reading_them(tmp_path: Path) -> None:
    data = open_labelled(make_set(tmp_path / "set"))
    side = min(data.size(data.split("train")[0]))
    have = len(labelled_tiles(data, "train", side, 1000))
    check_enough(data, "train", side, have)
    with pytest.raises(InputError, match=rf"asks for {have + 1} tiles of {side} px, and split train"
                       rf" .* has room for {have}; .*--set calibration.tiles={have}$"):  # fmt: skip
        check_enough(data, "train", side, have + 1)


def test_fewer_tiles_than_a_recipe_may_ask_for_are_no_advice(tmp_path: Path) -> None:
    data = open_labelled(make_set(tmp_path / "set", count=1))
    with pytest.raises(InputError, match=r"has room for 1; give more images$"):
        check_enough(data, "train", max(data.size(data.split("train")[0])), 2)
