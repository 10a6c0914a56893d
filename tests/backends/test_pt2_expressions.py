import string

import pytest
import sympy
from hypothesis import given
from hypothesis import strategies as st

from server.backends.pt2_expressions import is_symbol, symbol
from server.core.errors import LoadFailed

S = sympy.Symbol("s77", positive=True, integer=True)
U = sympy.Symbol("u0", integer=True)


@pytest.mark.parametrize(
    "expression",
    [3 * S, S + 1, S // 2, S % 4, sympy.Max(S, 3), S**2, sympy.Float(1.5) * S, sympy.Eq(S, 4), sympy.And(S > 1, U < 3), S / 3],
)
def test_what_torch_writes_is_read_and_is_no_symbol(expression: sympy.Expr) -> None:
    assert symbol(sympy.srepr(expression)) is None


def test_symbols_are_found_in_both_spellings() -> None:
    assert symbol(sympy.srepr(S)) == symbol("s77") == "s77"
    assert symbol(sympy.srepr(U)) == "u0"
    assert symbol("Symbol()") is None
    assert symbol("Symbol(4)") is None
    assert symbol("4") is None
    assert symbol("Add(s0, s1)") is None


HOSTILE = [
    "__import__('os').system('x')",
    "open('/tmp/x', 'w')",
    "s0.__class__",
    "(lambda: 0)()",
    "[x for x in s0]",
    "s0[0]",
    "f's0'",
    "Symbol('os.system')",
    "Symbol('s0', __class__=1)",
    "Symbol(*s0)",
    "Symbol(**s0)",
    "(s0 := 3)",
    "s0 if s1 else s2",
    "Symbol('s0')('x')",
    "exec",
    "...",
    "b's0'",
    "s0; s1",
    "s0\x00",
    "",
    "(" * 3000,
    "-" * 4000 + "1",
    "s0" * 4000,
]


@pytest.mark.parametrize("expression", HOSTILE)
def test_programs_are_no_expressions(expression: str) -> None:
    with pytest.raises(LoadFailed, match=r"is no arithmetic over|characters; at most"):
        symbol(expression)


@given(st.text(alphabet=string.printable, max_size=60))
def test_any_text_is_a_symbol_arithmetic_or_refused(text: str) -> None:
    try:
        found = symbol(text)
    except LoadFailed:
        return
    assert found is None or is_symbol(found) or found in {"true", "false", "oo", "int_oo", "true_", "false_"} or found.isalpha()
