"""Which exact model is this: one version's origin as a document, and the document as text. **Pure.**

Floor 2: puts together what the scan, the manifest and the alias history say. Never reads a file and never judges.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel, ConfigDict

from server.core.versions import VersionKey
from server.registry.manifest import FileDigest, Manifest, missing_to_rebuild
from server.registry.names import AliasMove, Pruned
from server.registry.status import Deployment, deployment

NO_MANIFEST = "everything: the version has no manifest"


class Ancestor(BaseModel):
    """One step up the parent chain. `known` is False where the version is not in the repository, or has no manifest; `pruned`
    says who removed it and when.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    known: bool
    pruned: Pruned | None = None


class Lineage(BaseModel):
    """Everything the repository knows about one version.

    `verified` None: its files are those of its manifest; else what is wrong. `files` are the manifest's digests, or for a
    version without manifest those of its files now. `moves` are the moves of aliases to this version and away from it, oldest
    first: when it was champion, and by whose hand.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    folder: str
    aliases: tuple[str, ...]
    deployment: Deployment
    moves: tuple[AliasMove, ...]
    verified: str | None
    files: dict[str, FileDigest]
    manifest: Manifest | None
    ancestors: tuple[Ancestor, ...]
    missing: tuple[str, ...]


def trace(
    key: VersionKey,
    folder: str,
    manifests: Mapping[int, Manifest | None],
    aliases: Mapping[str, int],
    verified: str | None,
    files: Mapping[str, FileDigest],
    history: Sequence[AliasMove] = (),
    pruned: Mapping[int, Pruned] = MappingProxyType({}),
) -> Lineage:
    """The lineage of a version. `manifests` holds every version of the model that is in the repository, `history` every move
    of its aliases, oldest first, and `pruned` the versions that were removed.
    """
    manifest = manifests.get(key.version)
    return Lineage(
        model=key.model,
        version=key.version,
        folder=folder,
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == key.version)),
        deployment=deployment(key.version, manifest, aliases, history),
        moves=tuple(move for move in history if key.version in (move.before, move.after)),
        verified=verified,
        files=dict(files),
        manifest=manifest,
        ancestors=ancestors(key.version, manifests, pruned),
        missing=(NO_MANIFEST,) if manifest is None else tuple(missing_to_rebuild(manifest)),
    )


def ancestors(
    version: int, manifests: Mapping[int, Manifest | None], pruned: Mapping[int, Pruned] = MappingProxyType({})
) -> tuple[Ancestor, ...]:
    """The parent, its parent and so on, until one has none or is not known. A circle ends where it closes.

    The record of a removal knows the parent too, so the chain goes on behind a version that was pruned.
    """
    chain: list[Ancestor] = []
    seen = {version}
    above: Manifest | Pruned | None = manifests.get(version)
    while above is not None and above.parent is not None and above.parent not in seen:
        parent = above.parent
        seen.add(parent)
        manifest = manifests.get(parent)
        removal = None if parent in manifests else pruned.get(parent)
        chain.append(Ancestor(version=parent, known=manifest is not None, pruned=removal))
        above = manifest or removal
    return tuple(chain)


def render(lineage: Lineage) -> str:
    """The lineage as lines of `what  value`, absent things named as such."""
    manifest = lineage.manifest
    lines = [
        ("model", f"{lineage.model}:{lineage.version}"),
        ("aliases", ", ".join(lineage.aliases) or "none"),
        ("status", _status(lineage.deployment)),
        ("folder", lineage.folder),
        ("verified", _verified(lineage)),
    ]
    if manifest is not None:
        lines += _origin(manifest)
    lines += [("moved", _move(move)) for move in lineage.moves]
    lines.append(("parents", " <- ".join(_ancestor(each) for each in lineage.ancestors) or "none"))
    lines += [("file", f"{path}  {digest.bytes} bytes  sha256 {digest.sha256}") for path, digest in lineage.files.items()]
    lines += [("missing", what) for what in lineage.missing] or [("missing", "nothing: it can be rebuilt from the above")]
    width = max(len(what) for what, _ in lines)
    return "\n".join(f"{what:<{width}}  {value}" for what, value in _once(lines))


def _origin(manifest: Manifest) -> list[tuple[str, str]]:
    code, data, environment, recipe, golden = (
        manifest.code,
        manifest.data,
        manifest.environment,
        manifest.recipe,
        manifest.golden,
    )
    lines = [
        ("created", manifest.created_at.isoformat(timespec="seconds")),
        ("author", manifest.author or "not recorded"),
        ("run", manifest.run_id or "not recorded"),
    ]
    if code is None:
        lines.append(("code", "not recorded"))
    else:
        lines.append(("code", code.commit + (" with uncommitted changes" if code.dirty else "")))
        lines += [("repository", code.repository)] if code.repository else []
    if data is None:
        lines.append(("data", "not recorded"))
    else:
        rows = "" if data.rows is None else f"  {data.rows} rows"
        lines.append(("data", f"{data.source}{rows}  digest {data.digest or 'not recorded'}"))
        lines += [("data", f"{name}: {note}") for name, note in data.notes.items()]
    if environment is None:
        lines.append(("environment", "not recorded"))
    else:
        lines.append(("environment", f"Python {environment.python} on {environment.platform}"))
        lines.append(("environment", f"lock sha256 {environment.lock_digest or 'not recorded'}"))
        lines += [("packages", _pairs(environment.packages))] if environment.packages else []
    lines.append(("recipe", " ".join((recipe.command, *recipe.arguments)) if recipe else "not recorded"))
    lines.append(("seeds", _pairs(manifest.seeds) or "not recorded"))
    lines.append(("hyperparameters", _pairs(manifest.hyperparameters) or "not recorded"))
    lines.append(("metrics", _pairs(manifest.metrics) or "not recorded"))
    lines.append(("golden", f"{golden.file}  rtol {golden.rtol:g}  atol {golden.atol:g}" if golden else "none"))
    return lines


def _verified(lineage: Lineage) -> str:
    if lineage.verified is not None:
        return f"NO: {lineage.verified}"
    if lineage.manifest is None:
        return "cannot be: no manifest says what the files should be"
    return "yes, every file has the digest of its manifest"


def _status(found: Deployment) -> str:
    since = f" since {found.since.isoformat(timespec='seconds')}" if found.since is not None else ""
    return f"{found.status}{since}" + (f"  by {found.by}" if found.by is not None else "")


def _ancestor(ancestor: Ancestor) -> str:
    if ancestor.pruned is not None:
        return f"{ancestor.version} (pruned {ancestor.pruned.at.isoformat(timespec='seconds')} by {ancestor.pruned.who})"
    return f"{ancestor.version}" if ancestor.known else f"{ancestor.version} (not in the repository, or without manifest)"


def _move(move: AliasMove) -> str:
    before, after = (str(version or "nothing") for version in (move.before, move.after))
    return f"{move.at.isoformat(timespec='seconds')}  {move.alias}: {before} -> {after}  by {move.who}"


def _pairs(values: Mapping[str, object]) -> str:
    return "  ".join(f"{name}={value}" for name, value in values.items())


def _once(lines: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The same label in consecutive lines is written once."""
    before = ["", *(what for what, _ in lines)]
    return [("" if what == previous else what, value) for previous, (what, value) in zip(before, lines, strict=False)]
