"""Every wrong input with the command that meets it; as a program it prints the table.

    python -m tests.cli.bad_input_table        # case | command | exit | line printed

Each case is a real command line. ``test_bad_input.py`` runs the same list and asserts.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rasterio.transform import from_origin

from tests.cli.bad_adapt_rows import ADAPT_ROWS, make_adapt_files
from tests.cli.bad_power_rows import POWER_ROWS, make_power_files
from tests.cli.bad_sensor_rows import SENSOR_ROWS, make_sensor_files
from tests.cli.bad_uptake_rows import UPTAKE_ROWS, make_uptake_files
from tests.helpers.bundles import an_origin, make_bundle
from tests.helpers.labelled import CLASSES, lite0_values, make_set, recipe_values, write_recipe
from tests.helpers.rasters import smooth_image, write_raster
from tests.helpers.unlabeled import distill_values, make_tiles


@dataclass(frozen=True)
class Case:
    """A wrong input.

    Attributes:
        name: what is wrong.
        command: the arguments; paths are relative to the work folder.
        words: parts that the printed line must hold.
        code: exit code.
    """

    name: str
    command: str
    words: tuple[str, ...]
    code: int = 2


def _cut(source: Path, target: Path, share: float = 0.5) -> None:
    content = source.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])


def make_work(root: Path) -> Path:
    """Everything that the cases name; nothing in it may change while they run."""
    from tests.helpers.checkpoints import make_checkpoint

    root.mkdir(parents=True, exist_ok=True)
    picture = smooth_image(300, 280)
    place = {"crs": "EPSG:32633", "transform": from_origin(500000, 5000000, 0.5, 0.5)}
    write_raster(root / "in.tif", picture, **place)
    for name in ("in.png", "in.jpg"):
        write_raster(root / name, picture)
    for name in ("in.tif", "in.png", "in.jpg"):
        _cut(root / name, root / name.replace("in", "cut"))
    front = write_raster(root / "cog.tif", picture, driver="COG", blocksize=128, **place)
    _cut(front, root / "cut-cog.tif", 0.7)
    front.unlink()
    striped = write_raster(root / "s.tif", picture, compress="deflate", **place)
    _cut(striped, root / "cut-deflate.tif")
    striped.unlink()
    (root / "text.tif").write_text("this is no image\n")
    (root / "empty.tif").touch()
    write_raster(root / "four.tif", smooth_image(40, 40, bands=4), photometric="minisblack")
    write_raster(root / "grey.tif", smooth_image(40, 40, bands=1))
    values = smooth_image(40, 40).astype(np.float32) / 255
    write_raster(root / "float.tif", values, photometric="minisblack")
    values[3, 4] = np.nan
    write_raster(root / "nan.tif", values, photometric="minisblack")
    write_raster(root / "deep.tif", smooth_image(40, 40).astype(np.uint16), photometric="rgb")
    _recipes(root)
    make_checkpoint(root / "small.ckpt", recipe_values())
    _cut(root / "small.ckpt", root / "cut.ckpt")
    _cut(root / "small.ckpt", root / "begin.ckpt", 0.001)
    (root / "text.ckpt").write_text("this is no checkpoint\n")
    (root / "empty.ckpt").touch()
    make_checkpoint(root / "conv.ckpt", lite0_values())
    (root / "run").mkdir()
    for name in ("best.ckpt", "last.ckpt"):
        shutil.copyfile(root / "small.ckpt", root / "run" / name)
    _sets(root)
    _unlabeled(root)
    _bundles(root)
    (root / "record.json").write_text('{"schema": 1}')
    (root / "text.json").write_text("no record")
    make_power_files(root)
    make_sensor_files(root)
    make_adapt_files(root)
    make_uptake_files(root)
    (root / "folder").mkdir()
    (root / "folder" / "notes.txt").write_text("mine")
    return root


def _recipes(root: Path) -> None:
    write_recipe(root, recipe_values())
    write_recipe(root, lite0_values())
    three = recipe_values(name="three", targets=["x86-cpuu"])
    three["finetune"]["patiense"] = 3
    three["student"]["name"] = "vit_nanno"
    write_recipe(root, three)
    write_recipe(root, recipe_values(name="board", targets=["orin-nano-8gb"]))
    write_recipe(root, distill_values() | {"name": "cdkd"})
    write_recipe(root, distill_values("mae") | {"name": "mae"})
    sam = {"name": "sam", "variant": "vit_l", "weights": "sam_b.pth"}
    write_recipe(root, distill_values() | {"name": "sam", "teachers": [sam]})
    (root / "notyaml.yaml").write_text("schema: 1\nname: [unclosed\n")
    (root / "empty.yaml").touch()
    write_recipe(root, recipe_values(name="side") | {"finetune": {"crop_px": 200, "batch": 1,
                                                                  "steps": 1}})  # fmt: skip


def _sets(root: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(root / "data", root / name))

    make_set(root / "data", count=2)
    for split, stem in (("train", "t0"), ("val", "v0"), ("test", "e0")):
        folder = copy(f"data-mask-{split}")
        mask = np.zeros((160, 176), np.uint8)
        mask[5, 7] = 9
        write_raster(folder / "masks" / f"{stem}.png", mask)
    folder = copy("data-size")
    write_raster(folder / "masks" / "e0.png", np.zeros((100, 176), np.uint8))
    folder = copy("data-cut")
    _cut(root / "data" / "images" / "e0.png", folder / "images" / "e0.png")
    folder = copy("data-lacking")
    (folder / "masks" / "e0.png").unlink()
    folder = copy("data-noclasses")
    (folder / "classes.json").unlink()
    folder = copy("data-other")
    named = json.loads((folder / "classes.json").read_text())
    named["classes"][1]["name"] = "sea"
    (folder / "classes.json").write_text(json.dumps(named))
    folder = copy("data-nosplit")
    (folder / "splits.json").write_text(json.dumps({"train": ["t0"]}))


def _unlabeled(root: Path) -> None:
    """Tiles of 160 px, and a SAM checkpoint of ViT-B's shapes that holds no values to speak of."""
    import torch

    make_tiles(root / "tiles", count=3)
    (root / "nothing").mkdir()
    shutil.copytree(root / "tiles", root / "tiles-cut")
    _cut(root / "tiles" / "tile00.png", root / "tiles-cut" / "tile00.png")
    (root / "list.txt").write_text("tiles/tile00.png\ntiles/gone.png\n")
    width, depth = 768, 12
    state = {"image_encoder.patch_embed.proj.weight": torch.zeros(width, 3, 16, 16)}
    for block in range(depth):
        state[f"image_encoder.blocks.{block}.norm1.weight"] = torch.zeros(width)
    torch.save(state, root / "sam_b.pth")
    _cut(root / "sam_b.pth", root / "sam_cut.pth")
    (root / "distilled").mkdir()
    (root / "distilled" / "encoder.ckpt").touch()


