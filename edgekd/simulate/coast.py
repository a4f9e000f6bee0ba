"""A made-up coast: ground, sea, what floods, what stands where, and its picture from above.

One coast is 4.1 km of shore and 1 km across, in cells of 2 m. Height is metres above mean higher
high water (MHHW). Columns run inland (the sea is at the left), rows along the shore; pictures of
places are turned, so that the sea may lie anywhere. Ground and plants are wet and dark below, dry
and light above, in towns too: that is what a picture shows of heights.

Flooding is a connected bathtub: what lies below a level *and* has a way to the sea of such cells,
sideways or across (Poulter and Halpin 2008, eight neighbours), stands under water. So low ground
behind a whole dune stays dry.

Everything here is invented and called simulated; no place is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import scipy.ndimage as ndimage

from edgekd.simulate.terrain import Field, Seeds

Array = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
UInt8Array = npt.NDArray[np.uint8]

CELL_M: Final = 2.0
ROWS, COLUMNS = 2048, 512
#: columns of sea before the shoreline, as it would lie without wiggles
SEA_COLUMNS: Final = 60
BLOCK_CELLS, ROAD_CELLS = 24, 4
#: what a block is used for now
COVERS: Final = ("natural", "open", "low", "mid", "high")
#: heights of buildings by cover, m
BUILDING_M: Final = {"low": (5.0, 8.0), "mid": (12.0, 20.0), "high": (30.0, 55.0)}
#: above this height, m above MHHW, other plants grow
MARSH_M, WOOD_M = 0.8, 2.4
TILE_PX: Final = 128
_LONGEST_SHADOW_CELLS: Final = 40


@dataclass(frozen=True)
class Block:
    """A block of ground, of which a plan is asked.

    Attributes:
        row, column: its first cell.
        cover: which of :data:`COVERS` it is now.
    """

    row: int
    column: int
    cover: str

    @property
    def cells(self) -> tuple[slice, slice]:
        """Where it lies."""
        return (
            slice(self.row, self.row + BLOCK_CELLS),
            slice(self.column, self.column + BLOCK_CELLS),
        )


@dataclass(frozen=True)
class Coast:
    """What is the same for all places of a coast.

    Attributes:
        height_m: ``(ROWS, COLUMNS)`` float32 above MHHW.
        blocks: all blocks.
        picture: ``(ROWS, COLUMNS, 3)`` uint8, at mean high water.
    """

    height_m: Array
    blocks: list[Block]
    picture: UInt8Array


def make_coast(seeds: Seeds) -> Coast:
    """The coast of a seed; the same seed gives the same coast."""
    height = _ground(seeds)
    blocks = _blocks(seeds, height)
    return Coast(height, blocks, _render(seeds, height, blocks))


def flooded(height_m: npt.NDArray[np.floating], level_m: float) -> Mask:
    """Cells that stand under water at a level: below it, and connected to the sea.

    Args:
        height_m: ``(rows, columns)``; the first column is sea.
        level_m: above the same datum as the heights.

    Returns:
        ``(rows, columns)`` bool.
    """
    low = height_m < level_m
    low[:, 0] = True
    parts, _ = ndimage.label(low, structure=np.ones((3, 3)))
    found: Mask = parts == parts[0, 0]
    return found


def tile_of(coast: Coast, block: Block, turn_deg: float) -> UInt8Array:
    """The picture around a block, ``(TILE_PX, TILE_PX, 3)``, turned clockwise."""
    centre = np.array([block.row, block.column]) + BLOCK_CELLS / 2 - 0.5
    steps = np.arange(TILE_PX) - (TILE_PX - 1) / 2
    down, east = np.meshgrid(steps, steps, indexing="ij")
    angle = np.radians(turn_deg)
    rows = centre[0] + np.cos(angle) * down + np.sin(angle) * east
    columns = centre[1] - np.sin(angle) * down + np.cos(angle) * east
    channels = [
        ndimage.map_coordinates(coast.picture[..., k], [rows, columns], order=1, mode="reflect")
        for k in range(3)
    ]
    return np.stack(channels, axis=-1)


def _ground(seeds: Seeds) -> Array:
    """Beach, dune with gaps, lowland behind it that rises inland, creeks."""
    random = seeds.rng("ground")
    down, east = _axis(ROWS), _axis(COLUMNS)
    whole = np.zeros(1)
    wiggle = 25 * Field(seeds.rng("shore"), 120.0, 1500.0)(down, whole)
    inland = east[None, :] - SEA_COLUMNS * CELL_M - wiggle  # m from the shoreline
    dune = random.uniform(1.0, 3.5) + 0.9 * Field(seeds.rng("dune"), 80.0, 600.0)(down, whole)
    base, rise = random.uniform(0.1, 0.9), random.uniform(0.0005, 0.004)
    beach = np.where(inland < 0, 0.02 * inland, 0.05 * inland)
    crest = np.maximum(dune, 0.3) * np.exp(-(((inland - 45) / 18) ** 2))
    behind = (base + rise * (inland - 45)) * np.clip((inland - 20) / 40, 0, 1)
    rough = Field(seeds.rng("rough"), 40.0, 700.0)(down, east) * random.uniform(0.25, 0.7)
    height = np.minimum(beach, 1.5) * (inland < 45) + crest + behind
    height = height + rough * np.clip(inland / 60, 0, 1)
    creek = np.abs(Field(seeds.rng("creek"), 150.0, 900.0)(down, east))
    depth = random.uniform(0.4, 1.0)
    height = height - depth * 2.2 * np.exp(-((creek / 0.06) ** 2)) * (inland > -40)
    # open water is never an island of dry cells
    height = np.where(inland < -5, np.minimum(height, -0.1), height)
    found: Array = height.astype(np.float32)
    return found


def _axis(cells: int) -> npt.NDArray[np.float64]:
    """Places of the cells along one side, m."""
    return np.arange(cells, dtype=np.float64) * CELL_M


def _blocks(seeds: Seeds, height: Array) -> list[Block]:
    """Blocks between roads, each with a cover: towns grow in places, natural ground elsewhere."""
    random = seeds.rng("blocks")
    step = BLOCK_CELLS + ROAD_CELLS
    down, east = _axis(ROWS)[::step], _axis(COLUMNS)[::step]
    town = Field(seeds.rng("town"), 200.0, 1600.0)(down, east)
    found = []
    for i in range(2, (ROWS - BLOCK_CELLS) // step - 1):
        for j in range(1, (COLUMNS - BLOCK_CELLS) // step - 1):
            place = Block(i * step, j * step, "natural")
            ground = float(np.median(height[place.cells]))
            if ground < -0.3:
                found.append(place)
                continue
            dense = float(town[i, j]) + random.normal(0, 0.35)
            limits = (-0.35, 0.1, 0.75, 1.3)
            cover = COVERS[int(np.searchsorted(limits, dense))]
            found.append(Block(place.row, place.column, cover))
    return found


def _render(seeds: Seeds, height: Array, blocks: list[Block]) -> UInt8Array:
    """Colours of ground and plants, shading, buildings with shadows, camera noise."""
    random = seeds.rng("render")
    down, east = _axis(ROWS), _axis(COLUMNS)
    fine = Field(seeds.rng("fine"), 8.0, 60.0, beta=0.5)(down, east)
    colour = np.empty((ROWS, COLUMNS, 3), np.float32)
    plants = height + 0.25 * fine
    colour[:] = (112, 128, 72)
    colour[plants < MARSH_M] = (96, 98, 70)
    colour[plants > WOOD_M] = (52, 78, 44)
    colour *= 1 + 0.12 * fine[..., None]
    water = flooded(height, 0.0)
    shore = ndimage.binary_dilation(water, iterations=7) & (height < 1.2)
    colour[shore] = (206, 190, 156)
    tall = np.zeros((ROWS, COLUMNS), np.float32)
    for block in blocks:
        if block.cover != "natural":
            _build(random, colour, tall, block, float(np.median(height[block.cells])))
    deep = np.clip(-height / 3, 0, 1)[..., None]
    sea = (1 - deep) * np.array([96, 128, 130]) + deep * np.array([28, 62, 92])
    tall[water] = 0
    slope_down, slope_east = np.gradient(height, CELL_M)
    azimuth, elevation = random.uniform(0, 2 * np.pi), np.radians(random.uniform(30, 60))
    light = 1 + 2.5 * (np.cos(azimuth) * slope_down - np.sin(azimuth) * slope_east)
    colour *= np.clip(light, 0.6, 1.4)[..., None].astype(np.float32)
    colour[_shadows(tall, azimuth, elevation)] *= 0.45
    colour = np.where(water[..., None], sea * (1 + 0.03 * fine[..., None]), colour)
    gain = random.uniform(0.85, 1.15) * random.uniform(0.95, 1.05, 3)
    noise = random.normal(0, 3, colour.shape)
    return np.clip(colour * gain + noise, 0, 255).astype(np.uint8)


def _build(
    random: np.random.Generator, colour: Array, tall: Array, block: Block, height_m: float
) -> None:
    """A block's open ground and buildings, and roads around it where it is built."""
    rows, columns = block.cells
    dry = np.clip((height_m - 0.3) / 3.2, 0, 1)
    if block.cover == "open":
        stripes = 8 * ((np.arange(BLOCK_CELLS) // 3) % 2)
        shade = (1 - dry) * np.array([112, 122, 84]) + dry * np.array([186, 180, 104])
        shade += random.normal(0, 4, 3)
        colour[rows, columns] = shade + stripes[:, None, None]
        return
    edge = ROAD_CELLS
    around = (
        slice(max(block.row - edge, 0), block.row + BLOCK_CELLS + edge),
        slice(max(block.column - edge, 0), block.column + BLOCK_CELLS + edge),
    )
    colour[around] = (118, 116, 116)
    lawn = (1 - dry) * np.array([94, 108, 84]) + dry * np.array([156, 160, 110])
    colour[rows, columns] = lawn + random.normal(0, 4, 3)
    low, high = BUILDING_M[block.cover]
    size, count = {"low": (5, 3), "mid": (9, 2), "high": (10, 1)}[block.cover]
    step = BLOCK_CELLS // count
    for i in range(count):
        for j in range(count):
            if random.random() < 0.12 and count > 1:
                continue
            at = block.row + i * step + int(random.integers(0, step - size + 1))
            beside = block.column + j * step + int(random.integers(0, step - size + 1))
            long = size + (int(random.integers(0, 3)) if block.cover == "mid" else 0)
            roof = np.array([[150, 84, 70], [170, 168, 164], [104, 100, 104]])[random.integers(3)]
            where = slice(at, at + size), slice(beside, min(beside + long, block.column + 24))
            colour[where] = roof + random.normal(0, 8, 3)
            tall[where] = random.uniform(low, high)


def _shadows(tall: Array, azimuth: float, elevation: float) -> Mask:
    """Ground in the shadow of buildings, which is not itself as high."""
    found = np.zeros(tall.shape, dtype=bool)
    for step in range(1, _LONGEST_SHADOW_CELLS + 1):
        down = round(step * np.cos(azimuth))
        east = round(-step * np.sin(azimuth))
        moved = np.roll(tall, (down, east), (0, 1)) - step * CELL_M * np.tan(elevation)
        found |= moved > tall
    return found
