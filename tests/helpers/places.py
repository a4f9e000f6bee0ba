"""A model of places that answers by arithmetic: scores from the evidence, the real projection.

``python -m tests.helpers.places ARGUMENT...`` is ``edgekd serve BUNDLE ...`` with this model in
place of a bundle: BUNDLE is then a folder that may hold ``fake.json`` with arguments of
:class:`FakePlaces`.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from edgekd.contracts.evidence import Answers, Evidence, EvidenceTensors, Float32
from edgekd.contracts.manifest import EvidenceDone, TextEncoderDone
from edgekd.contracts.projection import Limits, project
from edgekd.contracts.tensors import ImageInput, RulesInput, SeriesInput, TextInput
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError
from tests.helpers.rules import CLASSES, FACTS

FEATURES = ["level_m", "wind_m_s"]
SIDE_PX, DAYS, WIDTH = 16, 40, 8


class FakePlaces:
    """See :class:`edgekd.serve.model.PlaceModel`.

    Args:
        delay_s: of an answer.
        reads: whether there is an encoder of texts.
        broken: ``nan``: scores are not finite; ``lawless``: answers are not projected; ``warm``:
            the first answer fails; ``stuck``: after the first answer none comes.

    Attributes:
        asked, embedded: how often, and which texts; ``batches``: for how many places each time.
    """

    def __init__(
        self, delay_s: float = 0.0, reads: bool = True, broken: str = "", simulated: bool = True,
        title: str = "made up, for tests",
    ) -> None:  # fmt: skip
        self._delay_s, self._broken = delay_s, broken
        image = ImageInput(shape=["N", 3, SIDE_PX, SIDE_PX], mean=[127.0] * 3, std=[128.0] * 3)
        series = SeriesInput(
            days=DAYS, features=FEATURES, mean=[0.0, 5.0], std=[1.0, 2.0], datum="MHHW"
        )
        encoder = TextEncoderDone(
            model="text.onnx", tokenizer="tokenizer.json", name="fake", sha256="0" * 64,
            width=WIDTH, max_tokens=64, overlap_tokens=8, precision="fp32",
            trial_texts=2, max_abs=0.0, cosine_least=1.0, cosine_mean=1.0,
        )  # fmt: skip
        evidence = EvidenceDone(
            series=series, text=TextInput(width=WIDTH), text_encoder=encoder if reads else None,
            rules=RulesInput(rows=4), facts=FACTS, simulated=simulated,
        )  # fmt: skip
        self.manifest: Any = SimpleNamespace(
            name="fake-places", title=title, inputs=[image], evidence=evidence
        )
        self.classes, self.rows, self.simulated = list(CLASSES), 4, simulated
        self._tensors = EvidenceTensors(image, series, evidence.text)
        self._reads = reads
        self.asked, self.embedded, self.closed = 0, list[str](), False
        self.batches: list[int] = []
        self._busy = threading.Lock()
        self.go = threading.Event()  # what "stuck" waits for

    def answer(
        self, places: Sequence[Evidence], limits: Limits | Sequence[Limits] | None = None
    ) -> Answers:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads ask the model at once")
        try:
            self.asked += 1
            self.batches.append(len(places))
            return self._answer(places, limits)
        finally:
            self._busy.release()

    def _answer(self, places: Sequence[Evidence], limits: Any) -> Answers:
        if self._broken == "warm" or (self._broken == "nan" and self.asked > 1):
            raise EdgeKDError("the model's scores are not finite; nothing is answered")
        if self._broken == "stuck" and self.asked > 1:
            self.go.wait(60)
        time.sleep(self._delay_s)
        scores = scores_of(self._tensors(places))
        before = np.exp(scores - scores.max(1, keepdims=True))
        before = (before / before.sum(1, keepdims=True)).astype(np.float32)
        after = before
        if limits is not None and self._broken != "lawless":
            each = [limits] * len(places) if isinstance(limits, Limits) else list(limits)
            parts = [np.stack(part) for part in zip(*each, strict=True)]
            after = project(scores, *parts).astype(np.float32)
        return Answers(scores, before, after)

    def embed(self, texts: Sequence[str]) -> Float32:
        if not self._reads:
            raise EnvironmentLacksError("the bundle has no encoder of texts")
        for text in texts:
            if len(text.split()) > 64:
                raise InputError(f"the text has {len(text.split())} tokens, expected at most 64")
        self.embedded += texts
        return np.stack([embedding(text) for text in texts])

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> FakePlaces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def embedding(text: str) -> Float32:
    """Numbers of -1 to 1 that the text alone decides."""
    data = hashlib.sha256(text.encode()).digest()[:WIDTH]
    return np.frombuffer(data, np.uint8).astype(np.float32) / 127.5 - 1


def scores_of(tensors: dict[str, Any]) -> Float32:
    """Towers by default; a bright picture says house, high water says water, texts anything."""
    image, series, text = tensors["image"], tensors["series"], tensors["text"]
    rows = [
        2 * series[:, :, 0].mean(1) + text[:, 0],
        text[:, 1],
        2 * image.mean((1, 2, 3)) + text[:, 2],
        2 + text[:, 3],
    ]
    return np.stack(rows, axis=1).astype(np.float32)


def fake_module() -> ModuleType:
    """In place of ``edgekd.runtime.places``."""

    def open_places(
        bundle: Path, signers: object = None, any_device: bool = False, threads: int | None = None
    ) -> FakePlaces:
        file = bundle / "fake.json"
        return FakePlaces(**(json.loads(file.read_text()) if file.exists() else {}))

    module = ModuleType("edgekd.runtime.places")
    module.open_places = open_places  # type: ignore[attr-defined]
    return module


def main(arguments: list[str]) -> int:
    """``edgekd serve`` with the fake."""
    import edgekd.runtime
    from edgekd.cli.main import main as edgekd_main

    module = fake_module()
    sys.modules["edgekd.runtime.places"] = module
    edgekd.runtime.places = module  # type: ignore[attr-defined]
    return edgekd_main(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
