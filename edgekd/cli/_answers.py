"""Commands about bundles and checkpoints of places: build, eval, run, inspect, validate."""

from __future__ import annotations

import csv
import datetime
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgekd.cli._common import CACHE_NAME, emit, note, percent, progress_bar, table

if TYPE_CHECKING:
    from edgekd.contracts.evidence import Float32
    from edgekd.contracts.manifest import Manifest, TextEncoderDone
    from edgekd.contracts.place_recipe import PlaceRecipe
    from edgekd.contracts.place_set import PlaceSet
    from edgekd.contracts.policy import Policy
    from edgekd.deploy.places import WriteEncoder
    from edgekd.runtime.places import PlaceSession
    from edgekd.train.places.text import TextEncoder

#: texts of a set that an encoder's file is compared on
_TRIED_TEXTS = 64
#: places that are asked about at once by ``edgekd run``
_BATCH = 32
#: texts that a bundle's encoder reads from one sign of life to the next
_TEXTS_AT_ONCE = 16


def answers_for_places(bundle: Path, signer: list[Path] | None) -> bool:
    """Whether a bundle answers for places; its signer is checked first, where one is required."""
    from edgekd.contracts.trust import requirements
    from edgekd.runtime.bundle import open_bundle

    return open_bundle(bundle, requirements(signer)).manifest.evidence is not None


def day_of(text: str | None) -> datetime.date | None:
    """The value of ``--day``."""
    if text is None:
        return None
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as err:
        raise click.BadParameter(
            f"expected a day like 2026-04-30, received '{text}'", param_hint="--day"
        ) from err


def load_set(path: Path, labels: bool = True) -> PlaceSet:
    """A set of places; one that names rules which are not there says so first.

    Raises:
        InputError: see :func:`edgekd.contracts.place_set.load_places`.
    """
    from edgekd.contracts.place_set import SET_FILE, PlaceSetFile, load_places
    from edgekd.contracts.schema import load_document
    from edgekd.errors import InputError

    file = path if path.is_file() else path / SET_FILE
    if file.is_file():
        rules = load_document(PlaceSetFile, file).rules
        if rules is not None and not (file.parent / rules).is_file():
            raise InputError(
                f"{file} names the rules {rules}, and there is no {file.parent / rules}; put the "
                "file there, or take the key 'rules' out of it"
            )
    return load_places(path, labels)


def build(
    recipe: PlaceRecipe,
    recipe_path: Path,
    target: str,
    checkpoint: Path | None,
    output: Path | None,
    data: Path | None,
    calibration: Path | None,
    embeddings: Path | None,
    text_encoder: str,
    as_json: bool,
) -> None:
    """``edgekd build`` of a recipe of places."""
    from edgekd.contracts.place_evidence import read_embeddings
    from edgekd.contracts.place_recipe import place_root
    from edgekd.contracts.place_set import SET_FILE
    from edgekd.contracts.target import load_target
    from edgekd.deploy.bundle import default_folder
    from edgekd.deploy.place_samples import check_enough
    from edgekd.deploy.places import build_places
    from edgekd.deploy.quantize.lower import asked_of

    source = checkpoint or Path("runs") / f"{recipe.name}-distill"
    place = data or place_root(recipe, recipe_path)
    places, vectors, encoder = None, None, None
    if data is not None or (place / SET_FILE).is_file():
        places = load_set(place)
        named = target in recipe.targets and load_target(target).backend == "onnxrt"
        if named and asked_of(recipe, load_target(target)) != ["fp32"]:
            check_enough(recipe, places, calibration)  # before minutes of embedding texts
    else:
        note(
            f"note: {place} is not here, so there are no real places to compare on; made-up ones "
            "are used and the manifest says so (--data gives another place)"
        )
    if embeddings is not None and places is not None:
        vectors = read_embeddings(embeddings, places, recipe.io.text)
    elif embeddings is not None:
        raise click.UsageError("--embeddings are those of a set, and there is none; give --data")
    if text_encoder != "none" or (places is not None and vectors is None):
        found = _training_encoder(recipe, recipe_path.resolve().parent, source)
        if places is not None and vectors is None:
            vectors = _embedded(places, found, source)
        if text_encoder != "none":
            encoder = _writer(found, text_encoder, places)
    out = output or default_folder(recipe, target)
    result = build_places(
        recipe, target, source, out, places, vectors,
        None if as_json else lambda text: note(f"build: {text}"),
        encoder=encoder, saved=calibration,
    )  # fmt: skip
    manifest = result.manifest
    emit(
        {"bundle": str(out), "manifest": manifest.plain()},
        [
            *(
                f"gate {gate.name}: {gate.value:.4g}, {gate.sense} {gate.bound:.4g} "
                f"({gate.unit}; {gate.detail})"
                for gate in manifest.gates
            ),
            f"bundle: {out} ({manifest.precision.done}, {len(manifest.files)} files, sealed)",
            *simulated_lines(manifest),
        ],
        as_json,
    )
    if not as_json:
        here = manifest.target.arch == platform.machine()
        first = "" if here else f"copy {out} to the {target}, and there: "
        note(f"next: {first}edgekd validate {out}; edgekd run {out} SET -o answers.csv "
             "--rules FILE")  # fmt: skip


