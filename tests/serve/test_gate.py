"""What a stranger can ask for: whose the token is, how much, how many at once, and for how long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from edgekd.contracts.evidence import Evidence
from edgekd.errors import EdgeKDError, InputError
from edgekd.runtime.places import no_limits
from edgekd.serve.gate import OPEN, Gate, Lane, local_hosts
from edgekd.serve.service import Bounds
from edgekd.serve.tokens import Tokens, read_tokens
from edgekd.serve.wire import Problem
from edgekd.serve.worker import TOGETHER, Busy, Worker
from tests.helpers.places import FakePlaces
from tests.helpers.rules import Clock, towers
from tests.helpers.serving import YAML, Served, series

TOKEN = "the-token-of-ana-1"
ASKED = {"places": [{"zone": "A", "series": series()}]}


def test_without_a_token_nothing_is_told(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2), tokens=Tokens(f"Ana {TOKEN}", "t")) as served:
        paths = served.ask("GET", "/openapi.json", headers={"authorization": f"Bearer {TOKEN}"})
        for path, operations in [*paths.json()["paths"].items(), ("/nix", {"get": {}}),
                                 *((path, {"get": {}}) for path in OPEN)]:  # fmt: skip
            for method in operations:
                found = served.ask(method.upper(), path, json=ASKED if method != "get" else None)
                if path in OPEN:
                    assert found.status_code == 200, path
                    continue
                assert found.status_code == 401, (path, found.text)
                assert found.headers["www-authenticate"] == 'Bearer realm="edgekd"'
                assert "a token is needed" in Problem.model_validate(found.json()).error
        assert served.model.asked == 1, "the warm-up alone"
        assert served.model.batches == [TOGETHER], "memory of a crowd is taken before it comes"
        for given in ("Bearer wrong-wrong-wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN,
                      f"Bearer {TOKEN[:-1]}", "Bearer ", "Bearer é"):  # fmt: skip
            found = served.ask("GET", "/v1/status",
                               headers={"authorization": given.encode("latin-1")})  # fmt: skip
            assert found.status_code == 401 and "not known here" in found.text, given
        right = {"authorization": f"bearer  {TOKEN} "}
        assert served.ask("GET", "/v1/status", headers=right).status_code == 200
        assert served.ask("POST", "/v1/predict", json=ASKED, headers=right).status_code == 200


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whole, by digests of equal length, whichever fits."""
    from edgekd.serve import tokens

    compared: list[tuple[int, int]] = []
    real = tokens.hmac.compare_digest

    def counted(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return real(a, b)

    monkeypatch.setattr(tokens.hmac, "compare_digest", counted)
    known = Tokens(f"Ana {TOKEN}\nRui the-token-of-rui-2\n", "t")
    for given, name in ((TOKEN, "Ana"), ("x", None), ("the-token-of-rui-2", "Rui"), ("", None)):
        compared.clear()
        assert known.name_of(f"Bearer {given}") == name
        assert compared == [(32, 32)] * 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ("# none\n\n", "holds 0 tokens, expected 1 to 100; make one: python3"),
        ("short", "line 1 of .* has a token of 5 letters, expected at least 16"),
        ("# a\nAna short", "line 2 of"),
        (f"Ana {TOKEN} more", "line 1 of .* is no token"),
        ("é" * 20, "is no token"),
        (f"Ana {TOKEN}\nRui {TOKEN}", "line 2 of .* repeats a token"),
        ("\n".join(f"a-token-of-many-{n:04d}" for n in range(101)), "holds 101 tokens"),
        ("x" * 65 + f" {TOKEN}", "has a name that is no short word"),
    ],
)
def test_what_is_no_token(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "tokens").write_text(content)
    with pytest.raises(InputError, match=words) as caught:
        read_tokens(tmp_path / "tokens", {})
    assert TOKEN not in str(caught.value)