def _bundles(root: Path) -> None:

    changes: dict[str, Any] = {"classes": CLASSES, "provenance": an_origin()}
    make_bundle(root / "b", tile_px=64, stride_px=4, changes=changes)
    for name in ("model.onnx", "golden.npz", "manifest.json"):
        folder = Path(shutil.copytree(root / "b", root / f"b-{name}"))
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
    folder = Path(shutil.copytree(root / "b", root / "b-lacks"))
    (folder / "model.onnx").unlink()
    make_bundle(root / "b-board", tile_px=64, stride_px=4, arch=_other_arch())
    _signed(root)


def _signed(root: Path) -> None:
    """Keys and signed bundles, each but ``b-signed`` with something wrong."""
    from tests.helpers.keys import make_pair, sign

    fleet = make_pair(root)
    make_pair(root, "other")

    def copy(name: str) -> Path:
        return sign(Path(shutil.copytree(root / "b", root / name)), fleet)

    copy("b-signed")
    (copy("b-more") / "notes.txt").touch()
    folder = copy("b-resealed")
    other = make_bundle(root / "b-new", tile_px=64, stride_px=4, seed=1)
    for name in ("manifest.json", "model.onnx", "golden.npz"):
        shutil.copyfile(other / name, folder / name)
    folder = copy("b-swapped")
    shutil.copyfile(root / "b" / "golden.npz", folder / "model.onnx")
    (copy("b-signature") / "signature.json").write_text("{}")
    folder = copy("b-link")
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(root / "b" / "model.onnx")
    folder = copy("b-huge")
    os.truncate(folder / "manifest.json", 5 << 20)
    (root / "two.pub").write_bytes(
        (root / "fleet.pub").read_bytes() + (root / "other.pub").read_bytes()
    )


