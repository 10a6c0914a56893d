from pathlib import Path

import pytest

from server.registry.lease import lease
from tests.commands.shell import REGISTER, Shell


def kept(text: str) -> list[str]:
    return [line.split()[1] for line in text.splitlines() if line.startswith("keep")]


def test_a_dry_run_says_what_would_go_and_why_the_rest_stays(podium: Shell) -> None:
    for _ in range(4):
        podium.output(*REGISTER)
    podium.output("alias", "demo", "champion", "1")
    podium.output("alias", "demo", "champion", "2")
    text = podium.output("prune", "demo", "--keep", "1")
    assert text.splitlines()[:2] == ["keep  demo:1  was @champion less than 14 days ago", "keep  demo:2  @champion"]
    assert text.splitlines()[2].startswith("would remove  demo:3  ")
    assert text.splitlines()[3] == "keep  demo:4  the newest"
    assert text.splitlines()[4].startswith("would remove 1 versions, ")
    assert text.endswith("; add --apply to do it\n")
    assert sorted(path.name for path in Path("models/demo").iterdir() if path.is_dir()) == ["1", "2", "3", "4"]


def test_apply_removes_and_the_listing_knows(podium: Shell) -> None:
    for _ in range(3):
        podium.output(*REGISTER)
    podium.output("register", "--name", "other", "--model", "trained.onnx")
    held = lease(Path("models/demo/1"))
    text = podium.output("prune", "--keep", "1", "--keep-days", "0", "--apply")
    assert kept(text) == ["demo:1", "demo:3", "other:1"]
    assert "keep  demo:1  leased by a running server" in text
    assert "add --apply" not in text
    assert not Path("models/demo/2").exists()
    held.release()
    assert "removed 1 versions" in podium.output("prune", "demo", "--keep", "1", "--apply")
    assert podium.refusal("lineage", "demo:1") == "model 'demo' has no version 1; it has: 3"


def test_prune_refuses(podium: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    podium.output(*REGISTER)
    assert "there is no model 'other'" in podium.refusal("prune", "other", "--keep", "1")
    assert "path traversal" in podium.refusal("prune", "../models", "--keep", "1")
    for arguments in (
        ("--keep", "0"),
        ("--keep", "x"),
        (),
        ("--keep", "1", "--keep-days", "-1"),
        ("--keep", "1", "--keep-days", "nan"),
        ("--keep", "1", "--keep-days", "x"),
    ):
        with pytest.raises(SystemExit) as ended:
            podium("prune", "demo", *arguments)
        assert ended.value.code == 2
    capsys.readouterr()
    Path("models/demo/aliases.json").write_text("[]")
    assert "aliases.json" in podium.refusal("prune", "--keep", "1", "--apply")
