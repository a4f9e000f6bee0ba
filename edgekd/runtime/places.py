"""A loaded bundle that answers for places: pictures, series and texts into classes.

    with open_places(Path("bundles/coastal-rpi5")) as session:
        answers = session.answer([Evidence(image=tile, series=year)], limits)

The engine projects its answers onto the rules; here they are held against the rules once more, so
that an answer which breaks one is an error and never an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from edgekd.contracts.artifacts import sha256_bytes
from edgekd.contracts.evidence import (
    KINDS,
    PRESENT,
    PROBABILITIES,
    SCORES,
    Answers,
    Evidence,
    EvidenceTensors,
    Float32,
)
from edgekd.contracts.manifest import EvidenceDone, Manifest
from edgekd.contracts.place_golden import Golden, read_golden
from edgekd.contracts.plausible import Plausible
from edgekd.contracts.projection import OBEYED, Limits, past_bounds, project
from edgekd.contracts.trust import Requirement, Signers, requirements
from edgekd.errors import (
    BundleError,
    GateError,
    InputError,
)
from edgekd.runtime.backends.base import Backend, closed
from edgekd.runtime.bundle import Bundle, open_bundle
from edgekd.runtime.opening import open_backend, require_tensors

if TYPE_CHECKING:
    from edgekd.runtime.text import TextEncoder

#: places of one call of the model
BATCH: Final = 8
#: by how much the projection in the graph and that of NumPy may differ, probability
PROJECTED: Final = 1e-5
#: by how much two answers may differ beside what their scores explain, probability: each is within
#: 1e-4 of the exact projection (benchmarks/policy_exact.py)
_EXACT: Final = 2e-4
#: by how much an answer's probabilities may miss a sum of 1
_SUM: Final = 1e-4


@dataclass
class Spent:
    """Where the time of answers went, added up; s on the monotonic clock.

    Attributes:
        tensors_s: evidence and rules into the inputs of the engine.
        model_s: network and projection, which are one graph.
    """

    tensors_s: float = 0.0
    model_s: float = 0.0


class PlaceSession:
    """A bundle that is loaded and checked; made by :func:`open_places`.

    A session may be shared by threads; calls queue.

    Attributes:
        path: of the bundle.
        manifest: what it holds; ``manifest_sha256``: of the file as it was read.
        evidence: what it takes.
        classes: names, in the order of the answers.
        rows: rules that there is room for.
        simulated: whether the student learned from a simulated set; whoever shows an answer says
            so.
        backend: what runs; ``model``: the file that it was opened from, computed in
            ``precision``.
        signer: id of the key that signed the bundle; None where no signer was asked for.
    """

    def __init__(self, bundle: Bundle, backend: Backend, model: str | None = None) -> None:
        manifest = bundle.manifest
        self.model = model or manifest.model
        graphs = {item.file: item.precision for item in manifest.portable if item.typing == "graph"}
        self.precision = graphs.get(self.model, manifest.precision.done) or "undecided"
        self.path, self.manifest = bundle.path, manifest
        self.manifest_sha256 = sha256_bytes(bundle.content)
        self.evidence: EvidenceDone = manifest.of_places(bundle.path)
        self.signer = None if bundle.signer is None else bundle.signer.key_id
        self.backend = backend
        self.classes = [item.name for item in manifest.classes]
        self.rows = self.evidence.rules.rows
        self.simulated = self.evidence.simulated
        self._tensors = EvidenceTensors(
            manifest.inputs[0], self.evidence.series, self.evidence.text
        )
        self._golden = bundle.file(manifest.golden.file)
        self._lock, self._reading = threading.Lock(), threading.Lock()
        self._encoder: TextEncoder | None = None
        self._closed = False

    def answer(
        self,
        places: Sequence[Evidence],
        limits: Limits | Sequence[Limits] | None = None,
        spent: Spent | None = None,
    ) -> Answers:
        """What the model says of places, as the rules allow.

        Args:
            places: what is known of each, one at least.
            limits: rules of all of them, or of each; None is no rules.
            spent: the time of this call is added to it.

        Returns:
            Finite answers; each obeys its rules to within
            :data:`edgekd.contracts.projection.OBEYED`.

        Raises:
            InputError: evidence or rules that do not fit, or a sensor's value that its feature
                cannot have (:mod:`edgekd.contracts.plausible`).
            GateError: the model's scores are not finite, or an answer breaks a rule.
        """
        return self._answer(places, limits, Spent() if spent is None else spent, stored=False)

    def _answer(
        self,
        places: Sequence[Evidence],
        limits: Limits | Sequence[Limits] | None,
        took: Spent,
        stored: bool,
    ) -> Answers:
        begin = time.monotonic()
        given = _limits(limits, len(places), self.rows, len(self.classes))
        scores, probabilities = [], []
        for first in range(0, len(places), BATCH):
            part = slice(first, first + BATCH)
            tensors = self._tensors(places[part], stored=stored)
            tensors |= {k: v[part] for k, v in given.items()}
            ready = time.monotonic()
            found = self.infer(tensors)
            done = time.monotonic()
            took.tensors_s += ready - begin
            took.model_s += done - ready
            begin = done
            if not np.isfinite(found[SCORES]).all():
                raise GateError(
                    f"{self.path}: the model's scores are not finite, so there is no answer; "
                    f"edgekd validate {self.path} says whether the bundle works on this machine"
                )
            scores.append(found[SCORES])
            probabilities.append(found[PROBABILITIES])
        if not scores:
            raise InputError("no place is asked about")
        answers = Answers(
            scores=np.concatenate(scores),
            before=_softmax(np.concatenate(scores)),
            probabilities=np.concatenate(probabilities),
        )
        self._require_lawful(answers.probabilities, given)
        return answers

    def inputs(self, place: Evidence, limits: Limits | None = None) -> dict[str, Float32]:
        """One place and its rules as the engine takes them: input name -> ``(1, ...)`` float32.

        Raises:
            InputError: evidence or rules that do not fit.
        """
        return self._tensors([place]) | _limits(limits, 1, self.rows, len(self.classes))

    def infer(self, inputs: Mapping[str, Float32]) -> dict[str, npt.NDArray[Any]]:
        """The bare engine: what it says of inputs, held against nothing."""
        with self._lock:
            return self.backend.infer(inputs)

    def _require_lawful(self, values: Float32, given: dict[str, Float32]) -> None:
        whole = bool(np.isfinite(values).all()) and bool(
            values.min() >= -OBEYED and np.abs(values.sum(1) - 1).max() <= _SUM
        )
        past = past_bounds(values, given["rules"], given["bounds"]).max() if whole else np.inf
        if not past <= OBEYED:
            said = f"is {past:.3g} past a rule" if whole else "holds no probabilities"
            raise GateError(
                f"{self.path}: an answer {said} (allowed are {OBEYED:g}), so it is not given; "
                f"edgekd validate {self.path} says whether the bundle works on this machine"
            )

    def embed(self, texts: Sequence[str]) -> Float32:
        """Embeddings ``(N, width)`` of texts, by the bundle's own encoder.

        Raises:
            InputError: the bundle has no encoder, or a text is too long or empty.
            EnvironmentLacksError: the library that reads texts is not installed.
        """
        done = self.evidence.text_encoder
        if done is None:
            raise InputError(
                f"{self.path} has no text encoder, so texts cannot be asked about; build it with "
                "one, or give embeddings"
            )
        from edgekd.runtime.text import TextEncoder

        with self._reading:  # not the model's lock: answers go on while rules are put
            if self._closed:
                raise closed()
            if self._encoder is None:
                self._encoder = TextEncoder(
                    self.path, done, self.manifest.target.threads, self.manifest.files
                )
            found = self._encoder.embed(list(texts))
        expected = (len(texts), self.evidence.text.width)
        if found.shape != expected:
            raise BundleError(
                f"{self.path}: the text encoder gives {found.shape}, expected {expected}; build "
                "the bundle again"
            )
        return found

    def read_golden(self) -> Golden:
        """Stored places and answers.

        Raises:
            BundleError: the file is not the sealed one, or does not hold what it should.
        """
        golden = read_golden(self._golden.read(), self._golden.path)
        count, classes = self.manifest.golden.count, len(self.classes)
        for name in ("logits", "probabilities", "free"):
            if getattr(golden, name).shape != (count, classes):
                raise BundleError(
                    f"{self._golden.path}: {name} has shape {getattr(golden, name).shape}, "
                    f"expected {(count, classes)}; build the bundle again"
                )
        return golden

    def golden_error(self) -> float:
        """Largest absolute difference, in logits, to the scores stored in the bundle.

        Raises:
            BundleError: see :meth:`read_golden`.
            GateError: a score is not finite.
        """
        golden = self.read_golden()
        return _apart(self._stored(golden.places()).scores, golden.logits)

    def _stored(
        self, places: Sequence[Evidence], limits: Limits | Sequence[Limits] | None = None
    ) -> Answers:
        """Answers for the bundle's own places, whatever values they have."""
        return self._answer(places, limits, Spent(), stored=True)

    @property
    def plausible(self) -> Plausible:
        """Which values the series' features can have."""
        return self._tensors.plausible

    def verify(self) -> None:
        """Answer the golden places, with and without their rules, and compare.

        Scores are held against the stored ones, the worst of them and their root mean square. So
        are the answers, whose difference the scores' must explain: that of a class is at most a
        quarter of the range of its place's differences. (Answers maximise ``z p`` plus the entropy,
        which is 1-strongly concave in the 1-norm by Pinsker's inequality. So the 1-norm of their
        difference is at most the scores' largest one, half the range where a constant is taken off,
        which moves no answer; and half of the 1-norm are classes that gain.) And what the graph's
        projection makes of this machine's scores is held against what NumPy makes of them.

        Raises:
            BundleError: the stored file is no longer the sealed one, or lacks what it should hold.
            GateError: a difference exceeds what the bundle declares, or an answer breaks a rule.
        """
        golden = self.read_golden()
        spec = self.manifest.golden
        places = golden.places()
        free, bound = self._stored(places), self._stored(places, golden.limits())
        apart = _apart(bound.scores, golden.logits)
        same = float((bound.scores.argmax(1) == golden.logits.argmax(1)).mean())
        if spec.agreement_min is not None and not same >= spec.agreement_min:
            raise GateError(
                f"{self.path}: {100 * same:.1f} % of the golden places have the stored class on "
                f"this machine, at least {100 * spec.agreement_min:.1f} % must; do not use these "
                "answers, build the bundle again"
            )
        here = project(bound.scores, golden.rules, golden.bounds, golden.inside)
        rms = np.inf if spec.rms_max is None else spec.rms_max
        for what, value, limit in (
            ("golden scores differ by {:.3g} logits", apart, spec.atol),
            ("golden scores differ by {:.3g} logits (root mean square)",
             _rms(bound.scores, golden.logits), rms),
            ("golden answers differ by {:.3g} in probability",
             *_unexplained(bound, golden.probabilities, golden.logits)),
            ("golden answers without rules differ by {:.3g} in probability",
             *_unexplained(free, golden.free, golden.logits)),
            ("the projection of the graph and NumPy's differ by {:.3g} in probability",
             _apart(bound.probabilities, here), PROJECTED),
        ):  # fmt: skip
            if not value <= limit:
                raise GateError(
                    f"{self.path}: {what.format(value)} on this machine, allowed are {limit:.3g}; "
                    "do not use these answers, build the bundle again"
                )

    def close(self) -> None:
        """Free the model; safe to call twice."""
        with self._lock:
            self.backend.close()
        with self._reading:
            self._closed = True
            if self._encoder is not None:
                self._encoder.close()

    def __enter__(self) -> PlaceSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_places(
    bundle: str | Path,
    signers: Signers | None = None,
    any_device: bool = False,
    threads: int | None = None,
) -> PlaceSession:
    """Open a bundle that answers for places: check it, load the model, and return a session.

    Args:
        bundle: folder made by ``edgekd build``.
        signers: public key file, or several: one of them must have signed the bundle; the
            environment variable ``EDGEKD_SIGNER`` demands the same beside.
        any_device: load a bundle of another architecture, to look at it.
        threads: cores for an answer, 0 for all; None is what the bundle's target says. They sleep
            between answers, which come now and then.

    Raises:
        InputError: a bundle that makes maps, or a key file that cannot be used.
        BundleError: the bundle is incomplete or changed, or does not fit this machine.
        TrustError: not signed, by another key, or changed since (a kind of BundleError).
        EnvironmentLacksError: the backend's library, or the one for signatures, is not installed.
    """
    return open_place_session(bundle, requirements(signers), any_device, threads)


