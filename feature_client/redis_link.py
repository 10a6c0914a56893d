"""A few connections to one Redis server: lent clean, taken back as they are, connected aside.

At most `connections` sockets ever exist at once. When the server hangs, all of them owe replies, calls end with their budgets,
and nothing reconnects; when it goes on, the replies that nobody wants any more are read and thrown away.
"""

import threading
import time

from feature_client.errors import StoreError, StoreTimeout
from feature_client.forking import start_anew_in_children
from feature_client.redis_address import Address
from feature_client.redis_channel import Channel

LOOK_S = 0.001
"""How often a call that finds every connection owing looks whether one has settled."""
_SILENT_S = 1.0
"""After how long a connection that owes is given up when the server has answered on another since."""
_GIVEN_UP_S = 30.0
"""After how long a connection that owes is given up whatever happens on others."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2
"""How long after a failed attempt to connect the next one is made at the earliest; it doubles in between."""


class Link:
    """Connections to one server. Thread-safe; in a forked child it starts anew."""

    def __init__(self, address: Address, *, connections: int, connect_timeout_s: float) -> None:
        self.name = address.name
        self._address = address
        self._limit = connections
        self._connect_timeout_s = connect_timeout_s
        self._closed = False
        self._clean: list[Channel] = []
        self._owing: list[Channel] = []
        self._lent: set[Channel] = set()
        self.start_anew()
        start_anew_in_children(self)

    def start_anew(self) -> None:
        """Be as at first, with a lock of its own; connections from before are the parent's."""
        for channel in (*self._clean, *self._owing):
            channel.close()
        self._clean.clear()
        self._owing.clear()
        self._lent.clear()
        self._changed = threading.Condition()
        self._connecting = False
        self._failure = ""
        self._pause_s = 0.0
        self._not_before_s = 0.0
        self._answered_s = 0.0

    def take_now(self) -> Channel | None:
        """A clean channel, if there is one; it is the caller's until `put`."""
        with self._changed:
            return self._lend()

    def take(self, deadline_s: float) -> Channel:
        """A clean channel, the caller's until `put`; waits for one, or for a new connection, until the deadline.

        Raises: StoreTimeout; StoreError where no connection can be had.
        """
        with self._changed:
            while True:
                if self._closed:
                    raise StoreError(f"the store at {self.name} has been closed")
                if (channel := self._lend()) is not None:
                    return channel
                now_s = time.monotonic()
                if self._may_connect(now_s):
                    self._connect()
                elif not (self._connecting or self._lent or self._owing):
                    raise StoreError(self._failure)
                left_s = deadline_s - now_s
                if left_s <= 0:
                    raise StoreTimeout(f"{self.name} did not answer in time")
                self._changed.wait(min(left_s, LOOK_S) if self._owing else left_s)

    def put(self, channel: Channel) -> None:
        """Give a channel back, clean, owing or closed."""
        with self._changed:
            if self._closed or channel not in self._lent:  # or lent before a fork
                channel.close()
            elif not channel.closed:
                now_s = time.monotonic()
                if channel.owed:
                    channel.owing_since_s = now_s
                    self._owing.append(channel)
                else:
                    self._answered_s = now_s
                    self._clean.append(channel)
            self._lent.discard(channel)
            # while some owe, everybody who waits must look: nothing else wakes them when those settle
            self._changed.notify_all() if self._owing else self._changed.notify()

    def close(self) -> None:
        """Close what is here; what is lent is closed when it comes back. Idempotent."""
        with self._changed:
            self._closed = True
            for channel in (*self._clean, *self._owing):
                channel.close()
            self._clean.clear()
            self._owing.clear()
            self._changed.notify_all()

    def _lend(self) -> Channel | None:
        if self._owing:
            self._settle(time.monotonic())
        while self._clean:
            channel = self._clean.pop()  # the one used last: few connections, and warm ones
            if channel.fresh():
                self._lent.add(channel)
                return channel
            channel.close()
        return None

    def _settle(self, now_s: float) -> None:
        for channel in tuple(self._owing):
            try:
                settled = channel.settle()
            except StoreError:
                self._owing.remove(channel)
                continue
            owing_s = now_s - channel.owing_since_s
            if settled:
                self._owing.remove(channel)
                self._clean.append(channel)
                self._answered_s = now_s
            elif owing_s > _GIVEN_UP_S or (owing_s > _SILENT_S and self._answered_s > channel.owing_since_s):
                self._owing.remove(channel)
                channel.close()

    def _may_connect(self, now_s: float) -> bool:
        # one after the other: a server that has just come back is not met by a crowd
        open_now = len(self._lent) + len(self._clean) + len(self._owing)
        return not self._connecting and open_now < self._limit and now_s >= self._not_before_s

    def _connect(self) -> None:
        """Connect in a thread of its own: resolving a name or agreeing on keys may take longer than any caller can wait, and
        what comes of it is still good for the next one.
        """
        thread = threading.Thread(target=self._connected, args=(self._changed,), name="store-connect", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            raise StoreError(f"{self.name} cannot be reached: this process starts no threads any more") from None
        self._connecting = True

    def _connected(self, changed: threading.Condition) -> None:
        channel, failure = None, ""
        try:
            channel = self._address.connect(self._connect_timeout_s)
        except StoreError as error:
            failure = str(error)
        except Exception as error:  # noqa: BLE001  # whatever it is, those who wait must hear of it
            failure = f"{self.name} cannot be reached: {type(error).__name__}"
        with changed:
            self._connecting = False
            if channel is None:
                self._failure = failure
                self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
                self._not_before_s = time.monotonic() + self._pause_s
            elif self._closed:
                channel.close()
            else:
                self._pause_s = 0.0
                self._clean.append(channel)
            changed.notify_all()
