"""The built module is the one that the rest of the code is checked against."""

from pathlib import Path

import podium_native

ROOT = Path(__file__).parents[2]


def test_the_stub_is_the_module() -> None:
    """`make stub` writes it anew."""
    assert podium_native.__file__ is not None
    written = Path(podium_native.__file__).with_name("podium_native.pyi").read_text("utf-8")
    assert (ROOT / "server" / "dataplane" / "native" / "typings" / "podium_native.pyi").read_text("utf-8") == written


def test_it_says_what_it_was_built_with() -> None:
    words = podium_native.built_with()
    assert all(library in words for library in ("nghttp2 ", "OpenSSL ", "zlib "))
