"""`python -m bench.drift.document`: write what was measured into docs/DRIFT_BENCH.md, between the markers of each result.

A test holds the document to the results: whoever measures again runs this too.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.drift.report import flights_tables, tables
from bench.record import RESULTS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "DRIFT_BENCH.md"
BLOCKS = {"drift": tables, "drift_flights": flights_tables}


def written(text: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """The document with the tables of these results, by name. Raises: ValueError where the markers of one are not there."""
    for name, result in results.items():
        marked = re.compile(rf"(<!-- {name}.json -->\n).*?(<!-- end of {name}.json -->)", re.DOTALL)
        found = marked.search(text)
        if found is None:
            raise ValueError(f"the document has no place for {name}.json")
        block = "\n".join([found[1], *BLOCKS[name](result), "", found[2]])
        text = text[: found.start()] + block + text[found.end() :]
    return text


def read() -> dict[str, Any]:
    """The results that there are."""
    return {name: json.loads((RESULTS / f"{name}.json").read_text("utf-8")) for name in BLOCKS}


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text("utf-8"), read()), "utf-8")
    sys.exit(0)
