# mypy: ignore-errors
# (its packages are in an environment of their own)
"""Django Channels with its layer over Redis' pub/sub, as its documentation has it: a group for each user.

REDIS_URL says where Redis is. A client connects to /?c=<index> and gets what is sent to the group user.<index>.
"""

import os
from urllib.parse import parse_qs

import django
from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1"],
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "CONFIG": {"hosts": [os.environ["REDIS_URL"]]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.group = f"user.{parse_qs(self.scope['query_string'].decode())['c'][0]}"
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code):  # noqa: ARG002
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def info(self, event):
        await self.send(text_data=event["text"])


app = ProtocolTypeRouter({"websocket": URLRouter([path("", Consumer.as_asgi())])})
