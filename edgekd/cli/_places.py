"""Commands of recipes of places: what they share, and ``edgekd distill``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.cli._common import CACHE_NAME, emit, note, progress_bar, repeated, run_folder

if TYPE_CHECKING:
    from edgekd.contracts.place_recipe import PlaceRecipe
    from edgekd.train.places.run import OpenedPlaces


def open_for(recipe: PlaceRecipe, recipe_path: Path, root: Path, cache: Path) -> OpenedPlaces:
    """The set of a recipe with the embeddings of its texts; the first time takes a while."""
    from edgekd.train.places.run import open_for_training

    note(f"embeddings of {root}'s texts by {recipe.io.text.encoder}, kept in {cache}")
    return open_for_training(recipe, recipe_path.resolve().parent, root, cache, note)


def distill(
    recipe: PlaceRecipe,
    recipe_path: Path,
    out: Path,
    data: tuple[Path, ...],
    resume: bool,
    fresh: bool,
    accelerator: str,
    processes: int,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Teachers of one kind of evidence each, and the student."""
    from edgekd.contracts.place_recipe import place_root
    from edgekd.errors import InputError
    from edgekd.train.places.run import distill_places
    from edgekd.train.places.task import said_of_seen

    if processes > 1:
        raise InputError("recipes of places run in one process; leave --devices and --nodes out")
    if len(data) > 1:
        raise InputError(f"a recipe of places takes one set, received {len(data)} times --data")
    place = data[0] if data else place_root(recipe, recipe_path)
    with run_folder(out), progress_bar("distill", "step") as update:
        opened = open_for(recipe, recipe_path, place, out / CACHE_NAME)
        result = distill_places(
            recipe,
            recipe_path.resolve().parent,
            opened.data,
            opened.text,
            out,
            cache=out / CACHE_NAME,
            resume=resume,
            fresh=fresh,
            accelerator=accelerator,
            progress=update,
            say=note,
        )
    done: dict[str, Any] = result.distilled
    losses = ", ".join(f"{name} {value:.4f}" for name, value in done["losses"].items())
    shares = ", ".join(f"{kind} {100 * part:.0f} %" for kind, part in done["shares"].items())
    emit(
        {"checkpoint": str(result.path), **done},
        [
            f"student: {done['steps']} steps in {done['seconds']:.0f} s; {losses}",
            *([f"shares of the teachers: {shares}"] if shares else []),
            f"seen: {said_of_seen(done['seen'])}",
            f"checkpoint: {result.path}",
            *(
                ["SIMULATED data: figures made with it are no measurements"]
                if done["simulated"]
                else []
            ),
        ],
        as_json,
    )
    if not as_json:
        note(f"next: edgekd eval {result.path} --data {place}")
        note(
            f"      edgekd build {recipe_path} --target {recipe.targets[0]} --checkpoint {out}"
            f"{repeated(overrides)}"
        )
