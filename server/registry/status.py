"""What a version is to its model at this moment: registered, challenger, champion or retired. **Pure.**

Floor 2. A status is worked out from aliases and the history of their moves, and written nowhere: a manifest never changes, and
a status that was stored would sooner or later contradict the alias that decides who serves.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict

from server.registry.manifest import Manifest
from server.registry.names import AliasMove


class Status(StrEnum):
    """The deployment status of a version. RETIRED was champion or challenger once, and is neither now."""

    REGISTERED = "registered"
    CHALLENGER = "challenger"
    CHAMPION = "champion"
    RETIRED = "retired"


ROLES = {"champion": Status.CHAMPION, "challenger": Status.CHALLENGER}
"""The aliases that make a status, the stronger one first."""


class Deployment(BaseModel):
    """A version's status, since when and by whose hand; None where nobody wrote that down."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Status
    since: datetime | None
    by: str | None


def deployment(version: int, manifest: Manifest | None, aliases: Mapping[str, int], history: Sequence[AliasMove]) -> Deployment:
    """The status of a version, from where its model's aliases are and the moves (oldest first) that led there.

    Only a move away proves that a version had a role: a move to it may have been announced and cut off by a crash.
    """
    for alias, status in ROLES.items():
        if aliases.get(alias) == version:
            arrived = [move for move in history if move.alias == alias and move.after == version]
            return _of(status, arrived)
    left = [move for move in history if move.alias in ROLES and move.before == version]
    if left:
        return _of(Status.RETIRED, left)
    if manifest is None:
        return Deployment(status=Status.REGISTERED, since=None, by=None)
    return Deployment(status=Status.REGISTERED, since=manifest.created_at, by=manifest.author)


def _of(status: Status, moves: Sequence[AliasMove]) -> Deployment:
    last = moves[-1] if moves else None
    return Deployment(status=status, since=None if last is None else last.at, by=None if last is None else last.who)
