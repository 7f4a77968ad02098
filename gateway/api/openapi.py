"""The OpenAPI 3.1 document, made from the table of calls and the types of their bodies."""

import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import msgspec

import gateway
from gateway.api import bodies, messages, socket
from gateway.api.calls import CALLS, VERSION, Call, Parameter
from gateway.errors import STATUS, Code
from gateway.live import handshake

SOCKET_PARAMETERS = (Parameter("device_id", bodies.Id, "The device whose socket it is", required=True), VERSION)
"""What the query of a handshake says."""

BEARER = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}

_REF = "#/components/schemas/{name}"
_PARAMETERS = {"video_id": bodies.Uuid, "device_id": bodies.Id}
_COMMON_ERRORS = (Code.UNAUTHORIZED, Code.RATE_LIMITED, Code.UNAVAILABLE)
_UPLOADED_NAMES_RECIPIENT = {
    "if": {"properties": {"status": {"const": "uploaded"}}, "required": ["status"]},
    "then": {"required": ["recipient_id"]},
}
"""What the types of a reported status leave to the service."""

_REPORTS = (bodies.StatusReport, bodies.SyncStatus, messages.StatusMessage)

_MEANINGS = {
    200: "Done",
    201: "Announced",
    204: "Done",
    304: "The device has the newest packet",
    307: "Where the bytes are",
}


@cache
def document() -> dict[str, Any]:
    """The document, as what JSON is made of."""
    paths: dict[str, dict[str, Any]] = {}
    for call in CALLS:
        paths.setdefault(call.path, {})[call.method.lower()] = _operation(call)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Gateway",
            "version": gateway.__version__,
            "summary": "Short videos from one phone to another, with their status as it happens",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"token": []}],
        "paths": paths | _socket() | _push_stream() | _open_paths(),
        "components": {
            "securitySchemes": {"token": BEARER},
            "schemas": _schemas()[1],
        },
    }


@cache
def _schemas() -> tuple[dict[object, Any], dict[str, Any]]:
    """Each type's schema or reference, and the named schemas."""
    types: list[object] = [bodies.Problem, bodies.Health, *_PARAMETERS.values()]
    for call in CALLS:
        types += [answer for _, answer in call.answers if answer is not None]
        types += [parameter.type for parameter in call.parameters]
        types += [call.body] if call.body else []
    return components(types)


def components(types: Iterable[object]) -> tuple[dict[object, Any], dict[str, Any]]:
    """Each type's schema or reference, and the named schemas, for a document that has them among its components."""
    types = list(dict.fromkeys(types))
    found, named = msgspec.json.schema_components(types, ref_template=_REF)
    for report in _REPORTS:
        if report.__name__ in named:
            named[report.__name__] |= _UPLOADED_NAMES_RECIPIENT
    return dict(zip(types, found, strict=True)), named


def _schema(kind: object) -> Any:
    return _schemas()[0][kind]


def _operation(call: Call) -> dict[str, Any]:
    text = (call.handler.__doc__ or "").strip()
    summary, _, description = re.sub(r"[ \n]+", " ", text.replace("\n\n", "\0")).partition("\0")
    operation: dict[str, Any] = {
        "operationId": call.name,
        "summary": summary,
        "parameters": [*map(_path_parameter, re.findall(r"{(\w+)}", call.path)), *map(_parameter, call.parameters)],
        "responses": _answers(call) | _problems(call),
    }
    if description:
        operation["description"] = description.replace("\0", "\n\n").strip()
    if call.body is not None:
        content = {"application/json": {"schema": _schema(call.body)}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _schema(_PARAMETERS[name])}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.required,
        "description": parameter.description,
        "schema": _schema(parameter.type),
    }


def _answers(call: Call) -> dict[str, Any]:
    answers: dict[str, Any] = {}
    for status, kind in call.answers:
        answer: dict[str, Any] = {"description": _MEANINGS[status]}
        if kind is not None:
            answer["content"] = {"application/json": {"schema": _schema(kind)}}
        if status == 307:
            answer["headers"] = {"Location": {"schema": {"type": "string"}, "required": True}}
        if kind is bodies.InfoPacket or status == 304:
            answer["headers"] = {"ETag": {"schema": {"type": "string"}, "required": True}}
        answers[str(status)] = answer
    return answers