def test_where_tokens_come_from(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# of the office\nAna {TOKEN}\n")
    variable = {"EDGEKD_SERVE_TOKEN": "the-token-of-rui-2"}
    assert read_tokens(None, {}) is None
    of_file, of_variable = read_tokens(file, {}), read_tokens(None, variable)
    assert of_file is not None and of_file.name_of(f"Bearer {TOKEN}") == "Ana"
    assert of_variable is not None
    assert of_variable.name_of("Bearer the-token-of-rui-2") == "the token"
    with pytest.raises(InputError, match="both --token-file and EDGEKD_SERVE_TOKEN are given"):
        read_tokens(file, variable)
    with pytest.raises(InputError, match="holds 0 tokens"):
        read_tokens(None, {"EDGEKD_SERVE_TOKEN": ""})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "localhost"}, 200),
        ({"host": "LOCALHOST:8080"}, 200),
        ({"host": "127.0.0.1:1"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "[0:0::1]"}, 200),
        ({"host": "bay.example:443"}, 200),
        ({"host": "evil.example"}, 421),
        ({"host": "localhost.evil.example"}, 421),
        ({"host": "evil.example:127.0.0.1"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"host": ""}, 421),
        ({"host": "localhost", "origin": "http://localhost"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:1"}, 200),
        ({"host": "localhost:1", "origin": "http://localhost:2"}, 403),
        ({"host": "localhost", "origin": "https://evil.example"}, 403),
        ({"host": "localhost", "origin": "null"}, 403),
        ({"host": "localhost", "sec-fetch-site": "cross-site"}, 403),
        ({"host": "localhost", "sec-fetch-site": "same-origin"}, 200),
    ],
)
def test_pages_of_elsewhere_are_kept_out(
    tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    with Served(tmp_path, towers(0.2), hosts=local_hosts(("Bay.example",))) as served:
        for path in ("/v1/status", "/"):
            found = served.ask("GET", path, headers=headers)
            assert found.status_code == status, found.text
            if status != 200:
                Problem.model_validate(found.json())
        asked = served.ask("POST", "/v1/predict", json=ASKED, headers=headers)
        assert asked.status_code == status


def test_a_link_from_elsewhere_opens_the_page_and_nothing_else(tmp_path: Path) -> None:
    link = {"host": "localhost", "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    with Served(tmp_path, towers(0.2), hosts=local_hosts()) as served:
        found = served.ask("GET", "/", headers=link)
        assert found.status_code == 200 and "frame-ancestors 'none'" in str(found.headers)
        for headers in (link | {"sec-fetch-mode": "no-cors"}, link | {"origin": "https://x.y"}):
            assert served.ask("GET", "/", headers=headers).status_code == 403
        for method, path in (("GET", "/v1/status"), ("GET", "/v1/constraints"), ("POST", "/"),
                             ("POST", "/v1/predict")):  # fmt: skip
            assert served.ask(method, path, headers=link).status_code == 403


def test_of_a_header_that_comes_twice_the_first_counts(tmp_path: Path) -> None:
    tokens = Tokens(f"Ana {TOKEN}", "t")
    with Served(tmp_path, towers(0.2), tokens=tokens) as served:
        for values, status in (((TOKEN, "x"), 200), (("x", TOKEN), 401)):
            twice = [("authorization", f"Bearer {value}") for value in values]
            assert served.ask("GET", "/v1/status", headers=twice).status_code == status


def test_without_a_clock_it_is_not_ready_and_says_when_to_come_again(tmp_path: Path) -> None:
    clock = Clock()
    with Served(tmp_path, towers(0.2), clock=clock) as served:
        clock.now = clock.now.replace(year=1970)
        ready, asked = served.ask("GET", "/readyz"), served.predict(*ASKED["places"])
        assert ready.status_code == 503 and "set the clock" in ready.json()["reason"]
        assert asked.status_code == 503 and "set the clock" in asked.json()["error"]
        assert int(asked.headers["retry-after"]) >= 1
        assert served.put(towers(0.3)).status_code == 503
        shown = served.ask("GET", "/v1/status")
        assert shown.status_code == 200 and shown.json()["rules"]["day"] is None
        clock.now = clock.now.replace(year=2026)
        assert served.ask("GET", "/readyz").status_code == 200


def test_no_response_without_its_headers(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2)) as served:
        for path in ("/", "/page.js", "/v1/status", "/nix", "/v1/predict", "/metrics"):
            found = served.ask("GET", path)
            policy = found.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy and "http" not in policy
            assert found.headers["x-content-type-options"] == "nosniff"
            assert found.headers["cache-control"] == "no-store"
            assert "access-control-allow-origin" not in found.headers
        page = served.ask("GET", "/").text + served.ask("GET", "/page.css").text
        page += served.ask("GET", "/page.js").text
        assert "http://www.w3.org/2000/svg" in page
        assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing from outside"
        assert "innerHTML" not in page and "insertAdjacentHTML" not in page


def test_what_is_not_there_has_the_same_shape(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2)) as served:
        gone = served.ask("GET", "/v1/nothing")
        assert gone.status_code == 404
        assert "nothing at /v1/nothing; /openapi" in Problem.model_validate(gone.json()).error
        for method, path, allowed in (("GET", "/v1/predict", "POST"), ("DELETE", "/", "GET"),
                                      ("POST", "/v1/constraints", "GET, PUT")):  # fmt: skip
            found = served.ask(method, path)
            assert found.status_code == 405 and found.headers["allow"] == allowed
            said = Problem.model_validate(found.json()).error
            assert said == f"{path} does not take {method}, expected {allowed}"
        kind = served.ask("POST", "/v1/predict", content=json.dumps(ASKED),
                          headers={"content-type": "text/plain"})  # fmt: skip
        assert kind.status_code == 415 and "expected it not packed" in kind.text
        assert served.ask("GET", "/v1/status/").status_code == 404, "no redirect by the host"


