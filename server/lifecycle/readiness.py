"""Why a server should not be sent requests, as far as its versions are concerned. **Pure.**"""

from collections.abc import Iterator, Mapping, Set

from server.core.versions import State, VersionKey
from server.lifecycle.policy import Actual


def start_problems(scan_problem: str) -> Iterator[str]:
    """Of a server whose initial load is not over."""
    yield "the initial load has not finished"
    if scan_problem:
        yield scan_problem


def dead_problems(lost: Mapping[str, str], wanted: Set[VersionKey], actual: Mapping[VersionKey, Actual]) -> Iterator[str]:
    """Of a process that cannot execute what it should: lost devices, and why; versions whose backend is dead."""
    yield from lost.values()
    for key, state in sorted(actual.items()):
        failure = state.failure
        if failure is None or not failure.dead or failure.reason in lost.values():
            continue
        if state.state is not State.READY and key in wanted:
            yield f"{key}: its backend is dead: {failure.reason}"
