"""Sessions of places: answers obey and are finite, or there is none; a device tells what it is."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgekd
from edgekd.contracts.evidence import PROBABILITIES, SCORES, Evidence, Float32
from edgekd.contracts.manifest import TextEncoderDone
from edgekd.contracts.projection import OBEYED, past_bounds, project
from edgekd.errors import BundleError, EdgeKDError, GateError, InputError, TrustError
from edgekd.runtime.places import PlaceSession, no_limits, open_place_session, open_places
from edgekd.runtime.session import sealed_json
from tests.helpers.bundles import make_bundle
from tests.helpers.keys import make_pair
from tests.helpers.place_bundles import forbid, make_place_bundle, some_places
from tests.helpers.place_line import CLASSES, ROWS

K = len(CLASSES)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made without torch, so that these tests run on a board."""
    return make_place_bundle(tmp_path_factory.mktemp("places") / "b")


@pytest.fixture
def session(bundle: Path) -> Iterator[PlaceSession]:
    with open_places(bundle) as opened:
        yield opened


@pytest.fixture
def some() -> list[Evidence]:
    """All evidence, each kind missing, each kind alone."""
    return some_places(11)


def test_answers_without_rules_are_the_scores_own(
    session: PlaceSession, some: list[Evidence]
) -> None:
    found = session.answer(some)
    assert found.scores.shape == (11, K) and found.scores.dtype == np.float32
    assert np.ptp(found.scores, axis=0).min() > 0.5, "answers differ from place to place"
    want = np.exp(found.scores) / np.exp(found.scores).sum(1, keepdims=True)
    assert np.abs(found.before - want).max() < 1e-6
    assert np.abs(found.probabilities - want).max() < 1e-5
    assert session.classes == list(CLASSES) and session.rows == ROWS and session.simulated


