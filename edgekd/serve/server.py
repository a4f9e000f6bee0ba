"""The service on a socket, from the first request to a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from edgekd.contracts.optional import require
from edgekd.errors import EdgeKDError, EnvironmentLacksError, InputError
from edgekd.serve.gate import Gate
from edgekd.serve.protocol import protocol_class
from edgekd.serve.service import Service

_BACKLOG: Final = 128
#: beyond what an answer may take, for requests in hand to end, and then for rules that are being
#: checked, s
_MORE_S: Final = 5


def bind(host: str, port: int) -> tuple[socket.socket, bool]:
    """A socket that has its address, and whether only this machine reaches it.

    Args:
        host: a name or an address.
        port: 0 is any that is free.

    Raises:
        InputError: no such address here, or none of the machine's.
        EnvironmentLacksError: the port is taken, or needs other rights.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (OSError, UnicodeError) as err:
        raise InputError(
            f"there is no address '{host}' ({err}); expected one of this machine, e.g. 127.0.0.1, "
            "or 0.0.0.0 for all of them"
        ) from err
    family, kind, number, _, address = found[0]
    made = socket.socket(family, kind, number)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
    except OSError as err:
        made.close()
        where = f"{host} port {port}"
        if isinstance(err, PermissionError):
            raise EnvironmentLacksError(
                f"{where} needs rights that this user has not; take a port above 1023 (--port)"
            ) from err
        raise EnvironmentLacksError(
            f"{where} cannot be had: {err.strerror}; stop what has it, or take another (--host, "
            "--port 0 for any that is free)"
        ) from err
    return made, ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback


def url_of(bound: socket.socket) -> str:
    """What to type into a browser."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(str(host).partition("%")[0]).is_unspecified:  # of no machine
        host = socket.gethostname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run(service: Service, app: Gate, bound: socket.socket, listening: Callable[[], None]) -> bool:
    """Serve until SIGTERM or Ctrl-C; a second one does not wait for requests in hand.

    Args:
        service: is started, drained and closed here.
        app: its routes.
        bound: see :func:`bind`; is closed.
        listening: called when requests are taken.

    Returns:
        Whether all threads ended; otherwise rules are still being checked, or the model hangs, and
        a normal exit would wait for them.

    Raises:
        EdgeKDError: the model did not answer the first time.
        EnvironmentLacksError: uvicorn is not installed.
    """
    return asyncio.run(_run(service, app, bound, listening))


async def _run(
    service: Service, app: Gate, bound: socket.socket, listening: Callable[[], None]
) -> bool:
    try:
        with bound:
            await _serve(service, app, bound, listening)
    finally:
        closing = threading.Thread(target=service.close, name="edgekd-close", daemon=True)
        closing.start()
        end_s = time.monotonic() + service.bounds.answer_s + _MORE_S
        while closing.is_alive() and time.monotonic() < end_s:
            await asyncio.sleep(0.01)
    if isinstance(service.failure, EdgeKDError):
        raise service.failure
    if service.failure is not None:
        raise RuntimeError("the model did not answer the first time") from service.failure
    return not closing.is_alive()


async def _serve(
    service: Service, app: Gate, bound: socket.socket, listening: Callable[[], None]
) -> None:
    uvicorn: Any = require("uvicorn", "serve", "serve")
    bounds = service.bounds

    class Server(uvicorn.Server):
        """uvicorn's, whose signals are ours: it would end by the signal and not with 0."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    server = Server(
        uvicorn.Config(
            app, http=protocol_class(bounds.head_s, bounds.connections), ws="none", lifespan="off",
            loop="asyncio", log_config=None, log_level="error", access_log=False,
            proxy_headers=False, server_header=False, backlog=_BACKLOG, timeout_keep_alive=5,
            timeout_graceful_shutdown=int(bounds.answer_s) + _MORE_S,
        )
    )  # fmt: skip
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if server.should_exit:
            server.force_exit = True
        service.drain()
        server.should_exit = True

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        service.start(lambda: loop.call_soon_threadsafe(stop))
        serving = asyncio.ensure_future(server.serve(sockets=[bound]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            listening()
        await serving
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
