"""Files of rules on the command line: what they say in words, and faults by file and line."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekd.errors import EdgeKDError, InputError, RecipeError

if TYPE_CHECKING:
    from edgekd.contracts.policy import ClassFacts, Policy, Rule
    from edgekd.contracts.policy_rows import ZoneRules
    from edgekd.contracts.schema import Place

_NUMBERED = re.compile(r"line (?:[2-9]|\d\d)")
_ASKS = ("max_m", "min_m", "min_floor_m", "max", "share")


@dataclass(frozen=True)
class Against:
    """What rules are held against.

    Attributes:
        what: in words.
        classes, facts, rows: of the product; rows None where nothing says how many there may be.
        try_texts: embeds the texts of rules as the service would, or says why it cannot; None
            where there is nothing to try.
        datum: what levels, and floors in the facts, are above; None where nobody said it.
    """

    what: str
    classes: Sequence[str]
    facts: Mapping[str, ClassFacts]
    rows: int | None
    try_texts: Callable[[Sequence[str]], object] | None
    datum: str | None = None


def is_rules(value: Mapping[str, Any]) -> bool:
    """Whether the values of a file are those of rules, whatever is wrong with them."""
    return "student" not in value and (isinstance(value.get("rules"), list) or "zones" in value)


def named(err: EdgeKDError, path: Path, data: bytes) -> EdgeKDError:
    """A fault of a text of rules, by the file's name and, where it can be told, the line."""
    from edgekd.serve.rule_text import SOURCE

    if isinstance(err, RecipeError):
        lines = _lines(data)
        return RecipeError(str(path), [_with_line(text, lines) for text in err.problems])
    said = str(err)
    if not isinstance(err, InputError) or SOURCE not in said:
        return err
    return type(err)(said.replace(SOURCE, str(path)))


def _lines(data: bytes) -> dict[str, list[int]]:
    """``rule ID`` or ``text of zone NAME`` -> the lines where such begin."""
    from edgekd.contracts.schema import parse_yaml

    found: dict[str, list[int]] = {}
    try:
        value, lines = parse_yaml(data.decode("utf-8-sig"), "rules")
    except (InputError, UnicodeDecodeError):  # then the fault is of another kind, or it is JSON
        return found
    rules = value.get("rules")
    for number, rule in enumerate(rules if isinstance(rules, list) else []):
        if isinstance(rule, dict):
            place: Place = ("rules", number)
            found.setdefault(str(rule.get("id")), []).append(lines[place])
    texts = value.get("texts")
    for zone in texts if isinstance(texts, dict) else []:
        found[f"text of zone {zone}"] = [lines[("texts", zone)]]
    return found


def _with_line(text: str, lines: Mapping[str, list[int]]) -> str:
    """A fault with the lines of the rules that it names; the reader knows those of its own."""
    if _NUMBERED.match(text):
        return text
    bare = text.removeprefix("line 1: ")
    names = re.findall(r"\brules? ([\w.-]+)|\band ([\w.-]+) \(", bare)
    at = {line for pair in names for name in pair for line in lines.get(name, [])}
    if zone := re.search(r"text of zone '?([\w.-]+)", bare):
        at |= set(lines.get(f"text of zone {zone[1]}", []))
    if not at:
        return text
    *some, last = (str(line) for line in sorted(at))
    said = f"{', '.join(some)} and {last}" if some else last
    return f"line{'s' if len(at) > 1 else ''} {said}: {bare}"


def against_of(path: Path, signer: list[Path] | None, any_device: bool) -> Against:
    """The classes of a bundle, of a set of places, or of a recipe and its set.

    Raises:
        EdgeKDError: it is none of these, or cannot be read.
    """
    from edgekd.cli._answers import load_set
    from edgekd.contracts.place_set import SET_FILE
    from edgekd.contracts.trust import requirements

    if path.name == SET_FILE or (path / SET_FILE).is_file():
        places = load_set(path, labels=False)
        said = f"set {places.about.name}"
        return Against(said, places.classes, places.facts, None, None, places.about.series.datum)
    if not path.is_dir():
        return _of_recipe(path)
    from edgekd.runtime.bundle import open_bundle
    from edgekd.runtime.places import open_places

    manifest = open_bundle(path, requirements(signer)).manifest
    evidence = manifest.evidence
    if evidence is None:
        raise InputError(f"{path} makes maps, and rules are for bundles that answer for places")

    def try_texts(texts: Sequence[str]) -> object:
        if evidence is not None and evidence.text_encoder is None:
            raise InputError(
                f"the rules have texts, and {path} has nothing that reads texts; leave out 'texts'"
            )
        with open_places(path, signer, any_device) as session:
            return session.embed(texts)

    names = [item.name for item in manifest.classes]
    said = f"bundle {manifest.name}"
    return Against(
        said, names, evidence.facts, evidence.rules.rows, try_texts, evidence.series.datum
    )


def _of_recipe(path: Path) -> Against:
    from edgekd.cli._answers import load_set
    from edgekd.contracts.place_recipe import PlaceRecipe, load_any_recipe, place_root
    from edgekd.contracts.place_set import SET_FILE

    recipe = load_any_recipe(path)
    if not isinstance(recipe, PlaceRecipe):
        raise InputError(f"{path} makes maps, and rules are for recipes of kind: places")
    root = place_root(recipe, path)
    if not (root / SET_FILE).is_file():
        raise InputError(
            f"what rules ask of classes (heights, floors) stands in the set of {path}, {root}, "
            "which is not here; give a bundle or a set in its place"
        )
    places = load_set(root, labels=False)
    names = [item.name for item in recipe.io.classes]
    return Against(
        f"recipe {recipe.name}", names, places.facts, recipe.io.rules.rows, None,
        recipe.io.series.datum or places.about.series.datum,
    )  # fmt: skip