def test_answers_obey_their_rules_and_are_the_nearest(
    session: PlaceSession, some: list[Evidence]
) -> None:
    limits = [forbid(n * 7 // 3 % K) for n in range(len(some))]  # no two calls alike
    found = session.answer(some, limits)
    rules, bounds, inside = (np.stack(part) for part in zip(*limits, strict=True))
    assert past_bounds(found.probabilities, rules, bounds).max() <= OBEYED
    assert np.abs(found.probabilities - project(found.scores, rules, bounds, inside)).max() < 1e-5
    assert np.abs(found.probabilities - found.before).max() > 0.1, "rules change something"
    one = session.answer(some, forbid(0))
    assert one.probabilities[:, 0].max() <= OBEYED and np.array_equal(one.scores, found.scores)


def test_a_place_is_answered_alike_in_any_company(
    session: PlaceSession, some: list[Evidence]
) -> None:
    """Eleven places are two calls of the model."""
    whole = session.answer(some, forbid(1))
    alone = session.answer(some[9:10], forbid(1))
    assert np.abs(whole.scores[9] - alone.scores[0]).max() < 1e-4
    assert np.abs(whole.probabilities[9] - alone.probabilities[0]).max() < 1e-4


def spoil(monkeypatch: pytest.MonkeyPatch, session: PlaceSession, change: Callable) -> None:
    real = session.backend.infer

    def infer(inputs: Any, stream: bool = False) -> Any:
        found = {name: value.copy() for name, value in real(inputs, stream).items()}
        change(found)
        return found

    monkeypatch.setattr(session.backend, "infer", infer)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_no_answer(
    session: PlaceSession, some: list[Evidence], monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    spoil(monkeypatch, session, lambda found: found[SCORES].__setitem__((2, 1), value))
    with pytest.raises(EdgeKDError, match="scores are not finite, so there is no answer"):
        session.answer(some[:4], forbid(0))
    with pytest.raises(EdgeKDError, match="not finite"):
        session.verify()


def shift(found: dict[str, np.ndarray]) -> None:
    found[PROBABILITIES][1, 0] += 3 * OBEYED
    found[PROBABILITIES][1, 3] -= 3 * OBEYED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shift, "is 3e-05 past a rule"),
        (lambda found: found[PROBABILITIES].__setitem__(1, np.nan), "holds no probabilities"),
        (lambda found: found[PROBABILITIES].__imul__(1.01), "holds no probabilities"),
        (lambda found: found[PROBABILITIES].__setitem__((1, slice(None)), [0, -0.1, 0.1, 1]),
         "holds no probabilities"),
    ],
)  # fmt: skip
def test_an_answer_that_breaks_a_rule_is_not_given(
    session: PlaceSession, some: list[Evidence], monkeypatch: pytest.MonkeyPatch,
    change: Callable, words: str,
) -> None:  # fmt: skip
    def exact(found: dict[str, np.ndarray]) -> None:
        found[PROBABILITIES][1] = [0, 0.2, 0.3, 0.5]
        change(found)

    spoil(monkeypatch, session, exact)
    with pytest.raises(GateError, match=words):
        session.answer(some[:4], forbid(0))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (forbid(0)._replace(rules=np.zeros((ROWS + 1, K), np.float32)), "rules of the rules is"),
        (forbid(0)._replace(bounds=np.zeros(2, np.float32)), "bounds of the rules is"),
        (forbid(0)._replace(inside=np.full(K, 0.25, np.float32)), "a point that obeys them"),
        (forbid(0)._replace(inside=np.zeros(K, np.float32)), "a point that obeys them"),
        (forbid(0)._replace(bounds=np.full(ROWS, np.nan, np.float32)), "not finite"),
        (forbid(0)._replace(inside=np.full(K, np.nan, np.float32)), "not finite"),
        ([forbid(0)], "1 sets of rules for 2 places"),
    ],
)
def test_rules_that_do_not_fit(
    session: PlaceSession, some: list[Evidence], limits: Any, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        session.answer(some[:2], limits)


def test_evidence_that_does_not_fit(session: PlaceSession) -> None:
    with pytest.raises(InputError, match="no place is asked about"):
        session.answer([])
    with pytest.raises(InputError, match="nothing is known"):
        session.answer([Evidence()])
    with pytest.raises(InputError, match="expected uint8"):
        session.answer([Evidence(image=np.zeros((32, 32, 3), np.uint8))])


def test_a_whole_bundle_verifies(session: PlaceSession) -> None:
    session.verify()
    assert session.golden_error() <= 1e-4
    golden = session.read_golden()
    assert len(golden.places()) == 9 and golden.present.min() == 0
    assert np.abs(golden.probabilities - golden.free).max() > 0.1, "the rules bite"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[SCORES].__iadd__(0.02), "golden scores differ by 0.02"),
        (lambda found: found[PROBABILITIES].__setitem__(slice(None), [[0.0, 0.0, 0.0, 1.0]]),
         "golden answers"),
    ],
)  # fmt: skip
def test_another_model_does_not_verify(
    session: PlaceSession, monkeypatch: pytest.MonkeyPatch, change: Callable, words: str
) -> None:
    spoil(monkeypatch, session, change)
    with pytest.raises(GateError, match=words):
        session.verify()


