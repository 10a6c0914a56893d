"""A port that several servers share, which only the native door knows: who begins anew takes its place there again."""

from pathlib import Path
from typing import Any

from tests.server.lost_devices import ask, back_again, break_device, lasting_addresses, row, serving, two_devices


def test_a_shared_port_is_shared_again(tmp_path: Path) -> None:
    repository, addresses, home = two_devices(tmp_path), lasting_addresses(), tmp_path / "other"
    home.mkdir()
    shared: dict[str, Any] = {"data_plane": "native", "reuse_port": True, "grpc_address": addresses["grpc_address"]}
    # each says who it is on a side port of its own, which has to last too
    with (
        serving(repository, tmp_path, **shared, http_address=addresses["http_address"]) as first,
        serving(repository, home, **shared, http_address=lasting_addresses()["http_address"]) as second,
    ):
        break_device(first)  # whoever of the two gets the connection
        broken = next(each for each in (first, second) if "is lost" in each.log_text())
        back_again(broken, 2)
        with broken.stub() as stub:
            assert stub.ModelInfer(ask("gpu", 3)).raw_output_contents[0] == row(3)