def _other_arch() -> str:
    import platform

    return "aarch64" if platform.machine() != "aarch64" else "x86_64"


def _image_cases() -> list[Case]:
    rows = [
        ("image missing", "nowhere.tif", ("nowhere.tif does not exist",)),
        ("image is a folder", "data", ("data is a folder",)),
        ("0-byte image", "empty.tif", ("empty.tif is empty (0 bytes)", "fetch it again")),
        ("text named .tif", "text.tif", ("text.tif cannot be opened as an image",)),
        ("GeoTIFF cut in half", "cut.tif", ("cut.tif", "fetch it again")),
        ("GeoTIFF cut, compressed", "cut-deflate.tif", ("cut-deflate.tif",)),
        (
            "GeoTIFF cut, directory in front",
            "cut-cog.tif",
            ("cut-cog.tif is damaged", "fetch it again"),
        ),
        ("PNG cut in half", "cut.png", ("cut.png", "cut")),
        ("JPEG cut in half", "cut.jpg", ("cut.jpg is damaged", "fetch it again")),
        ("four bands", "four.tif", ("4 bands and the model takes 3", "--bands 1,2,3")),
        ("one band", "grey.tif", ("1 band", "takes 3", "colour image")),
        ("float image", "float.tif", ("float32", "expected uint8", "gdal_translate")),
        ("float image with NaN", "nan.tif", ("float32", "3 NaN")),
        ("16-bit image", "deep.tif", ("uint16", "expected uint8", "gdal_translate")),
    ]
    return [Case(name, f"run b {file} -o m.tif", words) for name, file, words in rows]


def _trust_cases() -> list[Case]:
    asked, by = "run {} in.tif -o m.tif --signer fleet.pub", "verify {} --signer fleet.pub"
    return [
        Case("signer required: not signed", asked.format("b"),
             ("b is not signed", "--signer accepts", "edgekd sign b --key"), 1),
        Case("signer required: another's", "run b-signed in.tif -o m.tif --signer other.pub",
             ("b-signed is signed by key", "--signer accepts", "(other.pub)"), 1),
        Case("signer required: manifest exchanged", asked.format("b-resealed"),
             ("b-resealed/signature.json by key", "does not fit its manifest.json"), 1),
        Case("signer required: files exchanged", asked.format("b-swapped"),
             ("b-swapped/model.onnx was changed", "it holds the bytes of golden.npz")),
        Case("signer required: signature damaged", asked.format("b-signature"),
             ("b-signature/signature.json is not what edgekd sign wrote", "--replace"), 1),
        Case("the same, measured", "bench b --signer fleet.pub --seconds 0.1 -o r.json",
             ("b is not signed",), 1),
        Case("the same, evaluated", "eval b --data data --signer fleet.pub",
             ("b is not signed",), 1),
        Case("the same, validated with a signer", "validate b --signer fleet.pub",
             ("b is not signed",), 1),
        Case("a file of the bundle is a link", "run b-link in.tif -o m.tif",
             ("b-link/model.onnx is a symbolic link", "cp -L")),
        Case("manifest of 5 MiB", "run b-huge in.tif -o m.tif",
             ("b-huge/manifest.json has 5,242,880 bytes, more than",)),
        Case("verify: not signed", "verify b",
             ("b is whole", "not signed", "edgekd sign b --key PRIVATE_KEY"), 1),
        Case("verify: another's", "verify b-signed --signer other.pub",
             ("b-signed is signed by key", "(other.pub)"), 1),
        Case("verify: a byte of the model", "verify b-model.onnx",
             ("b-model.onnx/model.onnx was changed after",), 1),
        Case("verify: files exchanged", by.format("b-swapped"), ("files were exchanged",), 1),
        Case("verify: a file too many", by.format("b-more"),
             ("b-more holds notes.txt, which its manifest does not name", "move it out"), 1),
        Case("verify: no bundle", "verify folder", ("folder is not a bundle",)),
        Case("verify: key missing", "verify b-signed --signer nowhere.pub",
             ("the key file nowhere.pub does not exist", "edgekd keygen")),
        Case("verify: private key given", "verify b-signed --signer fleet.key",
             ("fleet.key holds a private key, expected the public one", ".pub")),
        Case("verify: two keys in a file", "verify b-signed --signer two.pub",
             ("two.pub holds 2 keys, expected one",)),
        Case("verify: key is a picture", "verify b-signed --signer in.png",
             ("in.png has more than 16384 bytes", "key in PEM")),
        Case("sign: bundle damaged", "sign b-model.onnx --key fleet.key",
             ("b-model.onnx/model.onnx was changed after",)),
        Case("sign: a file too many", "sign b-more --key fleet.key", ("b-more holds notes.txt",),
             1),
        Case("sign: another's signature", "sign b-signed --key other.key",
             ("b-signed is signed by key", "--replace"), 1),
        Case("sign: public key given", "sign b --key fleet.pub",
             ("fleet.pub holds a public key, which can only verify", ".key")),
        Case("sign: key left out", "sign b", ("--key",)),
        Case("keygen: keys exist", "keygen -o fleet",
             ("fleet.key exists and keys are never overwritten", "-o")),
        Case("keygen: name with a suffix", "keygen -o new.key", ("path without suffix",)),
        Case("keygen: place that cannot be", "keygen -o in.png/new",
             ("the keys in.png/new cannot be written", "-o")),
        Case("--signer without a bundle", "validate small.yaml --signer fleet.pub",
             ("--signer is about bundles",)),
    ]  # fmt: skip


