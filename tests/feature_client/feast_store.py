"""What Feast 0.67.0 wrote (`bench/feast_side.py fixture`), in a real server."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.feature_client.servers import Server, tcp_server

FIXTURE = json.loads((Path(__file__).parent / "feast_rows.json").read_text("utf-8"))


@contextmanager
def feast_server(folder: Path) -> Iterator[Server]:
    """A server with those rows, for as long as this lasts."""
    with tcp_server(folder) as running:
        for key, fields in FIXTURE["stored"].items():
            running.admin.hset(
                bytes.fromhex(key), mapping={bytes.fromhex(name): bytes.fromhex(value) for name, value in fields.items()}
            )
        yield running
