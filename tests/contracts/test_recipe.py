"""Recipes: every fault at once, with line, key, expectation and nearest name."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.contracts import registry
from edgekd.contracts.recipe import (
    Recipe,
    data_root,
    load_recipe,
    parse_recipe,
    preset_names,
)
from edgekd.contracts.schema import read_yaml, resolve_path
from edgekd.errors import InputError, RecipeError

GOOD = """\
schema: 1
name: demo
student: {name: vit_nano}
data: {root: data}
finetune:
  crop_px: 64
  batch: 2
  steps: 10
io:
  inputs:
    - {name: image, shape: [N, 3, 64, 64], mean: [1, 2, 3], std: [1, 1, 1]}
  classes:
    - {index: 0, name: land, color: "#000000"}
    - {index: 1, name: water, color: "#0000ff"}
tiling: {overlap_px: 16}
gates:
  onnx_vs_torch: {atol: 1.0e-4}
targets: [pc]
"""


@pytest.fixture(autouse=True)
def known_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets ``pc`` and ``board``; students ``vit_nano`` and ``lite0``; head ``linear``."""
    targets = tmp_path / "engines" / "targets"
    targets.mkdir(parents=True)
    for name in ("pc", "board"):
        (targets / f"{name}.yaml").touch()
    names = {
        "edgekd.train.students": ["lite0", "vit_nano"],
        "edgekd.train.heads": ["linear"],
        "edgekd.train.teachers": ["efficientnet_lite", "sam"],
    }
    monkeypatch.setattr(registry, "engines_root", lambda: tmp_path / "engines")
    monkeypatch.setattr(registry, "module_names", lambda package: names[package])


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def faults(folder: Path, text: str, overrides: list[str] | None = None) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write(folder, text), overrides)
    assert str(caught.value).startswith(f"{folder / 'recipe.yaml'} has ")
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_a_good_recipe_has_its_defaults_filled_in(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert recipe.io.outputs[0].name == "logits" and recipe.tiling.blend == "cosine"
    assert recipe.plain()["schema"] == 1
    assert parse_recipe(recipe.plain(), "checkpoint") == recipe
    assert recipe.io.classes[1].rgb == (0, 0, 255)


def test_three_mistakes_are_all_named_with_line_and_nearest_name(tmp_path: Path) -> None:
    text = GOOD.replace("vit_nano", "vit_nana").replace("  batch: 2", "  bacth: 2")
    text = text.replace("[pc]", "[pcc]")
    assert faults(tmp_path, text) == [
        "line 3: student.name: student 'vit_nana' does not exist; did you mean 'vit_nano'? "
        "(valid: lite0, vit_nano)",
        "line 5: finetune lacks the key 'batch'",
        *[
            item
            for item in faults(tmp_path, text)
            if item.startswith("line 7: unknown key 'bacth' in finetune; did you mean 'batch'?")
        ],
        "line 18: targets: target 'pcc' does not exist; did you mean 'pc'? (valid: board, pc)",
    ]
    assert len(faults(tmp_path, text)) == 4


FAULTS = [
    # replace, by, line, words
    ("batch: 2", "batch: many", 7, "finetune.batch is 'many', but input should be a valid integer"),
    ("batch: 2", "batch: 2.5", 7, "finetune.batch is 2.5"),
    ("batch: 2", "batch: 0", 7, "greater than or equal to 1"),
    ("batch: 2", "batch: yes", 7, "finetune.batch: true (yes/no in YAML) is no value"),
    ("batch: 2", "batch: .inf", 7, "finetune.batch is inf"),
    ("batch: 2", "batch: ", 7, "finetune.batch is None"),
    ("schema: 1", "schema: 2", 1, "schema is 2, expected 1"),
    ("schema: 1\n", "", 1, "the document lacks the key 'schema'"),
    ("schema: 1", "shema: 1", 1, "did you mean 'schema'?"),
    ("name: demo", "name: Demo Site", 2, "name is 'Demo Site'"),
    ("name: demo", "name: 2026-01-01", 2, "name is datetime.date"),
    ("{name: vit_nano}", "{name: vit_nano, head: linaer}", 3, "did you mean 'linear'?"),
    ("{name: vit_nano}", "{name: vit_nano, attention: windwed}", 3, "did you mean 'windowed'?"),
    ("{name: vit_nano}", "vit_nano", 3, "student is 'vit_nano', but input should be a valid dict"),
    ("{root: data}", "{root: 7}", 4, "data.root is 7"),
    ("{overlap_px: 16}", "{overlap_px: 64}", 15, "smaller than the tile of 64 px; received 64"),
    ("{overlap_px: 16}", "{overlap_px: -1}", 15, "tiling.overlap_px is -1"),
    ("{overlap_px: 16}", "{overlap_px: 1, blend: cosin}", 15, "did you mean 'cosine'?"),
    ("index: 1,", "index: 0,", 12, "class index used twice: 0"),
    ("index: 1,", "index: 255,", 14, "less than or equal to 254"),
    ("name: water", "name: land", 12, "class name used twice: land"),
    ('"#0000ff"', "blue", 14, "io.classes.1.color is 'blue'"),
    ("std: [1, 1, 1]", "std: [1, 0, 1]", 11, "std must be above 0"),
    ("mean: [1, 2, 3]", "mean: [1, 2]", 11, "all must agree"),
    ("[N, 3, 64, 64]", "[N, 3, 64]", 11, "at least 4 items"),
    ("[N, 3, 64, 64]", "[M, 3, 64, 64]", 11, "io.inputs.0.shape.0 is 'M', expected 'N'"),
    ("atol: 1.0e-4", "atol: 0", 17, "greater than 0"),
    ("[pc]", "[]", 18, "at least 1 item"),
    ("[pc]", "[pc, bord, x]", 18, "'bord' does not exist; did you mean 'board'?; target 'x'"),
    ("steps: 10", "steps: 10\n  ce_weight: 0", 9, "there is no loss"),
    ("steps: 10", "steps: 10\n  augment: {scale: [2, 1]}", 9, "0.25 <= low <= high"),
    ("steps: 10", "steps: 10\n  precision: int8", 9, "expected '32', 'bf16' or 'fp16'"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), FAULTS)
def test_a_fault_is_named_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: str
) -> None:
    assert GOOD.count(old) >= 1
    found = [item for item in faults(tmp_path, GOOD.replace(old, new, 1)) if words in item]
    assert len(found) == 1, faults(tmp_path, GOOD.replace(old, new, 1))
    if words != "there is no loss":  # the fault of a default has the line of its parent
        assert found[0].startswith(f"line {line}: ")


