"""Labelled sets: layout, splits, masks, boxes, regions, and every fault in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.artifacts import sha256_file
from edgekd.contracts.labelled import IGNORE, check_same_classes, open_labelled
from edgekd.contracts.recipe import SplitRule
from edgekd.contracts.tensors import ClassSpec
from edgekd.errors import DatasetError, EdgeKDError, ImageError, RecipeError
from tests.helpers.rasters import smooth_image, write_raster

CLASSES = {
    "classes": [
        {"index": 0, "name": "unlabeled", "rgb_hex": "#000000"},
        {"index": 2, "name": "water", "rgb_hex": "#0000ff"},
        {"index": 1, "name": "land", "rgb_hex": "#00ff00"},
    ],
    "ignore_index": 0,
}
MASK = np.array([[0, 1, 2, 1], [1, 1, 2, 2], [2, 0, 0, 1]], dtype=np.uint8)


def make_folder(root: Path, stems: tuple[str, ...] = ("a", "b", "c")) -> Path:
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for number, stem in enumerate(stems):
        write_raster(root / "images" / f"{stem}.png", smooth_image(3, 4, seed=number))
        write_raster(root / "masks" / f"{stem}.png", MASK)
    (root / "classes.json").write_text(json.dumps(CLASSES))
    return root


def test_masks_become_channels_in_the_order_of_the_classes(tmp_path: Path) -> None:
    data = open_labelled(make_folder(tmp_path / "set"))
    assert [item.name for item in data.classes] == ["water", "land"] and data.ignore_index == 0
    pixels, target = data.load(data.samples[0])
    np.testing.assert_array_equal(pixels, smooth_image(3, 4, seed=0))
    table = {0: IGNORE, 1: 1, 2: 0}
    np.testing.assert_array_equal(target, np.vectorize(table.get)(MASK))
    assert target.dtype == np.uint8 and pixels.flags.c_contiguous


def test_a_palette_mask_is_read_by_index_not_by_colour(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    palette = {0: (0, 0, 0, 255), 1: (200, 0, 0, 255), 2: (0, 0, 200, 255)}
    write_raster(root / "masks" / "a.png", MASK, palette=palette)
    data = open_labelled(root)
    np.testing.assert_array_equal(data.load(data.samples[0])[1], data.load(data.samples[1])[1])


def test_an_index_outside_the_classes_is_named_with_its_place(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    wrong = MASK.copy()
    wrong[1, 2] = 7
    write_raster(root / "masks" / "a.png", wrong)
    data = open_labelled(root)
    with pytest.raises(DatasetError) as caught:
        data.load(data.samples[0])
    text = str(caught.value)
    assert f"{root / 'masks' / 'a.png'} holds class index 7 (first at row 1, column 2)" in text
    assert "(2 water, 1 land; ignored: 0)" in text and caught.value.exit_code == 2
    wrong[1, 2] = 255  # the value that stands for "ignore" inside is not one in the file
    write_raster(root / "masks" / "a.png", wrong)
    with pytest.raises(DatasetError, match="holds class index 255"):
        data.load(data.samples[0])


def test_pixels_without_data_are_ignored(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "set")
    rgba = np.dstack([smooth_image(3, 4), np.full((3, 4), 255, np.uint8)])
    rgba[0, :, 3] = 0
    (root / "images" / "a.png").unlink()
    write_raster(root / "images" / "a.tif", rgba, alpha=True)
    data = open_labelled(root)
    pixels, target = data.load(data.samples[0])
    assert pixels.shape == (3, 4, 3) and (target[0] == IGNORE).all() and target[1, 1] == 1


def change_image(value: np.ndarray, suffix: str = ".tif") -> Callable[[Path], None]:
    def change(root: Path) -> None:
        (root / "images" / "a.png").unlink()
        write_raster(root / "images" / f"a{suffix}", value, photometric="minisblack")

    return change


def change_mask(value: np.ndarray) -> Callable[[Path], None]:
    return lambda root: write_raster(root / "masks" / "a.png", value) and None


def cut(name: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        blob = (root / name).read_bytes()
        (root / name).write_bytes(blob[: len(blob) - 20])

    return change


SAMPLE_FAULTS = [
    (change_mask(np.zeros((4, 3), np.uint8)), "a.png is 3x4 px but its image is 4x3 px"),
    (change_mask(np.dstack([MASK] * 3)), "it has 3 band(s) of uint8"),
    (change_mask(MASK.astype(np.uint16)), "it has 1 band(s) of uint16"),
    (change_image(smooth_image(3, 4).astype(np.float32)), "has float32 pixels, expected uint8"),
    (change_image(smooth_image(3, 4, bands=4)), "has 4 bands and the model takes 3"),
    (change_image(smooth_image(3, 4, bands=1)), "has 1 band and the model takes 3"),
    (cut("images/a.png"), "a.png is damaged"),
    (cut("masks/a.png"), "a.png is damaged"),
    (lambda root: (root / "images" / "a.png").write_bytes(b""), "is empty (0 bytes)"),
    (lambda root: (root / "masks" / "a.png").write_text("x"), "cannot be opened as an image"),
]


@pytest.mark.parametrize(("change", "words"), SAMPLE_FAULTS)
def test_faults_of_a_sample(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    root = make_folder(tmp_path / "set")
    change(root)
    data = open_labelled(root)
    with pytest.raises((DatasetError, ImageError)) as caught:
        data.load(data.samples[0])
    assert words in str(caught.value)
    data.load(data.samples[1])


def classes_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(root: Path) -> None:
        value = json.loads(json.dumps(CLASSES))
        change(value)
        (root / "classes.json").write_text(json.dumps(value))

    return apply


def splits(value: object) -> Callable[[Path], None]:
    return lambda root: (root / "splits.json").write_text(json.dumps(value)) and None


FOLDER_FAULTS = [
    (lambda root: (root / "classes.json").unlink(), "has no classes.json"),
    (lambda root: (root / "classes.json").write_text("{"), "is not JSON"),
    (lambda root: (root / "classes.json").write_text("[]"), "must be"),
    (lambda root: (root / "masks").rename(root / "labels"), "has no folder masks/"),
    (lambda root: (root / "masks" / "b.png").unlink(), "have no mask of the same name, e.g. b"),
    (lambda root: [p.unlink() for p in (root / "images").iterdir()], "holds no image"),
    (
        lambda root: write_raster(root / "images" / "a.jpg", smooth_image(3, 4)),
        "holds both a.jpg and a.png",
    ),
    (
        lambda root: write_raster(root / "masks" / "a.tif", MASK),
        "holds both a.png and a.tif",
    ),
    (classes_json(lambda v: v.pop("classes")), "must be"),
    (classes_json(lambda v: v["classes"].pop()), "fewer than two classes"),
    (classes_json(lambda v: v["classes"][2].update(index=2)), "class index used twice: 2"),
    (classes_json(lambda v: v["classes"][2].update(name="water")), "class name used twice"),
    (classes_json(lambda v: v["classes"][2].update(index=255)), "less than or equal to 254"),
    (classes_json(lambda v: v["classes"][2].update(rgb_hex="green")), "must be"),
    (classes_json(lambda v: v.update(ignore_index=-1)), "ignore_index is -1"),
    (classes_json(lambda v: v.update(ignore_index=300)), "ignore_index is 300"),
    (classes_json(lambda v: v.update(ignore_index="0")), "ignore_index is '0'"),
    (classes_json(lambda v: v.update(ignore_index=True)), "ignore_index is True"),
    (splits({"train": ["a"], "valid": ["b"]}), "may only hold the keys train, val and test"),
    (splits(["a"]), "may only hold the keys"),
    (splits({"train": "a"}), "'train' must be a list"),
    (splits({"train": ["a", "zz"]}), "'zz' in 'train' is no image of the set"),
    (splits({"train": ["a", "b"], "test": ["b"]}), "'b' stands in train and in test"),
    (splits({"train": ["a", "a"]}), "'a' stands in train and in train"),
]


@pytest.mark.parametrize(("change", "words"), FOLDER_FAULTS)
def test_faults_of_a_folder(tmp_path: Path, change: Callable[[Path], None], words: str) -> None:
    root = make_folder(tmp_path / "set")
    change(root)
    with pytest.raises(EdgeKDError) as caught:
        open_labelled(root)
    assert words in str(caught.value) and caught.value.exit_code == 2


def test_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder(tmp_path / "set", ("tile1_a", "tile1_b", "tile2_a", "tile9_a"))
    rule = SplitRule(pattern=r"tile(\d+)_", train=[1], val=[2], test=[3])
    data = open_labelled(root, rule)
    assert [item.id for item in data.split("train")] == ["tile1_a", "tile1_b"]
    assert len(data.split("all")) == 4 and data.samples[3].split is None
    with pytest.raises(DatasetError, match="has no sample in split 'test'"):
        data.split("test")
    with pytest.raises(DatasetError, match="split 'tests' does not exist"):
        data.split("tests")
    (root / "splits.json").write_text(json.dumps({"test": ["tile2_a"]}))
    named = open_labelled(root)
    assert [item.id for item in named.split("test")] == ["tile2_a"]
    assert named.digest != data.digest
    monkeypatch.chdir(root)
    assert len(open_labelled(Path()).samples) == 4
    with pytest.raises(DatasetError, match="does not exist; expected a folder"):
        open_labelled(root / "absent")


DESCRIPTION = """\
schema: 1
name: crowns
root: crowns
source: drawn by hand
licence: none
labels: boxes
box_shape: {shape}
classes:
  - {{index: 0, name: ground, color: "#000000"}}
  - {{index: 5, name: tree, color: "#00ff00"}}
