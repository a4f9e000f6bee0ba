"""The command as a process: signals, kills, sockets that misbehave, and what it says."""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from edgekd.cli.main import main
from tests.helpers.places import fake_module
from tests.helpers.rules import store, towers
from tests.helpers.serving import YAML, Process, series

ASKED = {"places": [{"zone": "A", "series": series()}]}
RULES = towers(0.25)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Process:
    with Process(tmp_path_factory.mktemp("served"), "--timeout", "1", rules=RULES) as process:
        yield process.ready()


def raw(served: Process, *parts: bytes, pause_s: float = 0.0, read_s: float = 8.0) -> bytes:
    """What comes back for bytes as they are."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=read_s) as line:
        for part in parts:
            line.sendall(part)
            time.sleep(pause_s)
        found = b""
        while data := line.recv(65536):
            found += data
        return found


def test_what_it_says(served: Process) -> None:
    assert served.said["url"] == served.url and served.port != 0
    assert served.said["rules_version"] == 1 and served.said["simulated"] is True
    assert (served.said["token"], served.said["loopback"]) == (False, True)
    assert httpx.post(f"{served.url}/v1/predict", json=ASKED).status_code == 200


def test_a_hundred_megabytes_are_told_and_not_kept(served: Process) -> None:
    def body() -> object:
        for _ in range(100):
            yield b" " * (1 << 20)

    kind = {"content-type": "application/json"}
    before = memory(served)
    for content, more in ((b" " * (100 << 20), {}), (body(), {"transfer-encoding": "chunked"})):
        found = httpx.post(f"{served.url}/v1/predict", content=content, headers=kind | more,
                           timeout=20)  # fmt: skip
        assert found.status_code == 413 and "expected at most 4194304" in found.json()["error"]
    assert memory(served) - before < 20, "MiB"


def memory(served: Process) -> float:
    for line in Path(f"/proc/{served.child.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def test_letters_that_come_one_by_one_do_not_hold_a_line(tmp_path: Path) -> None:
    """The head has its own clock, also of the second request on a line."""
    with Process(tmp_path, "--timeout", "0.5", rules=RULES) as served:
        served.ready()
        begun = time.monotonic()
        found = raw(served, b"GET /hea", b"lthz HT")
        assert found.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.5 s" in found
        whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        found = raw(served, whole, b"GET /heal", pause_s=0.1)
        assert found.startswith(b"HTTP/1.1 200 OK") and b"HTTP/1.1 408 " in found
        assert raw(served).startswith(b"HTTP/1.1 408 "), "nor one on which nothing comes"
        assert time.monotonic() - begun < 8
        lines = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(60)]
        for line in lines:
            line.sendall(b"GET / HT")
        assert httpx.get(f"{served.url}/healthz").status_code == 200
        time.sleep(1.2)
        for line in lines:
            line.settimeout(2)
            assert line.recv(20).startswith(b"HTTP/1.1 408 ")
            line.close()


def test_a_slow_body_is_told(served: Process) -> None:
    head = (b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n")  # fmt: skip
    found = raw(served, head, b"{", b'"', pause_s=0.1)
    assert found.startswith(b"HTTP/1.1 408 ") and b'"status":408' in found


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET / HTTP/9\r\n\r\n",
     b"GET /" + b"a" * 100_000, b"GET / HTTP/1.1\r\n\r\n"],
)  # fmt: skip
def test_what_is_no_request_is_told(served: Process, sent: bytes) -> None:
    found = raw(served, sent)
    assert found.startswith(b"HTTP/1.1 400 ") and b"that can be read" in found
    assert json.loads(found.partition(b"\r\n\r\n")[2])["status"] == 400
    assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_more_lines_than_there_is_room_for(tmp_path: Path) -> None:
    lines: list[socket.socket] = []
    with Process(tmp_path, "--timeout", "30", rules=RULES) as served:
        try:
            for _ in range(200):
                lines.append(socket.create_connection(("127.0.0.1", served.port), timeout=5))
            found, end = b"", time.monotonic() + 20  # it takes lines one after the other
            while not found.startswith(b"HTTP/1.1 503 ") and time.monotonic() < end:
                found = raw(served, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
                time.sleep(0.02)
            assert found.startswith(b"HTTP/1.1 503 ") and b"retry-after: 1" in found
        finally:
            for line in lines:
                line.close()
        end = time.monotonic() + 20
        while httpx.get(f"{served.url}/healthz").status_code != 200:
            assert time.monotonic() < end
            time.sleep(0.1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_cleanly_with_what_is_in_hand(tmp_path: Path, number: int) -> None:
    with Process(tmp_path, rules=RULES, delay_s=0.6) as served:
        served.ready()
        found: list[int] = []

        def ask() -> None:
            found.append(httpx.post(f"{served.url}/v1/predict", json=ASKED).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.3)
        assert served.end(number) == 0
        asking.join()
        assert found == [200] and "Traceback" not in served.stderr()
    with store(tmp_path / "store") as kept:
        assert kept.version == 1, "let go, and whole"


def test_a_model_that_hangs_does_not_hold_the_end_up(tmp_path: Path) -> None:
    with Process(tmp_path, "--timeout", "0.3", rules=RULES, broken="stuck") as served:
        served.ready()
        found = httpx.post(f"{served.url}/v1/predict", json=ASKED)
        assert found.status_code == 503 and "no answer came within 0.3 s" in found.text
        assert served.end() == 0
        assert "were given up; the rules in force stay" in served.stderr()


def test_a_kill_keeps_the_last_rules(tmp_path: Path) -> None:
    last = 1
    for round_ in range(2):
        with Process(tmp_path, rules=RULES) as served:
            value = httpx.get(f"{served.url}/v1/constraints").json()
            assert value["version"] == last
            for number in range(3):
                bound = (1 + 3 * round_ + number) / 100
                put = httpx.put(f"{served.url}/v1/constraints", content=towers(bound), headers=YAML)
                last = put.json()["version"]
            served.end(signal.SIGKILL)
            assert served.child.returncode == -signal.SIGKILL
    with Process(tmp_path, rules=RULES) as served:
        assert httpx.get(f"{served.url}/v1/constraints/text").text == towers(bound)
        assert "they stay; " in served.stderr(), "the file of --rules is another by now"
        answer = httpx.post(f"{served.ready().url}/v1/predict", json=ASKED).json()
        assert answer["rules"]["version"] == last == 7
        assert answer["answers"][0]["probabilities"]["tower"] == pytest.approx(bound, abs=2e-5)


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> Any:
    """``refused(*arguments)`` -> exit code and stderr of a command that serves nothing."""
    import edgekd.runtime

    module = fake_module()
    monkeypatch.setitem(sys.modules, "edgekd.runtime.places", module)
    monkeypatch.setattr(edgekd.runtime, "places", module, raising=False)
    bundle = tmp_path / "bundle"
    bundle.mkdir(exist_ok=True)

    def run(*arguments: str, fake: str = "{}") -> tuple[int, str]:
        (bundle / "fake.json").write_text(fake)
        code = main(["serve", str(bundle), "--port", "0", *arguments])
        out, err = capfd.readouterr()
        assert out == "" and err.count("error: ") == 1 and "Traceback" not in err
        return code, err

    return run


def test_what_is_not_begun(tmp_path: Path, refused: Any) -> None:
    (tmp_path / "short").write_text("short\n")
    (tmp_path / "rules.yaml").write_text("schema: 1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments, code, words in (
            (["--host", "0.0.0.0"], 2, "0.0.0.0 can be reached from other machines, and whoever"),
            (["--host", "::"], 2, "give a token (--token-file, or EDGEKD_SERVE_TOKEN)"),
            (["--token-file", str(tmp_path / "short")], 2, "has a token of 5 letters"),
            (["--token-file", str(tmp_path / "none")], 2, "does not exist"),
            (["--host", "no.such.host.invalid"], 2, "there is no address 'no.such.host.invalid'"),
            (["--host", "203.0.113.7"], 3, "203.0.113.7 port 0 cannot be had"),
            (["--port", port], 3, f"127.0.0.1 port {port} cannot be had: Address already in use"),
            (["--time-zone", "Europe/Lissabon"], 2, "no time zone 'Europe/Lissabon'"),
            (["--rules", str(tmp_path / "rules.yaml")], 2, "lacks the key"),
            (["--power", "rapll"], 2, "power sensor 'rapll' does not exist; did you mean"),
        ):
            found, said = refused(*arguments, fake='{"broken": "warm"}')  # or it would serve
            assert found == code and words in said, said


def test_a_model_that_does_not_answer_ends_it(tmp_path: Path, refused: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgekd.cli.serve.emit", lambda *_: None)
        patch.setattr("edgekd.cli.serve.note", lambda *_: None)
        code, said = refused(fake='{"broken": "warm"}')
    assert code == 2 and "error: the model's scores are not finite" in said


def test_other_machines_are_let_in_with_a_token(tmp_path: Path) -> None:
    token = {"EDGEKD_SERVE_TOKEN": "Ana the-token-of-ana-1"}
    with Process(tmp_path, "--host", "0.0.0.0", rules=RULES, environment=token) as served:
        url = f"http://127.0.0.1:{served.port}"
        assert served.said["loopback"] is False and served.said["token"] is True
        assert "is not encrypted" in served.stderr()
        assert httpx.get(f"{url}/v1/status").status_code == 401
        headers = {"authorization": "Bearer the-token-of-ana-1", "host": "pi.local"}
        assert httpx.get(f"{url}/v1/status", headers=headers).status_code == 200


def test_the_store_is_one_process(tmp_path: Path, refused: Any) -> None:
    with store(tmp_path / "store"):
        code, said = refused("--store", str(tmp_path / "store"))
        assert code == 3 and "another process has the rules" in said
