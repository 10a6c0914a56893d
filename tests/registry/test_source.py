"""What a scan finds, what it refuses and why, and that `verify` lets no changed byte through."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from server.core.errors import RegistryError
from server.core.settings import ModelSettings
from server.core.versions import VersionKey
from server.registry import reread
from server.registry.manifest import ManifestFields
from server.registry.register import register
from server.registry.source import FoundVersion, LocalDirectory, parse_settings

NEVER_WAIT = 0.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


def bare(root: Path, name: str = "demo", version: int = 1, data: bytes = b"model") -> Path:
    folder = root / name / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)
    return folder


def registered(root: Path, name: str = "demo", data: bytes = b"model" * 1000) -> Path:
    part = root.parent / "part.bin"
    part.write_bytes(data)
    key = register(root, name, {"model.onnx": part, "deep/er/weights.bin": part}, ManifestFields())
    return root / name / str(key.version)


def scan_one(root: Path, name: str = "demo", version: int = 1) -> FoundVersion:
    return LocalDirectory(root, NEVER_WAIT).scan()[name].versions[version]


def test_a_bare_file_is_a_whole_version(root: Path) -> None:
    folder = bare(root)
    model = LocalDirectory(root, NEVER_WAIT).scan()["demo"]
    found = model.versions[1]
    assert (model.settings, model.aliases, model.problem) == (ModelSettings(), {}, None)
    assert (found.key, found.folder, found.problem, found.manifest) == (VersionKey("demo", 1), folder, None, None)
    assert (found.settled, found.size_bytes) == (True, 5)
    LocalDirectory(root, NEVER_WAIT).verify(found)
    assert list(LocalDirectory(root, NEVER_WAIT).digests(found)) == ["model.onnx"]


def test_a_registered_version_verifies(root: Path) -> None:
    registered(root)
    found = scan_one(root)
    assert found.manifest is not None
    assert list(found.manifest.files) == ["deep/er/weights.bin", "model.onnx"]
    source = LocalDirectory(root, NEVER_WAIT)
    source.verify(found)
    assert source.digests(found) == found.manifest.files


def test_settings_and_aliases_are_read_and_reread(root: Path) -> None:
    bare(root)
    source = LocalDirectory(root, NEVER_WAIT)
    before = source.scan()["demo"].versions[1].stamp
    (root / "demo" / "model.toml").write_text("max_batch = 3")
    (root / "demo" / "aliases.json").write_text('{"champion": 1}')
    model = source.scan()["demo"]
    assert model.settings == ModelSettings(max_batch=3)
    assert model.aliases == {"champion": 1}
    assert model.versions[1].stamp != before
    (root / "demo" / "model.toml").write_text("max_batch = 40")
    assert source.scan()["demo"].settings == ModelSettings(max_batch=40)
    (root / "demo" / "model.toml").unlink()
    assert source.scan()["demo"].settings == ModelSettings()
    assert source.scan()["demo"].versions[1].stamp == before


def test_an_unchanged_document_is_not_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(root)
    (root / "demo" / "model.toml").write_text("max_batch = 3")
    (root / "demo" / "aliases.json").write_text('{"Bad": 1}')
    source = LocalDirectory(root, NEVER_WAIT)
    first = source.scan()
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read again"))
    assert source.scan() == first


@pytest.mark.parametrize(
    ("toml", "text"),
    [
        ("max_bach = 3", "model.toml: max_bach: unknown key"),
        ("[batching]\nbuckets = [2, 1]\nsize = 3", "model.toml: batching.size: unknown key"),
        ("max_batch = -1", "model.toml: max_batch: "),
        ("max_batch = ", "model.toml: "),
        ("\udcff", "model.toml: "),
    ],
)
def test_refused_settings_name_the_key_and_hide_no_other_model(root: Path, toml: str, text: str) -> None:
    bare(root)
    bare(root, "other")
    (root / "demo" / "model.toml").write_bytes(os.fsencode(toml))
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert models["demo"].settings is None
    assert (models["demo"].problem or "").startswith(text)
    assert list(models["demo"].versions) == [1]
    assert models["other"].problem is None


def test_every_settings_fault_is_named_at_once() -> None:
    with pytest.raises(RegistryError, match=r"queue\.depth: unknown key; .*colour: unknown key"):
        parse_settings(b'colour = "red"\n[queue]\ndepth = 3')


@pytest.mark.parametrize("text", [f"a = {'[' * 5000}{']' * 5000}", f"max_batch = {'9' * 5000}"])
def test_settings_that_exhaust_the_parser_are_refused_like_any_other(root: Path, text: str) -> None:
    bare(root)
    (root / "demo" / "model.toml").write_text(text)
    bare(root, "neighbour")
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert (models["demo"].problem or "").startswith("model.toml: ")
    assert models["neighbour"].problem is None


@pytest.mark.parametrize("text", ['{"Champion": 1}', '{"3": 1}', '{"champion": "1"}', '{"champion": 0}', "[]", "{", ""])
def test_refused_aliases_are_the_models_problem_but_its_settings_stand(root: Path, text: str) -> None:
    bare(root)
    (root / "demo" / "aliases.json").write_text(text)
    model = LocalDirectory(root, NEVER_WAIT).scan()["demo"]
    assert (model.problem or "").startswith("aliases.json: ")
    assert model.settings == ModelSettings()
    assert model.aliases == {}


def test_a_document_too_large_to_be_one_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reread, "DOCUMENT_LIMIT_BYTES", 10)
    bare(root)
    (root / "demo" / "model.toml").write_text("max_batch = 100")
    assert "more than the 10 allowed" in (LocalDirectory(root, NEVER_WAIT).scan()["demo"].problem or "")


def test_what_is_no_model_and_no_version_is_not_listed(root: Path, tmp_path: Path) -> None:
    bare(root)
    for name in ("01", "0", "-1", "1.5", "v2", "latest", ".incoming-abc", ".3"):
        (root / "demo" / name).mkdir()
    (root / "demo" / "7").write_text("a file, no folder")
    (root / ".git" / "1").mkdir(parents=True)
    (root / "__pycache__").mkdir()
    (root / "README.md").write_text("")
    outside = bare(tmp_path / "outside", "far")
    (root / "linked").symlink_to(outside.parent)
    (root / "demo" / "9").symlink_to(outside)
    (root / "nowhere").symlink_to(tmp_path / "missing")
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert list(models) == ["demo"]
    assert list(models["demo"].versions) == [1]


def test_a_recipe_without_versions_is_a_model(root: Path) -> None:
    (root / "demo").mkdir()
    (root / "demo" / "model.toml").write_text("max_batch = 3")
    model = LocalDirectory(root, NEVER_WAIT).scan()["demo"]
    assert (model.versions, model.problem) == ({}, None)


def test_links_inside_the_repository_are_followed(root: Path) -> None:
    folder = bare(root)
    (root / "demo" / "2").symlink_to(folder)
    (root / "again").symlink_to(root / "demo")
    (folder / "copy.bin").symlink_to(folder / "model.onnx")
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert list(models["again"].versions) == [1, 2]
    assert all(found.problem is None and found.size_bytes == 10 for found in models["demo"].versions.values())


@pytest.mark.parametrize("name", ["a b", "a:1", "a@b", "-a", "ä"])
def test_a_folder_with_an_illegal_name_says_so_and_offers_nothing(root: Path, name: str) -> None:
    bare(root, name)
    bare(root)
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert "must be at most 128 letters" in (models[name].problem or "")
    assert models[name].versions == {}
    assert models["demo"].problem is None


def test_a_name_that_is_no_text_can_still_be_printed(root: Path) -> None:
    bare(root, os.fsdecode(b"bad\xff"))
    (name,) = LocalDirectory(root, NEVER_WAIT).scan()
    assert name == "bad\\xff"


def link_out(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to("/etc/hostname")


def link_nowhere(folder: Path) -> None:
    (folder / "x").symlink_to(folder / "missing")


def link_folder(folder: Path) -> None:
    (folder / "x").symlink_to(folder)


def link_loop(folder: Path) -> None:
    (folder / "x").symlink_to("y")
    (folder / "y").symlink_to("x")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "x")


def pipe_whose_name_is_no_text(folder: Path) -> None:
    os.mkfifo(folder / os.fsdecode(b"x\xff"))


def nothing(folder: Path) -> None:
    (folder / "model.onnx").unlink()
    (folder / ".hidden").write_text("")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (link_out, "model.onnx is a link that leads out of the repository"),
        (link_nowhere, "x is a broken link"),
        (link_folder, "x is a link to a folder"),
        (pipe, "x is not a regular file"),
        # a caller reads these words as protobuf text, which must be UTF-8
        (pipe_whose_name_is_no_text, r"x\xff is not a regular file"),
        (nothing, "holds no files"),
    ],
)
def test_what_cannot_be_part_of_a_version_is_its_problem(root: Path, change: Callable[[Path], None], text: str) -> None:
    bare(root)
    change(bare(root, version=2))
    versions = LocalDirectory(root, NEVER_WAIT).scan()["demo"].versions
    assert versions[1].problem is None
    assert (versions[2].problem or "").startswith(text)
    with pytest.raises(RegistryError, match=f"^demo:2: {re.escape(text)}"):
        LocalDirectory(root, NEVER_WAIT).verify(versions[2])


def test_links_in_a_circle_are_the_versions_problem(root: Path) -> None:
    bare(root)
    link_loop(bare(root, version=2))
    versions = LocalDirectory(root, NEVER_WAIT).scan()["demo"].versions
    assert versions[1].problem is None
    assert (versions[2].problem or "").endswith("is a broken link: Too many levels of symbolic links")


def test_a_surplus_file_whose_name_is_no_text_can_be_named(root: Path) -> None:
    folder = registered(root)
    found = scan_one(root)
    (folder / os.fsdecode(b"x\xff")).write_text("")
    with pytest.raises(RegistryError, match=re.escape(r"demo:1: x\xff is not listed")):
        LocalDirectory(root, NEVER_WAIT).verify(found)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.onnx", 10)


def remove(folder: Path) -> None:
    (folder / "deep/er/weights.bin").unlink()


def add(folder: Path) -> None:
    (folder / "fake.json").write_text("{}")


def break_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 100)


def empty_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 0)


def unknown_key(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": 1}))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (truncate, "model.onnx has 10 bytes, its manifest says 5000"),
        (remove, "deep/er/weights.bin is missing"),
        (add, "fake.json is not listed in manifest.json"),
        (break_manifest, "manifest.json: "),
        (empty_manifest, "manifest.json: "),
        (unknown_key, "manifest.json: colour: unknown key"),
    ],
)
def test_damage_that_stat_can_see_is_in_the_index_at_once(root: Path, change: Callable[[Path], None], text: str) -> None:
    change(registered(root))
    found = scan_one(root)
    assert (found.problem or "").startswith(text)
    with pytest.raises(RegistryError, match=r"^demo:1: ") as raised:
        LocalDirectory(root, NEVER_WAIT).verify(found)
    assert text in str(raised.value)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (truncate, "has 10 bytes"),
        (remove, "is missing"),
        (add, "is not listed"),
        (link_out, "leads out"),
        (shutil.rmtree, "cannot be read"),
    ],
)
def test_damage_after_the_scan_is_found_before_loading(root: Path, change: Callable[[Path], None], text: str) -> None:
    folder = registered(root)
    found = scan_one(root)
    change(folder)
    with pytest.raises(RegistryError, match=text):
        LocalDirectory(root, NEVER_WAIT).verify(found)


def test_digests_of_a_version_that_went_away_are_refused(root: Path) -> None:
    folder = bare(root)
    found = scan_one(root)
    shutil.rmtree(folder)
    with pytest.raises(RegistryError, match=r"^demo:1: .*cannot be read: No such file"):
        LocalDirectory(root, NEVER_WAIT).digests(found)


@pytest.mark.parametrize("position", [0, 2500, 4999])
def test_one_changed_byte_is_found(root: Path, position: int) -> None:
    folder = registered(root)
    with (folder / "model.onnx").open("r+b") as file:
        file.seek(position)
        file.write(b"!")
    found = scan_one(root)
    assert found.problem is None  # nobody can see it without reading the file
    with pytest.raises(RegistryError, match=r"demo:1: model\.onnx has sha256 [0-9a-f]{64}, its manifest says [0-9a-f]{64}"):
        LocalDirectory(root, NEVER_WAIT).verify(found)


def test_a_version_copied_under_another_number_or_name_is_not_that_version(root: Path) -> None:
    folder = registered(root)
    shutil.copytree(folder, root / "demo" / "2")
    shutil.copytree(folder, root / "other" / "1")
    assert scan_one(root, version=2).problem == "manifest.json is that of demo:1, not of demo:2"
    assert scan_one(root, "other").problem == "manifest.json is that of demo:1, not of other:1"


def test_hidden_files_are_no_part_of_a_version(root: Path) -> None:
    folder = registered(root)
    before = scan_one(root)
    (folder / ".DS_Store").write_text("litter")
    after = scan_one(root)
    assert (after.problem, after.stamp, after.size_bytes) == (None, before.stamp, before.size_bytes)
    LocalDirectory(root, NEVER_WAIT).verify(after)


def rewrite(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def replace(path: Path) -> None:
    stat = path.stat()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    copy.replace(path)


def grow(path: Path) -> None:
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("change", [rewrite, replace, grow])
@pytest.mark.parametrize("file", ["1/model.onnx", "1/deep/er/weights.bin", "1/manifest.json", "model.toml"])
def test_the_stamp_sees_time_inode_and_size_of_every_file(root: Path, file: str, change: Callable[[Path], None]) -> None:
    registered(root)
    (root / "demo" / "model.toml").write_text("max_batch = 3")
    before = scan_one(root).stamp
    assert scan_one(root).stamp == before
    change(root / "demo" / file)
    assert scan_one(root).stamp != before


def test_aliases_do_not_move_the_stamp(root: Path) -> None:
    bare(root)
    before = scan_one(root).stamp
    (root / "demo" / "aliases.json").write_text('{"champion": 1}')
    assert scan_one(root).stamp == before


def test_a_bare_version_settles_and_a_registered_one_is_settled(root: Path) -> None:
    folder = bare(root)
    registered(root)
    newest_s = scan_one(root).newest_s
    ages = {0.5: False, 1.99: False, 2.01: True, -0.5: False, -3.0: True}
    for age_s, settled in ages.items():
        versions = LocalDirectory(root, 2.0, lambda age_s=age_s: newest_s + age_s).scan()["demo"].versions  # type: ignore[misc]
        assert versions[1].settled is settled, age_s
        assert versions[2].settled
    # files that arrive with old times still show in the folder's
    os.utime(folder / "model.onnx", (1, 1))
    assert not LocalDirectory(root, 2.0, lambda: newest_s).scan()["demo"].versions[1].settled
    os.utime(folder, (1, 1))
    assert LocalDirectory(root, 2.0, lambda: newest_s).scan()["demo"].versions[1].settled
    # and so does a copying tool's hidden temporary file
    (folder / ".weights.bin.Xy12").write_text("")
    os.utime(folder, (1, 1))
    assert not LocalDirectory(root, 2.0, lambda: newest_s).scan()["demo"].versions[1].settled


def test_a_repository_that_is_not_there_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read: No such file or directory"):
        LocalDirectory(tmp_path / "missing", NEVER_WAIT).scan()
    (tmp_path / "file").write_text("")
    with pytest.raises(RegistryError, match="cannot be read: Not a directory"):
        LocalDirectory(tmp_path / "file", NEVER_WAIT).scan()


def test_a_model_that_the_system_does_not_let_us_read_hides_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare(root)
    bare(root, "locked")
    bare(root, "gone")
    bare(root, "half", 1)
    bare(root, "half", 2)
    listing, scanning = Path.iterdir, os.scandir

    def iterdir(path: Path) -> object:
        if path.name in {"locked", "gone"}:
            raise {"locked": PermissionError(13, "Permission denied"), "gone": FileNotFoundError(2, "gone")}[path.name]
        return listing(path)

    def scandir(path: Path) -> object:
        if path.parent.name == "half":
            raise {"1": PermissionError(13, "Permission denied"), "2": FileNotFoundError(2, "gone")}[path.name]
        return scanning(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    monkeypatch.setattr(os, "scandir", scandir)
    models = LocalDirectory(root, NEVER_WAIT).scan()
    assert sorted(models) == ["demo", "half", "locked"]
    assert models["locked"].problem == "cannot be read: Permission denied"
    assert {number: found.problem for number, found in models["half"].versions.items()} == {
        1: "cannot be read: Permission denied"
    }


def test_a_relative_root_and_a_linked_root_work(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registered(root)
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(tmp_path)
    for path in (Path("models"), Path("link"), tmp_path / "link"):
        found = scan_one(path)
        assert found.problem is None
        LocalDirectory(path, NEVER_WAIT).verify(found)
