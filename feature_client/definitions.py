"""The views that an operator has installed: Python files named by settings or on a command line, executed once.

Definitions are code that somebody chose to run; nothing that lies in a model repository is ever executed.
"""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from feature_client.difference import differences
from feature_client.errors import DefinitionError
from feature_client.fingerprint import Description, describe
from feature_client.golden_rows import golden_inputs, golden_outputs
from feature_client.schema import Columns
from feature_client.siblings import Folder
from feature_client.sources import Sources
from feature_client.view import View

_LOADING = threading.Lock()


@dataclass(frozen=True)
class Definitions:
    """Views by reference, in the order they were found, each as it was described when it was loaded.

    What is written here was true of the code in memory: editing a file afterwards changes neither.
    """

    views: Mapping[str, View]
    descriptions: Mapping[str, Description]

    @property
    def fingerprints(self) -> dict[str, bytes]:
        """Of stored and request views: those of model views need the state of a bundle."""
        return {ref: self.descriptions[ref].fingerprint for ref, view in self.views.items() if view.kind != "model"}

    def view(self, ref: str) -> View:
        """The view of a reference `name@version`. Raises: DefinitionError naming what there is."""
        if ref not in self.views:
            raise DefinitionError(f"there is no view '{ref}' in the definitions; they have: {', '.join(self.views) or 'none'}")
        return self.views[ref]

    def description(self, ref: str, state: Columns | None = None) -> Description:
        """What a view is; `state` of a model view. Raises: DefinitionError."""
        self.view(ref)
        described = self.descriptions[ref]
        return described if state is None else described.with_state(state)


def load_definitions(paths: Sequence[Path]) -> Definitions:
    """Execute definition files and collect their views, also those that they import. A file may import what lies beside it.

    Each view is described and computed for golden rows (those of model views are when a bundle brings their state).
    Raises: DefinitionError for a file that cannot be read or run (with file and line), for two views of one reference, for a
    closure that cannot be known, for a function that fails or whose rows depend on each other.
    """
    views: dict[str, View] = {}
    descriptions: dict[str, Description] = {}
    folders: dict[Path, Folder] = {}
    sources = Sources()
    with _LOADING:
        for given in paths:
            path = given.resolve()
            if not path.is_file() or path.suffix != ".py":
                raise DefinitionError(f"definitions '{given}' are no Python file")
            folder = folders.setdefault(path.parent, Folder(path.parent))
            with folder.entered(path) as module:
                for view in (each for each in vars(module).values() if isinstance(each, View)):
                    _add(view, views, descriptions, sources)
    return Definitions(MappingProxyType(views), MappingProxyType(descriptions))


def definitions_of(views: Iterable[View]) -> Definitions:
    """Definitions of views that are in memory already. Raises: DefinitionError as `load_definitions` does."""
    found: dict[str, View] = {}
    descriptions: dict[str, Description] = {}
    sources = Sources()
    for view in views:
        _add(view, found, descriptions, sources)
    return Definitions(MappingProxyType(found), MappingProxyType(descriptions))


def _add(view: View, views: dict[str, View], descriptions: dict[str, Description], sources: Sources) -> None:
    known = views.get(view.ref)
    if known is view:
        return
    if known is not None:
        raise DefinitionError(f"two views are called '{view.ref}': {_where(known)} and {_where(view)}")
    try:
        description = describe(view, sources)
    except DefinitionError as error:
        raise DefinitionError(f"the view '{view.ref}' ({_where(view)}) cannot be told apart from others: {error}") from None
    if view.kind != "model":
        golden_outputs(view, golden_inputs(view))
        check_unchanged(view, description, sources)
    views[view.ref], descriptions[view.ref] = view, description


def check_unchanged(view: View, before: Description, sources: Sources) -> None:
    """Raises: DefinitionError where computing the view has changed what it is computed with: a list that grows, a cache."""
    if lines := differences(before, describe(view, sources)):
        raise DefinitionError(f"'{view.ref}' changes, while it is computed, what it is computed with: {'; '.join(lines)}")


def _where(view: View) -> str:
    code = getattr(view.function, "__code__", None)
    return "somewhere" if code is None else f"{code.co_filename}:{code.co_firstlineno}"