def _training_encoder(recipe: PlaceRecipe, folder: Path, checkpoint: Path) -> TextEncoder:
    """The encoder of texts that the recipe names, in torch, if a checkpoint learned with it."""
    from edgekd.contracts.optional import require

    require("torch", "train", "make embeddings of texts (or give them with --embeddings)")
    from edgekd.train.places.checkpoint import check_same_text, load_places_checkpoint
    from edgekd.train.places.run import text_encoder

    learned = load_places_checkpoint(checkpoint).text
    found = text_encoder(recipe, folder)
    check_same_text({"name": found.name, "sha256": found.sha256}, learned, str(checkpoint))
    return found


def _embedded(places: PlaceSet, encoder: TextEncoder, source: Path) -> Float32:
    """Embeddings of a set's texts, kept where ``edgekd distill`` keeps them."""
    from edgekd.contracts.place_evidence import row_embeddings
    from edgekd.train.places.text import embeddings_of

    cache = (source if source.is_dir() else source.parent) / CACHE_NAME
    return row_embeddings(
        places, encoder.width, lambda texts: embeddings_of(texts, encoder, cache, note)
    )


def _writer(encoder: TextEncoder, precision: str, places: PlaceSet | None) -> WriteEncoder:
    """What puts an encoder into a bundle, tried on the set's own texts where there is one."""
    from edgekd.deploy.export.text_encoder import TRIAL_TEXTS, export_text_encoder

    own = [] if places is None else places.texts
    tried = own[:_TRIED_TEXTS] if len(own) > 1 else TRIAL_TEXTS

    def write(folder: Path) -> TextEncoderDone:
        return export_text_encoder(encoder, folder, precision, tried)  # type: ignore[arg-type]

    return write


def vectors_for(
    session: PlaceSession, places: PlaceSet, embeddings: Path | None, split: str
) -> Float32:
    """Embeddings of the texts of a split: from a file, or by the bundle's own encoder."""
    import numpy as np

    from edgekd.contracts.place_evidence import check_embeddings, read_embeddings, row_embeddings
    from edgekd.report.places import require_same_encoder

    text = session.evidence.text
    if embeddings is not None:
        found = read_embeddings(embeddings, places, text)
        require_same_encoder(session, places, found, str(embeddings))
        return found

    def embed(texts: list[str]) -> Float32:
        found = []
        with progress_bar("texts", "text") as update:
            for first in range(0, len(texts), _TEXTS_AT_ONCE):
                found.append(session.embed(texts[first : first + _TEXTS_AT_ONCE]))
                update(min(first + _TEXTS_AT_ONCE, len(texts)), len(texts))
        return np.concatenate(found)

    return check_embeddings(row_embeddings(places, text.width, embed, split), places, text)


