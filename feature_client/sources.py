"""The source of functions that are in memory, proven to be what they were made from.

A file may have been edited since it was imported: its text would then describe another function than the one that runs. So a
function's source is only given after compiling it again gives the function's own byte code.
"""

import ast
import symtable
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import feature_client
from feature_client.errors import DefinitionError
from feature_client.normal_form import Function

_HERE = Path(feature_client.__file__).parent
_LIBRARY = Path(sysconfig.get_path("stdlib")).resolve()
_SITES = ("site-packages", "dist-packages")


class Sources:
    """The files of definitions, each read and compiled once. Not thread-safe."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}

    def find(self, code: CodeType) -> tuple[Function, symtable.SymbolTable]:
        """The syntax and the names of a function. Raises: DefinitionError where its source is not there, or not its own."""
        file = self._files.get(code.co_filename)
        if file is None:
            file = self._files[code.co_filename] = _File(code.co_filename)
        place = (code.co_name, code.co_firstlineno)
        if code not in file.codes.get(place, ()) or place not in file.functions:
            raise DefinitionError(
                f"{code.co_filename} has changed since '{code.co_name}' (line {code.co_firstlineno}) was loaded from it"
            )
        function = file.functions[place]
        return function, file.tables[function.name, function.lineno]


class _File:
    def __init__(self, name: str) -> None:
        try:
            source = Path(name).read_bytes()
            tree = ast.parse(source, name)
            table = symtable.symtable(source, name, "exec")  # type: ignore[arg-type] # bytes are taken: the file says its encoding
            compiled = compile(source, name, "exec", dont_inherit=True)
        except OSError as error:
            raise DefinitionError(f"the source of definitions cannot be read: {name}: {error.strerror}") from None
        except (SyntaxError, ValueError) as error:
            raise DefinitionError(f"{name}: {error}") from None
        nodes = [node for node in ast.walk(tree) if isinstance(node, Function)]
        # a function's byte code begins in the line of its first decorator
        self.functions = {
            (node.name, min([node.lineno, *(each.lineno for each in node.decorator_list)])): node for node in nodes
        }
        self.tables = {(each.get_name(), each.get_lineno()): each for each in _tables(table)}
        self.codes: dict[tuple[str, int], list[CodeType]] = {}
        for code in _codes(compiled):
            self.codes.setdefault((code.co_name, code.co_firstlineno), []).append(code)


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    if isinstance(table, symtable.Function) and str(table.get_type()) == "function":  # some releases have more kinds of them
        yield table
    for child in table.get_children():
        yield from _tables(child)


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _codes(each)


def is_elsewhere(file: str, home: str) -> bool:
    """Whether what a file defines is known by its name: the standard library, this package, installed packages other than the
    one that `home` belongs to. Everything else is part of the definitions.
    """
    if file.startswith("<"):
        return True  # frozen, or made while running by a package
    path = Path(file).resolve()
    if path.is_relative_to(_HERE):
        return True
    package = _package(path)
    return package is not None and package != _package(Path(home).resolve())


def _package(path: Path) -> Path | None:
    """The installed package that a file belongs to; None for a file of nobody's."""
    parts = path.parts
    for site in _SITES:
        if site in parts:
            at = len(parts) - parts[::-1].index(site)
            return Path(*parts[: at + 1])
    return _LIBRARY if path.is_relative_to(_LIBRARY) else None
