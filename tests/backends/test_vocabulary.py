from typing import Any

import numpy as np
import pytest

from server.backends.vocabulary import ProgramNames, Vocabulary, read_names, renamed, vocabularies
from server.core.errors import LoadFailed

TABLE = {"codes": {"UA": 1, "Å": 2}, "unknown": 0}


def test_texts_become_codes_and_all_others_are_unknown() -> None:
    names = read_names({"vocabularies": {"c": TABLE}}, "r")
    table = vocabularies(names, {"c": "int32"}, "r")["c"]
    texts = np.array([[b"UA", b"\xc3\x85"], [b"\xff", b""]], dtype=object)
    codes = table.look_up(texts, np.dtype(np.int32))
    assert codes.dtype == np.int32
    assert codes.tolist() == [[1, 2], [0, 0]]
    assert Vocabulary({}, 7).look_up(np.empty((0, 3), dtype=object), np.dtype(np.int64)).shape == (0, 3)


@pytest.mark.parametrize(
    ("parsed", "text"),
    [
        ({"input": []}, "record 'r': input: Extra inputs"),
        ({"inputs": [1]}, "record 'r': inputs.0: Input should be a valid string"),
        ({"vocabularies": {"c": {"codes": {"a": 2**31}, "unknown": 0}}}, "record 'r': vocabularies.c.codes.a"),
        ({"vocabularies": {"c": {"codes": {"a": "1"}, "unknown": 0}}}, "should be a valid integer"),
        ({"vocabularies": {"c": {"codes": {}}}}, "vocabularies.c.unknown: Field required"),
        ([], "record 'r': : Input should be"),
    ],
)
def test_records_that_say_something_else_are_refused(parsed: Any, text: str) -> None:
    with pytest.raises(LoadFailed) as caught:
        read_names(parsed, "r")
    assert text in str(caught.value)


def test_names_replace_those_of_the_exporter() -> None:
    assert renamed(["x", "y"], [], "input", "r") == ["x", "y"]
    assert renamed(["x", "y"], ["a", "b"], "input", "r") == ["a", "b"]
    for given, text in (
        (["a"], "names 1 inputs; the program has 2"),
        (["a", "a"], "two inputs are called 'a'"),
        (["a", ""], "empty"),
    ):
        with pytest.raises(LoadFailed, match=text):
            renamed(["x", "y"], given, "input", "r")


@pytest.mark.parametrize("types", [{}, {"c": "float32"}])
def test_a_vocabulary_needs_an_integer_input(types: dict[str, str]) -> None:
    names = ProgramNames.model_validate({"vocabularies": {"c": TABLE}})
    with pytest.raises(LoadFailed, match="which is no int32 or int64 input"):
        vocabularies(names, types, "r")