def evaluate_bundle(
    model: Path, data: Path, split: str, any_device: bool, signer: list[Path] | None,
    embeddings: Path | None, day: datetime.date,
) -> dict[str, Any]:  # fmt: skip
    """Figures of a bundle over a split of a set."""
    from edgekd.contracts.place_evaluation import evaluate_places
    from edgekd.contracts.place_evidence import PlaceReader, check_fits
    from edgekd.runtime.places import open_places

    places = load_set(data)
    with open_places(model, signer, any_device) as session:
        manifest, evidence = session.manifest, session.evidence
        check_fits(str(model), manifest.classes, manifest.inputs[0], evidence.series, places)
        vectors = vectors_for(session, places, embeddings, split)
        reader = PlaceReader(places, manifest.inputs[0], vectors)
        with progress_bar("eval", "place") as update:
            result = evaluate_places(
                session.answer, reader, split, evidence.facts, session.rows, day, update
            )
        return {
            "what": "bundle of places",
            "model": manifest.name,
            "model_sha256": manifest.files[manifest.model],
            **result,
            "simulated": result["simulated"] or session.simulated,
        }


def evaluate_checkpoint(
    model: Path, data: Path, split: str, embeddings: Path | None, day: datetime.date
) -> dict[str, Any]:
    """The same figures of a checkpoint, with torch."""
    from edgekd.contracts.artifacts import sha256_file
    from edgekd.contracts.place_evaluation import evaluate_places
    from edgekd.contracts.place_evidence import read_embeddings
    from edgekd.deploy.place_samples import open_reader
    from edgekd.train.checkpoint import BEST_NAME, in_folder
    from edgekd.train.places.ask import asked_of_checkpoint
    from edgekd.train.places.checkpoint import load_places_checkpoint

    checkpoint = load_places_checkpoint(model)
    recipe = checkpoint.parsed_recipe(str(model))
    places = load_set(data)
    if embeddings is not None:
        vectors = read_embeddings(embeddings, places, recipe.io.text)
    else:
        vectors = _embedded(places, _training_encoder(recipe, Path.cwd(), model), model)
    reader = open_reader(recipe, places, vectors)
    ask = asked_of_checkpoint(checkpoint, str(model))
    with progress_bar("eval", "place") as update:
        result = evaluate_places(ask, reader, split, {}, recipe.io.rules.rows, day, update)
    return {
        "what": "checkpoint of places",
        "model": f"{recipe.name} ({checkpoint.student['name']})",
        "model_sha256": sha256_file(in_folder(model, BEST_NAME)),
        "tuning": checkpoint.tuning,
        **result,
        "simulated": result["simulated"] or bool(checkpoint.tuning.get("simulated")),
    }


def figure_lines(result: Mapping[str, Any]) -> list[str]:
    """What ``edgekd eval`` prints."""
    rows = []
    for name, both in result["evidence"].items():
        for when in ("before", "after"):
            item = both[when]
            if item is None:
                continue
            law = item["compliance"]
            fewer = both["places"] < result["places"]
            said = f"{name} ({both['places']} places)" if fewer else name
            rows.append([
                f"{said}, {when} the rules" if both["after"] else said,
                percent(item["accuracy"]),
                percent(item["balanced_accuracy"]),
                f"{item['ece']:.3f}",
                "-" if law is None else percent(law["obey"]),
                "-" if law is None else percent(law["winners_obey"]),
                "-" if law is None else f"{law['worst_past']:.2g}",
            ])  # fmt: skip
    head = ["evidence", "accuracy", "balanced", "ECE", "obey", "top class obeys", "worst past"]
    rules = result["rules"]
    return [
        *table(head, rows),
        "no rules come with the set"
        if rules is None
        else f"rules {rules['name']} ({rules['sha256'][:12]}…) on {result['day']}",
        f"{result['places']} places of {result['data']}, split {result['split']}, "
        f"{result['seconds']:.1f} s; ECE over {result['ece_bins']} bins",
        *(["SIMULATED: the set or what was learned was computed"] if result["simulated"] else []),
    ]