def chunks(count: int, size: int, pause_s: float = 0.0) -> Any:
    async def given() -> Any:
        for _ in range(count):
            await asyncio.sleep(pause_s)
            yield b" " * size

    return given()


def test_bodies_are_bounded_declared_and_counted(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2), bounds=Bounds(body_bytes=10_000)) as served:
        kind = {"content-type": "application/json"}
        for content in (b" " * 10_001, chunks(11, 1000)):
            found = served.ask("POST", "/v1/predict", content=content, headers=kind)
            assert found.status_code == 413 and found.headers["connection"] == "close"
            said = Problem.model_validate(found.json()).error
            assert "expected at most 10000" in said and "--max-body" in said
        assert served.ask("POST", "/v1/predict", content=b" " * 10_000,
                          headers=kind).status_code == 422  # fmt: skip
        big = served.put("#" * (128 * 1024 + 1))
        assert big.status_code == 413 and "expected at most 131072; no law" in big.text
        assert not any(lane.taken for lane in served.app._lanes.values())


def test_a_body_that_comes_too_slowly_is_given_up(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2), bounds=Bounds(body_s=0.2)) as served:
        begun = time.monotonic()
        found = served.ask("POST", "/v1/predict", content=chunks(60, 1, 0.05),
                           headers={"content-type": "application/json"})  # fmt: skip
        assert found.status_code == 408 and "did not arrive within 0.2 s" in found.text
        assert time.monotonic() - begun < 2.9
        assert not any(lane.taken for lane in served.app._lanes.values())


