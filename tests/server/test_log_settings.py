"""LogSettings from outside: what tritonclient sets is what the server's log has from then on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from tests.server.models import put_fake
from tests.server.serving import Serving, until

START = {
    "log_file": {"string_param": ""},
    "log_info": {"bool_param": True},
    "log_warning": {"bool_param": True},
    "log_error": {"bool_param": True},
    "log_verbose_level": {"uint32_param": 0},
    "log_format": {"string_param": "ISO8601"},
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Serving]:
    repository = tmp_path / "repository"
    repository.mkdir()
    put_fake(repository, "m", 100.0)
    made = Serving(repository, tmp_path, control_mode="explicit", load_models=["m"])
    yield made
    made.stop()


def reload(client: InferenceServerClient, server: Serving) -> list[str]:
    """The levels of the lines that an Unload and a Load bring."""
    before = len(server.lines())
    client.unload_model("m")
    client.load_model("m")
    return [line["level"] for line in server.lines()[before:]]


def values(client: InferenceServerClient, **changes: Any) -> dict[str, Any]:
    told: dict[str, Any] = client.update_log_settings(changes, as_json=True)["settings"]
    return told


def test_what_is_set_is_what_is_logged(server: Serving) -> None:
    with InferenceServerClient(server.grpc_address) as client:
        assert client.get_log_settings(as_json=True)["settings"] == START
        assert "info" in reload(client, server)
        quiet = values(client, log_info=False, log_verbose_level=0)
        assert quiet == {**START, "log_info": {"bool_param": False}}
        assert "info" not in reload(client, server)
        assert values(client, log_info=True, log_verbose_level=2, log_format="ISO8601") == {
            **START,
            "log_verbose_level": {"uint32_param": 2},
        }
        assert "info" in reload(client, server)
        values(client, log_verbose_level=0)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"log_file": "x"}, "UNIMPLEMENTED", "log file location can not be updated through network protocol"),
        ({"log_info": None}, "INVALID_ARGUMENT", "expect boolean for 'log_info'"),
        (
            {"log_format": "default"},
            "INVALID_ARGUMENT",
            "invalid argument for log_format, got: default; lines are JSON with ISO8601 times",
        ),
        ({"log_colour": True}, "INVALID_ARGUMENT", "unrecognized log setting 'log_colour'."),
    ],
)
def test_what_is_refused_changes_nothing(server: Serving, changes: dict[str, Any], code: str, text: str) -> None:
    with InferenceServerClient(server.grpc_address) as client:
        with pytest.raises(InferenceServerException) as refused:
            client.update_log_settings({"log_error": False, "log_verbose_level": 1, **changes})
        assert (refused.value.status(), refused.value.message()) == (f"StatusCode.{code}", text)
        assert client.get_log_settings(as_json=True)["settings"] == START


def test_the_start_is_what_the_settings_say(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    # a test waits for two lines of level info
    server = Serving(repository, tmp_path, log_level="debug")
    with InferenceServerClient(server.grpc_address) as client:
        until(client.is_server_ready, "readiness")
        assert client.get_log_settings(as_json=True)["settings"] == {**START, "log_verbose_level": {"uint32_param": 1}}
        assert values(client, log_info=False, log_warning=False, log_error=False, log_verbose_level=0)
    server.terminate()
    assert server.wait() == 0
    assert "stopped" not in server.log_text(), "nothing is logged any more"
