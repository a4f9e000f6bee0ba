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


def test_what_was_trained_before_an_error_stays_and_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk between the teachers and the student cost hours of teachers."""
    from edgekd.errors import OutputError
    from edgekd.train.places import run as module

    folder = write_tiny_places(tmp_path / "places")
    places = load_places(folder)
    values = tiny_values()
    data = PlaceData(tiny_recipe(), places, row_embeddings(places, WIDTH, vectors_of))
    opened = SimpleNamespace(data=data, text={"name": "minilm", "sha256": "0" * 64})
    monkeypatch.setattr(_places, "open_for", lambda *given: opened)
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(values))

    def full(*_: object, **__: object) -> None:
        raise OutputError("the disk is full")

    arguments = ["distill", str(recipe), "-o", str(out)]
    with monkeypatch.context() as broken:
        broken.setattr(module, "StudentTask", full)
        assert main(arguments) == 2
    kept = sorted(path.parent.name for path in out.rglob("teacher.ckpt"))
    assert kept == ["1-efficientnet_lite", "2-temporal_conv", "3-minilm"]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("teacher.ckpt")}
    # one that was put into another's folder is seen
    own = out / "teachers" / "2-temporal_conv" / "teacher.ckpt"
    content = own.read_bytes()
    own.write_bytes((out / "teachers" / "3-minilm" / "teacher.ckpt").read_bytes())
    assert main([*arguments, "--resume"]) == 2
    assert (
        "is a teacher minilm of text, expected temporal_conv of series" in capsys.readouterr().err
    )
    own.write_bytes(content)
    assert main([*arguments, "--resume"]) == 0
    assert {path for path in before if path.stat().st_mtime_ns != before[path]} == {own}


def test_a_run_that_did_not_begin_leaves_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekd.errors import InputError

    def wrong(*_: object) -> None:
        raise InputError("no such set")

    monkeypatch.setattr(_places, "open_for", wrong)
    recipe, out = tmp_path / "tiny.yaml", tmp_path / "deep" / "out"
    recipe.write_text(yaml.safe_dump(tiny_values()))
    assert main(["distill", str(recipe), "-o", str(out)]) == 2
    assert not (tmp_path / "deep").exists()


def test_a_text_teacher_and_another_encoder_are_a_fault_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = tiny_values()
    values["io"]["text"] = {**values["io"]["text"], "encoder": "hf_text"}
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(values))
    assert main(["validate", str(recipe)]) == 2
    said = capsys.readouterr().err
    assert "teacher minilm of texts is minilm, and io.text.encoder is hf_text" in said
