"""The sentence that names the extra, and names that come from files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgekd.contracts import registry
from edgekd.contracts.optional import EXTRAS, available, require
from edgekd.contracts.target import load_target, target_names
from edgekd.errors import EnvironmentLacksError, InputError, RecipeError


def test_require_gives_the_module() -> None:
    assert require("json", "geo", "read") is sys.modules["json"]


def test_a_missing_module_names_the_extra() -> None:
    with pytest.raises(EnvironmentLacksError) as caught:
        require("edgekd_absent.part", "geo", "read scenes")
    text = str(caught.value)
    assert "edgekd_absent is not installed and is needed to read scenes" in text
    assert 'pip install "edgekd[geo]"' in text and caught.value.exit_code == 3


@pytest.mark.parametrize(
    "body",
    [
        "import edgekd_not_there",  # a dependency is missing
        "raise ImportError('libfoo.so.1: cannot open shared object file')",
        "import edgekd_broken._native",  # a part of itself is missing
    ],
)
def test_a_broken_installation_does_not_look_like_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    (tmp_path / "edgekd_broken").mkdir()
    (tmp_path / "edgekd_broken" / "__init__.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EnvironmentLacksError) as caught:
        require("edgekd_broken", "geo", "read")
    assert "is installed but does not import" in str(caught.value)
    sys.modules.pop("edgekd_broken", None)


def test_available_does_not_import_and_never_raises() -> None:
    assert available("json") and not available("edgekd_absent")
    assert not available("edgekd_absent.part")
    for modules in EXTRAS.values():
        for module in modules:
            assert available(module) in (True, False)


def test_module_names_come_from_files() -> None:
    assert registry.module_names("edgekd.runtime.backends") == ["fake", "onnxrt", "trt"]
    module = registry.load("edgekd.runtime.backends", "fake", "backend")
    assert module.__name__ == "edgekd.runtime.backends.fake"


def test_an_unknown_entry_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        registry.load("edgekd.runtime.backends", "onnxr", "backend")
    assert str(caught.value) == (
        "backend 'onnxr' does not exist; did you mean 'onnxrt'? (valid: fake, onnxrt, trt)"
    )


def test_nearest_stays_silent_when_nothing_is_near() -> None:
    assert registry.nearest("zzz", ["alpha", "beta"]) == ""


def test_every_target_file_is_valid() -> None:
    names = target_names()
    assert len(names) >= 6
    assert [load_target(name).name for name in names] == names


def test_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "targets").mkdir()
    text = "schema: 1\nname: {}\ntitle: t\narch: x86_64\nbackend: onnxrt\nonnxruntime: '1.17'\n"
    (tmp_path / "targets" / "here.yaml").write_text(text.format("here"))
    (tmp_path / "targets" / "liar.yaml").write_text(text.format("other"))
    (tmp_path / "targets" / "bad.yaml").write_text("schema: 1\nname: bad\nbackend: onnx\n")
    monkeypatch.setattr(registry, "engines_root", lambda: tmp_path)
    assert target_names() == ["bad", "here", "liar"]
    assert load_target("here").threads == 0
    with pytest.raises(InputError, match="did you mean 'here'"):
        load_target("heer")
    with pytest.raises(InputError, match="calls itself 'other'"):
        load_target("liar")
    with pytest.raises(RecipeError, match=r"lacks the key 'arch'.*expected 'onnxrt' or 'trt'"):
        load_target("bad")


def test_extras_and_what_they_bring_are_those_of_the_project() -> None:
    """What a board with a bundle of places imports is in the extras that the README names."""
    for extra, needed in (
        ("places", {"onnxruntime", "tokenizers", "rasterio", "scipy"}),
        ("serve", {"fastapi", "uvicorn", "prometheus_client", "rasterio", "scipy"}),
    ):
        assert needed <= set(EXTRAS[extra])
        text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
        section = text.split(f"\n{extra} = [", 1)[1].split("]", 1)[0]
        assert all(f'"{name.replace("_", "-")}' in section for name in needed), extra
