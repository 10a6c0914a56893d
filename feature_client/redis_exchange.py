"""One round trip with several servers at once: send to all, then collect, within one deadline.

No call waits for a connection while it sits on answers that have come: what is complete goes back at once, so that calls which
need the same few connections never wait for each other in a circle, and a server that hangs keeps no other's connection away.
"""

import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from feature_client.errors import StoreError, StoreTimeout
from feature_client.redis_channel import Channel, Reply
from feature_client.redis_link import LOOK_S, Link


@dataclass(frozen=True)
class Asked:
    """Commands for one server, packed, and how many replies they get."""

    link: Link
    packed: bytes
    replies: int


def exchange(asked: Sequence[Asked], deadline_s: float) -> list[list[Reply] | StoreError]:
    """The replies of each server, or its trouble in their place. `deadline_s`: of `time.monotonic`."""
    round_trip = _RoundTrip(asked)
    try:
        waiting = [index for index, each in enumerate(asked) if not round_trip.begin(index, each.link.take_now())]
        while waiting:
            index = waiting.pop(0)
            now_s = time.monotonic()
            alone = not waiting and not round_trip.lent
            until_s = deadline_s if alone else min(deadline_s, now_s + LOOK_S)
            try:
                round_trip.begin(index, asked[index].link.take(until_s))
            except StoreTimeout:
                if until_s < deadline_s:
                    waiting.append(index)
            except StoreError as error:
                round_trip.answers[index] = error
            round_trip.collect(0.0)
        round_trip.collect(deadline_s)
    except BaseException:
        for channel in round_trip.lent.values():
            channel.close()  # interrupted somewhere: what it owes is not known
        raise
    finally:
        for index, channel in round_trip.lent.items():
            asked[index].link.put(channel)
    return round_trip.answers


class _RoundTrip:
    """Channels that are lent, by the position of who asked, and the answers so far: first of all that there is none."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self._asked = asked
        self.lent: dict[int, Channel] = {}
        self.answers: list[list[Reply] | StoreError] = [
            StoreTimeout(f"{each.link.name} did not answer in time") for each in asked
        ]

    def begin(self, index: int, channel: Channel | None) -> bool:
        """Send; whether there was a channel to send on."""
        if channel is None:
            return False
        self.lent[index] = channel
        try:
            channel.begin(self._asked[index].packed, self._asked[index].replies)
        except StoreError as error:
            self._ended(index, error)
        return True

    def collect(self, deadline_s: float) -> None:
        """Take the answers that come until the deadline, in the order in which they come; 0.0: those that are there."""
        while self.lent:
            if len(self.lent) == 1:
                self._take(*next(iter(self.lent.items())), deadline_s)
                return
            for index, channel in tuple(self.lent.items()):
                self._take(index, channel, 0.0)
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return
            _await_any(list(self.lent.values()), left_s)

    def _take(self, index: int, channel: Channel, deadline_s: float) -> None:
        try:
            replies = channel.finish(deadline_s)
        except StoreError as error:
            self._ended(index, error)
        else:
            if replies is not None:
                self._ended(index, replies)

    def _ended(self, index: int, answer: list[Reply] | StoreError) -> None:
        self.answers[index] = answer
        self._asked[index].link.put(self.lent.pop(index))


def _await_any(channels: Sequence[Channel], left_s: float) -> None:
    poll = select.poll()
    for channel in channels:
        awaited = channel.awaited()
        if not awaited:
            return
        poll.register(channel, awaited)
    if channels:
        poll.poll(left_s * 1000)