def test_a_projection_that_is_a_little_off_does_not_verify(
    session: PlaceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the bound of the scores, so that NumPy's projection alone can tell."""

    def change(found: dict[str, np.ndarray]) -> None:
        top = found[PROBABILITIES].argmax(1)
        rows = np.arange(len(top))
        found[PROBABILITIES][rows, top] -= 5e-5
        found[PROBABILITIES][:, 3] += 5e-5  # parks, that no rule forbids

    spoil(monkeypatch, session, change)
    with pytest.raises(GateError, match="the projection of the graph and NumPy's differ"):
        session.verify()


def off(
    monkeypatch: pytest.MonkeyPatch, session: PlaceSession, change: Callable[[Float32], Any]
) -> None:
    """Other scores of the bundle's places, and the answers that follow from them."""
    real = session.backend.infer

    def infer(inputs: Any, stream: bool = False) -> Any:
        scores = real(inputs, stream)[SCORES]
        assert len(scores) <= 8, "a call of the model"
        changed = change(scores.copy()).astype(np.float32)
        law = (inputs[name] for name in ("rules", "bounds", "inside"))
        return {SCORES: changed, PROBABILITIES: project(changed, *law).astype(np.float32)}

    monkeypatch.setattr(session.backend, "infer", infer)


def signs(scores: Float32) -> Float32:
    return np.where(np.indices(scores.shape).sum(0) % 2, 1, -1).astype(np.float32)


#: what a bundle of INT8 says: worst logit, root mean square, part of the classes
INT8 = {"golden__atol": 0.2, "golden__rms_max": 0.02, "golden__agreement_min": 0.75}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda z: z + 0.199 * signs(z), "differ by 0.199 logits .root mean square. .* are 0.02;"),
        (lambda z: z - 0.199, r"differ by 0.199 logits .root mean square."),
        (lambda z: z + 0.021 * signs(z), r"differ by 0.021 logits .root mean square."),
        (lambda z: z + 0.21 * (np.indices(z.shape).sum(0) == 0), "differ by 0.21 logits on"),
        # steps of rounding
        (lambda z: z + 0.019 * signs(z), None),
        (lambda z: z + 0.06 * (np.indices(z.shape)[1] == 0) * (np.indices(z.shape)[0] == 0), None),
    ],
)
def test_int8_may_differ_by_rounding_and_no_more(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable,
    words: str | None,
) -> None:  # fmt: skip
    """The worst logit's bound is the error of INT8 itself: not all may be off by as much."""
    with open_places(copied(bundle, tmp_path, **INT8)) as session:
        off(monkeypatch, session, change)
        if words is None:
            session.verify()
        else:
            with pytest.raises(GateError, match=f"golden scores {words}"):
                session.verify()


