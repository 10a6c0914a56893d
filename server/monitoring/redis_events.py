"""Events added to a Redis stream, each with its id: an answer may be lost after the entry was added, so it may be added again.

Floor 4, on the thread of its courier; loaded by name, with the client of the feature store. The stream is not trimmed: events
are few, and who has read which of them is not known here.
"""

from feature_client.errors import StoreError
from server.monitoring.delivery import Undelivered
from server.monitoring.events import Event
from server.monitoring.redis_stream import RedisStream, Refused


class RedisEvents:
    """A `Destination`. Raises: StoreError for a URL that cannot be one, or is a cluster's."""

    name = "redis"

    def __init__(self, url: str, stream: str) -> None:
        self._stream = RedisStream(url, stream)

    def deliver(self, event: Event) -> None:
        """Add it. Raises: Undelivered."""
        fields = (b"id", event.id, b"model", event.model, b"reason", event.reason, b"event", event.body)
        try:
            self._stream.ask("XADD", self._stream.stream, "*", *fields)
        except Refused as refused:
            raise Undelivered(str(refused), rejected="WRONGTYPE" in str(refused) or "NOAUTH" in str(refused)) from None
        except StoreError as error:
            self._stream.close()
            raise Undelivered(str(error)) from None

    def close(self) -> None:
        """A command ends in its time, and its connection with the process."""
