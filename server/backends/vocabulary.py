"""Names and vocabularies that a program file brings along (`extra/podium.json`). **Pure.** Floor 2.

A torch program takes no strings and knows its inputs by the exporter's names. The file's own record says what clients call
them, and by which table a BYTES input becomes codes, so that one request fits an ONNX file and a program alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.core.errors import LoadFailed
from server.core.tensors import Array

Code = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class VocabularyRecord(BaseModel):
    """The codes of an input's texts; `unknown` is the code of every other text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    codes: dict[str, Code]
    unknown: Code


class ProgramNames(BaseModel):
    """`extra/podium.json`. Names stand in the program's order; empty: the program's own names."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    inputs: list[str] = Field(default_factory=list)
    outputs: list[str] = Field(default_factory=list)
    vocabularies: dict[str, VocabularyRecord] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """One input's table, by the bytes that clients send; what is not in it, or no UTF-8 text, is `unknown`."""

    codes: Mapping[bytes, int]
    unknown: int

    def look_up(self, texts: Array, dtype: np.dtype[Any]) -> Array:
        """Codes of texts, in the same shape.

        >>> Vocabulary({b"UA": 3}, 0).look_up(np.array([[b"UA"], [b"??"]], dtype=object), np.dtype(np.int64)).tolist()
        [[3], [0]]
        """
        codes, unknown = self.codes, self.unknown
        found = [codes.get(text, unknown) for text in texts.reshape(-1).tolist()]
        return np.array(found, dtype=dtype).reshape(texts.shape)


def read_names(parsed: object, record: str) -> ProgramNames:
    """The record, checked. Raises: LoadFailed naming the field."""
    try:
        return ProgramNames.model_validate(parsed)
    except ValidationError as error:
        first = error.errors()[0]
        raise LoadFailed(f"record '{record}': {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def renamed(own: list[str], given: list[str], kind: str, record: str) -> list[str]:
    """What clients call the program's inputs or outputs. Raises: LoadFailed for names that do not fit, or are no names."""
    names = given or own
    if len(names) != len(own):
        raise LoadFailed(f"record '{record}' names {len(names)} {kind}s; the program has {len(own)}")
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        raise LoadFailed(f"two {kind}s are called '{twice}'; name them apart in '{record}'")
    if not all(names):
        raise LoadFailed(f"record '{record}': an empty {kind} name")
    return names


def vocabularies(names: ProgramNames, types: Mapping[str, str], record: str) -> dict[str, Vocabulary]:
    """The tables by input. `types`: torch's word for each input. Raises: LoadFailed for inputs that take no codes."""
    found = {}
    for name, table in names.vocabularies.items():
        if types.get(name) not in ("int32", "int64"):
            raise LoadFailed(f"record '{record}' has a vocabulary for '{name}', which is no int32 or int64 input")
        found[name] = Vocabulary({text.encode(): code for text, code in table.codes.items()}, table.unknown)
    return found
