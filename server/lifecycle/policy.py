"""Which versions should serve, and the one thing to do next about it. **Pure.**

Floor 4: it decides, `manager` does (TensorFlow Serving's aspired versions, availability preserving). Desired state is
worked out anew from what is found and what is in memory; nothing here remembers.
"""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Literal

from server.core.clock import NS_PER_S
from server.core.settings import ModelSettings, VersionPolicy
from server.core.versions import State, VersionKey
from server.lifecycle.found import FoundModel, FoundVersion

CHAMPION = "champion"
"""The alias whose version answers requests that name no version."""

FIRST_BACKOFF_NS = NS_PER_S
LONGEST_BACKOFF_NS = 60 * NS_PER_S

ControlMode = Literal["poll", "explicit"]


@dataclass(frozen=True, slots=True)
class Identity:
    """What was, or is to be, loaded: two equal identities are the same bytes run in the same way."""

    stamp: str
    settings: ModelSettings


@dataclass(frozen=True, slots=True)
class Wish:
    """What a Load asked for: the model as it was found then, and settings that replace its own.

    `elsewhere` says that its files may be other ones than those of what served before, whatever the versions' numbers.
    """

    found: FoundModel
    settings: ModelSettings | None = None
    elsewhere: bool = False


@dataclass(frozen=True, slots=True)
class Serve:
    """This version, in exactly this form, should be READY."""

    found: FoundVersion
    settings: ModelSettings


@dataclass(frozen=True, slots=True)
class Keep:
    """This version is in memory and should stay as it is: what is on disk now cannot or need not be loaded."""


Desired = Serve | Keep


@dataclass(frozen=True, slots=True)
class Failure:
    """The last attempt to load `identity`, or the death of the backend that was loaded from it."""

    identity: Identity
    count: int
    retry_at_ns: int
    reason: str
    dead: bool = False


@dataclass(frozen=True, slots=True)
class Actual:
    """One version as it is. `identity` is what is in memory (READY only); `failure` may stand beside a READY version
    whose reload failed. `reason`: why it is not READY; of one that is, what its operator should know.
    """

    state: State
    identity: Identity | None = None
    failure: Failure | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """Bring a version into service."""

    key: VersionKey
    serve: Serve


@dataclass(frozen=True, slots=True)
class Reload:
    """Load a version's new form beside the one that serves, then swap."""

    key: VersionKey
    serve: Serve


