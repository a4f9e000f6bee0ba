"""``edgekd series``: files of NOAA into the series of a set of places."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options, table

if TYPE_CHECKING:
    from edgekd.contracts.place_recipe import PlaceRecipe
    from edgekd.contracts.series_windows import Measured, SeriesRecord


def _days(
    context: click.Context, parameter: click.Parameter, value: tuple[str, ...]
) -> list[datetime.date]:
    """Callback of ``--last-day 2024-12-31,2023-12-31``."""
    words = [word for text in value for word in text.split(",")]
    try:
        found = [datetime.date.fromisoformat(word) for word in words]
    except ValueError as err:
        raise click.BadParameter(
            f"expected days like 2024-12-31, with commas between them, received '{','.join(words)}'"
        ) from err
    if len(set(found)) < len(found):
        raise click.BadParameter("a day stands twice")
    return found


@click.command("series")
@click.option("-o", "--output", type=PathArgument, required=True, metavar="NPZ",
              help="series.npz of a set; series.json beside it tells of what each is.")  # fmt: skip
@click.option("--levels", multiple=True, type=PathArgument, metavar="FILE|FOLDER",
              help="Water levels of NOAA CO-OPS (CSV or JSON), of one station; again for each "
              "file, or the folder that holds them.")  # fmt: skip
@click.option("--units", metavar="metric|english", help="Of --levels: units= of the request.")
@click.option("--datum", metavar="MLLW|MHHW|MSL|...", help="Of --levels: datum= of the request.")
@click.option("--time-zone", metavar="gmt|lst",
              help="Of --levels: time_zone= of the request.")  # fmt: skip
@click.option("--metadata", type=PathArgument, metavar="JSON",
              help="The station as NOAA's metadata service gives it (expand=details,datums,"
              "floodlevels): levels are held against its record.")  # fmt: skip
@click.option(
    "--to-datum",
    metavar="MHHW|...",
    help="Convert levels, by --metadata; the simulated coasts' are above MHHW.",
)
@click.option(
    "--drop-flagged",
    is_flag=True,
    help="Make gaps of levels that NOAA flagged as inferred or out of tolerance.",
)
@click.option("--buoy", multiple=True, type=PathArgument, metavar="FILE|FOLDER",
              help="Standard meteorological files of NDBC, of one buoy: wind, waves, pressure, "
              "temperature.")  # fmt: skip
@click.option("--recipe", type=PathArgument, metavar="RECIPE",
              help="Take days and features of this recipe of places; default: 365 and all "
              "twelve.")  # fmt: skip
@click.option("--days", type=click.IntRange(7, 10_000), help="Of a series, in place of those.")
@click.option(
    "--last-day",
    "last",
    multiple=True,
    callback=_days,
    metavar="DATE[,DATE...]",
    help="Last day of each series (UTC, inside); default: the newest whole one.",
)
@click.option("--every", type=click.IntRange(1, 10_000), metavar="N",
              help="A series that ends on the newest whole day, and one for every N days before, "
              "as far as the files reach.")  # fmt: skip
@click.option("--least", type=click.FloatRange(0.01, 1), default=0.75, show_default=True,
              help="Share of a day that must be measured for its figures to count.")  # fmt: skip
@click.option("--add", is_flag=True, help="Add behind the series that the file has.")
@click.option(
    "--starter",
    is_flag=True,
    help="Write places.yaml and places.csv beside, to be filled in; with --recipe.",
)
@shared_options
def command(
    output: Path,
    levels: tuple[Path, ...],
    units: str | None,
    datum: str | None,
    time_zone: str | None,
    metadata: Path | None,
    to_datum: str | None,
    drop_flagged: bool,
    buoy: tuple[Path, ...],
    recipe: Path | None,
    days: int | None,
    last: list[datetime.date],
    every: int | None,
    least: float,
    add: bool,
    starter: bool,
    as_json: bool,
) -> None:
    """Make the series of a set of places from files of NOAA CO-OPS and NDBC.

    Each series is so many days of figures (highest level, waves, lowest pressure, ...); places.csv
    names them by number. Gaps stay gaps. Without --levels, or without --buoy, the figures that
    would come from there are gaps of every day. Give files from 31 days before the first day on:
    one figure looks back a month.
    """
    from edgekd.contracts.datum import differ
    from edgekd.contracts.series_daily import FEATURES
    from edgekd.contracts.series_windows import (
        last_days,
        measured,
        read_levels,
        read_weather,
        record_path,
        write_series,
    )
    from edgekd.contracts.station import read_station
    from edgekd.errors import InputError

    if last and every is not None:
        raise InputError("--last-day names the series and --every counts them; give one")
    level_files, buoy_files = _files(levels, "--levels"), _files(buoy, "--buoy")
    if not level_files and not buoy_files:
        raise InputError("nothing to read; give --levels FILE, --buoy FILE, or both")
    asked = {"--units": units, "--datum": datum, "--time-zone": time_zone}
    of_levels = {**asked, "--metadata": metadata, "--to-datum": to_datum}
    lacking = [name for name, value in asked.items() if value is None]
    if level_files and lacking:
        raise InputError(
            f"--levels needs {', '.join(lacking)} too: what was asked of NOAA with units=, datum= "
            "and time_zone=; the files do not say"
        )
    extra = [name for name, value in of_levels.items() if value is not None]
    extra += ["--drop-flagged"] if drop_flagged else []
    if not level_files and extra:
        raise InputError(f"{', '.join(extra)} is about --levels, which is missing")
    product = None if recipe is None else _recipe(recipe)
    if starter and product is None:
        raise InputError("--starter takes classes and sizes from a recipe of places; give --recipe")
    count = days or (365 if product is None else product.io.series.days)
    features = list(FEATURES if product is None else product.io.series.features)
    station = None if metadata is None else read_station(metadata)
    found = measured(
        read_levels(
            level_files, units=str(units), datum=str(datum), time_zone=str(time_zone),
            metadata=station, drop_flagged=drop_flagged, above=to_datum,
        ) if level_files else None,
        read_weather(buoy_files) if buoy_files else None,
        level_files, buoy_files,
    )  # fmt: skip
    asks = None if product is None else product.io.series.datum
    if differ(asks, found.source.datum):
        raise InputError(
            f"{recipe} takes levels above {asks}, and these are above {found.source.datum}; "
            f"convert them: --to-datum {asks}"
        )
    record = write_series(
        output, found, last or last_days(found, count, every), count, features, least, add
    )
    fresh = [at for at, item in enumerate(record.series) if item.source == len(record.sources) - 1]
    lines = _lines(record, fresh, found)
    started = _start(output, product, record) if starter and product is not None else []
    payload = {
        "series": str(output), "record": str(record_path(output)),
        "numbers": fresh, "sha256": record.sha256, "days": count, "features": features,
        "source": record.sources[-1].model_dump(mode="json"),
        "windows": [record.series[at].model_dump(mode="json") for at in fresh],
        "written": started,
    }  # fmt: skip
    emit(payload, [*lines, f"series: {output}", f"record: {record_path(output)}"], as_json)
    if as_json:
        return
    if started:
        note(f"next: fill in {', '.join(started)}; then edgekd validate {output.parent}")
    elif (output.parent / "places.yaml").is_file():
        note(f"next: name them in places.csv by number; then edgekd validate {output.parent}")


def _files(given: tuple[Path, ...], option: str) -> list[Path]:
    """The files that were named, and those of folders, by name."""
    from edgekd.errors import InputError

    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
        if not inside:
            raise InputError(f"{option} {path} is a folder without files")
        found += inside
    return found


def _recipe(path: Path) -> PlaceRecipe:
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe
    from edgekd.errors import InputError

    found = load_any_recipe(path)
    if not isinstance(found, PlaceRecipe):
        raise InputError(f"{path} makes maps, and series are of recipes of kind: places")
    return found


def _lines(record: SeriesRecord, fresh: list[int], found: Measured) -> list[str]:
    """What was read, what was done, and how much of it is measured."""
    from edgekd.contracts.series_windows import LOOK_BACK_DAYS

    source = record.sources[-1]
    lines = list(source.notes)
    if found.levels is None:
        lines.append("no levels were given: their figures are gaps")
    else:
        where = source.station or "not known: the files do not say, --metadata does"
        lines.append(f"levels: station {where}; metres above {source.datum}")
        lead = min(record.series[at].first_day for at in fresh) - found.whole_days()[0]
        if lead.days < LOOK_BACK_DAYS and "subtidal_high_m" in record.features:
            lines.append(
                f"levels begin {max(lead.days, 0)} days before the first series, and "
                f"subtidal_high_m looks back a month: its first days are gaps"
            )
    if found.weather is None:
        lines.append("no buoy was given: the figures of weather and waves are gaps")
    else:
        lines.append(f"weather: buoy {source.buoy or 'not known: the file names do not say'}")
    total = len(fresh) * record.days
    rows = []
    for name in record.features:
        days = sum(record.series[at].days_measured[name] for at in fresh)
        rows.append([name, f"{days:,}", f"{total - days:,}"])
    numbers = [
        f"series {at}: {record.series[at].first_day} to {record.series[at].last_day}"
        for at in fresh
    ]
    return [*lines, *table(["figure", "days measured", "gaps"], rows), *numbers]


def _start(output: Path, recipe: PlaceRecipe, record: SeriesRecord) -> list[str]:
    """``places.yaml`` and ``places.csv``, where they are not; what only a person knows is left."""
    import yaml

    from edgekd.contracts.artifacts import publish_file
    from edgekd.contracts.place_set import COLUMNS, SET_FILE

    of = sorted({f"NOAA CO-OPS {item.station}" for item in record.sources if item.station})
    datums = [item.datum for item in record.sources if item.datum]  # one, or none
    of += sorted({f"NDBC {item.buoy}" for item in record.sources if item.buoy})
    about = {
        "schema": 1, "name": f"{recipe.name}-places", "simulated": False,
        "classes": [{"name": item.name, "facts": {}} for item in recipe.io.classes],
        "image_px": recipe.io.image.tile_px,
        "series": {
            "file": output.name, "days": record.days, "features": record.features,
            **({"datum": datums[0]} if datums else {}),
        },
        "table": "places.csv",
    }  # fmt: skip
    head = (
        "# To be added: 'source' (whose pictures and texts these are; the series are of "
        f"{', '.join(of) or 'NOAA'}),\n# 'licence', 'gsd_m' (metres of a pixel), of each class "
        "what rules ask (height_m, setback_m,\n# floor_m), and 'rules: rules.yaml' where there "
        "are some.\n"
    )
    texts = {
        SET_FILE: head + yaml.safe_dump(about, sort_keys=False, width=100),
        "places.csv": ",".join(COLUMNS) + "\n",
    }
    made = []
    for name, text in texts.items():
        place = output.parent / name
        if place.exists():
            note(f"note: {place} is there and stays as it is")
            continue
        with publish_file(place) as part:
            part.write_text(text, encoding="utf-8")
        made.append(str(place))
    return made
