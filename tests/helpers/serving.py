"""``edgekd serve`` with the model of :mod:`tests.helpers.places`: here, or as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx

from edgekd.serve.app import ROUTES, make_app
from edgekd.serve.figures import Figures
from edgekd.serve.gate import Gate
from edgekd.serve.power import PowerWatch
from edgekd.serve.service import Bounds, Service
from edgekd.serve.tokens import Tokens
from tests.helpers.places import DAYS, FEATURES, FakePlaces
from tests.helpers.rules import Clock, towers
from tests.helpers.signals import by_default

ROOT = Path(__file__).resolve().parents[2]
YAML = {"content-type": "application/yaml", "x-who": "Ana"}


def series(level_m: float = 0.0, wind_m_s: float | None = 5.0) -> list[list[float | None]]:
    """Forty days that are all alike."""
    return [[level_m, wind_m_s]] * DAYS


assert len(FEATURES) == 2


class Served:
    """A service in this process, asked without a socket.

    Args:
        folder: of the rules.
        rules: to begin with; None is a store without.
        more: for :class:`Service`.
    """

    def __init__(
        self, folder: Path, rules: str | None = None, model: FakePlaces | None = None,
        tokens: Tokens | None = None, hosts: frozenset[str] | None = None,
        warm: bool = True, **more: Any,
    ) -> None:  # fmt: skip
        self.model = model or FakePlaces()
        self.figures = Figures(tuple(ROUTES))
        self.service = Service(
            self.model, folder, self.figures, more.pop("bounds", Bounds()),
            more.pop("power", PowerWatch("none")), clock=more.pop("clock", Clock()), **more,
        )  # fmt: skip
        if rules is not None:
            self.service.store.put(rules, "the test")
        self.failed = False
        self.service.start(self._fail)
        if warm:
            end = time.monotonic() + 10
            while not self.service._answered and time.monotonic() < end:
                time.sleep(0.005)
        self.app: Gate = make_app(self.service, tokens, hosts)

    def _fail(self) -> None:
        self.failed = True

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self.model.go.set()
        self.service.close()

    def run(self, talk: Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]) -> Any:
        """What a coroutine that is given a client gives back."""

        async def whole() -> Any:
            transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as one:
                return await talk(one)

        return asyncio.run(whole())

    def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """One request."""

        async def talk(client: httpx.AsyncClient) -> httpx.Response:
            return await client.request(method, path, **more)

        found: httpx.Response = self.run(talk)
        return found

    def predict(self, *places: dict[str, Any]) -> httpx.Response:
        """``POST /v1/predict``."""
        return self.ask("POST", "/v1/predict", json={"places": list(places)})

    def put(self, text: str, **headers: str | bytes) -> httpx.Response:
        """``PUT /v1/constraints``."""
        return self.ask("PUT", "/v1/constraints", content=text, headers=YAML | headers)


class Process:
    """``edgekd serve`` as a process.

    Args:
        folder: gets the store ``rules``, and the file of the fake's arguments.
        arguments: of the command, beside the port.
        fake: of :class:`FakePlaces`.
    """

    def __init__(
        self, folder: Path, *arguments: str, rules: str | None = None,
        environment: dict[str, str] | None = None, **fake: Any,
    ) -> None:  # fmt: skip
        folder.mkdir(exist_ok=True)
        bundle = folder / "bundle"
        bundle.mkdir(exist_ok=True)
        (bundle / "fake.json").write_text(json.dumps(fake))
        given = []
        if rules is not None:
            (folder / "rules.yaml").write_text(rules)
            given = ["--rules", str(folder / "rules.yaml")]
        self._errors = (folder / "stderr").open("w+")
        self.child = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.places", str(bundle), "--port", "0", "--json",
             "--store", str(folder / "store"), *given, *arguments],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            preexec_fn=by_default, env=os.environ | (environment or {}),
        )  # fmt: skip
        assert self.child.stdout is not None
        said = ""
        for line in self.child.stdout:
            said += line
            if line == "}\n":
                break
        if not said.endswith("}\n"):
            self.child.wait(10)
            raise AssertionError(f"{self.child.returncode}: {self.stderr()}")
        self.said: dict[str, Any] = json.loads(said)
        self.url: str = self.said["url"]
        self.port = int(self.url.rpartition(":")[2])

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.communicate(timeout=30)
        self._errors.close()

    def stderr(self) -> str:
        """What was said there."""
        self._errors.flush()
        return Path(self._errors.name).read_text()

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 30) -> int:
        """Send a signal; the exit code."""
        self.child.send_signal(number)
        return self.child.wait(timeout_s)

    def ready(self) -> Process:
        """Wait until it is."""
        end = time.monotonic() + 20
        while httpx.get(f"{self.url}/readyz").status_code != 200:
            assert time.monotonic() < end, httpx.get(f"{self.url}/readyz").text
            time.sleep(0.02)
        return self


def some_rules() -> str:
    """At most a quarter of towers, and a text of zone A."""
    return towers(0.25) + "texts: {A: Buildings of more than two floors need a permit.}\n"