def validate(path: Path, against: Against | None, today: datetime.date) -> dict[str, Any]:
    """What ``edgekd validate`` says of a file of rules; checked as a service checks it.

    Raises:
        EdgeKDError: every fault, by file and line.
    """
    from edgekd.contracts.artifacts import read_bytes
    from edgekd.serve.rule_set import Compiled, Product
    from edgekd.serve.rule_text import as_bytes, parse_rules

    data = read_bytes(path)
    try:
        policy = parse_rules(as_bytes(data))
        made: Compiled | None = None
        if against is not None:
            rows = against.rows or max(len(policy.rules), 1)
            product = Product(tuple(against.classes), dict(against.facts), rows, against.datum)
            made = Compiled(policy, product)
            made.check(today)
            if policy.texts and against.try_texts is not None:
                against.try_texts(list(policy.texts.values()))
    except EdgeKDError as err:
        raise named(err, path, data) from err
    days = _days(policy, today)
    zones, lines = [], list[str]()
    before: dict[str, list[Rule]] = {}
    for day in days:
        for zone in policy.zones:
            rules = policy.in_force(zone, day)
            if zone in before and before[zone] == rules:
                continue
            before[zone] = rules
            part = _zone(zone, day, rules, None if made is None else made.limits(zone, day))
            zones.append(part)
            lines += _zone_lines(part, policy, day == today)
    unlimited = [] if against is None else _unlimited(policy, against, today)
    lines += [
        f"not limited by {', '.join(item['rules'])}, since their {item['fact']} is not said: "
        + ", ".join(item["classes"])
        for item in unlimited
    ]
    over = [r.id for r in policy.rules if r.valid.until is not None and r.valid.until <= today]
    if over:
        lines.append(f"no longer in force: {', '.join(over)}")
    if policy.texts:
        tried = against is not None and against.try_texts is not None
        lines.append(
            f"texts of {', '.join(policy.texts)}" + (", read by the bundle" if tried else "")
        )
    held = (
        "not held against any classes: say whose with --against BUNDLE"
        if against is None
        else f"held against {against.what}, {len(against.classes)} classes, "
        + ("" if against.rows is None else f"room for {against.rows} rules, ")
        + f"on {today} and {_many(len(days) - 1, 'later day')} with other rules"
    )
    return {
        "kind": "rules",
        "policy": policy.name,
        "sha256": policy.digest,
        "against": None if against is None else against.what,
        "day": today.isoformat(),
        "later_days": [day.isoformat() for day in days[1:]],
        "zones": zones,
        "not_limited": unlimited,
        "summary": f"valid rules '{policy.name}': {_many(len(policy.rules), 'rule')}, "
        f"{_many(len(policy.zones), 'zone')}; {held}",
        "data": lines,
    }


def _unlimited(policy: Policy, against: Against, today: datetime.date) -> list[dict[str, Any]]:
    """Facts that rules of today or later ask for, and the classes that do not say them."""
    from edgekd.contracts.policy_rows import unsaid

    found: dict[str, dict[str, Any]] = {}
    for rule in policy.rules:
        fact, lacking = unsaid(rule, against.classes, against.facts)
        if not lacking or (rule.valid.until is not None and rule.valid.until <= today):
            continue
        item = found.setdefault(fact, {"fact": fact, "rules": [], "classes": lacking})
        if rule.id not in item["rules"]:
            item["rules"].append(rule.id)
    return list(found.values())


def _days(policy: Policy, today: datetime.date) -> list[datetime.date]:
    """Today, and later days on which other rules begin."""
    found = [today]
    while (day := policy.next_change(found[-1])) is not None:
        found.append(day)
    return found


def _zone(
    zone: str, day: datetime.date, rules: list[Rule], made: ZoneRules | None
) -> dict[str, Any]:
    says = {} if made is None else {id(row.rule): row.says for row in made.rows}
    return {
        "zone": zone,
        "from": day.isoformat(),
        "rules": [
            {
                "id": rule.id, "priority": rule.priority, "source": rule.source,
                "says": says.get(id(rule), _plain(rule)),
            }
            for rule in sorted(rules, key=lambda item: item.priority)
        ],
        "relaxed": [] if made is None else made.relaxed,
        "without": [] if made is None else list(made.without),
        "implied": [] if made is None else list(made.implied),
    }  # fmt: skip


def _plain(rule: Rule) -> str:
    """A rule where no classes are known, or where it limits none of them."""
    given = [f"{key} {value:g}" for key in _ASKS if (value := getattr(rule, key)) is not None]
    terms = " + ".join(f"{value:g} {name}" for name, value in (rule.coefficients or {}).items())
    return " ".join([rule.type, *([terms] if terms else []), *given])


def _zone_lines(part: dict[str, Any], policy: Policy, today: bool) -> list[str]:
    when = "today" if today else f"from {part['from']} on"
    title = policy.zones[part["zone"]]
    head = f"zone {part['zone']}{f' ({title})' if title else ''}, {when}:"
    if not part["rules"]:
        return [f"{head} no rules"]
    return [
        head,
        *(
            f"  {item['priority']}. {item['id']}: {item['says']} [{item['source']}]"
            for item in part["rules"]
        ),
        *(f"  relaxed: {said}" for said in part["relaxed"]),
        *(f"  no effect: {said}" for said in part["without"]),
        *([f"  implied by the others: {', '.join(part['implied'])}"] if part["implied"] else []),
    ]


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
