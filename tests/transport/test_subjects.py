"""Names in certificates, and patterns of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transport.subjects import SubjectPatterns, names_in


def test_the_most_specific_name_comes_first() -> None:
    properties = {
        "x509_common_name": [b"web"],
        "peer_dns": [b"A.Example", b"b.example"],
        "peer_uri": [b"spiffe://example/web"],
        "x509_subject_alternative_name": [b"ignored: of no stated kind"],
    }
    assert names_in(properties) == ("uri:spiffe://example/web", "cn:web", "dns:a.example", "dns:b.example")


def test_no_certificate_has_no_names() -> None:
    assert names_in({"transport_security_type": [b"insecure"]}) == ()
    assert names_in({"x509_common_name": [b""]}) == ()


@pytest.mark.parametrize(
    ("pattern", "name", "admitted"),
    [
        ("cn:web", "cn:web", True),
        ("cn:web", "cn:web1", False),
        ("cn:web", "cn:Web", False),
        ("cn:web", "dns:web", False),
        ("cn:*", "cn:anything at all", True),
        ("dns:*.Example", "dns:a.b.example", True),
        ("dns:*.example", "dns:example", False),
        ("dns:a.example", "dns:axexample", False),
        ("uri:spiffe://e/ns/*/sa/web", "uri:spiffe://e/ns/one/sa/web", True),
        ("uri:spiffe://e/ns/*/sa/web", "uri:spiffe://e/ns/one/two/sa/web", False),
        ("uri:spiffe://e/*", "uri:spiffe://e/web\n", True),
        ("uri:spiffe://e/web", "uri:spiffe://e/web\n", False),
    ],
)
def test_patterns(pattern: str, name: str, admitted: bool) -> None:
    assert SubjectPatterns([pattern]).admit([name]) is admitted


@given(st.text(), st.text())
def test_a_pattern_without_a_star_is_one_name(pattern: str, name: str) -> None:
    patterns = SubjectPatterns(["cn:" + pattern.replace("*", "+")])
    assert patterns.admit(["cn:" + name]) == (pattern.replace("*", "+") == name)
