"""Definition files as modules: each under a private name, with the files beside it to import from, as a script has.

Nothing of it stays importable by its plain name afterwards, so that two folders may each have a `helpers.py`. Byte code that
was cached on disk is never taken: its time stamps are too coarse to tell an edited file.
"""

import ast
import hashlib
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, ModuleSpec, SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from feature_client.errors import DefinitionError

_PACKAGE = __name__.partition(".")[0]


class _FromSource(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class Folder(MetaPathFinder):
    """One folder with definitions. Its modules are importable by their plain names only while it is `entered`.

    Ownership: while entered, names mean other modules for the whole process; so one folder at a time, on one thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._modules: dict[str, ModuleType] = {}
        self._names: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What Python asks while it imports."""
        if fullname.partition(".")[0] not in self._names:
            return None
        specs = (FileFinder(entry, (_FromSource, [".py"])).find_spec(fullname) for entry in path or [str(self.folder)])
        return next((spec for spec in specs if spec is not None and spec.loader is not None), None)

    @contextmanager
    def entered(self, path: Path) -> Iterator[ModuleType]:
        """Execute one file of the folder, or take it as another one has imported it, and stay entered.

        Raises: DefinitionError naming file and line, whatever the file raised.
        """
        self._names |= _siblings(path, self.folder)
        hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in self._names}
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(self._modules)
        sys.meta_path.insert(0, self)
        try:
            module = self._modules.get(path.stem)
            yield self._executed(path) if module is None else module
        finally:
            sys.meta_path.remove(self)
            for name in [name for name in sys.modules if name.partition(".")[0] in self._names]:
                self._modules[name] = sys.modules.pop(name)
            sys.modules.update(hidden)

    def _executed(self, path: Path) -> ModuleType:
        unique = hashlib.sha256(str(path).encode()).hexdigest()[:12]
        name = f"podium_definitions_{unique}_{path.stem}"
        spec = spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
        assert spec is not None, "a loader was given"
        assert spec.loader is not None, "a loader was given"
        # under both names before it runs: files that import each other must meet one module, not two
        module = sys.modules[name] = sys.modules[path.stem] = module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name], sys.modules[path.stem]
            raise DefinitionError(f"{self._place(error, path)}: {_words(error)}") from error
        return module

    def _place(self, error: BaseException, path: Path) -> str:
        """The file and line of the definitions where it happened."""
        if isinstance(error, SyntaxError) and error.filename:
            return f"{error.filename}:{error.lineno}"
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(self.folder)]
        return f"{own[-1].filename}:{own[-1].lineno}" if own else str(path)


def _words(error: BaseException) -> str:
    if isinstance(error, DefinitionError):
        return str(error)
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"


def _siblings(path: Path, folder: Path) -> set[str]:
    """The names of modules of the folder that a file imports, directly or through one another, and its own.

    The standard library and this package are never taken from beside a file.
    """
    names, waiting = {path.stem}, [path]
    while waiting:
        for name in _imported(waiting.pop()) - names - sys.stdlib_module_names - {_PACKAGE}:
            files = [folder / f"{name}.py", *(folder / name).rglob("*.py")]
            if files[0].is_file() or (folder / name / "__init__.py").is_file():
                names.add(name)
                waiting += files
    return names


def _imported(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return set()  # importing it will say what is wrong
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found