def test_bundles_from_before_the_bound_of_all_logits_still_verify(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = copied(bundle, tmp_path, golden__atol=0.2)
    value = json.loads((out / "manifest.json").read_text())
    del value["seal"], value["golden"]["rms_max"]
    (out / "manifest.json").write_text(sealed_json(value))
    with open_places(out) as session:
        off(monkeypatch, session, lambda z: z + 0.199 * signs(z))
        session.verify()


@pytest.mark.parametrize(("turned", "passes"), [(2, True), (3, False)])
def test_so_many_places_must_have_the_stored_class(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned: int, passes: bool
) -> None:
    """Of nine places 75 %: seven."""
    wide = {"golden__atol": 1e4, "golden__rms_max": None, "golden__agreement_min": 0.75}
    calls = 0

    def turn(scores: Float32) -> Float32:
        nonlocal calls
        calls += 1
        if len(scores) > 1:  # the first call of eight; the ninth place comes alone
            scores[:turned] *= -1
        return scores

    with open_places(copied(bundle, tmp_path, **wide)) as session:
        off(monkeypatch, session, turn)
        if passes:
            session.verify()
        else:
            with pytest.raises(
                GateError, match=r"66\.7 % of the golden places .* at least 75\.0 %"
            ):
                session.verify()
    assert calls == 4


@pytest.mark.parametrize("rules", [True, False])
def test_answers_that_their_scores_do_not_explain_do_not_verify(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: bool
) -> None:
    """However far the worst logit may be off."""
    with open_places(copied(bundle, tmp_path, **INT8 | {"golden__rms_max": None})) as session:
        real = session.backend.infer

        def infer(inputs: Any, stream: bool = False) -> Any:
            found = {name: value.copy() for name, value in real(inputs, stream).items()}
            if bool(inputs["rules"].any()) == rules:
                top = found[PROBABILITIES].argmax(1)
                found[PROBABILITIES][np.arange(len(top)), top] -= 5e-4
                found[PROBABILITIES][:, 3] += 5e-4  # parks, that no rule forbids
            return found

        monkeypatch.setattr(session.backend, "infer", infer)
        which = "answers" if rules else "answers without rules"
        with pytest.raises(GateError, match=f"golden {which} differ by 0.0005 .* are 0.0002"):
            session.verify()


def copied(bundle: Path, folder: Path, **changes: Any) -> Path:
    """The bundle with other values in its manifest, sealed again."""
    out = folder / "copy"
    shutil.copytree(bundle, out)
    value = json.loads((out / "manifest.json").read_text())
    del value["seal"]
    for key, item in changes.items():
        part = value
        *path, last = key.split("__")
        for name in path:
            part = part[name]
        part[last] = item
    (out / "manifest.json").write_text(sealed_json(value))
    return out


def test_a_changed_file_and_a_changed_manifest_are_refused(bundle: Path, tmp_path: Path) -> None:
    out = copied(bundle, tmp_path)
    (out / "golden.npz").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"golden\.npz was changed after"):
        open_places(out)
    (out / "manifest.json").write_text((out / "manifest.json").read_text().replace("small", "big"))
    with pytest.raises(BundleError, match="seal does not match"):
        open_places(out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evidence__rules__rows": ROWS + 1}, "the manifest promises"),
        ({"evidence__text__width": 9}, "the manifest promises"),
        ({"evidence__series__mean": None, "evidence__series__std": None}, "no mean and std"),
        ({"evidence": None}, "tiling .maps. or evidence .places."),
        ({"tiling": {"window_px": 64, "overlap_px": 0, "blend": "cosine"}}, "one of them"),
        ({"schema": 3}, "schema 3"),
    ],
)
def test_manifests_that_do_not_fit_their_model(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(EdgeKDError, match=words):
        open_places(copied(bundle, tmp_path, **changes))


def test_another_architecture_is_loaded_only_where_that_is_said(
    bundle: Path, tmp_path: Path
) -> None:
    out = copied(bundle, tmp_path, target__arch="riscv64")
    with pytest.raises(BundleError, match="riscv64"):
        open_places(out)
    with open_places(out, any_device=True) as session:
        session.verify()


def test_a_signer_is_asked_for(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography")
    keys = make_pair(tmp_path)
    with pytest.raises(TrustError, match="not signed"):
        open_places(bundle, signers=keys.public)
    monkeypatch.setenv("EDGEKD_SIGNER", str(keys.public))
    with pytest.raises(TrustError, match="not signed"):
        open_places(bundle)
    with open_place_session(bundle, ()) as session:
        assert session.signer is None


def test_maps_and_places_are_opened_by_their_own_doors(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"answers for places .* edgekd run .* --rules FILE"):
        edgekd.load(bundle)
    with pytest.raises(InputError, match=r"makes maps of images, and a bundle that answers"):
        open_places(make_bundle(tmp_path / "maps"))


def test_texts_need_an_encoder(session: PlaceSession) -> None:
    with pytest.raises(InputError, match="has no text encoder"):
        session.embed(["a"])


class Reading:
    """Stands for the encoder of texts; says when it was closed."""

    def __init__(self, width: int) -> None:
        self.open, self.width = True, width

    def embed(self, texts: list[str]) -> Float32:
        return np.zeros((len(texts), self.width), np.float32)

    def close(self) -> None:
        self.open = False


def test_texts_are_read_while_the_model_works(bundle: Path) -> None:
    """Rules may be put, which embeds their texts, while answers are given."""
    with open_places(bundle) as session:
        done = TextEncoderDone.model_construct(model="never opened")
        session.evidence = session.evidence.model_copy(update={"text_encoder": done})
        reading = Reading(session.evidence.text.width)
        session._encoder = reading  # type: ignore[assignment]
        found: list[int] = []
        asking = threading.Thread(target=lambda: found.append(len(session.embed(["a", "b"]))))
        with session._lock:  # as an answer holds it
            asking.start()
            asking.join(timeout=5)
            assert found == [2]
    assert not reading.open
    with pytest.raises(EdgeKDError, match="closed"):
        session.embed(["a"])


def test_threads_are_as_asked_and_sleep_between_answers(bundle: Path) -> None:
    """Threads that spin cost more between answers than in them."""
    with open_places(bundle, threads=3) as session:
        assert session.backend.details["threads"] == "3"
        options = session.backend._session.get_session_options()  # type: ignore[attr-defined]
        assert options.intra_op_num_threads == 3
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_closed_session_says_so(bundle: Path, some: list[Evidence]) -> None:
    session = open_places(bundle)
    session.close()
    session.close()
    with pytest.raises(EdgeKDError, match="closed"):
        session.answer(some[:1])


def test_no_rules_limit_nothing() -> None:
    free = no_limits(ROWS, K)
    anything = np.random.default_rng(0).dirichlet(np.ones(K), 20)
    assert past_bounds(anything, free.rules, free.bounds).max() <= 0
