"""What stands before every request: whose it is, how much of it, and how many at once.

Nothing of a body is read before the rest was looked at, and what is refused costs no more than
its head. In this order: the host that was asked for, the page that asks, the token, room, the
length that is declared, and then the bytes themselves, counted, against the clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from edgekd.serve.figures import Figures
from edgekd.serve.problems import JSON_TYPE, problem
from edgekd.serve.tokens import Tokens

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: the page without its data, and what only says yes or no
OPEN: Final = frozenset({"/", "/page.css", "/page.js", "/healthz", "/readyz"})
#: with every response: nothing from elsewhere, in no frame, kept by no cache
_HEADERS: Final = (
    (b"content-security-policy", b"default-src 'none'; style-src 'self'; script-src 'self'; "
     b"connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
     b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)  # fmt: skip
#: how long what is refused may still be sent, so that the refusal is read before the line is cut, s
_LINGER_S: Final = 2.0
#: where a scope says who asks
WHO: Final = "edgekd.who"
#: counted for a request whose caller went away
_GONE: Final = 499


@dataclass
class Lane:
    """A route that takes bodies.

    Attributes:
        most: requests in hand at once.
        body_bytes: of each.
        smaller: what to do about a body that is larger, after "; ".
        taken: in hand now.
    """

    most: int
    body_bytes: int
    smaller: str
    taken: int = 0


class _Refused(Exception):
    """Status, sentence and headers of a refusal."""

    def __init__(
        self, status: int, sentence: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, headers


class _Gone(Exception):
    """Whoever asked has gone."""


class Gate:
    """An ASGI application before another.

    Args:
        app: gets whole bodies.
        lanes: (method, path) -> lane; other routes get no body.
        figures: counts.
        tokens: who may ask; None is everybody, on a loopback address.
        hosts: names that the service may be called by; None is any. On a loopback address anything
            else is a page elsewhere whose name was pointed here (DNS rebinding).
        body_s: for a body to arrive, s.
        retry_after_s: when it is worth while to come again.
    """

    def __init__(
        self,
        app: App,
        lanes: Mapping[tuple[str, str], Lane],
        figures: Figures,
        tokens: Tokens | None,
        hosts: frozenset[str] | None,
        body_s: float,
        retry_after_s: Callable[[], int],
    ) -> None:
        self._app, self._lanes, self._figures = app, lanes, figures
        self._tokens, self._hosts, self._body_s = tokens, hosts, body_s
        self._retry_after_s = retry_after_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        begun_s = time.monotonic()
        status = _GONE
        method, path = scope["method"], scope["path"]
        headers = {key: value for key, value in reversed(scope["headers"])}
        holds_body = b"transfer-encoding" in headers or headers.get(
            b"content-length", b"0"
        ).strip() not in (b"", b"0")
        closes = holds_body and (method, path) not in self._lanes

        async def out(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                said = [*message["headers"], *_HEADERS]
                if closes:  # its body is read by nobody
                    said.append((b"connection", b"close"))
                message = {**message, "headers": said}
            await send(message)

        try:
            await self._pass(scope, receive, out, headers)
        except _Refused as err:
            closes = holds_body
            await self._refuse(err, out, receive)
        except _Gone:
            pass
        finally:
            self._figures.request(path, method, status, time.monotonic() - begun_s)

    async def _pass(
        self, scope: Message, receive: Receive, out: Send, headers: dict[bytes, bytes]
    ) -> None:
        method, path = scope["method"], scope["path"]
        self._look_at_host(headers, (method, path) == ("GET", "/"))
        scope[WHO] = None
        if self._tokens is not None and path not in OPEN:
            given = headers.get(b"authorization", b"").decode("latin-1")
            scope[WHO] = self._tokens.name_of(given)
            if scope[WHO] is None:
                wrong = "the token is not known here" if given else "a token is needed"
                raise _Refused(
                    401, f"{wrong}; send the header Authorization: Bearer TOKEN",
                    ((b"www-authenticate", b'Bearer realm="edgekd"'),),
                )  # fmt: skip
        lane = self._lanes.get((method, path))
        if lane is None:
            return await self._app(scope, receive, out)
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and (len(length) > 15 or int(length) > lane.body_bytes):
            raise _too_large(f"{length.decode()[:20]} bytes", lane)
        if lane.taken >= lane.most:
            raise _Refused(
                503, f"{lane.taken} requests are in hand, which is all there is room for; ask "
                "again after Retry-After",
                ((b"retry-after", str(self._retry_after_s()).encode()),),
            )  # fmt: skip
        lane.taken += 1
        try:
            try:
                body = await asyncio.wait_for(_read(receive, lane), self._body_s)
            except asyncio.TimeoutError as err:
                raise _Refused(
                    408, f"the body did not arrive within {self._body_s:g} s; send less, or faster"
                ) from err
            await self._app(scope, _replay(body, receive), out)
        finally:
            lane.taken -= 1

    def _look_at_host(self, headers: dict[bytes, bytes], page: bool) -> None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise _Refused(
                421, f"this service is not called '{host[:80]}'; call it by one of "
                f"{', '.join(sorted(self._hosts))}, or begin it with --allow-host NAME",
            )  # fmt: skip
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        site = headers.get(b"sec-fetch-site", b"").decode("latin-1").lower()
        foreign = origin and origin.partition("://")[2] != host
        # a link in a mail may open the page, which has no data in it; it may not frame or read it
        opens = page and headers.get(b"sec-fetch-mode", b"") == b"navigate"
        if foreign or (site == "cross-site" and not opens):
            raise _Refused(
                403, f"a page of {(origin or 'another site')[:80]} asks, and pages of other places "
                "may not; ask from here, or without a browser",
            )  # fmt: skip

    async def _refuse(self, err: _Refused, out: Send, receive: Receive) -> None:
        body = problem(err.status, err.sentence)
        headers = [
            (b"content-type", JSON_TYPE.encode()), (b"content-length", str(len(body)).encode()),
            *err.headers,
        ]  # fmt: skip
        await out({"type": "http.response.start", "status": err.status, "headers": headers})
        await out({"type": "http.response.body", "body": body, "more_body": True})
        # a line that is cut while the caller still sends takes the answer with it
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(_discard(receive), _LINGER_S)
        await out({"type": "http.response.body", "body": b"", "more_body": False})


def local_hosts(more: tuple[str, ...] = ()) -> frozenset[str]:
    """What a service on a loopback address may be called."""
    return frozenset({"localhost", "127.0.0.1", "::1", *(name.lower() for name in more)})


def _name_of(host: str) -> str:
    """A host without its port; of an IPv6 address without its brackets."""
    name, _, rest = host.rpartition(":")
    bare = name if name and rest.isdigit() and (name.endswith("]") or ":" not in name) else host
    bare = bare.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return bare


def _too_large(what: str, lane: Lane) -> _Refused:
    return _Refused(413, f"the body has {what}, expected at most {lane.body_bytes}; {lane.smaller}")


async def _read(receive: Receive, lane: Lane) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _Gone
        part = message.get("body", b"")
        size += len(part)
        if size > lane.body_bytes:
            raise _too_large(f"{size} bytes or more", lane)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def _discard(receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body once, and then what comes by itself."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again
