"""HTTP/1.1 by uvicorn and h11, with what uvicorn leaves open: a clock for the head of a request,
and an end to the number of connections.

uvicorn has a clock for what follows a response, and none for a first line that comes letter by
letter; its own limit of connections answers with a bare text.
"""

from __future__ import annotations

from typing import Any, Final

from edgekd.contracts.optional import require
from edgekd.serve.problems import JSON_TYPE, problem

#: how long a caller for whom there was no room has to read that, s
_READ_S: Final = 0.5


def protocol_class(head_s: float, connections: int) -> type[Any]:
    """A class for ``uvicorn.Config(http=...)``.

    Args:
        head_s: for a request's head to arrive, s.
        connections: open at once; further ones are told to come again.

    Raises:
        EnvironmentLacksError: uvicorn is not installed.
    """
    impl: Any = require("uvicorn.protocols.http.h11_impl", "serve", "serve")
    h11: Any = require("h11", "serve", "serve")

    class Timed(impl.H11Protocol):
        """A connection."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_timer: Any = None
            self._refused = len(self.connections) > connections
            if not self._refused:
                self._head_timer = self.loop.call_later(head_s, self._late)
            elif len(self.connections) > 2 * connections:
                transport.close()
            else:
                self._say(503, "no more connections are taken at once; come again", 1)
                self.loop.call_later(_READ_S, transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            super().data_received(data)
            if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
                self._stop_timer()
            elif self._head_timer is None:  # the next request on the same line has begun
                self._head_timer = self.loop.call_later(head_s, self._late)

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self._say(400, "this is no HTTP/1.1 request that can be read")
            self.transport.close()

        def _late(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self._say(408, f"the head of the request did not arrive within {head_s:g} s")
                self.transport.close()

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _say(self, status: int, sentence: str, retry_after_s: int = 0) -> None:
            body = problem(status, sentence)
            words = {400: "Bad Request", 408: "Request Timeout", 503: "Service Unavailable"}
            retry = f"retry-after: {retry_after_s}\r\n" if retry_after_s else ""
            head = (
                f"HTTP/1.1 {status} {words[status]}\r\ncontent-type: {JSON_TYPE}\r\n"
                f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)

    return Timed
