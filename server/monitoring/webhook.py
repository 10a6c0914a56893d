"""Events posted to a URL, signed as Standard Webhooks states it.

Floor 4, on the thread of its courier. Certificates are verified, redirects are not followed (a signed body goes where it was
configured to go), and the whole attempt, name resolution included, ends in its time.
"""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import aiohttp

from server.core.errors import RegistryError
from server.monitoring.delivery import Undelivered
from server.monitoring.events import Event, keys_of, signed_headers
from server.registry.reread import Reread

_AGAIN = (408, 425, 429)
"""Of 4xx, those that say "not now"."""


class Webhook:
    """A `Destination`. `now_s`: seconds since 1970.

    The key file is read now, and again when it changes; while it cannot be read, nothing is sent.
    Raises: ValueError for a file that holds no key.
    """

    name = "webhook"

    def __init__(self, url: str, key_file: Path, timeout_s: float, now_s: Callable[[], int] = lambda: int(time.time())) -> None:
        self._url = url
        self._key_file = key_file
        self._timeout_s = timeout_s
        self._now_s = now_s
        self._keys_read = Reread(_keys)
        try:
            self._keys()
        except Undelivered as unfit:
            raise ValueError(str(unfit)) from None

    def deliver(self, event: Event) -> None:
        """Post it. Any status 2xx is a receipt. Raises: Undelivered."""
        headers = signed_headers(event, self._keys(), self._now_s())
        try:
            status, asked = asyncio.run(self._post(event.body, headers))
        except TimeoutError:
            raise Undelivered(f"no answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # texts of clients may hold the URL, and URLs may hold secrets
            raise Undelivered(f"the webhook cannot be reached: {type(error).__name__}") from None
        if 200 <= status < 300:
            return
        again = status in _AGAIN or status >= 500
        raise Undelivered(f"the webhook answered {status}", rejected=not again, retry_after_s=retry_after_s(asked, time.time()))

    def close(self) -> None:
        """What is on its way ends in its time."""

    async def _post(self, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
        limit = aiohttp.ClientTimeout(total=self._timeout_s)
        async with (
            aiohttp.ClientSession(timeout=limit) as session,
            session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            return response.status, response.headers.get("Retry-After", "")

    def _keys(self) -> tuple[bytes, ...]:
        try:
            keys = self._keys_read.get(self._key_file)
        except RegistryError as error:
            raise Undelivered(f"hmac_key_file: {error}", rejected=True) from None
        if keys is None:
            raise Undelivered(f"hmac_key_file: there is no {self._key_file.name}", rejected=True)
        return keys


def _keys(content: bytes) -> tuple[bytes, ...]:
    try:
        return keys_of(content)
    except ValueError as error:
        raise RegistryError(str(error)) from None


def retry_after_s(header: str, now_s: float) -> float | None:
    """What a `Retry-After` asks for: seconds, or an instant; None where it says nothing that can be understood.

    >>> retry_after_s("120", 0.0), retry_after_s("Thu, 01 Jan 1970 00:01:00 GMT", 15.0), retry_after_s("soon", 0.0)
    (120.0, 45.0, None)
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        then = parsedate_to_datetime(text)
    except ValueError:
        return None
    then = then.replace(tzinfo=UTC) if then.tzinfo is None else then
    return max(0.0, (then - datetime.fromtimestamp(now_s, UTC)).total_seconds())
