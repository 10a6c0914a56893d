"""Which headers name a caller's span (W3C Trace Context)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.telemetry.trace import Parent, parent_of

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(("flags", "sampled"), [("00", False), ("01", True), ("02", False), ("03", True), ("ff", True)])
def test_a_header_names_its_span(flags: str, sampled: bool) -> None:
    expected = Parent(int(TRACE_ID, 16), int(SPAN_ID, 16), sampled, "vendor=1")
    assert parent_of(f"00-{TRACE_ID}-{SPAN_ID}-{flags}", "vendor=1") == expected


def test_a_later_version_may_say_more() -> None:
    for version, more in (("01", ""), ("cc", "-what-ever")):
        assert parent_of(f"{version}-{TRACE_ID}-{SPAN_ID}-01{more}") == Parent(int(TRACE_ID, 16), int(SPAN_ID, 16), True)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        f"ff-{TRACE_ID}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-01-more",
        f"00-{TRACE_ID}-{SPAN_ID}-01-",
        f"00-{TRACE_ID.upper()}-{SPAN_ID}-01",
        f"00-{TRACE_ID[1:]}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{SPAN_ID}-1",
        f"00-{'0' * 32}-{SPAN_ID}-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"01-{TRACE_ID}-{SPAN_ID}-01more",
        f" 00-{TRACE_ID}-{SPAN_ID}-01",
    ],
)
def test_what_is_no_header_names_nothing(header: str) -> None:
    assert parent_of(header) is None


@given(st.text(max_size=80))
def test_no_text_is_too_odd(text: str) -> None:
    assert parent_of(text) is None or text.count("-") >= 3
