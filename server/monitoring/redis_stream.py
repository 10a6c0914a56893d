"""One stream of a Redis server over one connection, made anew when it was lost.

Floor 4. It connects as the feature client does (names, TLS, users, URLs), and so imports no client of its own. Never retries:
whether a command whose answer was lost may be given again is known to who gave it.
"""

import time
from typing import Any

from feature_client.errors import StoreError
from feature_client.redis_address import parse_address
from feature_client.redis_channel import Channel, Word, packed

CONNECT_S = 2.0
ANSWER_S = 2.0
"""How long an answer is waited for; after that, whether the command was carried out is not known."""


class Refused(StoreError):
    """The server's answer is an error: the command was not carried out."""


class RedisStream:
    """Ownership: one thread at a time. Raises: StoreError for a URL that cannot be one, or is a cluster's."""

    def __init__(self, url: str, stream: str) -> None:
        self._address = parse_address(url)
        if self._address.is_cluster:
            raise StoreError("a stream is one key, on one server: redis://, rediss:// or unix://, and no cluster")
        self.stream = stream
        self.name = self._address.name
        self._channel: Channel | None = None

    def ask(self, *words: Word, wait_s: float = 0.0) -> Any:
        """The answer to one command, which may itself wait for `wait_s`.

        Raises: Refused; any other StoreError where no answer came: then it may have been carried out, or be so yet.
        """
        channel, self._channel = self._channel, None
        if channel is None or not channel.fresh():
            if channel is not None:
                channel.close()
            channel = self._address.connect(CONNECT_S)
        try:
            channel.begin(packed(words), 1)
            replies = channel.finish(time.monotonic() + wait_s + ANSWER_S)
        except BaseException:
            channel.close()
            raise
        if replies is None:
            channel.close()  # a late answer would be taken for the next one's
            raise StoreError(f"{self.name} did not answer in {ANSWER_S:g} s")
        self._channel = channel
        if isinstance(replies[0], Exception):
            raise Refused(f"{self.name} refused: {replies[0]}")
        return replies[0]

    def close(self) -> None:
        """Let go of the connection. Idempotent; the next command makes another."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None
