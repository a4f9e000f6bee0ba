"""The routes, and what OpenAPI says of them. Bodies are read by :mod:`edgekd.serve.body`, since a
framework's reader takes NaN, repeated keys and a fault for every number.
"""

# No "from __future__ import annotations" here: FastAPI looks at the annotations of functions that
# are made inside one, where the names of an optional import are.
import asyncio
from importlib import resources
from typing import Annotated, Any, Final

from pydantic.json_schema import models_json_schema

from edgekd import __version__
from edgekd.contracts.optional import require
from edgekd.errors import EdgeKDError, InputError
from edgekd.serve.gate import WHO, Gate, Lane
from edgekd.serve.problems import JSON_TYPE, encoded, of_error, of_status, problem
from edgekd.serve.rule_text import MOST_BYTES, require_json
from edgekd.serve.service import Service
from edgekd.serve.tokens import Tokens
from edgekd.serve.wire import (
    ConstraintsSaid,
    Health,
    HistorySaid,
    PredictAnswer,
    PredictAsked,
    Problem,
)
from edgekd.serve.worker import Busy

PREDICT, CONSTRAINTS = "/v1/predict", "/v1/constraints"
#: path -> methods; what is counted by name, and what 405 tells
ROUTES: Final = {
    "/": "GET", "/page.css": "GET", "/page.js": "GET", "/healthz": "GET", "/readyz": "GET",
    "/metrics": "GET", "/openapi.json": "GET", "/v1/status": "GET", PREDICT: "POST",
    CONSTRAINTS: "GET, PUT", f"{CONSTRAINTS}/text": "GET", f"{CONSTRAINTS}/history": "GET",
}  # fmt: skip
_YAML: Final = ("application/yaml", "application/x-yaml", "text/yaml")
#: changes of the rules whose bodies are in hand; the service itself takes fewer
_CHANGES: Final = 4
_SAID: Final = {
    401: "No token, or one that is not known.", 403: "A page of another place asks.",
    404: "There is none.", 408: "The body came too slowly.", 409: "Not what the caller saw.",
    413: "The body is too large.", 415: "Not of a type that is read.",
    421: "The service is not called so.", 422: "What was sent does not fit.",
    500: "The model or the service failed.", 503: "No room or no time, or something lacks here.",
    507: "The rules cannot be written.",
}  # fmt: skip


