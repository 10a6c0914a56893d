"""What moved, in words: the bins and categories that gained and lost most. **Pure.**

Floor 7, for `podium drift`: texts only. Names come from callers, so whatever could steer a terminal is spelt out.
"""

from itertools import pairwise

from server.monitoring.verdict import Finding
from server.transport.drift_reading import StreamBins

_SHOWN = 2
_MEANT = {
    "missing": "missing",
    "unseen": "unseen in the baseline",
    "out_of_range": "out of the baseline's range",
    "non_finite": "infinite",
}


def moved(finding: Finding, stream: StreamBins | None) -> str:
    """One sentence about a finding; `stream` None: its bins are not known, and have numbers."""
    if finding.check != "distribution":
        return (
            f"{_share(finding.window[1], finding.m)} of its values are {_MEANT[finding.check]};"
            f" of the baseline's {_share(finding.baseline[1], finding.n)}"
        )
    names = bin_names(finding, stream)
    changes = [
        (now / finding.m - was / finding.n, name, was, now)
        for name, was, now in zip(names, finding.baseline, finding.window, strict=True)
    ]
    gained = sorted((change for change in changes if change[0] > 0), reverse=True)[:_SHOWN]
    lost = sorted(change for change in changes if change[0] < 0)[:_SHOWN]
    parts = []
    for verb, some in (("gained", gained), ("lost", lost)):
        told = (f"{name} ({_share(was, finding.n)} → {_share(now, finding.m)})" for _, name, was, now in some)
        parts += [f"{verb}: {', '.join(told)}"] if some else []
    return "; ".join(parts) or "every bin has the share that it had"


def bin_names(finding: Finding, stream: StreamBins | None) -> list[str]:
    """What each count of a distribution is of."""
    count = len(finding.baseline)
    if stream is not None and stream.vocabulary and len(stream.vocabulary) < count:
        rest = ["other", "unseen", *(f"category {number}" for number in range(count))]
        names = [f"'{plain(name)}'" for name in stream.vocabulary] + rest
        return names[:count]
    if stream is not None and stream.edges and len(stream.edges) == count - 1:
        edges = [f"{edge:.6g}" for edge in stream.edges]
        between = [f"{low} to {high}" for low, high in pairwise(edges)]
        return [f"up to {edges[0]}", *between, f"above {edges[-1]}"]
    return [f"bin {number}" for number in range(count)]


def plain(text: str) -> str:
    """A text without anything that a terminal would obey.

    >>> plain("distance"), plain("a\\x1b[2Jb")
    ('distance', 'a\\\\x1b[2Jb')
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "none"