def test_faults_across_sections_are_found_beside_others(tmp_path: Path) -> None:
    text = GOOD.replace("overlap_px: 16", "overlap_px: 64").replace("steps: 10", "steps: 0")
    found = faults(tmp_path, text)
    assert len(found) == 2 and "received 64" in found[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "name: again\n", "line 19: key 'name' stands twice (first on line 2)"),
        (GOOD.replace("batch: 2", "batch: 2\n  batch: 3"), "line 8: key 'batch' stands twice"),
        ("- a\n- b\n", "expected keys and values"),
        ("just text\n", "expected keys and values"),
        ("# nothing but a comment\n", "expected keys and values"),
        ("schema: [1\n", "not YAML"),
        ("schema: 1\n\tname: x\n", "line 2: not YAML"),
        ("? [a, b]\n: 1\n", "line 1: a key must be a plain word"),
        ("name: 2020-99-99\n", "not YAML that can be read"),
        ("a: &x [*x]\n", "not YAML that can be read"),
        ("a: !!python/object:os.system {}\n", "not YAML|expected keys|lacks"),
    ],
)
def test_text_that_is_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    problems = "; ".join(faults(tmp_path, text))
    assert any(part in problems for part in words.split("|")), problems


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "absent.yaml", "does not exist"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            load_recipe(path)
    binary = tmp_path / "b.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a UTF-8 text file"):
        load_recipe(binary)
    binary.write_bytes(b" \n")
    with pytest.raises(InputError, match="is empty"):
        load_recipe(binary)


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    recipe = load_recipe(path, ["finetune.steps=3", "finetune.augment.flip=false", "title=a=b"])
    assert recipe.finetune.steps == 3 and not recipe.finetune.augment.flip
    assert recipe.title == "a=b"
    assert load_recipe(path, ["io.classes.1.name=sea"]).io.classes[1].name == "sea"
    assert load_recipe(path, ["finetune.lr=1e-3"]).finetune.lr == 1e-3
    for text, words in (
        ("finetune.steps", "expects dotted.key=value"),
        ("=3", "expects dotted.key=value"),
        ("finetune..steps=3", "expects dotted.key=value"),
        ("name.x=3", "holds no keys"),
        ("targets.1=pc", "no item of a list of 1"),
        ("targets.x=pc", "no item of a list of 1"),
        ("targets.0.a=pc", "holds no keys"),
        ("finetune.steps=[", "is not YAML"),
    ):
        with pytest.raises(InputError, match=words):
            load_recipe(path, [text])
    assert "unknown key 'stepz'" in faults(tmp_path, GOOD, ["finetune.stepz=3"])[0]
    assert "finetune.steps is 'x'" in faults(tmp_path, GOOD, ["finetune.steps=x"])[0]


