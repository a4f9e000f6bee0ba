"""Do windows show? ``python benchmarks/seams.py BUNDLE IMAGE... [--columns N] [--write]``.

For each overlap and blend: part of the pixels whose class is not that of a reference run at 50 %
overlap (cosine), near the borders of windows (within ``--near`` px of a window's edge inside the
scene) and elsewhere, over all IMAGEs together. A seam is where the first is larger. The bound for
the bundle's own tiling: near over elsewhere at most 1.2. Cost: windows that the model sees, over
those without overlap. ``--columns`` puts images that are parts of one scene together, row by row:
in a small image the windows, which are spread evenly, share more than was asked for. ``--picture``
draws a part of the first image, its map without overlap, the map of the bundle's own tiling, and
where both differ from the reference.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import write_json
from edgekd.contracts.imageio import Raster
from edgekd.contracts.windows import Blend, plan
from edgekd.runtime.scene import ArraySource
from edgekd.runtime.session import Session, load
from edgekd.runtime.tiler import TileStats, run_tiles
from edgekd.telemetry.environment import read_environment

#: side of what is drawn, px
DRAWN_PX = 1800
ROOT = Path(__file__).resolve().parents[1]
BOUND = 1.2


def classes_of(
    session: Session, image: npt.NDArray[np.uint8], overlap_px: int, blend: Any
) -> tuple[npt.NDArray[np.uint8], int]:
    """Channel per pixel, and how many windows the model saw."""
    geometry = dataclasses.replace(session.geometry(overlap_px), blend=blend)
    stats = TileStats()
    found = np.empty(image.shape[:2], np.uint8)
    for piece in run_tiles(
        ArraySource(image, session.channels), session.infer_stream, session.normalize, geometry,
        stats, session.fill, confidence=False, streams=session.backend.streams,
    ):  # fmt: skip
        found[piece.y0 : piece.y1, piece.x0 : piece.x1] = piece.channel
    return found, stats.run


def pixels_of(path: Path) -> npt.NDArray[np.uint8]:
    """The colours of an image."""
    with Raster(path) as raster:
        return np.ascontiguousarray(raster.read_all(raster.choose_bands(None, 3)), np.uint8)


def together(parts: list[npt.NDArray[np.uint8]], columns: int) -> npt.NDArray[np.uint8]:
    """Parts of a scene side by side, row by row, cut to one height and one width."""
    height, width = (min(part.shape[axis] for part in parts) for axis in (0, 1))
    same = [part[:height, :width] for part in parts]
    rows = [np.concatenate(same[at : at + columns], 1) for at in range(0, len(same), columns)]
    return np.concatenate(rows)


def near_borders(
    shape: tuple[int, ...], tile: int, overlap_px: int, stride: int, near: int
) -> npt.NDArray[np.bool_]:
    """Pixels within ``near`` px of a window's edge that lies inside the scene."""
    height, width = shape
    mask = np.zeros(shape, dtype=np.bool_)
    for row in plan(height, width, tile, overlap_px, stride):
        for window in row:
            for y in (window.y0, window.y1):
                if 0 < y < height:
                    mask[max(y - near, 0) : y + near] = True
            for x in (window.x0, window.x1):
                if 0 < x < width:
                    mask[:, max(x - near, 0) : x + near] = True
    return mask


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path, exists=True))
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--columns", type=int, help="IMAGEs are parts of one scene, so many in a row.")
@click.option("--near", default=8, show_default=True, help="Pixels at each side of an edge.")
@click.option("--picture", type=click.Path(path_type=Path))
@click.option("--write", is_flag=True, help="Keep the record in benchmarks/results/.")
def main(
    bundle: Path,
    images: tuple[Path, ...],
    columns: int | None,
    near: int,
    picture: Path | None,
    write: bool,
) -> None:
    with load(bundle, any_device=True) as session:
        own = session.geometry()
        tile, stride = own.tile_px, own.stride_px
        parts = (0, 1, 2, 3, 4, 6)  # sixteenths of a window
        overlaps = sorted({*(tile * part // 16 for part in parts), own.overlap_px})
        tried = [(o, b) for o in overlaps for b in (get_args(Blend) if o else ("constant",))]
        # wrong and all pixels near borders, wrong and all pixels elsewhere
        sums: dict[tuple[int, Any], list[int]] = {key: [0] * 4 for key in tried}
        windows: dict[tuple[int, Any], int] = dict.fromkeys(tried, 0)
        scenes = [pixels_of(path) for path in images]
        if columns is not None:
            scenes = [together(scenes, columns)]
        for number, pixels in enumerate(scenes):
            reference, _ = classes_of(session, pixels, tile // 2, "cosine")
            found = {}
            for overlap_px, blend in tried:
                have, run = classes_of(session, pixels, overlap_px, blend)
                found[overlap_px, blend] = have
                wrong = have != reference
                close = near_borders(wrong.shape, tile, overlap_px, stride, near)
                counts = (wrong[close].sum(), close.sum(), wrong[~close].sum(), (~close).sum())
                total = sums[overlap_px, blend]
                sums[overlap_px, blend] = [x + int(y) for x, y in zip(total, counts, strict=True)]
                windows[overlap_px, blend] += run
            click.echo(f"scene {number + 1}: {pixels.shape[1]} x {pixels.shape[0]} px", err=True)
            if picture is not None and number == 0:
                mine = found[own.overlap_px, own.blend]
                draw(picture, session, pixels, found[0, "constant"], mine, reference)
    rows: list[dict[str, Any]] = []
    for (overlap_px, blend), (a, m, b, n) in sums.items():
        near_part, else_part = a / max(m, 1), b / max(n, 1)
        rows.append(
            {
                "overlap_px": overlap_px, "blend": blend,
                "near": near_part, "elsewhere": else_part,
                "ratio": near_part / else_part if else_part else None,
                "all": (a + b) / (m + n),
                "cost": windows[overlap_px, blend] / windows[0, "constant"],
                "own": (overlap_px, blend) == (own.overlap_px, own.blend),
            }
        )  # fmt: skip
    click.echo("| overlap, px | blend | near borders | elsewhere | ratio | all | windows |")
    click.echo("|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        mark = " (the bundle's own)" if row["own"] else ""
        click.echo(
            f"| {row['overlap_px']}{mark} | {row['blend']} | {100 * row['near']:.2f} % | "
            f"{100 * row['elsewhere']:.2f} % | {ratio} | {100 * row['all']:.2f} % | "
            f"x{row['cost']:.2f} |"
        )
    ratio_own = next(row["ratio"] for row in rows if row["own"])
    holds = ratio_own is not None and ratio_own <= BOUND
    click.echo(f"the bundle's own tiling: {'holds' if holds else 'MISSED'} (at most {BOUND})")
    if write:
        environment = read_environment()
        cpu = re.sub(r"[^a-z0-9]+", "-", (environment.cpu_model or "unknown").lower()).strip("-")
        record = {
            "question": "do the borders of windows show in a map?",
            "command": "python benchmarks/seams.py BUNDLE IMAGE... --write",
            "bundle": session.manifest.name, "tile_px": tile, "stride_px": stride, "near_px": near,
            "images": [path.name for path in images], "columns": columns,
            "scenes_px": [list(pixels.shape[:2]) for pixels in scenes], "rows": rows,
            "bound": BOUND, "holds": holds,
            "packages": environment.packages,
        }  # fmt: skip
        place = ROOT / "benchmarks" / "results" / cpu / f"seams-{session.manifest.name}.json"
        write_json(place, record)
        click.echo(f"record: {place.relative_to(ROOT)}")
    sys.exit(0 if holds else 1)


def draw(
    path: Path,
    session: Session,
    image: npt.NDArray[np.uint8],
    plain: npt.NDArray[np.uint8],
    mine: npt.NDArray[np.uint8],
    reference: npt.NDArray[np.uint8],
) -> None:
    """Image, two maps, and where each differs from the reference."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    colours = np.array([item.rgb for item in session.manifest.classes], np.uint8)
    figure, axes = pyplot.subplots(2, 3, figsize=(15, 10), layout="constrained")
    own = session.geometry()
    panels = [
        (axes[0, 0], image, "image"),
        (axes[0, 1], colours[plain], "no overlap"),
        (axes[0, 2], colours[mine], f"overlap {own.overlap_px} px, {own.blend}"),
        (axes[1, 0], colours[reference], "reference: overlap of half a window"),
        (axes[1, 1], plain != reference, "no overlap: other class than the reference"),
        (axes[1, 2], mine != reference, "own tiling: other class than the reference"),
    ]
    for axis, panel, title in panels:
        axis.imshow(panel[:DRAWN_PX, :DRAWN_PX], cmap="gray_r", interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
