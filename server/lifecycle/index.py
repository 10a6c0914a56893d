"""What RepositoryIndex answers: one row per version, served or not, with the reason. **Pure.**"""

from collections.abc import Mapping
from dataclasses import dataclass

from server.core.versions import State, VersionKey
from server.lifecycle.found import FoundModel, FoundVersion
from server.lifecycle.policy import Actual

NEVER_LOADED = ""
"""Triton's state of what is in the repository and was never asked for."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """`version` is "" for a model without any version, or one that cannot be read at all."""

    model: str
    version: str
    state: str
    reason: str


def index_rows(found: Mapping[str, FoundModel], actual: Mapping[VersionKey, Actual]) -> list[IndexRow]:
    """Everything found or in memory, by name and version."""
    versions: dict[str, set[int]] = {name: set(model.versions) for name, model in found.items()}
    for key in actual:
        versions.setdefault(key.model, set()).add(key.version)
    rows: list[IndexRow] = []
    for name in sorted(versions):
        model = found.get(name)
        if model is not None and model.problem is not None:
            rows.append(IndexRow(name, "", State.UNAVAILABLE, model.problem))
        elif not versions[name]:
            rows.append(IndexRow(name, "", NEVER_LOADED, ""))
        for version in sorted(versions[name]):
            on_disk = None if model is None else model.versions.get(version)
            state, reason = _row(actual.get(VersionKey(name, version)), on_disk)
            rows.append(IndexRow(name, str(version), state, reason))
    return rows


def _row(actual: Actual | None, found: FoundVersion | None) -> tuple[str, str]:
    problem = "" if found is None else found.problem or ("" if found.settled else "its files are still being written")
    if actual is None:
        return (State.UNAVAILABLE if found is not None and found.problem else NEVER_LOADED), problem
    if actual.state is State.READY:
        if problem:
            problem = f"serves what was loaded before; on disk: {problem}"
        elif actual.failure:
            problem = f"serves what was loaded before: {actual.failure.reason}"
        return actual.state, "; ".join(filter(None, (problem, actual.reason)))
    if actual.state is State.UNAVAILABLE:
        return actual.state, problem or actual.reason
    return actual.state, ""
