"""Dockerfile.gpu: what it promises, read from it. What its lines do is in `test_native_image.py`."""

import re

from tests.dockerfile import ROOT, ignored, let_in, stages

TEXT = (ROOT / "Dockerfile.gpu").read_text("utf-8")
BUILD, FINAL = stages(TEXT)
PINNED = (ROOT / "constraints.txt").read_text("utf-8").splitlines()


def test_it_is_two_stages_of_one_base_and_the_second_installs_no_python_package() -> None:
    assert (BUILD.base, FINAL.base) == ("${BASE}", "${BASE}")
    tag = re.findall(r"^ARG BASE=nvidia/cuda:(\S+)$", TEXT, re.MULTILINE)
    assert len(tag) == 1
    assert re.fullmatch(r"13\.\d+\.\d+-cudnn-runtime-ubuntu24\.04", tag[0])
    assert any(f'base.name="docker.io/nvidia/cuda:{tag[0]}"' in label for label in FINAL.all("LABEL"))
    assert not any("pip" in line for line in FINAL.all("RUN"))
    # CUDA's major is the wheels': whoever moves one of these looks at the others
    assert {"torch==2.13.0", "onnxruntime-gpu==1.31.1"} <= set(PINNED)


def test_it_runs_as_nobody_in_particular_and_says_when_it_is_well() -> None:
    (user,) = FINAL.all("USER")
    assert all(int(number) >= 10_000 for number in user.split(":"))
    # nothing but labels, ports and commands comes after that: no file is made by the user that runs
    after = [word for word, _ in FINAL.lines[FINAL.lines.index(("USER", user)) + 1 :]]
    assert set(after) == {"EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert FINAL.all("STOPSIGNAL") == ["SIGTERM"]
    assert "server.health_command" in FINAL.all("HEALTHCHECK")[0]
    labels = " ".join(FINAL.all("LABEL"))
    for name in ("title", "description", "version", "revision", "created", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert f"VERSION={version[1]}" in FINAL.all("ARG")


def test_everything_it_copies_is_let_in_and_no_more() -> None:
    copied = {name.split("/")[0] for rest in BUILD.all("COPY") for name in rest.split()[:-1]}
    assert copied == let_in()
    assert all(rest.startswith("--from=build ") for rest in FINAL.all("COPY"))
    assert all((ROOT / name).exists() for name in [*let_in(), *(name for name in ignored() if "*" not in name)])


def test_the_layers_that_change_every_day_come_last() -> None:
    lines = [(word, rest) for word, rest in BUILD.lines if word in ("COPY", "RUN")]
    installs = [number for number, (word, rest) in enumerate(lines) if word == "RUN" and "pip install" in rest]
    assert len(installs) == 3, "what others wrote, the native module, Podium"
    before = [{name for word, rest in lines[:number] if word == "COPY" for name in rest.split()[:-1]} for number in installs]
    assert before[0] == {"server/dataplane/native/install.py", "pyproject.toml", "constraints.txt"}
    assert before[1] == before[0] | {"server/dataplane/native"}
    assert before[2] >= before[1] | {"server", "protos", "feature_client"}