def make_app(
    service: Service, tokens: Tokens | None = None, hosts: frozenset[str] | None = None
) -> Gate:
    """The whole service as an ASGI application, without its life (start, close).

    Args:
        service: answers.
        tokens, hosts: see :class:`edgekd.serve.gate.Gate`.

    Raises:
        EnvironmentLacksError: FastAPI is not installed.
    """
    require("fastapi", "serve", "serve")
    from fastapi import FastAPI, Header, Query, Request, Response
    from starlette.exceptions import HTTPException

    app = FastAPI(
        title=f"edgekd serve: {service.asks.name}", version=__version__, docs_url=None,
        redoc_url=None, openapi_url=None, redirect_slashes=False,
        description="Answers for places that obey the rules in force.",
    )  # fmt: skip

    def json_response(
        value: Any, status: int = 200, headers: dict[str, str] | None = None
    ) -> Response:
        return Response(encoded(value), status, headers, JSON_TYPE)

    def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
        always = (403, 421, 500, *((401,) if tokens is not None else ()))
        return {
            status: {"model": Problem, "description": _SAID[status]}
            for status in sorted({*always, *statuses})
        }

    async def refused(_: Request, err: Exception) -> Response:
        assert isinstance(err, (EdgeKDError, Busy))
        status, body, headers = of_error(err)
        return Response(body, status, headers, JSON_TYPE)

    async def not_there(request: Request, err: Exception) -> Response:
        assert isinstance(err, HTTPException)
        path, allowed = request.url.path, ROUTES.get(request.url.path, "")
        body = of_status(err.status_code, path, request.method, allowed, err.detail)
        headers = {"allow": allowed} if err.status_code == 405 else None
        return Response(body, err.status_code, headers, JSON_TYPE)

    async def unforeseen(_: Request, __: Exception) -> Response:
        said = "a fault in edgekd itself; its log has a traceback, report that"
        return Response(problem(500, said), 500, None, JSON_TYPE)

    app.add_exception_handler(EdgeKDError, refused)
    app.add_exception_handler(Busy, refused)
    app.add_exception_handler(HTTPException, not_there)
    app.add_exception_handler(Exception, unforeseen)

    def look_at_type(request: Request, valid: tuple[str, ...]) -> None:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        packed = request.headers.get("content-encoding", "identity").lower()
        if kind not in valid or packed != "identity":
            held = f"'{kind[:80]}'" if kind else "no type that is told"
            raise HTTPException(
                415, f"the body has {held}{'' if packed == 'identity' else ', packed'}; expected "
                f"it not packed, with the header Content-Type: {' or '.join(valid)}",
            )  # fmt: skip

    # read once: no request waits for a disk that is written to
    files = {
        name: resources.files("edgekd.serve").joinpath(name).read_bytes()
        for name in ("page.html", "page.css", "page.js")
    }

    def file(name: str, kind: str) -> Response:
        return Response(files[name], media_type=f"{kind}; charset=utf-8")

    # -- what is asked

    @app.post(
        PREDICT, response_model=PredictAnswer, tags=["answers"], summary="Answer for places",
        responses=failures(408, 409, 413, 415, 422, 503), openapi_extra={"requestBody": {
            "required": True,
            "content": {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/PredictAsked"}}},
        }},
    )  # fmt: skip
    async def predict(request: Request) -> Response:
        """Every answer obeys the rules of the version and day that the response names."""
        look_at_type(request, (JSON_TYPE,))
        return json_response(await service.predict(await request.body()))

    @app.get(
        CONSTRAINTS, response_model=ConstraintsSaid, tags=["rules"], summary="The rules in force",
        responses=failures(404),
    )  # fmt: skip
    async def rules() -> Response:
        """What is in force today; the ETag is the version, for If-Match."""
        if not service.store.version:
            return no_rules()
        found = await service.rules()
        return json_response(found, headers={"etag": f'"{found["version"]}"'})

    @app.get(
        f"{CONSTRAINTS}/text", tags=["rules"], summary="The rules as they were put",
        response_class=Response, responses={
            200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
            **failures(404, 422)},
    )  # fmt: skip
    async def text(
        version: Annotated[str | None, Query(
            description="An earlier version; absent: the one in force.",
            json_schema_extra={"type": "integer", "minimum": 1})] = None,
    ) -> Response:  # fmt: skip
        """To the byte, to be edited and put again."""
        if not service.store.version:
            return no_rules()
        found = service.store.current()
        number, content = found.version, found.text
        if version is not None:
            if not version.isascii() or not version.isdigit() or len(version) > 9:
                raise InputError(f"version is {version[:20]!r}, expected a number from 1 on")
            number = int(version)
            content = await asyncio.to_thread(service.store.text_of, number)
        return Response(
            content, headers={"etag": f'"{number}"'}, media_type="text/plain; charset=utf-8"
        )

    def no_rules() -> Response:
        said = "there are no rules yet; put some (PUT /v1/constraints)"
        return Response(problem(404, said), 404, None, JSON_TYPE)

    @app.get(
        f"{CONSTRAINTS}/history", response_model=HistorySaid, tags=["rules"],
        summary="Who changed them, and when", responses=failures(422),
    )  # fmt: skip
    async def history(
        limit: Annotated[str, Query(json_schema_extra={
            "type": "integer", "minimum": 1, "maximum": 1000})] = "100",
    ) -> Response:  # fmt: skip
        """The newest events first: texts that came into force, and those that were looked at and
        refused, as many as there is room for. What was turned away before that (no token, nobody's
        name, a body of another type or too large, an If-Match that is no version) is not told."""
        if not limit.isascii() or not limit.isdigit() or len(limit) > 5:
            raise InputError(f"limit is {limit[:20]!r}, expected 1 to 1000")
        events = service.store.history(int(limit))
        return json_response({"events": [event.model_dump(mode="json") for event in events]})

    @app.put(
        CONSTRAINTS, response_model=ConstraintsSaid, tags=["rules"], summary="Put rules",
        responses=failures(408, 409, 413, 415, 422, 503, 507), openapi_extra={"requestBody": {
            "required": True, "content": {
                "application/yaml": {"schema": {"type": "string"}},
                JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Policy"}},
            },
        }},
    )  # fmt: skip
    async def put(
        request: Request,
        if_match: Annotated[str | None, Header(
            description='The version that the caller saw, as its ETag: "3"; "0" is none.')] = None,
        x_who: Annotated[str | None, Header(
            description="Who puts them, for the trail; needed where there are no tokens.")] = None,
    ) -> Response:  # fmt: skip
        """Checked whole, on every day that is to come; then in force at once, for every later
        answer. A text that is refused leaves the rules as they were, and is told by the history."""
        look_at_type(request, (*_YAML, JSON_TYPE))
        who = _who(request.scope.get(WHO), x_who)
        body, expected = await request.body(), _expected(if_match)
        if request.headers["content-type"].partition(";")[0].strip().lower() == JSON_TYPE:
            require_json(body)
        found = await service.put(body, who, expected)
        return json_response(found, headers={"etag": f'"{found["version"]}"'})

    # -- how it is

    @app.get("/healthz", response_model=Health, tags=["state"], summary="Is the process there?",
             responses=failures())  # fmt: skip
    async def healthz() -> Response:
        return json_response({"ok": True, "reason": ""})

    @app.get(
        "/readyz", response_model=Health, tags=["state"], summary="Are requests answered?",
        responses={503: {"model": Health, "description": "Not now."}, **failures()},
    )  # fmt: skip
    async def readyz() -> Response:
        why = service.why_not_ready()
        return json_response({"ok": not why, "reason": why}, 503 if why else 200)

    @app.get("/metrics", tags=["state"], summary="For Prometheus", response_class=Response,
             responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
                        **failures()})  # fmt: skip
    async def metrics() -> Response:
        return Response(service.figures.render(), media_type=service.figures.content_type)

    @app.get("/v1/status", tags=["state"], summary="What the page shows", responses=failures())
    async def status() -> dict[str, Any]:
        return json_response(service.status())  # type: ignore[return-value]

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return file("page.html", "text/html")

    @app.get("/page.css", include_in_schema=False)
    async def style() -> Response:
        return file("page.css", "text/css")

    @app.get("/page.js", include_in_schema=False)
    async def script() -> Response:
        return file("page.js", "text/javascript")

    described = _described(app.openapi(), service)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi() -> Response:
        return json_response(described)

    lanes = {
        ("POST", PREDICT): Lane(
            service.bounds.requests,
            service.bounds.body_bytes,
            "send fewer places at once, or begin the service with a larger --max-body",
        ),
        ("PUT", CONSTRAINTS): Lane(
            _CHANGES, MOST_BYTES, "no law that a zone's rules hold needs more: look what is in it"
        ),
    }
    return Gate(
        app, lanes, service.figures, tokens, hosts, service.bounds.body_s, service.retry_after_s
    )


