"""Constants as exact texts: equal texts, equal bits. **Pure.**

What two runs could not agree on (an object's address, the order of a set) is in none of them.
"""

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any

import numpy as np

from feature_client.errors import DefinitionError
from feature_client.normal_form import literal

_DEPTH = 32
_SHOWN = 160
"""Characters of a text that are kept as they are; a longer one ends in its digest."""
_FLOATS = ("float16", "float32", "float64", "complex64", "complex128")
_ATOMS = (bool, int, float, str, bytes, type(None), type(...))

Other = Callable[[object], str]


class UnknownValue(DefinitionError):
    """What is wrong with a value, in words that follow those for who uses it and by which name."""


def exact_text(value: object, other: Other, depth: int = 0) -> str:
    """The text of a constant: numbers, texts, bytes, containers, NumPy scalars, arrays and types, members of enumerations,
    instances of frozen dataclasses, regular expressions. `other` gives the text of anything else, or refuses it.

    Raises: UnknownValue for what has no exact text, and what `other` raises.

    >>> exact_text((1, 2.5, np.float32(0.5), {b"a": None}), str)
    "(1, 2.5, float32 0.5, {b'a': None})"
    """
    if depth > _DEPTH:
        raise UnknownValue("which is nested too deeply, or contains itself")

    def inner(each: object) -> str:
        return exact_text(each, other, depth + 1)

    if isinstance(value, enum.Enum):
        return f"{other(type(value))}.{value.name}={inner(value.value)}{_more(value, inner)}"
    if type(value) is complex:
        return f"complex({inner(value.real)}, {inner(value.imag)})"
    if type(value) in _ATOMS:
        return literal(value) if value == value else _nan(np.float64(value))  # type: ignore[arg-type] # only floats differ so
    if isinstance(value, np.ndarray | np.generic | np.dtype):
        return _numpy(value)
    if isinstance(value, re.Pattern):
        return f"pattern({literal(value.pattern)}, {value.flags})"
    if isinstance(value, range):
        return repr(value)
    if isinstance(value, slice):
        return f"slice({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value).__dataclass_params__.frozen:  # type: ignore[attr-defined] # mypy does not know it
        # what is worked out from the others (`init=False`, or no field at all) may have been set to anything
        fields = (f"{field.name}={inner(getattr(value, field.name))}" for field in dataclasses.fields(value))
        return f"{other(type(value))}({', '.join(fields)}){_more(value, inner)}"
    return _container(value, inner) or other(value)


def further(value: object) -> dict[str, Any]:
    """What an instance holds beside the fields of its dataclass, or the value of its enumeration. What a cached property
    remembers is none of it: its code tells.
    """
    fields = {each.name for each in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
    return {
        name: each
        for name, each in sorted(getattr(value, "__dict__", {}).items())
        if name not in fields
        and not (isinstance(value, enum.Enum) and name.startswith("_") and name.endswith("_"))
        and not isinstance(getattr(type(value), name, None), functools.cached_property)
    }


def _more(value: object, inner: Other) -> str:
    held = further(value)
    return f" with {inner(held)}" if held else ""


def shortened(text: str) -> str:
    """A text that can be shown, and still differs where the whole one does.

    >>> shortened("x" * 200)[80:119]
    '...; 200 characters; sha256 aa20c23e320'
    """
    if len(text) <= _SHOWN:
        return text
    return f"{text[: _SHOWN // 2]}...; {len(text)} characters; sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def array_text(array: np.ndarray[Any, Any]) -> tuple[str, list[int], str]:
    """Type, shape and digest of an array, whatever its layout and byte order. Raises: UnknownValue for objects other than bytes
    and None, and for floats whose bits differ between machines.
    """
    if type(array) is not np.ndarray:
        # a mask, a matrix's own multiplication: subclasses are more than their bits
        raise UnknownValue(f"an object of type {type(array).__module__}.{type(array).__qualname__}, not a plain array")
    digest = hashlib.sha256()
    if array.dtype == object:
        for each in array.ravel().tolist():
            if each is not None and type(each) is not bytes:
                raise UnknownValue(f"an array with an object of type {type(each).__name__}, which has no exact form")
            digest.update(b"\x00" if each is None else b"\x01" + len(each).to_bytes(8, "little") + each)
        return "bytes", list(array.shape), digest.hexdigest()
    if array.dtype.kind not in "biufcSUmM" or (array.dtype.kind in "fc" and array.dtype.name not in _FLOATS):
        raise UnknownValue(f"an array of {array.dtype}, which has no exact form")
    dtype = array.dtype.newbyteorder("<")
    digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    return dtype.str.lstrip("<|"), list(array.shape), digest.hexdigest()


def _numpy(value: Any) -> str:
    if isinstance(value, np.dtype):
        if value.hasobject and value != np.dtype(object):
            raise UnknownValue(f"the type {value}, which has no exact form")
        ordered = value.newbyteorder("<")
        return f"dtype({ordered if value.names or value.subdtype else ordered.str})"
    if isinstance(value, np.ndarray):
        dtype, shape, digest = array_text(value)
        shown = f" {value.tolist()!r}" if value.size <= 8 and value.dtype.kind in "biuf" else ""
        return f"array {dtype} {shape}{shown} sha256 {digest}"
    if value.dtype.kind in "biu":
        return f"{value.dtype.name} {value.item()!r}"
    if value.dtype.kind == "f" and value.dtype.itemsize <= 8:
        return _nan(value) if value != value else f"{value.dtype.name} {float(value)!r}"
    return f"{value.dtype.str.lstrip('<>|=')} sha256 {array_text(np.asarray(value))[2]}"


def _nan(value: Any) -> str:
    return f"{value.dtype.name} nan({np.asarray(value).astype(value.dtype.newbyteorder('>')).tobytes().hex()})"


def _container(value: object, inner: Other) -> str:
    """The text of a container; "" for anything else. Subclasses may do anything, and are not taken for their base."""

    def joined(each: Iterable[object]) -> str:
        return ", ".join(map(inner, each))

    if isinstance(value, MappingProxyType):
        value = dict(value)
    if type(value) is tuple:
        return f"({joined(value)})"
    if type(value) is list:
        return f"[{joined(value)}]"
    if type(value) in (set, frozenset):
        return f"{type(value).__name__}({', '.join(sorted(map(inner, value)))})"  # type: ignore[call-overload] # just checked
    if type(value) is dict:
        return "{" + ", ".join(f"{inner(key)}: {inner(each)}" for key, each in value.items()) + "}"
    return ""