samples:
  - id: one
    image: a.png
    image_sha256: {image}
    boxes: a.csv
    boxes_sha256: {boxes}
    box_labels: {{Tree: 5}}
    split: test
    region_xyxy: {region}
"""


def describe(
    folder: Path, csv: str, shape: str = "ellipse", region: str = "null", size: int = 8
) -> Path:
    root = folder / "crowns"
    root.mkdir(exist_ok=True)
    image = write_raster(root / "a.png", smooth_image(size, size))
    (root / "a.csv").write_text(csv)
    text = DESCRIPTION.format(
        shape=shape, image=sha256_file(image), boxes=sha256_file(root / "a.csv"), region=region
    )
    (folder / "crowns.yaml").write_text(text)
    return folder / "crowns.yaml"


HEAD = "image_path,xmin,ymin,xmax,ymax,label\n"


def draw(target: np.ndarray) -> str:
    return "\n".join("".join(".#"[value] for value in row) for row in target)


def test_an_ellipse_against_a_table_drawn_by_hand(tmp_path: Path) -> None:
    path = describe(tmp_path, HEAD + "a.png,1,2,7,6,Tree\n")
    for given in (path, path.with_suffix("")):  # the file, or the folder beside it
        data = open_labelled(given)
        pixels, target = data.load(data.samples[0])
    # 6 wide and 4 high around (4, 4): a pixel belongs to it when its centre lies inside
    assert draw(target) == "\n".join(
        [
            "........",
            "........",
            "..####..",
            ".######.",
            ".######.",
            "..####..",
            "........",
            "........",
        ]
    )
    assert pixels.shape == (8, 8, 3)


def test_boxes_and_overlap_and_the_border(tmp_path: Path) -> None:
    csv = HEAD + "a.png,-2,-1,2,2,Tree\na.png,6,6,20,20,Tree\na.png,50,50,60,60,Tree\n"
    data = open_labelled(describe(tmp_path, csv, shape="box"))
    target = data.load(data.samples[0])[1]
    expected = np.zeros((8, 8), np.uint8)
    expected[:2, :2] = expected[6:, 6:] = 1
    np.testing.assert_array_equal(target, expected)


def test_a_region_is_a_cut_of_the_whole(tmp_path: Path) -> None:
    csv = HEAD + "a.png,1,2,7,6,Tree\na.png,0,0,3,3,Tree\n"
    whole = open_labelled(describe(tmp_path, csv))
    pixels, target = whole.load(whole.samples[0])
    part = open_labelled(describe(tmp_path, csv, region="[2, 1, 8, 5]"))
    cut_pixels, cut_target = part.load(part.samples[0])
    np.testing.assert_array_equal(cut_pixels, pixels[1:5, 2:8])
    np.testing.assert_array_equal(cut_target, target[1:5, 2:8])
    assert part.digest != whole.digest
    outside = open_labelled(describe(tmp_path, csv, region="[2, 1, 9, 5]"))
    with pytest.raises(DatasetError, match="region ends at row 5, column 9"):
        outside.load(outside.samples[0])


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        ("xmin,ymin,xmax,label\n1,2,3,Tree\n", "must have the columns xmin, ymin, xmax, ymax"),
        (HEAD + "a.png,1,2,7.5,6,Tree\n", "line 2: box edges must be whole pixels"),
        (HEAD + "a.png,1,2,7,6,Tree\na.png,1,2\n", "line 3: box edges must be whole pixels"),
        (HEAD + "a.png,7,2,7,6,Tree\n", "line 2: box [7, 2, 7, 6] has no area"),
        (HEAD + "a.png,1,6,7,2,Tree\n", "has no area"),
        (HEAD + "a.png,1,2,7,6,Bush\n", "line 2: label 'Bush' is not among Tree"),
        (HEAD + 'a.png,1,2,7,6,"' + "x" * 200_000 + '"\n', "not CSV"),
        ("\n\n", "is empty"),
    ],
)
def test_faults_of_boxes(tmp_path: Path, csv: str, words: str) -> None:
    with pytest.raises(EdgeKDError) as caught:
        open_labelled(describe(tmp_path, csv))
    assert words in str(caught.value) and caught.value.exit_code == 2


def test_files_must_be_the_described_ones(tmp_path: Path) -> None:
    path = describe(tmp_path, HEAD + "a.png,1,2,7,6,Tree\n")
    csv = tmp_path / "crowns" / "a.csv"
    csv.write_text(HEAD + "a.png,1,2,7,7,Tree\n")
    with pytest.raises(DatasetError, match=r"is not the file that .* describes"):
        open_labelled(path)
    csv.unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        open_labelled(path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Tree: 5", "Tree: 4", "label Tree -> unknown class 4"),
        ("split: test", "split: tset", "did you mean 'test'?"),
        ("region_xyxy: null", "region_xyxy: [3, 0, 3, 5]", "x0 < x1"),
        ("region_xyxy: null", "region_xyxy: [-1, 0, 3, 5]", "x0 < x1"),
        ("labels: boxes", "labels: masks", "sample one lacks 'mask'"),
        ("labels: boxes", "labels: boxes\nignore_index: 5", "ignore_index 5 is also a class"),
        ("labels: boxes", "labels: boxes\nignore_index: 256", "ignore_index is 256"),
        ("root: crowns", "root: crowns\nrots: x", "did you mean 'root'?"),
    ],
)
def test_faults_of_a_description(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = describe(tmp_path, HEAD + "a.png,1,2,7,6,Tree\n")
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RecipeError) as caught:
        open_labelled(path)
    assert words in str(caught.value)


def test_sample_ids_are_unique(tmp_path: Path) -> None:
    path = describe(tmp_path, HEAD)
    text = path.read_text()
    path.write_text(text + text[text.index("  - id: one") :])
    with pytest.raises(RecipeError, match="sample id one stands twice"):
        open_labelled(path)


def test_classes_must_be_the_same_by_index_and_name() -> None:
    def named(*pairs: tuple[int, str]) -> list[ClassSpec]:
        return [ClassSpec(index=i, name=n, color="#000000") for i, n in pairs]

    have = named((0, "a"), (1, "b"))
    check_same_classes(have, named((0, "a"), (1, "b")), "here")
    for other in (named((1, "b"), (0, "a")), named((0, "a"), (2, "b")), named((0, "a"), (1, "c"))):
        with pytest.raises(DatasetError, match="here has the classes 0 a, 1 b, the model has"):
            check_same_classes(have, other, "here")


def test_real_land_cover(test_data: Path) -> None:
    rule = SplitRule(pattern=r"tile(\d+)_", train=[1, 2, 3, 5], val=[6], test=[7])
    data = open_labelled(test_data / "landcover", rule)
    assert len(data.samples) == 54 and data.ignore_index == 0
    pixels, target = data.load(data.split("test")[0])
    assert pixels.shape[:2] == target.shape
    assert set(np.unique(target)) <= {0, 1, 2, 3, 4, IGNORE}
    by_split = [{item.id.split("_")[0] for item in data.split(n)} for n in ("train", "val", "test")]
    assert not by_split[0] & by_split[1] and not by_split[0] & by_split[2]


def test_set_and_recipe_must_not_disagree_on_the_split(tmp_path: Path) -> None:
    from edgekd.contracts.recipe import SplitRule
    from tests.helpers.labelled import make_set

    folder = make_set(tmp_path / "set")  # splits.json: t0.. train, v0 val, e0 test
    agree = SplitRule(pattern=r"^([tve])", train=["t"], val=["v"], test=["e"])
    assert open_labelled(folder, agree).split("test")[0].id == "e0"
    other = SplitRule(pattern=r"^([tve])", train=["e"], val=["v"], test=["t"])
    with pytest.raises(DatasetError, match="one place only"):
        open_labelled(folder, other)
