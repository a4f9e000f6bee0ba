"""``edgekd serve``: a bundle that answers for places, as a web service."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgekd.cli._common import PathArgument, emit, note, shared_options, signer_option

if TYPE_CHECKING:
    from edgekd.serve.rules import RuleStore


@click.command("serve")
@click.argument("bundle", type=PathArgument)
@click.option(
    "--rules", type=PathArgument,
    help="Rules to begin with (YAML or JSON); those that the store has already stay.",
)  # fmt: skip
@click.option(
    "--store", type=PathArgument, metavar="FOLDER",
    help="Where rules and their trail are kept; default: BUNDLE-rules, beside it.",
)  # fmt: skip
@click.option("--time-zone", default="UTC", show_default=True, metavar="NAME",
              help="Whose midnight begins a day of the law, e.g. Europe/Lisbon.")  # fmt: skip
@click.option(
    "--trust-clock", is_flag=True,
    help="Answer though the rules in force were put later than the clock says.",
)  # fmt: skip
@click.option(
    "--host", default="127.0.0.1", show_default=True, metavar="ADDRESS",
    help="Any but a loopback address needs a token; 0.0.0.0 is all of this machine.",
)  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
              help="0: any that is free; it is told.")  # fmt: skip
@click.option(
    "--token-file", type=PathArgument, metavar="FILE",
    help="A line for each who may ask: TOKEN, or NAME TOKEN; EDGEKD_SERVE_TOKEN holds the same.",
)  # fmt: skip
@click.option("--allow-host", multiple=True, metavar="NAME",
              help="What it is called besides localhost, e.g. behind a proxy.")  # fmt: skip
@click.option("--power", default="auto", show_default=True,
              metavar="auto|none|SENSOR|replay:FILE",
              help="Where power is read; edgekd doctor lists the sensors.")  # fmt: skip
@click.option(
    "--waiting", type=click.IntRange(0, 1000), default=32, show_default=True,
    help="Requests that may wait for the model; further ones get 503 and Retry-After.",
)  # fmt: skip
@click.option(
    "--timeout", "answer_s", type=click.FloatRange(0.1, 600), default=10.0, show_default=True,
    help="For a request to arrive, and for its answer, s.",
)  # fmt: skip
@click.option("--max-body", "body_mib", type=click.FloatRange(0.01, 256), default=4.0,
              show_default=True, help="Of a request for answers, MiB.")  # fmt: skip
@click.option("--threads", type=click.IntRange(0, 256), metavar="N",
              help="Cores for an answer, 0: all; default: what the target says.")  # fmt: skip
@click.option("--any-device", is_flag=True, help="Serve a bundle of another architecture.")
@signer_option
@shared_options
def command(
    bundle: Path,
    rules: Path | None,
    store: Path | None,
    time_zone: str,
    trust_clock: bool,
    host: str,
    port: int,
    token_file: Path | None,
    allow_host: tuple[str, ...],
    power: str,
    waiting: int,
    answer_s: float,
    body_mib: float,
    threads: int | None,
    any_device: bool,
    signer: list[Path] | None,
    as_json: bool,
) -> None:
    """Answer for places over HTTP, every answer on the rules in force.

    POST /v1/predict answers, GET and PUT /v1/constraints read and change the rules, / is a live
    page. Rules are kept across restarts, kill -9 included. Ends cleanly on SIGTERM and Ctrl-C.
    """
    from edgekd.errors import InputError
    from edgekd.serve.server import bind, url_of
    from edgekd.serve.tokens import VARIABLE, read_tokens

    tokens = read_tokens(token_file)
    bound, loopback = bind(host, port)
    with bound:
        if not loopback and tokens is None:
            raise InputError(
                f"{host} can be reached from other machines, and whoever reaches it could change "
                f"the rules; give a token (--token-file, or {VARIABLE}), or serve on 127.0.0.1"
            )
        if allow_host and not loopback:
            raise InputError(
                f"--allow-host is of a service that this machine alone reaches, and {host} is any "
                "name that leads here; leave it out, or serve on 127.0.0.1"
            )
        from edgekd.runtime import places
        from edgekd.serve.app import ROUTES, make_app
        from edgekd.serve.figures import Figures
        from edgekd.serve.gate import local_hosts
        from edgekd.serve.power import PowerWatch
        from edgekd.serve.server import run
        from edgekd.serve.service import Bounds, Service

        figures = Figures(tuple(ROUTES))
        bounds = Bounds(
            waiting=waiting, requests=waiting + 8, body_bytes=int(body_mib * (1 << 20)),
            body_s=answer_s, answer_s=answer_s, head_s=answer_s,
        )  # fmt: skip
        watch = PowerWatch(power, each=figures.power)
        folder = store or bundle.resolve().with_name(f"{bundle.resolve().name}-rules")
        with places.open_places(bundle, signer, any_device, threads) as model:
            service = Service(model, folder, figures, bounds, watch, time_zone,
                              trust_clock=trust_clock)  # fmt: skip
            begun = _begin(service.store, rules)
            app = make_app(service, tokens, local_hosts(allow_host) if loopback else None)
            url = url_of(bound)

            def listening() -> None:
                version, asks = service.store.version, service.asks
                late = service.store.clock_fault()
                if late:
                    note(f"note: nothing is answered until {late}")
                now = watch.now()
                made = "learned from a SIMULATED set, so its answers are no advice"
                if not loopback:
                    note("note: what goes over the network is not encrypted, the token neither; "
                         "put a proxy with TLS before it, or use a tunnel")  # fmt: skip
                emit(
                    {
                        "url": url, "bundle": asks.name, "simulated": asks.simulated,
                        "store": str(folder), "rules_version": version, "time_zone": time_zone,
                        "day": None if late else service.store.today().isoformat(),
                        "token": tokens is not None,
                        "loopback": loopback, "power": now.sensor or None, "power_why": now.why,
                    },
                    [
                        f"{asks.name} answers at {url} ({len(asks.classes)} classes"
                        f"{'; ' + made if asks.simulated else ''})",
                        f"rules: {begun or 'none yet, so nothing is answered'}, kept in {folder}; "
                        f"days begin at midnight of {time_zone}",
                        f"who may ask: {'whoever has a token' if tokens else 'this machine alone'}",
                        f"power: {now.sensor or now.why}",
                    ],
                    as_json,
                )  # fmt: skip
                if not as_json:
                    who = ' -H "Authorization: Bearer $TOKEN"' if tokens else ""
                    put = (f"curl -T RULES.yaml -H 'Content-Type: application/yaml' -H 'X-Who: YOU'"
                           f"{who} {url}/v1/constraints")  # fmt: skip
                    note(f"next: {f'open {url} in a browser' if version else put}")

            if not run(service, app, bound, listening):
                # what still runs would be waited for, and the store is safe from a kill
                note("note: an answer, or rules that were being checked, were given up; the rules "
                     "in force stay")  # fmt: skip
                sys.stdout.flush()
                os._exit(0)


def _begin(store: RuleStore, rules: Path | None) -> str:
    """The rules in force, in words; those of the file are put where there are none."""
    from edgekd.cli._rules import named
    from edgekd.contracts.artifacts import read_bytes
    from edgekd.errors import EdgeKDError

    if rules is not None and not store.version:
        data = read_bytes(rules)
        try:
            store.put(data, f"--rules {rules.name}"[:200], expected=0)
        except EdgeKDError as err:
            raise named(err, rules, data) from err
    elif rules is not None and store.current().text != read_bytes(rules):
        note(f"note: the store has rules, version {store.version}, by {store.current().who}, and "
             f"they stay; {rules} is not taken (put it over HTTP to change them)")  # fmt: skip
    if not store.version:
        return ""
    found = store.current()
    return f"version {found.version} of '{found.policy.name}', by {found.who}"
