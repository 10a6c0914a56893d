"""Who a caller's certificate says it is, in the words of the setting `subjects`. **Pure.**

Kinds are part of a name (`cn:`, `dns:`, `uri:`), so that nobody passes by putting one kind's name where another kind stands.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

_KINDS = (("uri", "peer_uri"), ("cn", "x509_common_name"), ("dns", "peer_dns"))
"""The most specific first. Source of the properties: grpc, include/grpc/grpc_security_constants.h."""


def names_in(properties: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """The names of a verified certificate; none where there is no certificate.

    >>> names_in({"x509_common_name": [b"billing"], "peer_dns": [b"Billing.example"]})
    ('cn:billing', 'dns:billing.example')
    """
    return tuple(f"{kind}:{_text(kind, value)}" for kind, name in _KINDS for value in properties.get(name, ()) if value)


class SubjectPatterns:
    """Patterns of names, where `*` stands for any characters but `/`.

    >>> SubjectPatterns(["uri:spiffe://example/ns/*/sa/web"]).admit(["cn:x", "uri:spiffe://example/ns/a/sa/web"])
    True
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [_compiled(pattern) for pattern in patterns]

    def admit(self, names: Iterable[str]) -> bool:
        """Whether one of the names matches one of the patterns, as a whole."""
        return any(pattern.fullmatch(name) for name in names for pattern in self._patterns)


def _compiled(pattern: str) -> re.Pattern[str]:
    kind, _, name = pattern.partition(":")
    return re.compile(
        f"{kind}:" + "[^/]*".join(map(re.escape, (name.lower() if kind == "dns" else name).split("*"))), re.DOTALL
    )


def _text(kind: str, value: bytes) -> str:
    text = value.decode("utf-8", "replace")
    return text.lower() if kind == "dns" else text