CASES = [
    Case("recipe with three mistakes", "validate three.yaml", (
        "three.yaml has 3 faults", "line ", "unknown key 'patiense' in finetune",
        "did you mean 'patience'", "student 'vit_nanno' does not exist",
        "did you mean 'vit_nano'", "target 'x86-cpuu' does not exist", "did you mean 'x86-cpu'")),
    Case("the same, on tuning", "finetune three.yaml -o o", ("3 faults",)),
    Case("the same, on building", "build three.yaml --target x86-cpu -o o", ("3 faults",)),
    Case("recipe missing", "validate nowhere.yaml", ("nowhere.yaml does not exist",)),
    Case("recipe empty", "validate empty.yaml", ("empty.yaml is empty",)),
    Case("recipe not YAML", "validate notyaml.yaml", ("line ", "not YAML")),
    Case("recipe is a picture", "validate in.png", ("in.png is not a UTF-8 text file",)),
    *_image_cases(),
    Case("image missing, measured", "bench b nowhere.tif -o r.json", ("nowhere.tif does not",)),
    Case("GeoTIFF cut, measured", "bench b cut.tif --seconds 0.1 --warmup 0.1 -o r.json",
         ("cut.tif",)),
    Case("PNG cut in a data set", "eval b --data data-cut", ("data-cut/images/e0.png", "cut")),
    Case("PNG cut in a data set, torch", "eval small.ckpt --data data-cut", ("e0.png",)),
    Case("output folder is a file (run)", "run b in.tif -o in.png/m.tif",
         ("the output folder in.png cannot be made", "choose another with -o")),
    Case("output folder cannot be made (run)", "run b in.tif -o /proc/x/m.tif",
         ("the output folder /proc/x cannot be made", "-o")),
    Case("output is a folder (run)", "run b in.tif -o folder", ("GeoTIFF", ".tif")),
    Case("output cannot be made (export)", "export small.ckpt -o /proc/x/m.onnx",
         ("the output folder /proc/x cannot be made",)),
    Case("output cannot be made (build)",
         "build small.yaml --target x86-cpu --checkpoint small.ckpt -o /proc/x/b",
         ("the output folder /proc/x cannot be made",)),
    Case("output cannot be made (finetune)", "finetune small.yaml -o /proc/x/run",
         ("the run's folder /proc/x/run cannot be made", "-o")),
    Case("output is a file (finetune)", "finetune small.yaml --data data -o in.png",
         ("the run's folder in.png cannot be made",)),
    Case("output cannot be made (eval)", "eval b --data data -o /proc/x/e.json",
         ("the output folder /proc/x cannot be made",)),
    Case("output cannot be made (bench)",
         "bench b in.tif --seconds 0.1 --warmup 0.1 --repeats 1 -o /proc/x/r.json",
         ("the output folder /proc/x cannot be made",)),
    Case("foreign folder in the way (build)",
         "build small.yaml --target x86-cpu --checkpoint small.ckpt -o folder",
         ("folder exists and is not empty and holds no manifest.json",)),
    Case("output with wrong suffix (run)", "run b in.tif -o m.jpg", ("ends in .tif", "m.jpg")),
    Case("output with wrong suffix (export)", "export small.ckpt -o m.pt",
         ("ends in .onnx", "m.pt")),
    Case("output is the input", "run b in.tif -o in.tif", ("in.tif is the input", "another file")),
    Case("bundle: one byte of the model", "run b-model.onnx in.tif -o m.tif",
         ("b-model.onnx/model.onnx was changed after the bundle was sealed", "build it again")),
    Case("bundle: one byte of the golden data", "run b-golden.npz in.tif -o m.tif",
         ("b-golden.npz/golden.npz was changed after",)),
    Case("bundle: one byte of the manifest", "run b-manifest.json in.tif -o m.tif",
         ("b-manifest.json/manifest.json was changed after", "build it again")),
    Case("the same, validated", "validate b-model.onnx", ("was changed after",)),
    Case("the same, looked at", "inspect b-manifest.json", ("was changed after",)),
    Case("bundle lacks a file", "run b-lacks in.tif -o m.tif", ("lacks the file model.onnx",)),
    Case("no bundle: missing", "run nowhere in.tif -o m.tif", ("nowhere is not a bundle",
         "edgekd build")),
    Case("no bundle: another folder", "run folder in.tif -o m.tif", ("folder is not a bundle",)),
    Case("no bundle: a checkpoint", "run small.ckpt in.tif -o m.tif",
         ("small.ckpt is not a bundle",)),
    Case("bundle of another architecture", "run b-board in.tif -o m.tif",
         ("was built for", "--any-device")),
    *_trust_cases(),
    Case("checkpoint of another student",
         "build small.yaml --target x86-cpu --checkpoint conv.ckpt -o o",
         ("conv.ckpt is a checkpoint of student lite0", "asks for name vit_nano",
          "edgekd finetune")),
    Case("checkpoint missing", "build small.yaml --target x86-cpu -o o",
         ("runs/small", "does not exist", "edgekd finetune")),
    Case("checkpoint cut (build)", "build small.yaml --target x86-cpu --checkpoint cut.ckpt -o o",
         ("cut.ckpt is damaged",)),
    Case("checkpoint cut (export)", "export cut.ckpt -o m.onnx", ("cut.ckpt is damaged",)),
    Case("checkpoint cut after its first bytes", "export begin.ckpt -o m.onnx", ("begin.ckpt",)),
    Case("checkpoint cut (eval)", "eval cut.ckpt --data data", ("cut.ckpt is damaged",)),
    Case("checkpoint is text", "inspect text.ckpt", ("text.ckpt is damaged or no checkpoint",)),
    Case("checkpoint of 0 bytes", "inspect empty.ckpt", ("empty.ckpt",)),
    Case("neither bundle nor checkpoint", "inspect folder", ("folder/best.ckpt does not exist",)),
    Case("nothing there to look at", "inspect nowhere", ("nowhere does not exist",)),
    Case("mask outside the classes (eval, bundle)", "eval b --data data-mask-test",
         ("masks/e0.png holds class index 9 (first at row 5, column 7)", "0 ground, 1 tree")),
    Case("mask outside the classes (eval, torch)", "eval small.ckpt --data data-mask-test",
         ("masks/e0.png holds class index 9",)),
    Case("mask outside the classes (finetune)",
         "finetune small.yaml --data data-mask-train -o o", ("masks/t0.png holds class index 9",)),
    Case("the same in the validation split",
         "finetune small.yaml --data data-mask-val -o o", ("masks/v0.png holds class index 9",)),
    Case("mask outside the classes (build)",
         "build small.yaml --target x86-cpu --checkpoint small.ckpt --data data-mask-val -o o",
         ("masks/v0.png holds class index 9",)),
    Case("INT8 without calibration",
         "build small.yaml --target x86-cpu --checkpoint small.ckpt --precision int8 -o o",
         ("holds int8, which needs calibration", "write calibration: {tiles: 16}")),
    Case("mask of another size", "eval b --data data-size", ("masks/e0.png is 176x100 px",)),
    Case("mask missing", "eval b --data data-lacking", ("no mask of the same name, e.g. e0",)),
    Case("no classes.json", "eval b --data data-noclasses", ("has no classes.json",)),
    Case("other classes", "eval b --data data-other", ("0 ground, 1 sea", "0 ground, 1 tree")),
    Case("data missing (eval)", "eval b --data nowhere", ("nowhere does not exist", "images")),
    Case("data missing (finetune)", "finetune small.yaml --data nowhere -o o",
         ("nowhere does not exist",)),
    Case("wrong split name", "eval b --data data --split tset",
         ("split 'tset' does not exist", "train, val, test, all")),
    Case("empty split", "eval b --data data-nosplit", ("no sample in split 'test'",
                                                       "splits.json")),
    Case("unknown target", "build small.yaml --target orin-nano-8bg --checkpoint small.ckpt -o o",
         ("target 'orin-nano-8bg' does not exist", "did you mean 'orin-nano-8gb'", "valid: ")),
    Case("target that the recipe does not name",
         "build small.yaml --target rpi5 --checkpoint small.ckpt -o o",
         ("does not name the target rpi5", "x86-cpu")),
    Case("a lower precision without images",
         "build board.yaml --target orin-nano-8gb --checkpoint small.ckpt -o o --set "
         "data.root=nowhere", ("judged on real images", "--data", "precision.allowed=[fp32]")),
    Case("calibration file that is none", "build board.yaml --target orin-nano-8gb --checkpoint "
         "small.ckpt -o o --calibration text.tif", ("text.tif is not JSON",)),
    Case("nothing to finalise", "finalize folder", ("folder is not a bundle", "edgekd build")),
    Case("a bundle without an engine to build", "finalize b",
         ("runs with ONNX Runtime, which needs no engine", "edgekd run b")),
    Case("precision that there is not", "finalize b --precision int4", ("--precision", "int4")),
    Case("batch of 0 for an engine", "finalize b --batch 0", ("--batch", "0")),
    Case("nothing there to quantise",
         "quantize board.yaml nowhere.onnx --target orin-nano-8gb -o o",
         ("nowhere.onnx does not exist",)),
    Case("quantising text", "quantize board.yaml text.tif --target orin-nano-8gb -o o",
         ("text.tif", "no ONNX model")),
    Case("nothing to lower", "quantize small.yaml b/model.onnx --target x86-cpu -o o",
         ("holds fp32 alone", "nothing to lower", "precision.allowed")),
    Case("quantising another recipe's model",
         "quantize board.yaml b/model.onnx --target orin-nano-8gb -o o",
         ("b/model.onnx takes", "recipe 'board' gives")),
    Case("no target for a check", "check b", ("--target",)),
    Case("unknown target for a check", "check b --target rpi6",
         ("target 'rpi6' does not exist", "did you mean 'rpi5'")),
    Case("nothing there to check", "check nowhere.onnx --target rpi5",
         ("nowhere.onnx does not exist", "bundle")),
    Case("check of a folder", "check folder --target rpi5", ("folder is a folder",)),
    Case("check of 0 bytes", "check empty.tif --target rpi5", ("empty.tif is empty (0 bytes)",)),
    Case("check of text", "check text.tif --target orin-nx-16gb",
         ("text.tif", "no ONNX model", "export it again")),
    Case("check of a picture", "check in.png --target orin-nx-16gb", ("in.png", "no ONNX model")),
    Case("check of a damaged bundle", "check b-model.onnx --target rpi5",
         ("b-model.onnx/model.onnx was changed after",)),
    Case("TensorRT that no rules are known for", "check b --target agx-orin --tensorrt 7.2",
         ("no rules are known for TensorRT 7.2", "expected 8.4 to 11.x")),
    Case("TensorRT version that is none", "check b --target agx-orin --tensorrt ten",
         ("--tensorrt", "expected a version like 10.3, received 'ten'")),
    Case("TensorRT version for a CPU", "check b --target rpi5 --tensorrt 10.3",
         ("does not apply", "runs the model with ONNX Runtime", "edgekd ls targets")),
    Case("batch of 0", "check b --target agx-orin --batch 0", ("--batch", "0")),
    Case("unknown command", "buidl small.yaml", ("command 'buidl' does not exist",
                                                 "did you mean 'build'")),
    Case("unknown option", "run b in.tif --ouput m.tif", ("--ouput", "--output")),
    Case("option left out", "run b in.tif", ("--output",)),
    Case("unknown kind", "ls studens", ("studens", "students")),
    Case("--scale with one number", "run b in.tif -o m.tif --scale 5", ("pairs of numbers", "5")),
    Case("--scale no numbers", "run b in.tif -o m.tif --scale low,high", ("pairs of numbers",)),
    Case("--scale upside down", "run b in.tif -o m.tif --scale 9,3", ("9,3", "must be larger")),
    Case("--scale for too many bands", "run b in.tif -o m.tif --scale 0,1,0,1", ("gives 2 pairs",)),
    Case("--resume and --restart", "run b in.tif -o m.tif --resume --restart", ("give one",)),
    Case("--scores with wrong suffix", "run b in.tif -o m.tif --scores s.png", ("ends in .tif",)),
    Case("--polygons with wrong suffix", "run b in.tif -o m.tif --polygons p.shp",
         (".gpkg or .geojson", "p.shp")),
    Case("--summary with wrong suffix", "run b in.tif -o m.tif --summary s.txt", (".json",)),
    Case("two results of one name", "run b in.tif -o m.tif --scores m.tif",
         ("named for two results",)),
    Case("a folder without images", "run b folder -o maps", ("holds no image", ".tif")),
    Case("watch of no folder", "watch b nowhere maps --once", ("nowhere is no folder",)),
    Case("watch into its own folder", "watch b folder folder --once",
         ("is the folder of the inputs",)),
    Case("watch into a file", "watch b folder in.tif --once", ("in.tif is a file",)),
    Case("--bands no numbers", "run b in.tif -o m.tif --bands r,g,b",
         ("--bands", "expected numbers like 1,2,3", "r,g,b")),
    Case("--bands too few", "run b in.tif -o m.tif --bands 1,2", ("names 2 bands", "takes 3")),
    Case("--bands not in the file", "run b in.tif -o m.tif --bands 1,2,4",
         ("band 4", "bands 1 to 3")),
    Case("--bands counted from 0", "run b in.tif -o m.tif --bands 0,1,2", ("band 0",)),
    Case("--overlap as large as the tile", "run b in.tif -o m.tif --overlap 64",
         ("overlap must be", "smaller than the window of 64 px", "received 64")),
    Case("--overlap negative", "run b in.tif -o m.tif --overlap -8", ("received -8",)),
    Case("--overlap no number", "run b in.tif -o m.tif --overlap half", ("--overlap", "half")),
    Case("--set without value", "validate small.yaml --set finetune.steps",
         ("dotted.key=value", "finetune.steps")),
    Case("--set unknown key", "validate small.yaml --set finetune.stpes=3",
         ("unknown key 'stpes'", "did you mean 'steps'")),
    Case("--set wrong value", "finetune small.yaml --set finetune.steps=many -o o",
         ("finetune.steps", "many", "integer")),
    Case("--set inside a number", "build small.yaml --target x86-cpu --set schema.a=1 -o o",
         ("--set schema.a=1", "holds no keys")),
    Case("teacher needs a sensor that is not there",
         'validate small.yaml --set teachers=[{"name":"sam","sensors":["lidar"]}]',
         ("needs sensor 'lidar', which the recipe does not have",)),
    Case("a system without sensors", 'validate small.yaml --set system={"survey_m2_per_s":2}',
         ("the recipe has no sensors", "visual")),
    Case("--set not YAML", "validate small.yaml --set finetune.steps=[1",
         ("--set finetune.steps=[1", "not YAML")),
    Case("crop does not fit the student", "finetune side.yaml --data data -o o",
         ("finetune.crop_px is 200 px", "multiples of 256 px")),
    Case("run in the way", "finetune small.yaml --data data -o run",
         ("run already holds a run", "--resume", "--fresh")),
    Case("nothing to resume", "finetune small.yaml --data data -o o --resume",
         ("nothing to resume",)),
    Case("--resume with --fresh", "finetune small.yaml --resume --fresh",
         ("--resume and --fresh exclude each other",)),
    Case("unknown accelerator", "finetune small.yaml --data data -o o --accelerator cudaa",
         ("cudaa", "cpu", "cuda")),
    Case("SAM checkpoint of another size", "distill sam.yaml -o o",
         ("sam_b.pth holds SAM ViT-B (12 blocks, width 768)", "the recipe asks for vit_l",
          "variant: vit_b")),
    Case("SAM checkpoint cut", "distill sam.yaml -o o --set teachers.0.weights=sam_cut.pth",
         ("sam_cut.pth is damaged", "copy it again")),
    Case("SAM checkpoint missing", "distill sam.yaml -o o --set teachers.0.weights=sam.pth",
         ("sam.pth does not exist", "sam_vit_l_0b3195.pth")),
    Case("SAM checkpoint lacks keys", "distill sam.yaml -o o --set teachers.0.variant=vit_b",
         ("sam_b.pth does not fit the image encoder of SAM vit_b", "missing")),
    Case("no such teacher in --set", "distill cdkd.yaml --set teachers.1.variant=tiny",
         ("'1' is no item of a list of 1",)),
    Case("no unlabeled image", "distill mae.yaml -o o --data nothing",
         ("nothing holds no image", "distill.data.roots")),
    Case("no unlabeled folder", "distill mae.yaml -o o --data nowhere",
         ("nowhere does not exist", "distill.data.roots")),
    Case("list names a missing image", "distill mae.yaml -o o --data list.txt",
         ("list.txt line 2", "gone.png does not exist")),
    Case("too many broken tiles", "distill mae.yaml -o o --data tiles-cut",
         ("tile00.png", "5")),
    Case("tile smaller than the crop", "distill mae.yaml -o o --data tiles "
         "--set distill.crop_px=256", ("160 x 160 px, smaller than the crop of 256 px",
                                       "distill.crop_px")),
    Case("teacher pair outside the depth", "distill cdkd.yaml -o o --data tiles "
         "--set teachers.0.pairs=[[7,3]]",
         ("teachers[0].pairs holds [7, 3]", "sam has the blocks 1 to 6")),
    Case("mask ratio that fits no lattice", "distill cdkd.yaml -o o --data tiles "
         "--set distill.mask.ratio=0.6", ("ratio 0.6 leaves no such grid", "0.75 (2x2)")),
    Case("crop that does not fit the mask", "distill mae.yaml -o o --data tiles "
         "--set distill.crop_px=144", ("distill.crop_px is 144 px", "multiples of 32 px")),
    Case("no distill section", "distill small.yaml -o o", ("has no distill section",)),
    Case("no such preset", "distill cdkd.yaml -o o --set preset=fast",
         ("no preset 'fast'", "valid: none")),
    Case("nothing to resume (distill)", "distill mae.yaml -o o --data tiles --resume",
         ("nothing to resume",)),
    Case("encoder missing", "finetune small.yaml --data data -o o --encoder nowhere",
         ("nowhere does not exist", "edgekd distill")),
    Case("encoder of 0 bytes", "finetune small.yaml --data data -o o --encoder distilled",
         ("distilled/encoder.ckpt is damaged",)),
    Case("encoder is a checkpoint", "finetune small.yaml --data data -o o --encoder small.ckpt",
         ("small.ckpt is not what is needed here", "a checkpoint of edgekd finetune",
          "edgekd distill")),
    Case("decoder alone on a random encoder",
         "finetune small.yaml --data data -o o --set finetune.scope=decoder",
         ("the encoder would stay random", "--encoder FOLDER")),
    Case("data set is a picture", "eval b --data in.png", ("in.png is no folder",)),
    Case("--tile that fits no student", "ls students --tile 100", ("100", "multiple")),
    Case("--seconds negative", "bench b --seconds -1 -o r.json", ("-1",)),
    Case("record missing", "report nowhere.json -o r.html", ("nowhere.json does not exist",)),
    Case("record not JSON", "report text.json -o r.html", ("text.json is not JSON",)),
    Case("record of something else", "report record.json -o r.html", ("record.json",)),
    Case("report with wrong suffix", "report record.json -o r.pdf", (".md or .json", "r.pdf")),
    *(Case(*row) for row in (*ADAPT_ROWS, *POWER_ROWS, *SENSOR_ROWS, *UPTAKE_ROWS)),
]  # fmt: skip


def run_case(case: Case) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a case in this process and working directory."""
    from edgekd.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(case.command.split())
    return code, out.getvalue(), err.getvalue()


def main() -> None:
    """Print the table in Markdown."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(make_work(Path(folder)))
        print("| case | command | exit | line printed |\n|---|---|---|---|")
        for case in CASES:
            code, _, err = run_case(case)
            line = err.splitlines()[-1].replace("|", "\\|") if err else "(nothing)"
            print(f"| {case.name} | `edgekd {case.command}` | {code} | `{line}` |")
            sys.stdout.flush()
        os.chdir("/")


if __name__ == "__main__":
    main()
