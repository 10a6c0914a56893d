"""What the replies of a batch get, and the giving."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from server.core.errors import PodiumError
from server.core.tensors import Array
from server.dataplane.ticket import Reply, StreamReply

Answer = tuple[Reply, Any]
"""A reply and what it gets: outputs by name, a `PodiumError`, or a `Further`."""


@dataclass(frozen=True, slots=True)
class Further:
    """Outputs by name after which more may come: goes to the reply's `add`. Only streamed requests get any."""

    outputs: Mapping[str, Array]


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
