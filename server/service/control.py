"""What a caller may ask about models, and tell the server to do with them: readiness, description, index, load, statistics.

Floor 5: recipes over the lifecycle's published table. Values in, values out; the door turns them into messages.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from server.core.errors import NotFound, NotReady
from server.core.settings import ModelSettings
from server.core.versions import State
from server.lifecycle.found import Given
from server.lifecycle.index import IndexRow
from server.lifecycle.published import Published, parse_version
from server.lifecycle.replica import Replica
from server.registry.given import give
from server.registry.names import check_model_name


class Lifecycle(Protocol):
    """`server.lifecycle.manager.Manager`, as far as callers reach it."""

    @property
    def published(self) -> Published:
        """What serves at this instant."""
        ...

    def index(self) -> list[IndexRow]:
        """Every version on disk or in memory."""
        ...

    def settings_on_disk(self, model: str) -> ModelSettings:
        """What `model.toml` says, or the defaults."""
        ...

    def load(
        self,
        model: str,
        settings: ModelSettings | None = None,
        timeout_s: float | None = None,
        given: Given | None = None,
    ) -> None:
        """Load and wait; takes over `given`."""
        ...

    def unload(self, model: str, timeout_s: float | None = None) -> None:
        """Unload and wait."""
        ...


@dataclass(frozen=True, slots=True)
class Description:
    """What ModelMetadata and ModelConfig are made from: the replica that answers, and all READY versions, ascending."""

    model: str
    versions: tuple[int, ...]
    replica: Replica


class Control:
    """Thread-safe: every method reads one published table, once. `load_timeout_s` None: as long as it takes."""

    def __init__(self, lifecycle: Lifecycle, load_timeout_s: float | None = None) -> None:
        self._lifecycle = lifecycle
        self._load_timeout_s = load_timeout_s

    def is_ready(self, model: str, version: str) -> bool:
        """Whether a request to this model and version would be admitted now; an unknown one simply is not ready.

        Raises: InvalidRequest for a version that is neither a number nor an alias.
        """
        try:
            self._lifecycle.published.lookup(model, version)
        except (NotFound, NotReady):
            return False
        return True

    def describe(self, model: str, version: str) -> Description:
        """The version that would answer, described. Raises: NotFound, NotReady, InvalidRequest."""
        published = self._lifecycle.published
        return Description(model, published.ready_versions(model), published.lookup(model, version))

    def index(self, ready_only: bool) -> list[IndexRow]:
        """What the repository holds, or only what serves of it."""
        return [row for row in self._lifecycle.index() if row.state == State.READY or not ready_only]

    def load(self, model: str, settings: ModelSettings | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Load a model and wait; from `files` (by path `<version>/<file>`) where there are any, else from the repository.

        Raises: InvalidRequest, NotReady, LoadFailed, ShuttingDown.
        """
        check_model_name(model)
        self._lifecycle.load(model, settings, self._load_timeout_s, give(model, files) if files else None)

    def unload(self, model: str) -> None:
        """Unload a model and wait. Raises: InvalidRequest, NotReady, LoadFailed, ShuttingDown."""
        check_model_name(model)
        self._lifecycle.unload(model, self._load_timeout_s)

    def settings_on_disk(self, model: str) -> ModelSettings:
        """The settings that a Load without a `config` of its own would use."""
        return self._lifecycle.settings_on_disk(model)

    def statistics(self, model: str, version: str) -> list[Replica]:
        """READY versions by name and number: of every model where `model` is "", of every version where `version` is "".

        Raises: NotFound, NotReady, InvalidRequest for a model or a version that was named and does not serve.
        """
        published = self._lifecycle.published
        if model:
            named = published.lookup(model, version)
            chosen = [replica for key, replica in published.ready.items() if key.model == model and not version]
            replicas = chosen or [named]
        else:
            number = parse_version(version) if version else None
            replicas = [replica for key, replica in published.ready.items() if number in (None, key.version)]
        return sorted(replicas, key=lambda replica: replica.key)
