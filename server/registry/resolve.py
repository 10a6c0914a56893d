"""From what somebody wrote (`NAME`, `NAME:3`, `NAME@champion`) to one version of a scan.

Floor 2. Works on a scan's result and reads nothing itself.
"""

from collections.abc import Mapping

from server.core.errors import InvalidRequest, NotFound
from server.core.versions import VersionKey
from server.registry.names import Reference, check_alias_name, parse_reference, version_number
from server.registry.source import FoundModel

DEFAULT_ALIAS = "champion"


def resolve(models: Mapping[str, FoundModel], text: str) -> VersionKey:
    """The version that `text` names; a bare NAME is its champion, or its newest version where nobody is champion.

    Raises: InvalidRequest for text that is no reference; NotFound saying which part is not there, and what is.
    """
    reference = parse_reference(text)
    model = models.get(reference.model)
    if model is None:
        known = ", ".join(sorted(models)) or "none"
        raise NotFound(f"there is no model '{reference.model}' in the repository; it has: {known}")
    return resolve_in(model, reference)


def resolve_version(model: FoundModel, text: str) -> VersionKey:
    """The version that an argument beside a model's name means: `3`, or an alias as `@champion` or `champion`.

    Raises: InvalidRequest, NotFound.
    """
    version = version_number(text)
    if version is not None:
        return resolve_in(model, Reference(model.name, version=version))
    alias = text.removeprefix("@")
    try:
        check_alias_name(alias)
    except InvalidRequest:
        raise InvalidRequest(f"{text!r} is neither a version (an integer > 0) nor an alias") from None
    return resolve_in(model, Reference(model.name, alias=alias))


def resolve_in(model: FoundModel, reference: Reference) -> VersionKey:
    """The version that a reference to this model names. Raises: NotFound."""
    version, alias = reference.version, reference.alias
    if version is None and alias is None and DEFAULT_ALIAS in model.aliases:
        alias = DEFAULT_ALIAS
    if alias is not None:
        version = model.aliases.get(alias)
        if version is None:
            raise NotFound(f"model '{model.name}' has no alias '{alias}'; it has: {', '.join(model.aliases) or 'none'}")
    if version is None:
        version = max(model.versions, default=None)
        if version is None:
            raise NotFound(f"model '{model.name}' has no versions{_because(model)}")
    if version not in model.versions:
        known = ", ".join(map(str, model.versions)) or "none"
        pointed = f" (alias '{alias}')" if alias is not None else ""
        raise NotFound(f"model '{model.name}' has no version {version}{pointed}; it has: {known}{_because(model)}")
    return VersionKey(model.name, version)


def _because(model: FoundModel) -> str:
    return f" ({model.problem})" if model.problem else ""