def _described(found: dict[str, Any], service: Service) -> dict[str, Any]:
    """OpenAPI with the bodies that the routes read themselves, in this model's own numbers."""
    from edgekd.contracts.policy import Policy

    _, schema = models_json_schema(
        [(PredictAsked, "validation"), (Policy, "validation")],
        ref_template="#/components/schemas/{model}",
    )
    definitions = schema["$defs"]
    place, asks = definitions["PlaceAsked"]["properties"], service.asks
    rows = place["series"]["anyOf"][0]
    rows |= {"minItems": asks.days, "maxItems": asks.days}
    rows["items"] |= {"minItems": len(asks.features), "maxItems": len(asks.features)}
    above = f"; levels are heights above {asks.datum}" if asks.datum else ""
    rows["description"] = f"{asks.days} days of {', '.join(asks.features)}{above}"
    rows["items"]["description"] = f"expected are {asks.plausible}; a gap is null"
    rows["items"]["x-ranges"] = [
        None if item is None else [None, None] if item.is_empty else [item.low, item.high]
        for item in asks.plausible.ranges
    ]
    place["image"]["description"] = f"PNG or JPEG, {asks.side_px} x {asks.side_px} px, base64"
    components = found.setdefault("components", {}).setdefault("schemas", {})
    components |= definitions
    # FastAPI's own shape of a fault is never sent
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for path in found["paths"].values():
        for operation in path.values():
            fault = operation["responses"].get("422")
            if fault and "HTTPValidationError" in str(fault):
                del operation["responses"]["422"]
    return found


def _who(token: str | None, declared: str | None) -> str:
    """Who puts rules: whose token it was, what the caller says, or both."""
    said = None
    if declared is not None:
        try:  # headers are bytes; what is UTF-8 is read as such
            said = declared.encode("latin-1").decode("utf-8").strip()
        except UnicodeError:
            said = declared.strip()
    if token is None:
        if not said:
            raise InputError("nobody says who puts these rules; send the header X-Who: YOUR NAME")
        return f"{said} (no token)"
    return f"{said} (token of {token})" if said and said != token else token


def _expected(if_match: str | None) -> int | None:
    """The version of an If-Match header; None where any will do."""
    if if_match is None or if_match.strip() == "*":
        return None
    bare = if_match.strip().removeprefix('"').removesuffix('"')
    if not (bare.isascii() and bare.isdigit() and len(bare) < 10):
        raise InputError(f'If-Match is {if_match[:40]!r}, expected a version such as "3"')
    return int(bare)