def test_split_rule(tmp_path: Path) -> None:
    rule = "data: {root: d, split: {pattern: 'tile(\\d+)_', train: [1, 2], val: [3], test: [10]}}"
    text = GOOD.replace("data: {root: data}", rule)
    split = load_recipe(write(tmp_path, text)).data.split
    assert split is not None
    named = [split.split_of(f"tile{n}_part1") for n in (1, 2, 3, 10, 0, 11)]
    assert named == ["train", "train", "val", "test", None, None]
    assert split.split_of("other") is None
    for old, new, words in (
        ("val: [3]", "val: [1]", "group 1 stands in two splits"),
        ("tile(\\d+)_", "tile\\d+_", "exactly one group"),
        ("tile(\\d+)_", "(tile)(\\d+)_", "exactly one group"),
        ("tile(\\d+)_", "tile(", "no regular expression"),
    ):
        assert words in "; ".join(faults(tmp_path, text.replace(old, new)))


def test_paths_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "engines"
    monkeypatch.delenv("EDGEKD_X", raising=False)
    assert resolve_path("a/b", base) == base / "a" / "b"
    assert resolve_path("../a", base) == tmp_path / "a"
    assert resolve_path("${EDGEKD_X:-../d}/e", base) == tmp_path / "d" / "e"
    assert resolve_path("/abs", base) == Path("/abs")
    with pytest.raises(InputError, match="variable EDGEKD_X, which is not set"):
        resolve_path("${EDGEKD_X}/e", base)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("EDGEKD_X", "typed")  # the user typed it here, not in the recipe's folder
    assert resolve_path("${EDGEKD_X:-../d}/e", base) == tmp_path / "work" / "typed" / "e"
    monkeypatch.setenv("EDGEKD_X", str(tmp_path / "abs"))
    assert resolve_path("${EDGEKD_X:-../d}/e", base) == tmp_path / "abs" / "e"
    path = write(tmp_path, GOOD.replace("root: data", "root: '${EDGEKD_X}'"))
    assert data_root(load_recipe(path), path) == tmp_path / "abs"


def test_every_key_knows_its_line(tmp_path: Path) -> None:
    value, lines = read_yaml(write(tmp_path, GOOD))
    assert value["finetune"] == {"crop_px": 64, "batch": 2, "steps": 10}
    assert lines["finetune", "steps"] == 8 and lines["io", "classes", 1, "color"] == 14