def _problems(call: Call) -> dict[str, Any]:
    takes_something = call.body is not None or call.parameters or "{" in call.path
    problems = _by_status([*_COMMON_ERRORS, *([Code.INVALID] if takes_something else []), *call.errors])
    if call.body is not None:
        problems["408"] = {"description": "The body did not arrive in time", "content": _problem_content()}
    return dict(sorted(problems.items()))


def _by_status(errors: Iterable[Code]) -> dict[str, Any]:
    by_status: dict[int, list[Code]] = {}
    for code in errors:
        by_status.setdefault(STATUS[code], []).append(code)
    return {str(status): _problem(codes) for status, codes in sorted(by_status.items())}


def _problem(codes: list[Code]) -> dict[str, Any]:
    return {
        "description": "`code`: " + " or ".join(f"`{code}`" for code in codes),
        "content": _problem_content(),
    }


def _problem_content() -> dict[str, Any]:
    return {"application/problem+json": {"schema": _schema(bodies.Problem)}}


def _socket() -> dict[str, Any]:
    """Where sockets are asked for; what travels over them stands in the AsyncAPI document."""
    errors = (*_COMMON_ERRORS, Code.FORBIDDEN, Code.INVALID, Code.UPGRADE_REQUIRED)
    operation = {
        "operationId": "socket",
        "summary": "Open a WebSocket.",
        "description": "A handshake (RFC 6455, section 4.1), answered 101; any other GET is answered 426. What is said "
        "over the socket is described in `/asyncapi.json`. A browser, whose scripts cannot set the header, offers its "
        f"token as a subprotocol: `{handshake.BEARER}<JWT>` beside `{handshake.SUBPROTOCOL}`.",
        "parameters": [_parameter(parameter) for parameter in SOCKET_PARAMETERS],
        "responses": {"101": {"description": "The socket is open"}} | _by_status(errors),
    }
    return {socket.PATH: {"get": operation}}


def _push_stream() -> dict[str, Any]:
    """What the console sender delivers, where it stands in for the push providers."""
    stream = {"200": {"description": "One event for each push", "content": {"text/event-stream": {}}}}
    errors = (*_COMMON_ERRORS, Code.FORBIDDEN, Code.INVALID, Code.NOT_FOUND)
    operation = {
        "operationId": "pushes",
        "summary": "Listen for the pushes that the console shows instead of sending them to this device.",
        "parameters": [_path_parameter("device_id")],
        "responses": stream | _by_status(errors),
    }
    return {"/v1/devices/{device_id}/pushes": {"get": operation}}


def _open_paths() -> dict[str, Any]:
    """The addresses that need no token of an app."""
    health = {"application/json": {"schema": _schema(bodies.Health)}}
    ready = {"200": {"description": "Ready", "content": health}, "503": {"description": "Not now", "content": health}}
    described = {"content": {"application/json": {"schema": {"type": "object"}}}}
    openapi, asyncapi = {"description": "OpenAPI 3.1"} | described, {"description": "AsyncAPI 3.0"} | described
    text = {"200": {"description": "Prometheus' text format", "content": {"text/plain": {}}}}
    return {
        "/healthz": {"get": _open("healthz", "Whether the process answers", {"200": ready["200"]})},
        "/readyz": {"get": _open("readyz", "Whether the process wants calls", ready)},
        "/openapi.json": {"get": _open("openapi", "This document", {"200": openapi})},
        "/asyncapi.json": {"get": _open("asyncapi", "What is said over sockets", {"200": asyncapi})},
        "/metrics": {"get": _open("metrics", "Metrics", text | {"401": _problem([Code.UNAUTHORIZED])})},
    }


def _open(name: str, summary: str, answers: dict[str, Any]) -> dict[str, Any]:
    return {"operationId": name, "summary": summary, "security": [], "responses": answers}