def open_place_session(
    bundle: str | Path,
    required: Iterable[Requirement],
    any_device: bool = False,
    threads: int | None = None,
) -> PlaceSession:
    """As :func:`open_places`, with the signers already read; the environment adds none."""
    opened = open_bundle(Path(bundle), required)
    manifest = opened.manifest
    evidence = manifest.of_places(opened.path)
    backend, model = open_backend(opened, any_device, 1, None, threads, spin=False)
    try:
        _check_tensors(opened.path, manifest, evidence, backend)
        return PlaceSession(opened, backend, model)
    except (BundleError, InputError):
        backend.close()
        raise


def _check_tensors(
    path: Path, manifest: Manifest, evidence: EvidenceDone, backend: Backend
) -> None:
    image, series, rows = manifest.inputs[0], evidence.series, evidence.rules.rows
    classes = len(manifest.classes)
    require_tensors(
        path,
        backend,
        {
            image.name: [None, image.channel_count, image.tile_px, image.tile_px],
            series.name: [None, series.days, 2 * len(series.features)],
            evidence.text.name: [None, evidence.text.width],
            PRESENT: [None, len(KINDS)],
            "rules": [None, rows, classes],
            "bounds": [None, rows],
            "inside": [None, classes],
        },
        {SCORES: [None, classes], PROBABILITIES: [None, classes]},
    )