def test_overload_is_503_with_a_time_and_nothing_falls_over(tmp_path: Path) -> None:
    """Forty at once, one in the model, two wait; health is told meanwhile."""

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = [asyncio.create_task(client.post("/v1/predict", json=ASKED)) for _ in range(40)]
        await asyncio.sleep(0.15)
        for path in ("/healthz", "/readyz", "/metrics", "/v1/status"):
            assert (await client.get(path)).status_code == 200
        return list(await asyncio.gather(*asked))

    bounds = Bounds(waiting=2, requests=20)
    with Served(tmp_path, towers(0.2), FakePlaces(delay_s=0.2), bounds=bounds) as served:
        found = served.run(talk)
        codes = [item.status_code for item in found]
        assert codes.count(200) >= 3 and set(codes) == {200, 503}
        for item in found:
            if item.status_code == 503:
                assert 1 <= int(item.headers["retry-after"]) <= 60
                assert "all there is room for" in Problem.model_validate(item.json()).error
        said = " ".join(item.text for item in found)
        assert "requests are in hand" in said and "requests are in the model or wait for it" in said
        assert served.predict(*ASKED["places"]).status_code == 200, "and then as before"
        assert not any(lane.taken for lane in served.app._lanes.values())


def test_an_answer_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    bounds = Bounds(answer_s=0.3, waiting=1)
    with Served(tmp_path, towers(0.2), FakePlaces(broken="stuck"), bounds=bounds) as served:
        for _ in range(2):
            found = served.predict(*ASKED["places"])
            assert found.status_code == 503 and "no answer came within 0.3 s" in found.text
            assert int(found.headers["retry-after"]) >= 1
        asked = served.model.asked
        served.model.go.set()
        end = time.monotonic() + 5
        while served.service._worker.depth and time.monotonic() < end:
            time.sleep(0.01)
        assert served.model.asked == asked, "what was given up in the queue is not begun"


def test_changes_at_once_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def talk(client: httpx.AsyncClient) -> list[int]:
        headers = {"content-type": "application/yaml", "x-who": "Ana"}
        found = await asyncio.gather(*(
            client.put("/v1/constraints", content=towers(n / 100), headers=headers)
            for n in range(1, 11)
        ))  # fmt: skip
        assert all("retry-after" in item.headers for item in found if item.status_code == 503)
        return [item.status_code for item in found]

    with Served(tmp_path, towers(0.5)) as served:
        put = served.service._put
        monkeypatch.setattr(served.service, "_put", lambda *a: (time.sleep(0.1), put(*a))[1])
        codes = served.run(talk)
        assert codes.count(200) == 2 and set(codes) == {200, 503}
        assert served.service.store.version == 3


def test_shutting_down_finishes_what_is_in_hand(tmp_path: Path) -> None:
    async def talk(client: httpx.AsyncClient) -> tuple[httpx.Response, ...]:
        first = asyncio.create_task(client.post("/v1/predict", json=ASKED))
        await asyncio.sleep(0.1)
        served.service.drain()
        ready = await client.get("/readyz")
        second = await client.post("/v1/predict", json=ASKED)
        put = await client.put("/v1/constraints", content=towers(0.1), headers=YAML)
        return await first, ready, second, put

    with Served(tmp_path, towers(0.2), FakePlaces(delay_s=0.3)) as served:
        first, ready, second, put = served.run(talk)
    assert first.status_code == 200
    assert ready.status_code == 503 and ready.json() == {
        "ok": False, "reason": "the service is shutting down"
    }  # fmt: skip
    assert second.status_code == put.status_code == 503 and "retry-after" in second.headers


def test_ready_when_the_model_answered_and_there_are_rules(tmp_path: Path) -> None:
    with Served(tmp_path, model=FakePlaces(delay_s=0.4), warm=False) as served:
        found = served.ask("GET", "/readyz")
        assert found.status_code == 503 and "has not answered yet" in found.text
        assert served.ask("GET", "/healthz").status_code == 200
        time.sleep(0.7)
        found = served.ask("GET", "/readyz")
        assert found.status_code == 503 and "there are no rules yet" in found.text
        served.put(towers(0.2))
        assert served.ask("GET", "/readyz").json() == {"ok": True, "reason": ""}
    with Served(tmp_path, model=FakePlaces(broken="warm"), warm=False) as served:
        end = time.monotonic() + 5
        while not served.failed and time.monotonic() < end:
            time.sleep(0.01)
        assert served.failed and "not finite" in str(served.service.failure)
        assert served.ask("GET", "/readyz").json()["reason"] == "the model did not answer"


