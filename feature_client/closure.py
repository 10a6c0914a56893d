"""Everything that decides what a definition's function gives: its own code, and what that reaches by name.

Followed are the functions and classes of the definitions themselves, in whichever of their files; what other packages bring is
known by its name (golden rows tell when it computes something else). What neither is, nor a constant, is refused: nobody could
say when it changed.
"""

import builtins
import dataclasses
import enum
import functools
import hashlib
import sys
from abc import ABCMeta
from dataclasses import dataclass, field
from pathlib import Path
from types import BuiltinFunctionType, CellType, FunctionType, ModuleType
from typing import Any

import numpy as np

from feature_client.constants import UnknownValue, exact_text, further, shortened
from feature_client.errors import DefinitionError
from feature_client.normal_form import names_loaded, normal_form, readable
from feature_client.sources import Sources, is_elsewhere

_IMPURE = frozenset({"__import__", "breakpoint", "compile", "eval", "exec", "globals", "hash", "id", "input", "open", "vars"})
"""Built-in functions with which a function would depend on more than its arguments and what it names."""

_OUTSIDE = frozenset(
    {"_io", "_random", "_thread", "asyncio", "contextvars", "ctypes", "gc", "getpass", "glob", "http", "importlib", "inspect"}
    | {
        "io",
        "locale",
        "multiprocessing",
        "os",
        "pathlib",
        "platform",
        "posix",
        "random",
        "secrets",
        "shutil",
        "signal",
        "socket",
    }
    | {"ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib", "uuid", "weakref"}
)
"""Modules of the library with which it would, too."""

_NOW = frozenset({"now", "today", "utcnow"})
"""What else tells the time: of `datetime`, which has its uses."""

_DISPATCHED = type(np.concatenate)
"""What functions of NumPy are that other array libraries may take over."""

_PLAIN = (type, enum.EnumType, ABCMeta)


@dataclass
class Closure:
    """`parts`: by name, what each function and class of the definitions is, as JSON. `texts`: their source, for people."""

    parts: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def closure_of(function: object, sources: Sources) -> Closure:
    """The closure of a view's function. Raises: DefinitionError naming what cannot be part of it, and who uses it."""
    if not isinstance(function, FunctionType):
        raise DefinitionError(f"a view's function must be a plain function, not {type(function).__name__}")
    if function.__code__.co_name == "<lambda>":
        raise DefinitionError("a view's function cannot be a lambda: use def")
    walk = _Walk(function.__code__.co_filename, sources)
    try:
        walk.follow(function)
    except RecursionError:
        raise DefinitionError(f"what '{function.__qualname__}' uses is nested too deeply") from None
    return walk.closure


