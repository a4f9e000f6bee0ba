"""What can be measured: a loaded bundle, what its model is fed, and the work around it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.contracts.imageio import UInt8Array
from edgekd.contracts.preprocess import Normalizer
from edgekd.contracts.windows import axis_starts
from edgekd.report.blocks import Pace, RunBlocks, SceneBlocks, StreamBlocks
from edgekd.report.inputs import FloatArray, file_tiles, synthetic_image, synthetic_tiles
from edgekd.report.power import Phase
from edgekd.report.record import RATIO_DEFINITION, BundleIdentity, InputUsed, StreamsWindow
from edgekd.runtime.session import Session

if TYPE_CHECKING:
    from edgekd.report.answers import AnswersWindow
    from edgekd.runtime.places import PlaceSession


class Subject:
    """A bundle in a measurement.

    Args:
        session: loaded.
        feeds: what the bare engine is given in turn.
        used: for the record.
        runs: end to end.
        overlap_px: of windows.

    Attributes:
        unit: what one call of the engine gives, in a word.
        definition: of the ratio of both kinds of work.
    """

    unit = "tile"
    definition = RATIO_DEFINITION

    def __init__(
        self,
        session: Session | PlaceSession,
        feeds: Sequence[Any],
        used: InputUsed,
        runs: RunBlocks,
        overlap_px: int = 0,
    ) -> None:
        self.session, self.feeds, self.used, self.runs = session, feeds, used, runs
        self.manifest, self.overlap_px = session.manifest, overlap_px
        self.tile_px = self.manifest.inputs[0].tile_px

    def start(self) -> None:
        """The warm-up is over."""

    def beside(self, pace: Pace) -> list[Phase]:
        """A block of what is set beside the bare engine, if there is such."""
        return []

    def streams(self) -> StreamsWindow | None:
        """The record's part on several calls at once."""
        return None

    def answers(self) -> AnswersWindow | None:
        """The record's part on answers."""
        return None

    def identity(self) -> BundleIdentity:
        """Which bundle this is."""
        manifest = self.manifest
        return BundleIdentity(
            name=manifest.name,
            title=manifest.title,
            model_sha256=manifest.files[self.session.model],
            recipe_sha256=manifest.provenance.recipe_sha256,
            checkpoint_sha256=manifest.provenance.checkpoint_sha256,
            data_name=manifest.provenance.data_name,
            student=str(manifest.provenance.student.get("name", "unnamed")),
            precision=self.session.precision,
            precision_asked=manifest.precision.asked,
            target=manifest.target.name,
            target_arch=manifest.target.arch,
            backend=self.session.backend.details,
            tile_px=self.tile_px,
            stride_px=manifest.outputs[0].stride_px,
            overlap_px=0 if manifest.tiling is None else manifest.tiling.overlap_px,
            classes=[item.name for item in manifest.classes],
            gates={gate.name: gate.passed for gate in manifest.gates},
            built_utc=manifest.provenance.created_utc,
        )


class TileSubject(Subject):
    """A bundle that makes maps.

    Args:
        source, bands, overlap_px: see :func:`edgekd.report.measure.measure_in_turns`.
    """

    def __init__(
        self,
        session: Session,
        source: Path | None,
        bands: list[int] | None,
        overlap_px: int | None,
    ) -> None:
        geometry = session.geometry(overlap_px)
        # refuses an impossible overlap now and not after the first block
        axis_starts(geometry.tile_px, geometry.tile_px, geometry.overlap_px, geometry.stride_px)
        normalize = Normalizer(session.manifest.inputs[0])
        image: UInt8Array | None = None
        tiles: list[FloatArray]
        if source is None:
            image = synthetic_image(2 * geometry.tile_px, session.channels)
            tiles, used = synthetic_tiles(image, geometry.tile_px, normalize)
        else:
            tiles, used = file_tiles(Path(source), bands, geometry.tile_px, normalize)
        runs = SceneBlocks(session, source, image, bands, overlap_px)
        super().__init__(session, tiles, used, runs, geometry.overlap_px)
        self._maps, self._overlap_asked = session, overlap_px
        self._streams: StreamBlocks | None = None

    def start(self) -> None:
        """See :class:`Subject`."""
        used = self.used
        streams = self._maps.streams_for(used.height_px, used.width_px, self._overlap_asked)
        self._streams = StreamBlocks(self._maps, self.feeds, streams) if streams > 1 else None

    def beside(self, pace: Pace) -> list[Phase]:
        """Several calls at once, as many as a scene makes."""
        if self._streams is None:
            return []
        begin = time.monotonic()
        self._streams.block(pace.block_s)
        return [Phase(kind="streams", start_s=begin, end_s=time.monotonic())]

    def streams(self) -> StreamsWindow | None:
        """See :class:`Subject`."""
        return None if self._streams is None else self._streams.window(self.tile_px)
