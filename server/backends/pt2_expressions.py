"""The expressions in which an exported program writes sizes it does not know yet. **Pure.** Floor 2.

torch reads them by `sympy.sympify`, which ends in Python's `eval`: an expression can be any program. Here an expression is
parsed and looked at, and never evaluated. What a server needs of one is only whether it is a plain symbol.
"""

import ast
import re

from server.core.errors import LoadFailed

_LONGEST_CHARACTERS = 4096
_SHOWN_CHARACTERS = 80
_SYMBOL = re.compile(r"[suzf]\d{1,9}|zuf\d{1,9}")
_DIGITS = re.compile(r"-?[\d.]{1,64}(?:e[+-]?\d{1,4})?")
_ASSUMPTION = re.compile(r"[a-z][a-z_]{0,31}")
_FUNCTION_NAMES = """
    Symbol Integer Rational Float Add Mul Pow Mod Min Max Abs FloorDiv CleanDiv CeilDiv ModularIndexing Where PythonMod floor
    ceiling CeilToInt FloorToInt TruncToInt TruncToFloat RoundToInt ToFloat IntTrueDiv FloatTrueDiv Identity Eq Ne Lt Le Gt Ge
    Not And Or Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan Piecewise ExprCondPair
"""
_FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
_WORDS = frozenset({"true", "false", "int_oo", "oo", "true_", "false_"})
_SHAPES = (ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare)
_SIGNS = (ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context)


def symbol(expression: str) -> str | None:
    """The symbol that an expression is; None for one that has to be computed.

    Raises: LoadFailed for whatever is no arithmetic over symbols and numbers.

    >>> symbol("Symbol('s77', positive=True, integer=True)"), symbol("s77"), symbol("2*s77")
    ('s77', 's77', None)
    """
    tree = _parsed(expression)
    for node in ast.walk(tree):
        if not _harmless(node):
            raise _refusal(expression)
    body = tree.body
    if isinstance(body, ast.Name):
        return body.id
    if isinstance(body, ast.Call) and isinstance(body.func, ast.Name) and body.func.id == "Symbol":
        named = body.args[0] if body.args else None
        return named.value if isinstance(named, ast.Constant) and isinstance(named.value, str) else None
    return None


def is_symbol(name: str) -> bool:
    """Whether a name is one that torch gives to a size.

    >>> is_symbol("s77"), is_symbol("os")
    (True, False)
    """
    return _SYMBOL.fullmatch(name) is not None


def _parsed(expression: str) -> ast.Expression:
    if len(expression) > _LONGEST_CHARACTERS:
        raise LoadFailed(f"an expression has {len(expression)} characters; at most {_LONGEST_CHARACTERS} are read")
    try:
        return ast.parse(expression, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(expression) from None


def _harmless(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return is_symbol(name) or name in _FUNCTIONS or name in _WORDS
        case ast.Constant(value=value):
            if isinstance(value, str):
                return is_symbol(value) or _DIGITS.fullmatch(value) is not None
            return isinstance(value, bool | int | float)
        case ast.Call(func=function):
            return isinstance(function, ast.Name) and function.id in _FUNCTIONS
        case ast.keyword(arg=name):
            return name is not None and _ASSUMPTION.fullmatch(name) is not None
    return isinstance(node, _SHAPES + _SIGNS)


def _refusal(expression: str) -> LoadFailed:
    return LoadFailed(f"{expression[:_SHOWN_CHARACTERS]!r} is no arithmetic over symbols and numbers")