def run(
    bundle: Path, source: Path, output: Path, rules: str | None, zone_column: str, split: str,
    day: datetime.date, embeddings: Path | None, any_device: bool, signer: list[Path] | None,
    as_json: bool,
) -> None:  # fmt: skip
    """``edgekd run`` of a bundle of places: an answer for each place of a set, as CSV."""
    from edgekd.contracts.artifacts import publish_file
    from edgekd.contracts.place_evaluation import same_facts
    from edgekd.contracts.place_evidence import PlaceReader, check_fits, rules_of_zones
    from edgekd.errors import InputError, OutputError
    from edgekd.runtime.places import open_places

    if output.suffix != ".csv":
        raise OutputError(f"answers for places are a .csv file, received {output}")
    places = load_set(source, labels=False)
    policy = policy_of(rules, places)
    with open_places(bundle, signer, any_device) as session, publish_file(output) as part:
        manifest, evidence = session.manifest, session.evidence
        check_fits(str(bundle), manifest.classes, manifest.inputs[0], evidence.series, places)
        vectors = vectors_for(session, places, embeddings, split)
        reader = PlaceReader(places, manifest.inputs[0], vectors)
        chosen = reader.rows_of(split)
        zones = [str(getattr(places.rows[at], zone_column)) for at in chosen]
        known = {}
        if policy is not None:
            policy.require_datum(evidence.series.datum, f"{bundle} takes")
            unknown = sorted(set(zones) - set(policy.zones))
            if unknown:
                raise InputError(
                    f"column {zone_column} of {places.root} names {', '.join(unknown[:4])}, and "
                    f"the rules {policy.name} have the zones {', '.join(policy.zones)}; name "
                    "another column with --zone-column"
                )
            facts = same_facts(evidence.facts, places.facts, str(places.root))
            known = rules_of_zones(policy, zones, day, session.classes, facts, session.rows)
        simulated = session.simulated or places.about.simulated
        counts = dict.fromkeys(session.classes, 0)
        changed = 0
        with (
            part.open("w", encoding="utf-8", newline="") as file,
            progress_bar("run", "place") as update,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow([
                "name", "zone", "answer", "probability", "answer_without_rules",
                "probability_without_rules", "simulated",
                *(f"p_{name}" for name in session.classes),
            ])  # fmt: skip
            for first in range(0, len(chosen), _BATCH):
                cut = slice(first, first + _BATCH)
                limits = [known[zone].limits for zone in zones[cut]] if known else None
                answers = session.answer([reader(at) for at in chosen[cut]], limits)
                for at, zone, after, before in zip(
                    chosen[cut], zones[cut], answers.probabilities, answers.before, strict=True
                ):
                    top, free = int(after.argmax()), int(before.argmax())
                    counts[session.classes[top]] += 1
                    changed += top != free
                    rows.writerow([
                        places.rows[at].name, zone, session.classes[top], f"{after[top]:.6f}",
                        session.classes[free], f"{before[free]:.6f}", str(simulated).lower(),
                        *(f"{value:.6f}" for value in after),
                    ])  # fmt: skip
                update(first + len(answers.scores), len(chosen))
    relaxed = {zone: item.relaxed for zone, item in known.items() if item.relaxed}
    payload = {
        "output": str(output), "places": len(chosen), "answers": counts,
        "changed_by_rules": changed, "simulated": simulated,
        "rules": None if policy is None else {
            "name": policy.name, "sha256": policy.digest, "day": day.isoformat(),
            "relaxed": relaxed,
        },
    }  # fmt: skip
    emit(
        payload,
        [
            *table(["answer", "places"], [[name, str(count)] for name, count in counts.items()]),
            f"no rules; {len(chosen)} places"
            if policy is None
            else f"rules {policy.name} on {day}; they changed the answer of {changed} of "
            f"{len(chosen)} places",
            *(f"zone {zone}: {said}" for zone, lines in relaxed.items() for said in lines),
            *(["SIMULATED: the places or what was learned were computed"] if simulated else []),
            f"answers: {output}",
        ],
        as_json,
    )


def policy_of(rules: str | None, places: PlaceSet | None) -> Policy | None:
    """The rules that were asked for: a file, the set's own, or none."""
    from edgekd.contracts.place_evidence import set_rules
    from edgekd.contracts.policy import load_policy
    from edgekd.errors import InputError

    if rules is None:
        raise InputError(
            "answers for places are given by rules; name them with --rules FILE, --rules set "
            "(those that come with the set), or say --rules none"
        )
    if rules == "none":
        return None
    if rules == "set" and places is not None:
        found = set_rules(places)
        if found is None:
            raise InputError(f"{places.root} has no rules of its own; give --rules FILE or none")
        return found
    return load_policy(Path(rules))


def simulated_lines(manifest: Manifest) -> list[str]:
    """The sentence that a bundle of a simulated set is never shown without."""
    evidence = manifest.evidence
    if evidence is None or not evidence.simulated:
        return []
    return ["SIMULATED: its student learned from a computed set, not from measurements"]


def manifest_lines(manifest: Manifest) -> list[str]:
    """What ``edgekd inspect`` says of the inputs of a bundle of places."""
    from edgekd.contracts.plausible import ranges_of

    evidence = manifest.evidence
    assert evidence is not None
    spec, encoder = manifest.inputs[0], evidence.text_encoder
    by = "embeddings alone" if encoder is None else (
        f"texts of {encoder.max_tokens} tokens by {encoder.name}, {encoder.precision}"
    )  # fmt: skip
    facts = {
        name: ", ".join(f"{key} {value:g}" for key, value in item.model_dump().items()
                        if value is not None)
        for name, item in evidence.facts.items()
    }  # fmt: skip
    return [
        f"input {spec.name}: {spec.channels}, {spec.tile_px} px",
        f"input {evidence.series.name}: {evidence.series.days} days of "
        f"{', '.join(evidence.series.features)}; levels are above "
        f"{evidence.series.datum or 'a datum that was not said in training'}",
        f"input {evidence.text.name}: embeddings of {evidence.text.width}, {by}",
        f"rules: room for {evidence.rules.rows}; every answer obeys those that it is given",
        *(
            f"feature {name}: {given}"
            for name, given in zip(
                evidence.series.features, ranges_of(evidence.series), strict=True
            )
        ),
        *(f"class {name}: {said}" for name, said in facts.items() if said),
        *simulated_lines(manifest),
    ]


def checkpoint_lines(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What ``edgekd inspect`` says of a checkpoint of places."""
    from edgekd.train.places.checkpoint import load_places_checkpoint

    found = load_places_checkpoint(path)
    recipe, tuning = found.parsed_recipe(str(path)), found.tuning
    payload = {
        "student": found.student, "data": found.data, "tuning": tuning, "text": found.text,
        "recipe": found.recipe,
    }  # fmt: skip
    return payload, [
        f"checkpoint of recipe '{recipe.name}', which answers for places",
        f"student {found.student['name']} ({found.student['parameters'] / 1e6:.2f} M parameters)",
        f"trained on {found.data['name']}, {tuning.get('steps', 'some')} steps",
        f"embeddings by {found.text.get('name', 'given ones')}",
        f"classes: {', '.join(item.name for item in recipe.io.classes)}",
        *(["SIMULATED: the set was computed, not measured"] if tuning.get("simulated") else []),
    ]


def validate_recipe(recipe: PlaceRecipe, path: Path, presets: list[str]) -> dict[str, Any]:
    """What ``edgekd validate`` says of a recipe of places, and of its set where it is here."""
    from edgekd.cli._place_sets import set_lines
    from edgekd.contracts.place_evidence import check_fits
    from edgekd.contracts.place_recipe import place_root
    from edgekd.contracts.place_set import SET_FILE

    root = place_root(recipe, path)
    data = [f"data: {root} is not on this machine, so it was not looked at"]
    if (root / SET_FILE).is_file():
        places = load_set(root)
        io = recipe.io
        check_fits(f"recipe '{recipe.name}'", io.classes, io.image, io.series, places)
        data = set_lines(places)
    also = f", presets {', '.join(presets)}" if presets else ""
    teachers = ", ".join(f"{item.called} ({item.sees})" for item in recipe.teachers) or "none"
    return {
        "kind": "recipe of places",
        "summary": f"valid recipe of places '{recipe.name}', student {recipe.student.name}, "
        f"teachers {teachers}, {len(recipe.io.classes)} classes, room for {recipe.io.rules.rows} "
        f"rules, targets {', '.join(recipe.targets)}{also}",
        "data": data,
    }
