"""``edgekd distill`` of places: what it says when it is done."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from edgekd.cli import _places
from edgekd.cli.main import main
from edgekd.contracts.place_evidence import row_embeddings
from edgekd.contracts.place_set import load_places
from edgekd.train.places.checkpoint import load_places_checkpoint
from edgekd.train.places.data import PlaceData
from edgekd.train.places.task import said_of_seen
from tests.helpers.place_changes import blank
from tests.helpers.place_line import vectors_of
from tests.helpers.tiny_places import WIDTH, tiny_recipe, tiny_values, write_tiny_places


def test_it_tells_how_often_each_kind_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_places(tmp_path / "places")
    places = load_places(blank(folder, lambda _, number: "series" if number % 8 else ""))
    values = tiny_values(teachers=[])
    data = PlaceData(tiny_recipe(teachers=[]), places, row_embeddings(places, WIDTH, vectors_of))
    text = {"name": "made-up", "sha256": "0" * 64}
    opened = SimpleNamespace(data=data, text=text)
    monkeypatch.setattr(_places, "open_for", lambda *given: opened)
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert main(["distill", str(recipe), "-o", str(tmp_path / "out")]) == 0
    seen = load_places_checkpoint(tmp_path / "out").tuning["seen"]
    said = capsys.readouterr().out
    assert f"\nseen: {said_of_seen(seen)}\n" in said
    assert "(of 12 % of the places), text 100 %" in said