def test_a_model_that_is_stuck_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a minute in one request, and not before."""
    bounds = Bounds(answer_s=0.3)
    with Served(tmp_path, towers(0.2), FakePlaces(broken="stuck"), bounds=bounds) as served:
        worker = served.service._worker
        assert served.predict(*ASKED["places"]).status_code == 503
        since_s = worker._since_s
        assert since_s is not None
        for after_s, why in ((59.0, ""), (61.0, "the model has been at one request for 61 s")):
            monkeypatch.setattr(worker, "_clock", lambda at_s=since_s + after_s: at_s)
            found = served.ask("GET", "/readyz")
            assert found.json() == {"ok": not why, "reason": why}
            assert found.status_code == (503 if why else 200)
            assert served.ask("GET", "/healthz").status_code == 200
            assert served.ask("GET", "/v1/status").json()["why"] == why
        served.model.go.set()
        end = time.monotonic() + 5
        while worker.depth and time.monotonic() < end:
            time.sleep(0.01)
        assert served.ask("GET", "/readyz").status_code == 200, "it came back"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_of_the_model_that_ended_is_told_to_all(tmp_path: Path) -> None:
    """To who was in hand, who waited, who comes later, and to /readyz; nobody waits in vain."""

    class Ending(FakePlaces):
        def answer(self, places: Any, limits: Any = None) -> Any:
            found = super().answer(places, limits)
            if self.asked == 2:  # behind what is caught: as memory that is not there
                served.service._worker._mean_s = "no number"  # type: ignore[assignment]
                self.go.wait(5)
            return found

    why = "the thread of the model has ended (TypeError: "

    async def talk(client: httpx.AsyncClient) -> list[httpx.Response]:
        asked = []
        for count in range(1, 4):  # the first is in the model, the others wait
            asked.append(asyncio.create_task(client.post("/v1/predict", json=ASKED)))
            while served.service._worker.depth < count or served.model.asked < 2:
                await asyncio.sleep(0.01)
        served.model.go.set()
        return await asyncio.gather(*asked)

    with Served(tmp_path, towers(0.2), Ending(), bounds=Bounds(answer_s=20.0)) as served:
        assert served.ask("GET", "/readyz").status_code == 200
        begun_s = time.monotonic()
        for found in (*served.run(talk), served.predict(*ASKED["places"])):
            assert found.status_code == 500
            assert Problem.model_validate(found.json()).error.startswith(why)
        assert time.monotonic() - begun_s < 10, "at once"
        ready = served.ask("GET", "/readyz")
        assert ready.status_code == 503 and ready.json()["reason"].startswith(why)
        assert ready.json()["reason"].endswith(", so nothing is answered any more; begin the "
                                               "service again")  # fmt: skip
        assert served.service._worker.depth == 0
        assert served.put(towers(0.3)).status_code == 200, "rules can still be put"
    with pytest.raises(EdgeKDError, match="has ended"):
        served.service._worker.submit([], None)


def test_a_thread_that_is_gone_without_a_word_is_not_ready(tmp_path: Path) -> None:
    with Served(tmp_path, towers(0.2)) as served:
        worker = served.service._worker
        worker._jobs.put(None)
        worker._thread.join(5)
        found = served.ask("GET", "/readyz")
        assert found.status_code == 503 and "the thread of the model has ended, so" in found.text
        assert served.predict(*ASKED["places"]).status_code == 500


def test_an_answer_without_its_parts_is_the_fault_of_who_asked_it() -> None:
    class Broken(FakePlaces):
        def answer(self, places: Any, limits: Any = None) -> Any:
            found = super().answer(places, limits)
            return found if self.asked > 1 else None

    worker = Worker(Broken(), waiting=3)
    free, place = no_limits(4, 4), Evidence(series=model_series())
    with pytest.raises(AttributeError):
        worker.submit([place], [free]).result(5)
    assert worker.submit([place], [free]).result(5).answers.scores.shape == (1, 4)
    worker.close()


def test_a_worker_answers_one_at_a_time_and_then_ends() -> None:
    model = FakePlaces(delay_s=0.05)  # which fails where two ask at once
    worker = Worker(model, waiting=3)
    place = Evidence(series=model_series())
    futures, full = [], 0
    for _ in range(10):
        try:
            futures.append(worker.submit([place], None))
        except Busy as err:
            full += 1
            assert err.retry_after_s >= 1
    assert len(futures) == 4 and full == 6
    worker._mean_s = 2.0
    assert worker.retry_after_s() == pytest.approx(2.0 * (worker.depth + 1))
    closing = threading.Thread(target=worker.close)
    closing.start()
    assert [f.result(5).answers.scores.shape for f in futures] == [(1, 4)] * 4
    closing.join(5)
    assert not closing.is_alive()
    with pytest.raises(Busy, match="shutting down"):
        worker.submit([place], None)


def test_those_that_wait_are_answered_together_each_with_its_own() -> None:
    model = FakePlaces(delay_s=0.3)
    worker = Worker(model, waiting=20)
    free = no_limits(4, 4)

    def ask(count: int, level_m: float) -> Any:
        return worker.submit([Evidence(series=model_series(level_m))] * count, [free] * count)

    first = ask(1, 0.0)
    while model.asked == 0:
        time.sleep(0.005)
    sizes = [(1, 0.1), (2, 0.2), (1, 0.3), (5, 0.4), (1, 0.5)]
    futures = [ask(*size) for size in sizes]
    found = [item.result(10).answers for item in futures]
    assert model.asked == 3, "alone, then 1 + 2 + 1 + 5 places, then the last one"
    for (count, level_m), answers in zip(sizes, found, strict=True):
        alone = ask(1, level_m).result(10).answers
        for key in ("scores", "before", "probabilities"):
            mine = getattr(answers, key)
            assert mine.shape == (count, 4) and np.allclose(mine, getattr(alone, key), atol=1e-6)
    assert not np.allclose(found[0].scores, first.result(10).answers.scores, atol=1e-3)
    worker.close()


def test_what_is_wrong_with_one_request_is_not_told_to_those_beside_it() -> None:
    model = FakePlaces(delay_s=0.2)
    worker = Worker(model, waiting=20)
    free, good = no_limits(4, 4), Evidence(series=model_series(0.1))
    first = worker.submit([good], [free])
    while model.asked == 0:
        time.sleep(0.005)
    bad = Evidence(series=np.zeros((3, 2), np.float32))
    futures = [worker.submit([item], [free]) for item in (good, bad, good)]
    with pytest.raises(InputError):
        futures[1].result(10)
    for item in (first, futures[0], futures[2]):
        assert item.result(10).answers.scores.shape == (1, 4)
    without = [worker.submit([good], limits) for limits in (None, [free], None)]
    assert [item.result(10).answers.scores.shape for item in without] == [(1, 4)] * 3
    worker.close()


def model_series(level_m: float = 0.0) -> Any:
    return np.array(series(level_m), np.float32)


def test_the_gate_passes_nothing_but_http() -> None:
    called = []

    async def app(*_: object) -> None:
        called.append(1)

    gate = Gate(app, {("POST", "/"): Lane(1, 1, "")}, None, None, None, 1.0, lambda: 1)  # type: ignore[arg-type]
    asyncio.run(gate({"type": "websocket"}, None, None))  # type: ignore[arg-type]
    assert not called
