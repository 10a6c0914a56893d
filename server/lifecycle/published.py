"""The table of what serves right now: how a request finds its version without a lock. **Pure.**

Floor 4: made anew by `table` at every change and swapped in by one reference assignment; whoever holds one sees one
consistent instant. It never changes after it is made.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from server.core.errors import InvalidRequest, NotFound, NotReady
from server.core.versions import State, VersionKey
from server.lifecycle.policy import CHAMPION
from server.lifecycle.replica import Replica

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_LONGEST = 2**63


@dataclass(frozen=True, slots=True)
class Published:
    """READY replicas by every name a caller may use. `defaults` is the version that answers where none is named.

    `_dead`: models with a version whose backend is dead, and why: it comes back with the next process. `_starting`: versions
    are still being brought into service for the first time. Who asks for either is told to try again.
    """

    _named: Mapping[tuple[str, str], Replica]
    _states: Mapping[VersionKey, State]
    _aliases: Mapping[str, Mapping[str, int]]
    _models: Set[str]
    defaults: Mapping[str, int]
    ready: Mapping[VersionKey, Replica]
    _dead: Mapping[str, str] = field(default_factory=dict)
    _starting: bool = False

    def lookup(self, model: str, version: str) -> Replica:
        """The replica that answers this call. `version` is a number, an alias of the model, or "" for the default.

        Raises: NotFound, NotReady, InvalidRequest with Triton's texts.
        """
        replica = self._named.get((model, version))
        if replica is not None:
            return replica
        if model not in self._models:
            if self._starting and not self._models:
                raise NotReady(f"Request for unknown model: '{model}' is not at ready state: the server is starting")
            raise NotFound(f"Request for unknown model: '{model}' is not found")
        if not version:
            if self._starting or model in self._dead:
                why = self._dead.get(model, "the server is starting")
                raise NotReady(f"Request for unknown model: '{model}' is not at ready state: {why}")
            raise NotFound(f"Request for unknown model: '{model}' has no available versions")
        aliased = None if _INTEGER.fullmatch(version) else self._aliases.get(model, {}).get(version)
        number = parse_version(version) if aliased is None else aliased
        replica = self.ready.get(VersionKey(model, number))
        if replica is not None:
            return replica  # "007" or "+7": not how the table writes it, but a number all the same
        if self._starting or VersionKey(model, number) in self._states:
            raise NotReady(f"Request for unknown model: '{model}' version {number} is not at ready state")
        raise NotFound(f"Request for unknown model: '{model}' version {number} is not found")

    def named(self) -> Mapping[tuple[str, str], Replica]:
        """What serves, by model and version as callers write them: "" is the default, and aliases have their names."""
        return self._named

    def ready_versions(self, model: str) -> tuple[int, ...]:
        """READY versions of a model, ascending; empty where there are none."""
        return tuple(sorted(key.version for key in self.ready if key.model == model))


EMPTY = Published({}, {}, {}, frozenset(), {}, {})
"""Nothing is known yet."""


def publish(
    ready: Mapping[VersionKey, Replica],
    states: Mapping[VersionKey, State],
    aliases: Mapping[str, Mapping[str, int]],
    before: Published,
    dead: Mapping[str, str] | None = None,
    *,
    starting: bool = False,
) -> Published:
    """The table for this instant.

    `states` names every version that is not a stranger, `aliases` every model that is not one. The default of a model is
    its champion; while the champion is not READY, what was the default before; failing that, the highest READY version.
    `dead`, `starting`: see `Published`.
    """
    named: dict[tuple[str, str], Replica] = {}
    highest: dict[str, int] = {}
    for key, replica in sorted(ready.items()):
        named[key.model, str(key.version)] = replica
        highest[key.model] = key.version
    defaults: dict[str, int] = {}
    for model, newest in highest.items():
        chosen = newest
        champion = aliases.get(model, {}).get(CHAMPION)
        if champion is not None:
            options = (champion, before.defaults.get(model, newest))
            chosen = next((version for version in options if VersionKey(model, version) in ready), newest)
        defaults[model] = chosen
        named[model, ""] = ready[VersionKey(model, chosen)]
    known = {key.model for key in states} | aliases.keys()
    for model, names in aliases.items():
        for alias, version in names.items():
            aliased = ready.get(VersionKey(model, version))
            # a number is always a version, whatever somebody called an alias
            if aliased is not None and alias and not _INTEGER.fullmatch(alias):
                named[model, alias] = aliased
    return Published(named, dict(states), aliases, known, defaults, dict(ready), dict(dead or {}), starting)


def parse_version(version: str) -> int:
    """The version a caller's non-empty string names. Raises: InvalidRequest with Triton's text.

    >>> parse_version("3")
    3
    """
    number = int(version) if _INTEGER.fullmatch(version) else _LONGEST
    if number >= _LONGEST:
        raise InvalidRequest(
            f"failed to get model version from specified version string '{version}' (details: stol), version should be an"
            " integral value > 0"
        )
    if number < 0:
        raise InvalidRequest(f"invalid model version specified '{version}' , version should be an integral value > 0")
    return number
