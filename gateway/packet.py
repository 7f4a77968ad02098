"""The info packet: the whole of what a client needs to know, as the bytes that every channel carries. Pure."""

from typing import Any

import orjson

from gateway.transit.state import ClientState


def encode(state: ClientState) -> bytes:
    """The info packet of `state`: compact JSON in UTF-8, keys in the protocol's order, both lists by `video_id`.

    Equal states give equal bytes, and states with equal `version` are shown equal: whoever sends a packet, by
    whatever channel, sends these bytes.
    """
    outgoing: list[dict[str, Any]] = [
        {"video_id": video_id, "recipient_id": recipient_id, "status": video.status, "at": video.at}
        for recipient_id, video_id, video in state.sent()
    ]
    incoming: list[dict[str, Any]] = [
        {
            "video_id": video_id,
            "sender_id": sender_id,
            "status": video.shown_status,
            "url": f"/v1/videos/{video_id}/content",
            "size": video.size,
            "content_type": video.content_type,
            "at": video.shown_at,
        }
        for sender_id, video_id, video in state.received()
        if not video.ended
    ]
    outgoing.sort(key=_by_id)
    incoming.sort(key=_by_id)
    return orjson.dumps(
        {
            "type": "info",
            "client_id": state.client_id,
            "version": state.version,
            "outgoing": outgoing,
            "incoming": incoming,
        }
    )


def _by_id(entry: dict[str, Any]) -> str:
    video_id: str = entry["video_id"]
    return video_id