def no_limits(rows: int, classes: int) -> Limits:
    """Rules that limit nothing."""
    return Limits(
        np.zeros((rows, classes), np.float32),
        np.ones(rows, np.float32),
        np.full(classes, 1 / classes, np.float32),
    )


def _limits(
    limits: Limits | Sequence[Limits] | None, count: int, rows: int, classes: int
) -> dict[str, Float32]:
    """The inputs ``rules``, ``bounds`` and ``inside`` of so many places."""
    if limits is None:
        limits = no_limits(rows, classes)
    each = [limits] * count if isinstance(limits, Limits) else list(limits)
    if len(each) != count:
        raise InputError(f"{len(each)} sets of rules for {count} places; give one for each, or one")
    shapes = {"rules": (rows, classes), "bounds": (rows,), "inside": (classes,)}
    found: dict[str, Float32] = {}
    for name, shape in shapes.items():
        values = [np.asarray(getattr(item, name), np.float32) for item in each]
        for value in values:
            if value.shape != shape:
                raise InputError(
                    f"{name} of the rules is {value.shape}, this bundle takes {shape}: room for "
                    f"{rows} rules and {classes} classes; compile the rules for it"
                )
        found[name] = np.stack(values) if values else np.zeros((0, *shape), np.float32)
    if not count:
        return found
    inside = found["inside"]
    past = past_bounds(inside, found["rules"], found["bounds"])  # says what is not finite
    if past.max() > OBEYED or inside.min() < -OBEYED or np.abs(inside.sum(1) - 1).max() > _SUM:
        raise InputError(
            "what comes with the rules as a point that obeys them does not; take it from "
            "edgekd.contracts.policy_rows"
        )
    return found


def _apart(have: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.abs(have.astype(np.float64) - want).max())


def _rms(have: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    return float(np.sqrt(((have.astype(np.float64) - want) ** 2).mean()))


def _unexplained(answers: Answers, want: Float32, logits: Float32) -> tuple[float, float]:
    """Of the place that is furthest past it: by how much its answer differs from the stored one,
    and by how much its scores' differences to the stored ``logits`` let it."""
    apart = np.abs(answers.probabilities.astype(np.float64) - want).max(1)
    most = np.ptp(answers.scores.astype(np.float64) - logits, axis=1) / 4 + _EXACT
    at = int((apart - most).argmax())
    return float(apart[at]), float(most[at])


def _softmax(scores: Float32) -> Float32:
    z = scores.astype(np.float64)
    high = np.exp(z - z.max(1, keepdims=True))
    found: Float32 = (high / high.sum(1, keepdims=True)).astype(np.float32)
    return found
