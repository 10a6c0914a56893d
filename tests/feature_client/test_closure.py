"""What a definition's function reaches counts, whatever kind of thing it is; what cannot be known is refused by name."""

from pathlib import Path

import pytest

from feature_client.errors import DefinitionError
from tests.feature_client.test_fingerprint import print_of
from tests.feature_client.written import loaded, request_view

CONSTANTS = [
    "None", "True", "1", "1.0", "-0.0", "0.0", "1j", "complex(0, float('nan'))", "'é'", "b'a'", "(1,)", "[1]", "{1: 2}", "{1}",
    "...", "frozenset({1})", "types.MappingProxyType({1: 3})", "range(3)", "slice(1, None)", "re.compile('a', re.I)", "10**40",
    "float('nan')", "np.float32(1)", "np.float16('nan')", "np.int8(1)", "np.bool_(1)", "np.complex64(1)", "np.str_('a')",
    "np.datetime64(1, 's')", "np.array([1])", "np.array([1.0], '<f4')", "np.array([1, 2])", "np.array([[1, 2]])",
    "np.arange(100)", "np.array([b'a', None], object)", "np.array(['a'])", "np.dtype('f4')", "np.dtype(object)",
    "np.dtype([('a', 'f4')])", "np.log", "np.exp", "np.float32", "len", "functools.partial(np.clip, a_max=1)", "np.concatenate",
    "Color.RED", "Color.BLUE", "Point(1.0)", "Point(2.0)", "Color", "Point", "dict.fromkeys", "'x' * 500", "'y' * 500", "np",
    "np.dtype(('f4', (2,)))", "np.dtype(('i4', (2,)))", "np.dtype({'names': 'ab', 'formats': ['f4', 'f4'], 'offsets': [0, 2]})",
    "held(Point(1.0), 1)", "held(Point(1.0), 2)", "held(Color.RED, 1)", "held(Color, 1)", "datetime.timedelta",
    "(np.log, [helper, {b'a': Color.RED}])", "Entity", "np.clip",
]  # fmt: skip
BEFORE = """
import abc
import textwrap


class Color(enum.Enum):
    RED = 1
    BLUE = b"b"

    @property
    def shown(self):
        return self.name

    @functools.cached_property
    def shouted(self):
        return self.name.upper()


@dataclass(frozen=True)
class Point:
    x: float
    y: int = 2
    z: tuple = dataclasses.field(default_factory=tuple)

    SCALE = 3

    def scaled(self):
        return self.x * self.SCALE

    @staticmethod
    def origin():
        return Point(0.0)

    @classmethod
    def made(cls):
        return super().__new__(cls)


class Config:
    MODE = Color.RED
    NONE = None
    _inner_ = 1
    CUT = staticmethod(textwrap.dedent)


class Shape(abc.ABC):
    SIDES = 3


def helper():
    return 1


helper.times = 1


def held(thing, value):
    if isinstance(thing, type):
        thing.BLUE.held = value
    else:
        object.__setattr__(thing, "held", value)
    return thing
"""


def constant(text: str, before: str = BEFORE) -> str:
    return request_view(
        'return {"y": x if C is None else x}',
        f"import builtins\nimport dataclasses\nimport datetime\nimport io\nimport os\nimport time\n{before}\n\nC = {text}\n",
    )


def test_every_constant_has_its_own_text(tmp_path: Path) -> None:
    found = {}
    for number, text in enumerate(CONSTANTS):
        definitions = loaded(tmp_path / str(number), constant(text))
        found[definitions.fingerprints["v@1"]] = text
    assert list(found.values()) == CONSTANTS


def test_sets_have_no_order_and_dictionaries_do(tmp_path: Path) -> None:
    one, other = (print_of(tmp_path / text, constant(f"{{{text}}}")) for text in ("b'a', b'b', 3", "3, b'b', b'a'"))
    assert one == other
    first, second = (print_of(tmp_path / f"{a}", constant(f"{{{a}: 0, {b}: 0}}")) for a, b in ((1, 2), (2, 1)))
    assert first != second


@pytest.mark.parametrize(
    "change",
    [
        ('BLUE = b"b"', 'BLUE = b"c"'),
        ("self.name.upper()", "self.name.lower()"),
        ("        return self.name\n", "        return self.value\n"),
        ("y: int = 2", "y: int = 3"),
        ("default_factory=tuple", "default_factory=list"),
        ("SCALE = 3", "SCALE = 4"),
        ("self.x * self", "self.x + self"),
        ("Point(0.0)", "Point(1.0)"),
        ("__new__(cls)", "__new__(Point)"),
        ("MODE = Color.RED", "MODE = Color.BLUE"),
        ("NONE = None", "NONE = ()"),
        ("_inner_ = 1", "_inner_ = 2"),
        ("textwrap.dedent", "textwrap.indent"),
        ("SIDES = 3", "SIDES = 4"),
        ("helper.times = 1", "helper.times = 2"),
    ],
)
def test_classes_of_the_definitions_count(tmp_path: Path, change: tuple[str, str]) -> None:
    assert change[0] in BEFORE
    text = "(Color.RED, Point(1.0), Config, Shape, helper)"
    assert print_of(tmp_path / "a", constant(text)) != print_of(tmp_path / "b", constant(text, BEFORE.replace(*change)))