@dataclass(frozen=True, slots=True)
class Unload:
    """Take a version out of service."""

    key: VersionKey


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Nothing can be done before this instant, unless something changes."""

    ns: int


@dataclass(frozen=True, slots=True)
class Nothing:
    """What is, is what should be (or failed for good): nothing to do unless something changes."""


Action = Load | Reload | Unload | WaitUntil | Nothing


def identity(serve: Serve) -> Identity:
    """What would be in memory after this load. Settings that only steer the lifecycle do not count: no reload for them."""
    return Identity(serve.found.stamp, serve.settings.model_copy(update={"versions": None, "load_retries": 0}))


def in_service(found: FoundModel, actual: Mapping[VersionKey, Actual]) -> bool:
    """Whether a version is READY from these very files, and not from others under the same name."""
    served = {key: state.identity.stamp for key, state in actual.items() if state.identity is not None}
    return any(served.get(version.key) == version.stamp for version in found.versions.values())


def failed(previous: Failure | None, target: Identity, now_ns: int, reason: str, *, dead: bool = False) -> Failure:
    """The failure after one more failed attempt; the waiting time doubles up to `LONGEST_BACKOFF_NS`. `dead`: its device is."""
    count = previous.count + 1 if previous is not None and previous.identity == target else 1
    # the exponent is bounded so that the shift stays a small number
    backoff_ns = min(FIRST_BACKOFF_NS << min(count - 1, 16), LONGEST_BACKOFF_NS)
    return Failure(target, count, now_ns + backoff_ns, reason, dead)


def desired(
    found: Mapping[str, FoundModel],
    mode: ControlMode,
    explicit: Mapping[str, Wish],
    actual: Mapping[VersionKey, Actual],
    defaults: Mapping[str, int],
) -> dict[VersionKey, Desired]:
    """Every version that should serve. A version that is not named here should not.

    In `poll` mode that follows `found`; in `explicit` mode the models of `explicit`, as they were found at their Load
    (files still being written count as complete there: the operator said "now"). `defaults` is the version that answers
    requests without a version, per model.
    """
    wishes = {name: Wish(model) for name, model in found.items()} if mode == "poll" else explicit
    result: dict[VersionKey, Desired] = {}
    for name, wish in wishes.items():
        mine = {key.version: state for key, state in actual.items() if key.model == name}
        wanted = _of_model(wish, mode == "poll", mine, defaults.get(name))
        if wish.elsewhere and not in_service(wish.found, actual):
            # that other files lack a version says nothing about it: what serves leaves once one of these serves
            for version, state in mine.items():
                if state.state is State.READY:
                    wanted.setdefault(version, Keep())
        for version, want in wanted.items():
            result[VersionKey(name, version)] = want
    return result


def _of_model(wish: Wish, wait_for_files: bool, actual: Mapping[int, Actual], default: int | None) -> dict[int, Desired]:
    model = wish.found
    settings = wish.settings or model.settings
    resident = {version for version, state in actual.items() if state.state is State.READY}
    if model.problem is not None or settings is None:
        return dict.fromkeys(resident, Keep())
    on_disk = resident & model.versions.keys()
    available: dict[int, Desired] = dict.fromkeys(on_disk, Keep())
    for version, version_found in model.versions.items():
        if version_found.problem is None and (version_found.settled or not wait_for_files):
            available[version] = Serve(version_found, settings)
    hopeless = {
        version
        for version, want in available.items()
        if isinstance(want, Serve) and version not in resident and _gave_up(want, actual.get(version))
    }
    chosen = _chosen(settings.versions, model.aliases, available.keys(), hopeless)
    result = {version: available[version] for version in sorted(chosen) if version in available}
    if not result:
        # all that should serve is unusable: what serves now is better than nothing
        return dict.fromkeys(on_disk, Keep())
    champion = model.aliases.get(CHAMPION)
    if champion is not None and champion not in resident and default in on_disk:
        # another version (a challenger) may be READY, but it must not inherit the champion's callers
        result.setdefault(default, Keep())
    return result


def _chosen(policy: VersionPolicy | None, aliases: Mapping[str, int], available: Set[int], hopeless: Set[int]) -> set[int]:
    aliased = set(aliases.values())
    if policy is None:
        if aliased:
            return aliased
        policy = VersionPolicy()
    if policy.policy == "all":
        return aliased | available
    if policy.policy == "specific":
        return aliased | set(policy.specific)
    # a version that failed for good takes nobody's place: after a restart, too, the one before it serves
    return aliased | set(sorted(available - hopeless, reverse=True)[: policy.count])


def _gave_up(serve: Serve, actual: Actual | None) -> bool:
    """True if loading failed too often. A dead backend is not that: loading elsewhere in a broken process cures nothing."""
    failure = _failure_of(serve, actual)
    return failure is not None and not failure.dead and failure.count > serve.settings.load_retries


def _failure_of(serve: Serve, actual: Actual | None) -> Failure | None:
    if actual is None or actual.failure is None or actual.failure.identity != identity(serve):
        return None
    return actual.failure


def next_action(wanted: Mapping[VersionKey, Desired], actual: Mapping[VersionKey, Actual], now_ns: int) -> Action:
    """The one thing to do now.

    - A READY version that should not serve is unloaded only once one of its model that should is READY, or none should.
    - A failed load is tried again `load_retries` times, then not before the version's identity changes.
    - What can be freed is freed before anything new is loaded; models that serve nothing load first, newest version first.
    """
    ready = {key for key, state in actual.items() if state.state is State.READY}
    served_models = {key.model for key in wanted if key in ready}
    wanted_models = {key.model for key in wanted}
    for key in sorted(ready - wanted.keys()):
        if key.model in served_models or key.model not in wanted_models:
            return Unload(key)
    waits: list[int] = []
    for key in sorted(wanted, key=lambda key: (key.model in served_models, key.model, -key.version)):
        want, state = wanted[key], actual.get(key)
        if isinstance(want, Keep) or (state is not None and _nothing_due(want, state)):
            continue
        failure = _failure_of(want, state)
        if failure is not None and (failure.dead or failure.count > want.settings.load_retries):
            continue
        if failure is not None and failure.retry_at_ns > now_ns:
            waits.append(failure.retry_at_ns)
            continue
        return Reload(key, want) if key in ready else Load(key, want)
    return WaitUntil(min(waits)) if waits else Nothing()


def _nothing_due(serve: Serve, actual: Actual) -> bool:
    """Already in memory in this form, or on its way in or out."""
    if actual.state is State.READY:
        return actual.identity == identity(serve)
    return actual.state in (State.LOADING, State.UNLOADING)
