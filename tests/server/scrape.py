"""The metrics page of a server, read as numbers."""

import re

from tests.server.serving import Serving

Labels = frozenset[tuple[str, str]]


def scrape(serving: Serving) -> dict[tuple[str, Labels], float]:
    """Every sample by its name and labels."""
    status, page = serving.http("/metrics")
    assert status == 200, page
    found: dict[tuple[str, Labels], float] = {}
    for line in page.splitlines():
        if match := re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line):
            labels = re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or "")
            found[match[1], frozenset(labels)] = float(match[3])
    return found


def value(page: dict[tuple[str, Labels], float], name: str, **labels: str) -> int:
    """One counter or gauge of whole numbers."""
    found = page[name, frozenset(labels.items())]
    assert found == int(found)
    return int(found)
