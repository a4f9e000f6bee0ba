"""Areas that are adjusted by a confusion matrix: the published example, and simulated sites."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgekd.contracts.coefficients import NORMAL_95
from edgekd.errors import InputError
from edgekd.report.adjusted import AdjustedAreas, Reference, quantile, read_reference
from tests.helpers.sites import ROCKS, Site, make_site, write_confusion

CLASSES = [(item.index, item.name) for item in ROCKS]
#: Olofsson et al. 2014, table 8: rows are the map, columns the reference
TABLE_8 = [[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]]
COEFFICIENTS = np.array([0, 0.8, 0.9, 0.4, 0.3])
MAPPED_HA = np.array([200_000, 150_000, 3_200_000, 6_450_000]) * 0.09


def points(counts: list[list[int]] | np.ndarray) -> Reference:
    return Reference(np.array(counts, float).T[None], "pixels")


def test_the_published_example() -> None:
    """Section 5: deforestation 21,158 ± 6158 ha, and so on."""
    found = AdjustedAreas(MAPPED_HA, points(TABLE_8))
    figures = [found.sum(one) for one in np.eye(4)]
    halves = [figure.interval()[1] - figure.value for figure in figures]
    assert [round(figure.value) for figure in figures] == [21158, 11686, 285770, 581386]
    assert halves == pytest.approx([6158, 3756, 15510, 16282], abs=1)
    whole = found.sum(np.ones(4))
    assert whole.value == pytest.approx(MAPPED_HA.sum()) and whole.variance < 1e-3
    assert not found.unseen and not found.few and not found.faultless


def samples(seed: int = 0, count: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(40 * np.eye(3) + 6, (count, 3, 3)).astype(float)


def test_leaving_out_a_sample_at_a_time() -> None:
    """By hand: as if each sample had never been evaluated."""
    counts, mapped = samples(), np.array([5.0, 2.0, 3.0])
    found = AdjustedAreas(mapped, Reference(counts, "samples"))

    def areas(kept: np.ndarray) -> np.ndarray:
        table = kept.sum(axis=0)
        return sum(mapped[i] * table[:, i] / table[:, i].sum() for i in range(3))  # type: ignore[return-value]

    np.testing.assert_allclose(found.areas_m2, areas(counts))
    apart = np.array([areas(np.delete(counts, n, axis=0)) for n in range(9)]) - areas(counts)
    np.testing.assert_allclose(found.covariance_m4, 8 / 9 * apart.T @ apart)
    weights = np.array([0.85, 0.0, 0.3])
    figure = found.sum(weights)
    assert figure.value == pytest.approx(weights @ areas(counts))
    assert figure.variance == pytest.approx(8 / 9 * ((apart @ weights) ** 2).sum())
    assert 6 < figure.freedom <= 8  # samples of about one size
    low, high = figure.interval()
    assert high - figure.value == pytest.approx(figure.value - low)
    assert high - figure.value == pytest.approx(quantile(figure.freedom) * figure.variance**0.5)


def test_one_large_sample_among_small_ones_is_hardly_more_than_one() -> None:
    counts = samples(count=9)
    counts[0] *= 100
    assert AdjustedAreas(np.ones(3), Reference(counts, "samples")).sum(np.eye(3)[0]).freedom == 1


def test_quantiles() -> None:
    assert quantile(float("inf")) == NORMAL_95 and quantile(1.9) == quantile(0.1) == 12.706
    assert quantile(4.0) == 2.776


@pytest.mark.parametrize("independent", ["samples", "pixels"])
def test_what_nobody_has_seen_may_be_anything(independent: str) -> None:
    """A class that the samples were never mapped as: the interval holds the best and the worst."""
    counts = samples()
    counts[:, :, 2] = 0
    mapped = np.array([5.0, 2.0, 1.0])
    if independent == "pixels":
        counts = counts.sum(axis=0, keepdims=True)
    found = AdjustedAreas(mapped, Reference(counts, independent))  # type: ignore[arg-type]
    assert found.unseen == [2] and found.unseen_m2 == 1.0
    weights = np.array([0.9, 0.2, 0.5])
    figure = found.sum(weights)
    assert figure.below == pytest.approx(0.3) and figure.above == pytest.approx(0.4)
    assert figure.value == pytest.approx(
        AdjustedAreas(np.array([5.0, 2.0, 0.0]), Reference(counts, independent))  # type: ignore[arg-type]
        .sum(weights).value + 0.5
    )  # fmt: skip
    wide = found.sum(weights, np.array([0.1, 0.2, 0.0]))
    assert wide.below == pytest.approx(0.3 + 0.2 * NORMAL_95)
    assert wide.above == pytest.approx(0.4 + 0.2 * NORMAL_95)
    area = found.sum(np.eye(3)[2])
    assert (area.below, area.above) == (1.0, 0.0)
    with pytest.raises(ValueError, match="of no class that is mapped"):
        AdjustedAreas(np.array([0.0, 0.0, 1.0]), Reference(counts, independent))  # type: ignore[arg-type]


def test_a_class_of_one_sample_is_as_good_as_unseen() -> None:
    counts = samples()
    counts[1:, :, 2] = 0
    found = AdjustedAreas(np.ones(3), Reference(counts, "samples"))
    assert found.unseen == [2]
    counts[1, 0, 2] = 3
    found = AdjustedAreas(np.ones(3), Reference(counts, "samples"))
    assert not found.unseen and found.few == [2] and np.isfinite(found.covariance_m4).all()


def test_what_is_hardly_known_is_told() -> None:
    found = AdjustedAreas(np.ones(3), points([[49, 0, 0], [1, 60, 0], [1, 2, 70]]))
    assert found.few == [0] and found.faultless == [0]


def test_weights_that_are_uncertain() -> None:
    """Against a million draws of areas and weights."""
    found = AdjustedAreas(MAPPED_HA, points(TABLE_8))
    weights, spreads = np.array([0.9, 0.5, 0.1, 0.0]), np.array([0.3, 0.2, 0.02, 0.001])
    figure = found.sum(weights, spreads)
    rng = np.random.default_rng(0)
    areas = rng.multivariate_normal(found.areas_m2, found.covariance_m4, 200_000)
    drawn = ((weights + spreads * rng.standard_normal(areas.shape)) * areas).sum(axis=1)
    assert figure.variance == pytest.approx(drawn.var(), rel=0.02)
    assert figure.value == pytest.approx(drawn.mean(), rel=0.01)
    assert figure.freedom == float("inf") and found.sum(weights).variance < figure.variance
    by_samples = AdjustedAreas(np.array([5.0, 2.0, 3.0]), Reference(samples(count=4), "samples"))
    plain, sure = by_samples.sum(np.eye(3)[0]), by_samples.sum(np.eye(3)[0], np.array([1e-9, 0, 0]))
    assert sure.freedom == pytest.approx(plain.freedom) and plain.freedom <= 3
    wide = by_samples.sum(np.eye(3)[0], np.array([1.0, 0, 0]))
    assert wide.freedom == pytest.approx(plain.freedom * (wide.variance / plain.variance) ** 2)


def coverage(
    site: Site, count: int, kind: str, trials: int, rng: np.random.Generator
) -> np.ndarray:
    """Of how many trials the interval holds the truth: of each class's area, of a sum with exact
    weights, and of one with uncertain ones."""
    truth, mapped = (
        np.bincount(item.ravel(), minlength=len(ROCKS)).astype(float)
        for item in (site.truth, site.mapped)
    )
    weights = np.vstack([np.eye(len(ROCKS)), [COEFFICIENTS] * 2])
    spreads = np.zeros_like(weights)
    spreads[-1] = 0.15 * COEFFICIENTS
    held = np.zeros(len(weights))
    for _ in range(trials):
        if kind == "points":
            flat = rng.choice(site.truth.size, count, replace=False)
            pairs = site.truth.ravel()[flat].astype(int) * 5 + site.mapped.ravel()[flat]
            counts = np.bincount(pairs, minlength=25).reshape(1, 5, 5)
        else:
            counts = site.confusions[rng.choice(len(site.confusions), count, replace=False)]
            if kind == "pixels of images":
                counts = counts.sum(axis=0, keepdims=True)
        independent = "samples" if kind == "images" else "pixels"
        found = AdjustedAreas(mapped, Reference(counts.astype(float), independent))  # type: ignore[arg-type]
        for number, (weight, spread) in enumerate(zip(weights, spreads, strict=True)):
            low, high = found.sum(weight, spread).interval()
            drawn = weight + spread * rng.standard_normal(len(weight))
            held[number] += low <= drawn @ truth <= high
    return held / trials


@pytest.mark.parametrize(
    ("kind", "count", "least", "most"),
    [
        ("images", 8, 0.93, 1.0),
        ("images", 30, 0.93, 0.985),
        ("points", 600, 0.93, 0.97),
        ("pixels of images", 30, 0.0, 0.2),  # which is why samples are the default
    ],
)
def test_how_often_the_interval_holds_the_truth(
    kind: str, count: int, least: float, most: float
) -> None:
    rng = np.random.default_rng(0)
    sites = [make_site(seed=seed) for seed in range(4)]
    found = np.mean([coverage(site, count, kind, 100, rng) for site in sites], axis=0)
    names = [*(name for _, name in CLASSES), "total", "total, uncertain coefficients"]
    print(f"{kind}, {count}:", *(f"{n} {v:.1%}" for n, v in zip(names, found, strict=True)))
    assert least <= found[-2] <= most
    if kind != "pixels of images":
        assert least <= found[-1] <= most and least - 0.05 <= found.mean() <= most
        assert found.min() >= 0.88  # a rare class in 8 images


def test_reading_puts_classes_into_the_map_s_order(tmp_path: Path) -> None:
    counts = make_site(4).confusions
    path = write_confusion(tmp_path / "e.json", counts)
    turned = CLASSES[::-1]
    found = read_reference(path, turned, Path("m.tif"), "samples")
    np.testing.assert_array_equal(found.counts, counts[:, ::-1, ::-1])
    assert found.about["units"] == 16 and found.about["data"] == "simulated site"
    whole = read_reference(path, CLASSES, Path("m.tif"), "pixels")
    np.testing.assert_array_equal(whole.counts, counts.sum(axis=0, keepdims=True))
    assert whole.about["units"] == counts.sum()


def test_files_that_are_none(tmp_path: Path) -> None:
    counts = make_site(4).confusions
    path, chart = tmp_path / "e.json", Path("m.tif")

    def refuse(words: str, independent: str = "samples", **changes: object) -> None:
        write_confusion(path, counts, **changes)
        with pytest.raises(InputError, match=words):
            read_reference(path, CLASSES, chart, independent)  # type: ignore[arg-type]

    write_confusion(path, counts)
    value = json.loads(path.read_text())
    listed, matrix = value["confusion_by_sample"], value["confusion"]
    refuse("not what edgekd eval writes", confusion=None)
    refuse("not what edgekd eval writes", confusion=matrix[:-1])
    refuse("not what edgekd eval writes", confusion=[[-1] * 5] * 5)
    refuse("not what edgekd eval writes", confusion=[[0] * 5] * 5)
    refuse("not what edgekd eval writes", confusion=[["a"] * 5] * 5)
    refuse("not what edgekd eval writes", per_class=[{"name": "soil"}])
    refuse("does not say which sample .*--independent pixels", confusion_by_sample=None)
    refuse("is of one sample", confusion_by_sample=[{"id": "a", "confusion": matrix}])
    refuse("was changed: its samples do not add up", confusion_by_sample=listed[1:])
    refuse("was changed", confusion_by_sample=[*listed[1:], "x"])
    others = [{**item, "name": item["name"] + "s"} for item in value["per_class"]]
    refuse("has the classes 0 soils, .* and m.tif has 0 soil, ", per_class=others)
    path.write_text("[1, 2]")
    with pytest.raises(InputError, match="not what edgekd eval writes"):
        read_reference(path, CLASSES, chart, "samples")
