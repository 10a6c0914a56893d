"""Names and references: nothing that passes can leave the repository, and a reference reads back as it was written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.core.errors import InvalidRequest
from server.registry.names import Reference, check_alias_name, check_model_name, parse_reference, version_number

MODELS = st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}\Z")
ALIASES = st.from_regex(r"\A[a-z][a-z0-9_-]{0,20}\Z")
VERSIONS = st.integers(1, 10**18 - 1)


@given(st.text() | st.from_regex(r"[./\\a]{1,6}"))
def test_a_name_that_passes_is_one_component_of_a_path(name: str) -> None:
    try:
        check_model_name(name)
    except InvalidRequest:
        return
    assert not set("/\\\0:@") & set(name)
    assert not name.startswith(".")
    assert 0 < len(name) <= 128


@pytest.mark.parametrize("name", ["../a", "a/b", "..", ".", "a\\b", "a\0", "/etc"])
def test_path_traversal_is_refused_in_tritons_words(name: str) -> None:
    with pytest.raises(InvalidRequest, match="model name must not contain path traversal characters"):
        check_model_name(name)


@pytest.mark.parametrize("name", ["a b", "é", "-a", ".a", "a" * 129, "a\n", "a:b", "a@b"])
def test_other_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(InvalidRequest, match="at most 128 letters"):
        check_model_name(name)


def test_an_empty_name_has_its_own_text() -> None:
    with pytest.raises(InvalidRequest, match="cannot be empty"):
        check_model_name("")


@given(MODELS)
def test_ordinary_names_pass(name: str) -> None:
    check_model_name(name)


@given(st.integers())
def test_an_alias_is_never_an_integer(number: int) -> None:
    with pytest.raises(InvalidRequest, match="alias"):
        check_alias_name(str(number))


@pytest.mark.parametrize("alias", ["", "Champion", "1a", "a b", "a" * 65, "@a", "a\n"])
def test_illegal_aliases_are_refused(alias: str) -> None:
    with pytest.raises(InvalidRequest, match="alias"):
        check_alias_name(alias)


@given(VERSIONS)
def test_a_version_has_exactly_one_spelling(version: int) -> None:
    assert version_number(str(version)) == version
    assert version_number(f"0{version}") is None
    assert version_number(f"-{version}") is None
    assert version_number(f"{version}.0") is None


@pytest.mark.parametrize("text", ["", "0", "٣", "1e3", "1 ", str(10**18), "v1"])
def test_what_is_no_version(text: str) -> None:
    assert version_number(text) is None


@given(MODELS, VERSIONS, ALIASES)
def test_references_read_back(model: str, version: int, alias: str) -> None:
    assert parse_reference(model) == Reference(model)
    assert parse_reference(f"{model}:{version}") == Reference(model, version=version)
    assert parse_reference(f"{model}@{alias}") == Reference(model, alias=alias)


@given(st.text(alphabet="ab1:@./ ", max_size=8))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        reference = parse_reference(text)
    except InvalidRequest:
        return
    assert reference.version is None or reference.alias is None
    suffix = f":{reference.version}" if reference.version else f"@{reference.alias}" if reference.alias else ""
    assert text == reference.model + suffix


@pytest.mark.parametrize("text", ["a:", "a:x", "a:0", "a@", "a@3", "a@b:1", "a:1@b", ":1", "@b", ""])
def test_broken_references_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_reference(text)