def test_documents_do_not_change(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(write(tmp_path, GOOD))
    with pytest.raises(ValueError):
        recipe.name = "other"  # type: ignore[misc]


def test_a_fault_of_set_is_not_blamed_on_a_line(tmp_path: Path) -> None:
    from tests.helpers.labelled import recipe_values, write_recipe

    path = write_recipe(tmp_path, recipe_values(targets=["pc"]))
    with pytest.raises(RecipeError, match=r"--set: finetune\.steps is 'abc'") as caught:
        load_recipe(path, ["finetune.steps=abc"])
    assert "line" not in str(caught.value)


PRESETS = """
presets:
  small: {finetune: {steps: 3}, title: tiny one}
  wrong:
    finetune:
      stepz: 3
  classes:
    io:
      classes: [{index: 5, name: sea, color: "#0000ff"}, {index: 6, name: sky, color: "#00ffff"}]
"""


def test_a_preset_replaces_values_and_set_replaces_the_preset(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + PRESETS)
    plain = load_recipe(path)
    small = load_recipe(path, ["preset=small"])
    assert (plain.finetune.steps, plain.preset) == (10, None)
    assert (small.finetune.steps, small.preset, small.title) == (3, "small", "tiny one")
    assert small.finetune.batch == plain.finetune.batch, "other keys stay"
    for order in (["preset=small", "finetune.steps=7"], ["finetune.steps=7", "preset=small"]):
        assert load_recipe(path, order).finetune.steps == 7
    assert [item.name for item in load_recipe(path, ["preset=classes"]).io.classes] == [
        "sea",
        "sky",
    ]
    assert preset_names(path) == ["small", "wrong", "classes"]
    assert "presets" not in small.plain()


def test_faults_of_a_preset_have_its_lines(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + PRESETS)
    line = 1 + path.read_text().splitlines().index("      stepz: 3")
    with pytest.raises(RecipeError, match=rf"line {line}: unknown key 'stepz'"):
        load_recipe(path, ["preset=wrong"])
    with pytest.raises(InputError, match=r"no preset 'smal'; did you mean 'small'\?"):
        load_recipe(path, ["preset=smal"])
    with pytest.raises(InputError, match=r"no preset 'x' \(valid: none\)"):
        load_recipe(write(tmp_path, GOOD), ["preset=x"])
    with pytest.raises(InputError, match="presets must hold a name"):
        load_recipe(write(tmp_path, GOOD + "presets: [small]\n"), ["preset=small"])


DISTILL = """
teachers: [{name: sam, variant: tiny, weights: random}]
distill: {method: mask_cdkd, data: {roots: [tiles]}, crop_px: 128, batch: 2, steps: 4}
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("steps: 4", "steps: 4, mask: {ratio: 0.5}", "ratio 0.5 leaves no such grid"),
        ("steps: 4", "steps: 4, mask: {kind: none}", "and mask.kind is none"),
        ("weights: random", "weights: random, norm: standardize", "the teacher changes"),
        ("steps: 4", "steps: 4, epochs: 2", "give either steps or epochs"),
        (", steps: 4", "", "give either steps or epochs"),
        ("steps: 4", "steps: 4, cache: {mib: 5}", "can be cached with method feature only"),
        ("method: mask_cdkd", "method: mae", "method mae learns without a teacher"),
        ("method: mask_cdkd", "method: mask_cdk", "did you mean 'mask_cdkd'"),
        ("name: sam", "name: samm", "teacher 'samm' does not exist; did you mean 'sam'"),
        ("[{name: sam, variant: tiny, weights: random}]", "[]", "needs a teacher"),
        ("steps: 4", "steps: 4, mae: {dim: 30, heads: 4}", "dim 30 must be a multiple"),
        ("steps: 4", "steps: 4, augment: {scale: [2, 1]}", "scale must be"),
        ("roots: [tiles]", "roots: [tiles], range: [9, 1]", "range must be"),
        ("roots: [tiles]", "roots: []", "at least 1 item"),
        ("steps: 4", "steps: 4, stages: {early: [1, 2]}", "at least 3 items"),
        ("crop_px: 128", "crop_px: 16", "takes crops of at least 32 px"),
    ],
)
def test_faults_of_a_distillation(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in DISTILL
    assert load_recipe(write(tmp_path, GOOD + DISTILL)).distill is not None
    assert words in "; ".join(faults(tmp_path, GOOD + DISTILL.replace(old, new)))


@pytest.mark.parametrize(("ratio", "cell"), [(0.75, 2), (0.889, 3), (0.9375, 4)])
def test_the_lattice_of_a_ratio(tmp_path: Path, ratio: float, cell: int) -> None:
    text = DISTILL.replace("steps: 4", f"steps: 4, mask: {{ratio: {ratio}}}")
    spec = load_recipe(write(tmp_path, GOOD + text)).distill
    assert spec is not None and spec.mask.cell == cell
