"""A Load or Unload that some thread waits for, and how it ended.

Floor 4: the texts are Triton's (`ModelRepositoryManager::LoadUnloadModel`), with the reason added where it is known.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from server.core.errors import LoadFailed, PodiumError
from server.core.settings import ModelSettings
from server.core.versions import State, VersionKey
from server.lifecycle.found import FoundModel, Given
from server.lifecycle.policy import Actual, Desired, Nothing, Wish, in_service, next_action


@dataclass(slots=True, eq=False)
class Command:
    """Asked by one thread, answered once, mostly by the manager's. `error` is set before `done`.

    Ownership: `given` until somebody sets it to None, having taken it over.
    """

    model: str
    load: bool
    settings: ModelSettings | None = None
    given: Given | None = None
    done: threading.Event = field(default_factory=threading.Event)
    error: PodiumError | None = None

    def answer(self, error: PodiumError | None = None) -> None:
        """Let the waiting thread go on. Given files that nobody has taken over are removed."""
        if self.given is not None:
            self.given.close()
        self.error = error
        self.done.set()

    def wait(self, timeout_s: float | None) -> None:
        """Return once it was done. Raises: the error it was answered with; LoadFailed when the time ran out first."""
        if not self.done.wait(timeout_s):
            verb = "load" if self.load else "unload"
            raise LoadFailed(f"failed to {verb} '{self.model}' within {timeout_s:g} seconds; it goes on")
        if self.error is not None:
            raise self.error


def at_rest(model: str, wanted: Mapping[VersionKey, Desired], actual: Mapping[VersionKey, Actual], now_ns: int) -> bool:
    """True when nothing more is going to happen to a model by itself: nothing to do, nothing on its way, no retry due."""
    mine = {key: state for key, state in actual.items() if key.model == model}
    moving = any(state.state in (State.LOADING, State.UNLOADING) for state in mine.values())
    mine_wanted = {key: want for key, want in wanted.items() if key.model == model}
    return not moving and isinstance(next_action(mine_wanted, mine, now_ns), Nothing)


def outcome(command: Command, actual: Mapping[VersionKey, Actual], wish: Wish | None) -> LoadFailed | None:
    """How a command ended whose model is at rest. Failures count: those from before it were forgiven when it began.

    `wish` is what stands of the model's Loads: the model as it was found when the last one began.
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
    served = any(state.state is State.READY for state in mine.values())
    if wish is not None and wish.elsewhere:
        # what served before may still do so, from other files
        served = in_service(wish.found, actual)
    if not served:
        versions = () if wish is None else wish.found.versions.values()
        problems = [f"version {version.key.version}: {version.problem};" for version in versions if version.problem]
        reasons = f": {' '.join(problems)}" if problems else ""
        return LoadFailed(f"failed to load '{command.model}', no version is available{reasons}")
    return None


def not_polled(name: str, model: FoundModel | None, why: str = "") -> str:
    """The text for a model that is not there, or cannot be read."""
    reason = why or (model.problem if model is not None else None)
    return f"failed to load '{name}', failed to poll from model repository" + (f": {reason}" if reason else "")
