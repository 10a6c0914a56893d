"""A Load or Unload that some thread waits for, and how it ended.

Floor 4: the texts are Triton's (`ModelRepositoryManager::LoadUnloadModel`), with the reason added where it is known.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.core.errors import LoadFailed, PodiumError
from server.core.settings import ModelSettings
from server.core.versions import State, VersionKey
from server.lifecycle.found import FoundModel
from server.lifecycle.policy import Actual, Desired, Nothing, next_action


@dataclass(slots=True, eq=False)
class Command:
    """Asked by one thread, answered once by the manager's. `error` is set before `done`."""

    model: str
    load: bool
    settings: ModelSettings | None = None
    done: threading.Event = field(default_factory=threading.Event)
    error: PodiumError | None = None

    def answer(self, error: PodiumError | None = None) -> None:
        """Let the waiting thread go on."""
        self.error = error
        self.done.set()


def at_rest(model: str, wanted: Mapping[VersionKey, Desired], actual: Mapping[VersionKey, Actual], now_ns: int) -> bool:
    """True when nothing more is going to happen to a model by itself: nothing to do, nothing on its way, no retry due."""
    mine = {key: state for key, state in actual.items() if key.model == model}
    moving = any(state.state in (State.LOADING, State.UNLOADING) for state in mine.values())
    mine_wanted = {key: want for key, want in wanted.items() if key.model == model}
    return not moving and isinstance(next_action(mine_wanted, mine, now_ns), Nothing)


def outcome(command: Command, actual: Mapping[VersionKey, Actual], found: FoundModel | None) -> LoadFailed | None:
    """How a command ended whose model is at rest. Failures count: those from before it were forgiven when it began.

    `found` is the model as it was when a Load began.
    """
    if not command.load:
        return None
    mine = {key: state for key, state in sorted(actual.items()) if key.model == command.model}
    failures = [
        f"version {key.version} is at UNAVAILABLE state: {state.failure.reason};"
        for key, state in mine.items()
        if state.failure is not None
    ]
    if failures:
        return LoadFailed(f"load failed for model '{command.model}': {' '.join(failures)}")
    if not any(state.state is State.READY for state in mine.values()):
        versions = () if found is None else found.versions.values()
        problems = [f"version {version.key.version}: {version.problem};" for version in versions if version.problem]
        reasons = f": {' '.join(problems)}" if problems else ""
        return LoadFailed(f"failed to load '{command.model}', no version is available{reasons}")
    return None


def not_polled(name: str, model: FoundModel | None, why: str = "") -> str:
    """The text for a model that is not there, or cannot be read."""
    reason = why or (model.problem if model is not None else None)
    return f"failed to load '{name}', failed to poll from model repository" + (f": {reason}" if reason else "")
