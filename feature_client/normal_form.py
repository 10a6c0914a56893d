"""The normal form of a function's source: what two spellings of one computation share. **Pure.**

Left out are comments, layout, docstrings, annotations, the decorators and default expressions of the function itself (their
values count, where they are looked at), and whatever the syntax trees of different Python releases name differently: the same
source gives the same text under all of them.
"""

import ast
import symtable
from collections.abc import Iterator

from feature_client.errors import DefinitionError

Function = ast.FunctionDef | ast.AsyncFunctionDef
Names = dict[str, set[tuple[str, ...]]]

_SKIPPED = frozenset({"ctx", "type_comment", "type_params", "kind", "returns", "annotation", "simple"})
_SCOPES = ("function", "class", "module")
_READABLE = 10**18
"""Integers beyond it are written in hexadecimal: Python bounds the digits of decimal ones."""


def literal(value: object) -> str:
    """A constant of the syntax, so that different ones have different texts. NaN, which no literal is, has its bits.

    >>> literal(1), literal(1.0), literal(-0.0), literal(True), literal("é")
    ('1', '1.0', '-0.0', 'True', "'\\\\xe9'")
    """
    if isinstance(value, str):
        return ascii(value)  # not repr: which letters it shows differs between releases of Unicode
    if isinstance(value, complex):
        return f"complex({literal(value.real)}, {literal(value.imag)})"
    if isinstance(value, int) and abs(value) > _READABLE:
        return hex(value)
    return repr(value)


def normal_form(function: Function) -> str:
    """The text of a function's parameters and body. Its own name is not part of it."""
    return f"{_dump(function.args, top=True)} [{', '.join(_statements(_without_docstring(function.body)))}]"


def readable(function: Function) -> str:
    """The same for people, as source. It differs between releases of Python, and is compared by nobody but people."""
    return "\n".join(ast.unparse(statement) for statement in _without_docstring(function.body))


def names_loaded(function: Function, table: symtable.SymbolTable) -> tuple[Names, Names]:
    """The names from outside that a function and everything nested in it load: those of its module, and those of functions
    around it. With each name the attributes that are taken of it, one after the other; `()` where it is used as it is.

    `table` is the function's own, of its whole file. Raises: DefinitionError where a function changes what is outside of it,
    imports or makes a class, so that what it does depends on more than can be seen here.
    """
    for node in ast.walk(function):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.ClassDef):
            what = "has a class" if isinstance(node, ast.ClassDef) else "imports"
            raise DefinitionError(f"'{function.name}' {what} in line {node.lineno}: that belongs to the top level of the file")
    outside, around = set(_globals(table)), set(table.get_frees()) if isinstance(table, symtable.Function) else set()
    for name in table.get_identifiers():
        symbol = table.lookup(name)
        if symbol.is_nonlocal() and symbol.is_assigned():
            raise DefinitionError(f"'{function.name}' assigns '{name}', which is not its own")
    chains: Names = {}
    annotations: Names = {}
    for part in (function.args, *function.body):
        _chains(part, chains, annotations)
    # what only annotations name is not evaluated under all releases, and changes no value
    only_annotated = annotations.keys() - chains.keys()
    return (
        {name: chains.get(name, {()}) for name in sorted(outside - only_annotated)},
        {name: chains.get(name, {()}) for name in sorted(around - only_annotated)},
    )


def _globals(table: symtable.SymbolTable) -> Iterator[str]:
    if str(table.get_type()) in _SCOPES:
        for symbol in table.get_symbols():
            if symbol.is_declared_global() and symbol.is_assigned():
                raise DefinitionError(f"'{table.get_name()}' assigns the global '{symbol.get_name()}'")
            if symbol.is_global() and symbol.is_referenced():
                yield symbol.get_name()
    for child in table.get_children():
        # scopes of annotations and of type parameters hold no values, but a generic function stands within its parameters'
        if str(child.get_type()) in _SCOPES or "type parameter" in str(child.get_type()):
            yield from _globals(child)


def _chains(node: ast.AST, chains: Names, annotations: Names) -> None:
    """Collect names with the attributes taken of them."""
    if isinstance(node, ast.Attribute | ast.Name):
        attributes: list[str] = []
        inner: ast.AST = node
        while isinstance(inner, ast.Attribute):
            attributes.append(inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            if isinstance(inner.ctx, ast.Load):
                chains.setdefault(inner.id, set()).add(tuple(reversed(attributes)))
        else:
            _chains(inner, chains, annotations)
        return
    for name, value in ast.iter_fields(node):
        into = annotations if name in ("annotation", "returns", "type_params") else chains
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, ast.AST):
                _chains(each, into, annotations)


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _statements(body: list[ast.stmt]) -> Iterator[str]:
    """Statements: an annotated assignment is one, an annotation alone is nothing."""
    for statement in body:
        if isinstance(statement, ast.AnnAssign):
            if statement.value is not None:
                yield _dump(ast.Assign(targets=[statement.target], value=statement.value))
        else:
            yield _dump(statement)


def _dump(value: object, *, top: bool = False) -> str:
    if isinstance(value, ast.Constant):
        return f"Constant({literal(value.value)})"
    if isinstance(value, ast.JoinedStr):
        return f"JoinedStr([{', '.join(_pieces(value))}])"
    if isinstance(value, ast.AST):
        return f"{type(value).__name__}({', '.join(_fields(value, top))})"
    if isinstance(value, list):
        return f"[{', '.join(map(_dump, value))}]"
    return literal(value)


def _fields(node: ast.AST, top: bool) -> Iterator[str]:
    for name, value in ast.iter_fields(node):
        if value is None or value == [] or name in _SKIPPED or (top and name in ("defaults", "kw_defaults")):
            continue
        if isinstance(value, list) and isinstance(value[0], ast.stmt):
            inside = name == "body" and isinstance(node, Function)
            yield f"{name}=[{', '.join(_statements(_without_docstring(value) if inside else value))}]"
        else:
            yield f"{name}={_dump(value)}"


def _pieces(text: ast.JoinedStr) -> Iterator[str]:
    """A formatted text: how constant pieces are cut differs between releases."""
    constant = ""
    for piece in text.values:
        if isinstance(piece, ast.Constant):
            constant += str(piece.value)
            continue
        if constant:
            yield literal(constant)
            constant = ""
        yield _dump(piece)
    if constant:
        yield literal(constant)
