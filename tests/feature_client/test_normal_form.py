"""The normal form is one text, whatever release of Python parses the source: 3.11 to 3.13 gave the one that stands here."""

import ast
import hashlib
import symtable
from typing import Any

import pytest

from feature_client.errors import DefinitionError
from feature_client.normal_form import Function, literal, names_loaded, normal_form, readable

SAMPLE = '''
@decorated
@twice
def f(a: "Array", /, b=1, *, c: np.ndarray = None, **kw) -> "x":
    """A docstring."""
    x: Unused = a + K  # a comment
    y: Unused
    g = [K2 * i for i in a if i > LIM for j in (lambda q: q + LAM)(i)]
    d = {**kw, "a": f"{x:>{W}.2f} b{{" "c" f"{y!r}{x=}{x}"}
    def inner(z: OnlyAnnotated, w=DEF):
        """Another docstring."""
        nonlocal x
        K3 = 5
        return z[1:2, ..., ::3] + K3 + np.log(w).T.x + helpers.mod.fn(1)
    try:
        pass
    except* ValueError as ex:
        raise
    match a:
        case {"x": [1, *r]} | None: return -1.5e300
        case P.Point(x=0): return 1j
    with np.errstate(all="ignore"), ctx() as c: pass
    async def h():
        async for q in a: await b
    print(b"x", u"y", "é", 10**30, 123456789012345678901234567890, (yield), K2, True, f"")
    del a.left
    return (i for i in OUT), {i for i in S}, {k: v for k, v in D}, [K for K in a]
'''


def parts(source: str, name: str = "f") -> tuple[Function, symtable.SymbolTable]:
    node = next(each for each in ast.walk(ast.parse(source)) if isinstance(each, Function) and each.name == name)
    table = next(each for each in symtable.symtable(source, "sample", "exec").get_children() if each.get_name() == name)
    return node, table


def test_the_normal_form_of_everything() -> None:
    text = normal_form(parts(SAMPLE)[0])
    assert text.startswith(
        "arguments(posonlyargs=[arg(arg='a')], args=[arg(arg='b')], kwonlyargs=[arg(arg='c')], kwarg=arg(arg='kw')) ["
    )
    assert "JoinedStr([FormattedValue(value=Name(id='x'), conversion=-1, format_spec=JoinedStr(['>', FormattedValue(" in text
    assert "' b{c', FormattedValue(value=Name(id='y'), conversion=114), 'x=', FormattedValue(" in text
    assert "Constant(complex(0.0, 1.0))" in text
    assert "Constant(0x18ee90ff6c373e0ee4e3f0ad2)" in text
    assert "Constant('\\xe9')" in text
    for absent in ("docstring", "Unused", "OnlyAnnotated", "decorated", "comment", "Load"):
        assert absent not in text
    assert hashlib.sha256(text.encode()).hexdigest() == "218f09ca07abd0dee51cf9ea4539c4e0ae357669c9cbaf2a4d994c083e2a4270"


def test_the_names_that_are_loaded() -> None:
    outside, around = names_loaded(*parts(SAMPLE))
    assert around == {}
    assert outside == {
        **{name: {()} for name in ("D", "DEF", "K", "K2", "LAM", "LIM", "OUT", "S", "ValueError", "W", "ctx", "print")},
        "P": {("Point",)},
        "helpers": {("mod", "fn")},
        "np": {("errstate",), ("log",)},
    }


def test_for_people_it_is_source() -> None:
    assert readable(parts("def f(x):\n    'doc'\n    y = x  # c\n    return (y)\n")[0]) == "y = x\nreturn y"
    assert readable(parts("def f(x):\n    return 'text'\n")[0]) == "return 'text'"


class Scope:
    """A scope as later releases have them: of annotations and of type parameters."""

    def __init__(self, kind: str, symbols: list[str], children: "list[Any]") -> None:
        self.kind, self.names, self.children = kind, symbols, children

    def get_type(self) -> str:
        return self.kind

    def get_identifiers(self) -> list[str]:
        return []

    def get_symbols(self) -> list[symtable.Symbol]:
        table = symtable.symtable(f"def f(): return {', '.join(self.names)}", "made", "exec").get_children()[0]
        return table.get_symbols()

    def get_children(self) -> "list[Any]":
        return self.children


def test_scopes_of_annotations_hold_no_values() -> None:
    generic = Scope("type parameters", ["T"], [Scope("function", ["within"], [])])
    table: Any = Scope("function", ["used"], [Scope("annotation", ["told"], []), generic])
    node = parts("def f(): return used, within\n")[0]
    assert names_loaded(node, table)[0].keys() == {"used", "within"}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("global x; x = 1", "'f' assigns the global 'x'"),
        ("import x", "'f' imports in line 2"),
        ("from x import y", "'f' imports in line 2"),
        ("class A: pass", "'f' has a class in line 2"),
    ],
)
def test_what_is_done_to_the_outside_is_refused(body: str, expected: str) -> None:
    with pytest.raises(DefinitionError, match=expected):
        names_loaded(*parts(f"def f():\n    {body}\n"))


def test_literals_differ_where_values_do() -> None:
    values = [1, 1.0, True, "1", b"1", 1j, -0.0, 0.0, None, ..., 10**18, 10**18 + 1, -(10**30), "\ud800", "é"]
    assert len({literal(value) for value in values}) == len(values)
    assert literal(10**5000).startswith("0x")
