"""What callers asked for and have not taken back, model by model, and the folders of files they sent along.

Floor 4, beside the manager whose thread alone changes it. A Load that moves a model to other files (given ones, or back from
them to the repository) is on probation: until a version of these files serves, the wish before it is kept, and comes back if
none ever does. Thus such a Load that fails changes nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.lifecycle.commands import not_polled
from server.lifecycle.found import FoundModel, Given
from server.lifecycle.policy import Actual, Wish, in_service

ALL_MODELS = "*"


@dataclass(slots=True)
class _Held:
    wish: Wish
    given: Given | None
    before: "_Held | None"
    proven: bool

    def close(self) -> None:
        """Give back the folders of this wish and of the one before."""
        for held in (self, self.before):
            if held is not None and held.given is not None:
                held.given.close()


class Wishes:
    """Wishes by model. Owns every `Given` it was handed.

    `given` are the models that are served from given files, `from_repository` the settings of the others, None where they are
    the model's own: replaced as a whole, so any thread may read them. `begun`: what is wanted from the start was asked for.
    """

    def __init__(self, initial: Iterable[str] = (), again: Mapping[str, ModelSettings | None] | None = None) -> None:
        """`initial` names what is wanted from the start ("*": all); with `again` it is these instead, some with settings."""
        self._initial = tuple(initial if again is None else again)
        self._again = again or {}
        self.begun = False
        self._held: dict[str, _Held] = {}
        self.given: Mapping[str, FoundModel] = {}
        self.from_repository: Mapping[str, ModelSettings | None] = {}

    def current(self) -> dict[str, Wish]:
        """What should be served, on probation or not."""
        return {name: held.wish for name, held in self._held.items()}

    def aliases(self) -> dict[str, Mapping[str, int]]:
        """By model: those of the wish before while one is on probation, because its versions still answer."""
        return {name: (held.before or held).wish.found.aliases for name, held in self._held.items()}

    def ask(
        self,
        found: FoundModel,
        settings: ModelSettings | None = None,
        given: Given | None = None,
        actual: Mapping[VersionKey, Actual] | None = None,
    ) -> None:
        """A Load: this model, with these settings instead of its own, from `given` or else from the repository.

        Ownership: `given` is closed here, when nothing asks for it any more.
        """
        name = found.name
        # one that never got as far as its answer is judged as if it had
        self.settle(name, actual or {})
        before = self._held.get(name)
        if given is None and (before is None or before.given is None):
            before = None
        elsewhere = given is not None or before is not None
        self._held[name] = _Held(Wish(found, settings, elsewhere), given, before, proven=not elsewhere)
        self._show()

    def begin(self, found: Mapping[str, FoundModel]) -> dict[str, str]:
        """A Load of everything that is wanted from the start, as `found`. Returns what is wrong with models that cannot be
        loaded.
        """
        self.begun = True
        names = found if ALL_MODELS in self._initial else self._initial
        missing: dict[str, str] = {}
        for name in names:
            model = found.get(name)
            if model is not None and model.problem is None:
                self.ask(model, self._again.get(name))
            else:
                missing[name] = not_polled(name, model)
        return missing

    def settle(self, name: str, actual: Mapping[VersionKey, Actual]) -> bool:
        """End a probation: all that could happen has. True if it was passed, so that the model's aliases may have changed."""
        held = self._held.get(name)
        if held is None or held.proven:
            return False
        before, held.before = held.before, None
        held.proven = in_service(held.wish.found, actual)
        if held.proven:
            if before is not None:
                before.close()
        else:
            held.close()
            del self._held[name]
            if before is not None:
                self._held[name] = before
        self._show()
        return held.proven

    def withdraw(self, name: str) -> None:
        """An Unload."""
        held = self._held.pop(name, None)
        if held is not None:
            held.close()
        self._show()

    def close(self) -> None:
        """Nothing is wanted any more."""
        for name in list(self._held):
            self.withdraw(name)

    def _show(self) -> None:
        self.given = {name: held.wish.found for name, held in self._held.items() if held.given is not None}
        self.from_repository = {name: held.wish.settings for name, held in self._held.items() if held.given is None}
