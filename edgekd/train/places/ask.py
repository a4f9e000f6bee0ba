"""A checkpoint of places as what asks and answers: the same seam as a bundle's session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from edgekd.contracts.evidence import PRESENT, Answers, Evidence, EvidenceTensors
from edgekd.contracts.projection import Limits, project
from edgekd.errors import GateError
from edgekd.train.places.checkpoint import PlaceCheckpoint, rebuild_places


def asked_of_checkpoint(
    checkpoint: PlaceCheckpoint, source: str
) -> Callable[[Sequence[Evidence], Sequence[Limits] | None], Answers]:
    """A function that answers for places, on the CPU; rules are met by NumPy's projection.

    Args:
        checkpoint: with the statistics of its series.
        source: where it comes from, for the sentence.

    Returns:
        of places and the rules of each (None is none) the answers; it raises GateError where a
        score is not finite.
    """
    model = rebuild_places(checkpoint, source)
    io = checkpoint.parsed_recipe(source).io
    tensors = EvidenceTensors(io.image, io.series, io.text)
    names = (io.image.name, io.series.name, io.text.name, PRESENT)

    @torch.inference_mode()
    def ask(places: Sequence[Evidence], limits: Sequence[Limits] | None) -> Answers:
        given = tensors(places)
        scores = model(*(torch.from_numpy(given[name]) for name in names)).numpy()
        if not np.isfinite(scores).all():
            raise GateError(f"{source}: the scores are not finite, so there is no answer")
        before = torch.softmax(torch.from_numpy(scores).double(), 1).float().numpy()
        after = before
        if limits is not None:
            rules, bounds, inside = (np.stack(part) for part in zip(*limits, strict=True))
            after = project(scores, rules, bounds, inside).astype(np.float32)
        return Answers(scores, before, after)

    return ask