REFUSED = {
    "np.random.default_rng(1)": "'v' uses 'C', an object of type numpy.random._generator.Generator: what it",
    "lambda x: x": "'v' uses 'C', a lambda (line",
    "np.vectorize(helper)": "an object of type numpy.vectorize",
    "np.frompyfunc(helper, 0, 1)": "an object of type numpy.ufunc",
    "functools.lru_cache(helper)": "an object of type functools._lru_cache_wrapper",
    "iter([1])": "an object of type builtins.list_iterator",
    "object()": "an object of type builtins.object",
    "io.BytesIO()": "an object of type _io.BytesIO",
    "[1].append": "an object of type builtins.builtin_function_or_method",
    "np.errstate(all='ignore')(helper)": "a function that _ufunc_config.py (line",
    "np.array([object()])": "an array with an object of type object, which has no exact form",
    "np.ma.array([1.0], mask=[0])": "an object of type numpy.ma.MaskedArray, not a plain array",
    "type('Holder', (), {'held': staticmethod(lambda: 1)})": "'Holder' uses 'held', a lambda (line",
    "os": "'v' uses 'C', os, which depends on more than arguments and constants",
    "os.getenv": "'v' uses 'C', os.getenv, which depends on more",
    "time.time": "'v' uses 'C', time.time, which depends on more",
    "builtins": "'v' uses 'C', builtins, which depends on more",
    "eval": "'v' uses 'C', builtins.eval, which depends on more",
    "datetime.date.today": "'v' uses 'C', builtins.date.today, which depends on more",
    "np.array([1], np.longdouble)": "an array of float128, which has no exact form",
    "np.dtype([('a', object)])": "which has no exact form",
    "(lambda l: l.append(l) or l)([])": "which is nested too deeply, or contains itself",
    "types.SimpleNamespace()": "an object of type types.SimpleNamespace",
    "type('Meta', (type,), {})('C', (), {})": "the class 'C', whose metaclass 'Meta' may do anything",
    "type('Holder', (), {'held': object()})": "'Holder' uses 'held', an object of type builtins.object",
    "[re.sub, functools.wraps(helper)(lambda: 1)]": "a lambda",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_known_is_refused_by_name(tmp_path: Path, text: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        loaded(tmp_path, constant(text))
    assert REFUSED[text] in str(refused.value)
    assert str(refused.value).startswith(f"the view 'v@1' ({tmp_path}/features.py:")


BODIES = {
    "global C\nC = 1\nreturn {'y': x}": "'v' assigns the global 'C'",
    "import helpers\nreturn {'y': x}": "'v' imports in line",
    "class A: pass\nreturn {'y': x}": "'v' has a class in line",
    "return {'y': x * hash(b'a')}": "'v' uses 'hash', which no pure function can",
    "return {'y': x * nowhere}": "'v' uses 'nowhere', which is not defined",
    "return {'y': count_calls(x)}": "'counted' assigns 'calls', which is not its own",
    "return {'y': helpers.nothing(x)}": "'v' uses 'helpers.nothing', which is not defined",
    "return {'y': x if helpers else x}": "'v' uses the module 'helpers' otherwise than by its attributes",
    "return {'y': x * datetime.datetime.now().year}": "'v' uses 'datetime' to tell the time, which no pure function can",
    "calls.append(1)\nreturn {'y': x}": "changes, while it is computed, what it is computed with: 'calls' in 'v': [] -> [1",
    "return {'y': later(x)}": "'empty.<locals>.of' uses 'given', which has no value yet",
}


@pytest.mark.parametrize("body", BODIES)
def test_what_no_pure_function_does_is_refused(tmp_path: Path, body: str) -> None:
    before = """import datetime
import helpers

calls = []

def counting():
    calls = 0
    def counted(x):
        nonlocal calls
        calls += 1
        return x
    return counted

def empty():
    def of(x):
        return x * given
    if False:
        given = 1
    return of

count_calls = counting()
later = empty()
"""
    with pytest.raises(DefinitionError) as refused:
        loaded(tmp_path, request_view(body, before))
    assert BODIES[body] in str(refused.value)


def test_functions_that_call_each_other_are_known(tmp_path: Path) -> None:
    before = """def even(n):
    return True if n == 0 else odd(n - 1)

def odd(n):
    return False if n == 0 else even(n - 1)

class A:
    @staticmethod
    def f():
        return B.f()

class B:
    @staticmethod
    def f():
        return A
"""
    text = request_view("return {'y': x if even(2) and B.f() and A else x}", before)
    assert print_of(tmp_path / "a", text) != print_of(tmp_path / "b", text.replace("return False", "return None"))


def test_two_functions_of_one_name_are_two(tmp_path: Path) -> None:
    before = "def made(n):\n    def f(x):\n        return x * n\n    return f\n\nf, g = made(1.0), made({})\n"
    text = request_view("return {'y': f(x) + g(x)}", before)
    definitions = loaded(tmp_path / "a", text.replace("{}", "2.0"))
    assert {"made.<locals>.f", "made.<locals>.f#2"} <= definitions.descriptions["v@1"].document["closure"].keys()
    assert definitions.fingerprints["v@1"] != print_of(tmp_path / "b", text.replace("{}", "3.0"))
