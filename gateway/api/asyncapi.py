"""The AsyncAPI 3.0 document: the socket, made from the types of its messages and the codes that close it.

The application is the gateway: it sends what apps hear, and receives what they say.
"""

import re
from functools import cache
from typing import Any, get_args

import gateway
from gateway.api import bodies, messages, openapi
from gateway.api.session import MOST_MALFORMED
from gateway.api.socket import PATH
from gateway.live.closing import CloseCode
from gateway.live.connection import MESSAGE_BYTES
from gateway.live.handshake import BEARER, SUBPROTOCOL

TO_APP: tuple[type, ...] = (bodies.InfoPacket, messages.ResultMessage, messages.ErrorMessage)
FROM_APP: tuple[type, ...] = get_args(messages.Message)
ANSWERS: tuple[type, ...] = (messages.ResultMessage, messages.ErrorMessage)

_CHANNEL = "#/channels/socket"

_DESCRIPTION = f"""\
Opened by a WebSocket handshake (RFC 6455) with the subprotocol `{SUBPROTOCOL}`; no extensions. A handshake that is
refused is answered like a call: 401, 403, 422, 426, 429 or 503, with a problem document.

All messages are JSON in text frames, those of apps {MESSAGE_BYTES} bytes at most. Gateway and apps ignore members
that they do not know, apps ignore types that they do not know. A message that the gateway cannot read, or of an unknown
type, is answered with an error; {MOST_MALFORMED} of them end the socket.

The first info packet comes at once, unless `version` names the newest one; after it one comes whenever there is
something newer. A device that reads slowly skips versions. How often a socket is pinged, how long it may take to
answer, and how many frames a client may send is the operator's to set (`GATEWAY_PING_S`, `GATEWAY_PONG_S`,
`GATEWAY_RATE_FRAMES`).

| close code | meaning | what the app does |
| --- | --- | --- |
"""


@cache
def document() -> dict[str, Any]:
    """The document, as what JSON is made of."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Gateway",
            "version": gateway.__version__,
            "description": "What apps and the gateway say over a WebSocket. The calls stand in `/openapi.json`.",
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"gateway": _server()},
        "channels": {"socket": _channel()},
        "operations": dict(map(_sending, TO_APP)) | dict(map(_receiving, FROM_APP)),
        "components": {
            "schemas": _schemas()[1],
            "messages": {_tag(kind): _message(kind) for kind in (*TO_APP, *FROM_APP)},
            "securitySchemes": _security_schemes(),
        },
    }


@cache
def _schemas() -> tuple[dict[object, Any], dict[str, Any]]:
    """Each type's schema or reference, and the named schemas."""
    queried = [parameter.type for parameter in openapi.SOCKET_PARAMETERS]
    return openapi.components([*TO_APP, *FROM_APP, *queried])


def _members(kind: type) -> dict[str, Any]:
    members: dict[str, Any] = _schemas()[1][kind.__name__]["properties"]
    return members


def _tag(kind: type) -> str:
    """The `type` by which a message is known."""
    return str(_members(kind)["type"]["enum"][0])


def _said(kind: type) -> str:
    return re.sub(r"\s+", " ", kind.__doc__ or "").strip()


def _server() -> dict[str, Any]:
    host = {"description": "Where this gateway is reached", "examples": ["videos.example.com", "127.0.0.1:8000"]}
    return {
        "host": "{host}",
        "protocol": "wss",
        "description": "TLS ends in front of the gateway; without it the protocol is `ws`.",
        "variables": {"host": host},
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _security_schemes()],
    }


def _security_schemes() -> dict[str, Any]:
    return {
        "token": openapi.BEARER | {"description": "The header `Authorization: Bearer <JWT>` of the handshake."},
        "offered": {
            "type": "httpApiKey",
            "in": "header",
            "name": "Sec-WebSocket-Protocol",
            "description": f"For browsers, whose scripts cannot set a header: `{BEARER}<JWT>` among the subprotocols, "
            f"beside `{SUBPROTOCOL}`. Only the latter is ever chosen. Where both are given the header counts.",
        },
    }


def _channel() -> dict[str, Any]:
    rows = "".join(f"| {code:d} | {code.meaning} | {code.then} |\n" for code in CloseCode)
    return {
        "address": PATH,
        "title": "The socket of one device",
        "description": _DESCRIPTION + rows,
        "servers": [{"$ref": "#/servers/gateway"}],
        "messages": {_tag(kind): {"$ref": f"#/components/messages/{_tag(kind)}"} for kind in (*TO_APP, *FROM_APP)},
        "bindings": {"ws": _handshake()},
        "x-close-codes": [
            {"code": int(code), "name": code.name, "meaning": code.meaning, "then": code.then} for code in CloseCode
        ],
    }


def _handshake() -> dict[str, Any]:
    query = {
        parameter.name: _schemas()[0][parameter.type] | {"description": parameter.description}
        for parameter in openapi.SOCKET_PARAMETERS
    }
    offered = f"`{SUBPROTOCOL}`; in a browser the token beside it"
    headers = {
        "Authorization": {"type": "string", "description": "`Bearer <JWT>`"},
        "Sec-WebSocket-Protocol": {
            "type": "string",
            "description": offered,
            "examples": [SUBPROTOCOL, f"{SUBPROTOCOL}, {BEARER}<JWT>"],
        },
    }
    required = [parameter.name for parameter in openapi.SOCKET_PARAMETERS if parameter.required]
    return {
        "method": "GET",
        "query": {"type": "object", "properties": query, "required": required},
        "headers": {"type": "object", "properties": headers},
        "bindingVersion": "0.1.0",
    }


def _message(kind: type) -> dict[str, Any]:
    message = {"name": _tag(kind), "summary": _said(kind), "payload": _schemas()[0][kind]}
    if "id" in _members(kind):
        message["correlationId"] = {"location": "$message.payload#/id"}
    return message


def _sending(kind: type) -> tuple[str, dict[str, Any]]:
    return f"send_{_tag(kind)}", _operation("send", kind)


def _receiving(kind: type) -> tuple[str, dict[str, Any]]:
    operation = _operation("receive", kind)
    if "id" in _members(kind):
        operation["reply"] = {"channel": {"$ref": _CHANNEL}, "messages": [_in_channel(answer) for answer in ANSWERS]}
    return f"receive_{_tag(kind)}", operation


def _operation(action: str, kind: type) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": _CHANNEL},
        "summary": _said(kind),
        "messages": [_in_channel(kind)],
    }


def _in_channel(kind: type) -> dict[str, str]:
    return {"$ref": f"{_CHANNEL}/messages/{_tag(kind)}"}