class _Walk:
    def __init__(self, home: str, sources: Sources) -> None:
        self.closure = Closure()
        self._home, self._sources = home, sources
        self._seen: dict[int, str] = {}

    def follow(self, function: FunctionType) -> str:
        """Describe a function of the definitions, and give its reference."""
        known = self._seen.get(id(function))
        if known is not None:
            return known
        name = function.__qualname__
        key = self._begin(function, name)
        syntax, table = self._sources.find(function.__code__)
        outside, around = names_loaded(syntax, table)
        names: dict[str, str] = {}
        for each, uses in outside.items():
            if each in function.__globals__:
                names |= self._named(name, each, uses, function.__globals__[each])
            elif hasattr(builtins, each) and each not in _IMPURE:
                names[each] = f"builtin {each}"
            else:
                problem = "which no pure function can" if each in _IMPURE else "which is not defined"
                raise DefinitionError(f"'{name}' uses '{each}', {problem}")
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        for each, uses in around.items():
            names |= self._named(name, each, uses, _content(name, each, cells[each]))
        for each, value in sorted(vars(function).items()):
            names[f"{name}.{each}"] = self.text(name, f"'{name}.{each}'", value)
        form = normal_form(syntax)
        self.closure.parts[key] = {
            "code": hashlib.sha256(form.encode()).hexdigest(),
            "names": names,
            "defaults": self.text(name, "its default arguments", (function.__defaults__, function.__kwdefaults__)),
        }
        self.closure.texts[key] = readable(syntax)
        return f"function {key}"

    def _begin(self, thing: object, name: str) -> str:
        key, number = name, 1
        while key in self.closure.parts:
            number += 1
            key = f"{name}#{number}"
        self.closure.parts[key] = {}  # its place, before what it uses itself
        self._seen[id(thing)] = f"{'class' if isinstance(thing, type) else 'function'} {key}"
        return key

    def _named(self, user: str, name: str, uses: set[tuple[str, ...]], value: object) -> dict[str, str]:
        """What a name stands for; of a module of the definitions, what its attributes do."""
        home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if home == "datetime" and any(_NOW & set(attributes) for attributes in uses):
            raise DefinitionError(f"'{user}' uses '{name}' to tell the time, which no pure function can do")
        if not isinstance(value, ModuleType) or self._is_elsewhere(value):
            return {name: self.text(user, f"'{name}'", value)}
        found = {}
        for attributes in sorted(uses):
            path, each = name, value
            for attribute in attributes:
                if not isinstance(each, ModuleType) or self._is_elsewhere(each):
                    break
                path = f"{path}.{attribute}"
                if not hasattr(each, attribute):
                    raise DefinitionError(f"'{user}' uses '{path}', which is not defined")
                each = getattr(each, attribute)
            if isinstance(each, ModuleType) and not self._is_elsewhere(each):
                raise DefinitionError(f"'{user}' uses the module '{path}' otherwise than by its attributes")
            found[path] = self.text(user, f"'{path}'", each)
        return found

    def text(self, user: str, what: str, value: object) -> str:
        """The exact text of a value, by which `user` knows it as `what`."""
        try:
            return shortened(exact_text(value, self._other))
        except UnknownValue as error:
            raise DefinitionError(f"'{user}' uses {what}, {error}") from None

    def _other(self, value: object) -> str:
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return _pure(value.__module__, value.__qualname__) if self._is_elsewhere(value) else self._class(value)
        if isinstance(value, ModuleType) and self._is_elsewhere(value):
            return f"module {_pure(value.__name__)}"
        if isinstance(value, np.ufunc) and value.__name__.isidentifier():
            return f"ufunc {value.__name__}"
        if isinstance(value, functools.partial) and type(value) is functools.partial:
            inner = (value.func, value.args, value.keywords)
            return f"partial{exact_text(inner, self._other)}"
        if isinstance(value, BuiltinFunctionType | _DISPATCHED):
            owner = getattr(value, "__self__", None)
            module = sys.modules.get(value.__module__ or "builtins")
            if (owner is None or isinstance(owner, ModuleType | type)) and module is not None and self._is_elsewhere(module):
                return _pure(value.__module__ or "builtins", value.__qualname__)
        raise UnknownValue(
            f"an object of type {type(value).__module__}.{type(value).__qualname__}: what it does cannot be known. Constants, "
            "functions, enumerations and instances of frozen dataclasses can"
        )

    def _function(self, function: FunctionType) -> str:
        line = function.__code__.co_firstlineno
        if not is_elsewhere(function.__code__.co_filename, self._home):
            if function.__code__.co_name == "<lambda>":
                raise UnknownValue(f"a lambda (line {line}), which cannot be told from another one: use def")
            return self.follow(function)
        module = sys.modules.get(function.__module__)
        if module is None or _in(module, function.__qualname__) is not function or not self._is_elsewhere(module):
            # what a decorator of another package has made of a function looks like that function, and hides it
            file = Path(function.__code__.co_filename).name
            raise UnknownValue(f"a function that {file} (line {line}) has made: what it wraps cannot be known")
        return _pure(function.__module__, function.__qualname__)

    def _class(self, cls: type) -> str:
        """Describe a class of the definitions: its bases, its constants, its methods, the fields of a dataclass."""
        known = self._seen.get(id(cls))
        if known is not None:
            return known
        if type(cls) not in _PLAIN:
            raise UnknownValue(f"the class '{cls.__qualname__}', whose metaclass '{type(cls).__qualname__}' may do anything")
        name = cls.__qualname__
        key = self._begin(cls, name)
        names = {"bases": self.text(name, "its bases", cls.__bases__)}
        if dataclasses.is_dataclass(cls):
            made = [(each.name, each.default, each.default_factory) for each in dataclasses.fields(cls)]
            given = [(each, *(value for value in values if value is not dataclasses.MISSING)) for each, *values in made]
            names["fields"] = self.text(name, "its fields", given)
        if issubclass(cls, enum.Enum):
            for each, member in cls.__members__.items():
                names[each] = self.text(name, f"'{each}'", member.value)
                if more := further(member):
                    names[f"{each} has"] = self.text(name, f"'{each}'", more)
        for each, value in sorted(vars(cls).items()):
            names |= self._member(cls, each, value)
        self.closure.parts[key] = {"names": names}
        return f"class {key}"

    def _member(self, cls: type, name: str, value: Any) -> dict[str, str]:
        """One attribute of a class, unless Python or a decorator of its library has put it there."""
        inner = {"": value}
        if isinstance(value, staticmethod | classmethod):
            inner = {"": value.__func__}
        elif isinstance(value, property):
            inner = {" get": value.fget, " set": value.fset}
        elif isinstance(value, functools.cached_property):
            inner = {"": value.func}
        found = {}
        for suffix, each in inner.items():
            own = isinstance(each, FunctionType) and not is_elsewhere(each.__code__.co_filename, self._home)
            if own or not (_put_there(cls, name) or type(each).__name__ in ("member_descriptor", "_abc_data")):
                found[name + suffix] = self.text(cls.__qualname__, f"'{name}'", each)
        return found

    def _is_elsewhere(self, thing: ModuleType | type) -> bool:
        module = thing if isinstance(thing, ModuleType) else sys.modules.get(thing.__module__)
        if module is None or module.__spec__ is None:
            return False  # made by hand, or the program itself
        if isinstance(thing, type) and _in(module, thing.__qualname__) is not thing:
            return False  # of a module beside the definitions, whose name another one has by now
        file = getattr(module, "__file__", None)
        # a folder without `__init__.py` has places instead, what is built in has neither
        places = getattr(module, "__path__", ()) if file is None else (file,)
        return all(is_elsewhere(place, self._home) for place in places)


def _in(module: ModuleType, name: str) -> object:
    """What a module has under a qualified name; None if nothing."""
    found: object = module
    for each in name.split("."):
        found = getattr(found, each, None)
    return found


def _put_there(cls: type, name: str) -> bool:
    """Whether Python itself gives classes an attribute of this name, or has described it already as a member."""
    if issubclass(cls, enum.Enum):
        return name.startswith("_") or name in cls.__members__
    return name.startswith("__") and name.endswith("__")


def _pure(module: str, name: str = "") -> str:
    """What another package has, or a whole package, by its name. Raises: UnknownValue for what makes no pure function."""
    path = f"{module}.{name}" if name else module
    impure = name in _IMPURE or not name if module == "builtins" else module.partition(".")[0] in _OUTSIDE
    if impure or name.rpartition(".")[2] in _NOW:
        raise UnknownValue(f"{path}, which depends on more than arguments and constants")
    return path


def _content(user: str, name: str, cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        raise DefinitionError(f"'{user}' uses '{name}', which has no value yet") from None
