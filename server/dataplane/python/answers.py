"""What the replies of a batch get, and the giving."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from server.core.errors import BackendFailed, PodiumError
from server.core.tensors import Array
from server.dataplane.interface import Batch, Part
from server.dataplane.rows import scatter
from server.dataplane.ticket import Reply, StreamReply

BRAKE_FROM = 0.75
BRAKE_S = 0.002
"""From this much of a caller's room on a decoupled version pauses after each answer, up to so long where the room is full. A
model that is faster than the door thus slows down to the door's pace; for a caller who does not read, the device is held no
longer than the pauses until its room is full."""

Answer = tuple[Reply, Any]
"""A reply and what it gets: outputs by name, a `PodiumError`, or a `Further`."""


@dataclass(frozen=True, slots=True)
class Further:
    """Outputs by name after which more may come: goes to the reply's `add`. Only streamed requests get any."""

    outputs: Mapping[str, Array]


def check_parts(parts: Sequence[Part], requests: int) -> None:
    """Raises: ValueError unless the parts cover so many requests exactly, in order."""
    edges = [0, *(part.last for part in parts)]
    if [part.first for part in parts] != edges[:-1] or edges[-1] != requests:
        raise ValueError("parts must cover the batch's requests exactly, in order")


def outcomes_of(batch: Batch, parts: Sequence[Part]) -> list[Any]:
    """What each request of a batch gets: its rows of the outputs, or its error."""
    outcomes: list[Any] = []
    for part in parts:
        if part.outputs is None:
            outcomes.extend([part.error] * (part.last - part.first))
        else:
            batching = bool(batch.rules.signature.max_batch)
            outcomes.extend(scatter(part.outputs, batch.spans, part.first, part.last, batching=batching))
    return outcomes


def settle(answers: Sequence[Answer]) -> None:
    """Give each reply its answer, unless its caller has gone. Runs where the replies live (for asyncio: on the loop)."""
    for reply, answer in answers:
        if reply.done():
            continue
        if isinstance(answer, PodiumError):
            reply.set_exception(answer)
        elif type(answer) is Further:
            cast(StreamReply, reply).add(answer.outputs)
        else:
            reply.set_result(answer)


def give_further(
    reply: StreamReply, outputs: Mapping[str, Array], deliver: Callable[[Sequence[Answer], int | None], None]
) -> None:
    """One answer of a decoupled version, by `deliver`; on the engine's thread, which it may hold up for a while.

    Raises: BackendFailed where the caller's room is full.
    """
    filled = reply.reserve(outputs)
    if filled > 1:
        raise BackendFailed("the answers to this request are read too slowly: too many of them wait for their caller")
    deliver([(reply, Further(outputs))], None)
    if filled > BRAKE_FROM:
        time.sleep(BRAKE_S * (filled - BRAKE_FROM) / (1 - BRAKE_FROM))
