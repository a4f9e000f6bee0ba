"""The rows of ``bad_input_table`` that are about adapting a student to a site, and their files."""

from __future__ import annotations

from pathlib import Path


def make_adapt_files(root: Path) -> None:
    """Tables of points in the images of ``data``, each with one fault."""
    rows = {
        "columns": ("image,row,class", "t0,1,tree"),
        "outside": ("image,column,row,class", "t0,1,1,tree", "t0,5000,3,ground"),
        "class": ("image,column,row,class", "t0,1,1,treee"),
        "image": ("image,column,row,class", "t9,1,1,tree"),
        "twice": ("image,column,row,class", "t0,1,1,tree", "t0,1,1,ground"),
        "near": ("image,column,row,class,split", "t0,1,1,tree,", "t0,3,1,ground,test"),
    }
    for name, lines in rows.items():
        (root / f"points-{name}.csv").write_text("\n".join(lines) + "\n")


_POINTS = "adapt small.ckpt --data data/images --points"

#: name, command, words of the printed line, exit code
ADAPT_ROWS: tuple[tuple[str, str, tuple[str, ...], int], ...] = (
    ("adapt what is not there", "adapt nowhere.ckpt --data data",
     ("nowhere.ckpt does not exist", "edgekd finetune"), 2),
    ("adapt what is cut", "adapt cut.ckpt --data data", ("cut.ckpt is damaged",), 2),
    ("adapt a bundle", "adapt b --data data", ("b is a bundle", "build again"), 2),
    ("adapt an image", "adapt in.tif --data data", ("in.tif is damaged or no checkpoint",), 2),
    ("adapt to no site", "adapt small.ckpt", ("--data",), 2),
    ("adapt to a site that is not there", "adapt small.ckpt --data nowhere",
     ("nowhere does not exist", "classes.json"), 2),
    ("adapt to other classes", "adapt small.ckpt --data data-other",
     ("data-other has the classes 0 ground, 1 sea", "0 ground, 1 tree"), 2),
    ("adapt to a damaged image that only measures", "adapt small.ckpt --data data-cut",
     ("data-cut/images/e0.png is damaged", "fetch it again"), 2),
    ("adapt to a mask of another size", "adapt small.ckpt --data data-size",
     ("data-size/masks/e0.png is 176x100 px but its image is 176x160 px",), 2),
    ("adapt to a class that is not there", "adapt small.ckpt --data data-mask-train",
     ("data-mask-train/masks/t0.png holds class index 9", "row 5, column 7"), 2),
    ("adapt to a sensor set without sensors", "adapt small.ckpt --data rocks",
     ("rocks/sensors.yaml is a sensor set, and recipe 'small' names no sensors",), 2),
    ("adapt by one label", "adapt small.ckpt --data data --labels 1",
     ("--labels 1 is too few", "10 to 20 are usual"), 2),
    ("adapt by a word", "adapt small.ckpt --data data --labels ten",
     ("--labels", "expected a number like 20, or all, received 'ten'"), 2),
    ("adapt by more labels than there are", "adapt small.ckpt --data data --labels 9999999",
     ("56320 labelled pixels", "--labels asks for 9999999"), 2),
    ("adapt in half a block", "adapt small.ckpt --data data --blocks 32",
     ("--blocks", "two numbers of pixels like 32,8"), 2),
    ("adapt in blocks larger than the image",
     "adapt small.ckpt --data data-nosplit --blocks 4000,8",
     ("e0 of data-nosplit (176x160 px) cannot be cut into blocks of 4000 px",), 2),
    ("adapt onto an earlier run", "adapt small.ckpt --data data -o run",
     ("run already holds a run (best.ckpt)", "--fresh"), 2),
    ("points: no table", f"{_POINTS} nowhere.csv", ("nowhere.csv does not exist",), 2),
    ("points: a column short", f"{_POINTS} points-columns.csv",
     ("points-columns.csv must have the columns image, column, row, class",), 2),
    ("points: outside the image", f"{_POINTS} points-outside.csv",
     ("points-outside.csv line 3: column 5000, row 3 is outside t0 of 176x160 px",), 2),
    ("points: unknown class", f"{_POINTS} points-class.csv",
     ("points-class.csv line 2", "no class 'treee'; did you mean 'tree'?"), 2),
    ("points: unknown image", f"{_POINTS} points-image.csv",
     ("points-image.csv line 2", "has no image 't9'"), 2),
    ("points: two classes for a pixel", f"{_POINTS} points-twice.csv",
     ("points-twice.csv line 3 gives another class than line 2 to the same pixel",), 2),
    ("points: test beside train", f"{_POINTS} points-near.csv",
     ("points-near.csv line 2 is within 8 px of a point of split test (line 3)",), 2),
)  # fmt: skip
