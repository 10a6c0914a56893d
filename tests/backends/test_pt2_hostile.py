"""What a hostile `program.pt2` makes `torch.export.load` do, and that the server does none of it.

Every file leaves a mark on disk where its code runs. One process hands them all to torch, as a server without a reader of its
own would; the same files are then opened by the backend.
"""

import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from server.backends.base import LoadTask
from server.backends.pt2_archive import CONSTANTS_CONFIG, PROGRAM, WEIGHTS_CONFIG
from server.backends.torch_program import open_backend
from server.core.errors import LoadFailed
from server.core.settings import ModelSettings
from server.core.tensors import Array
from server.core.versions import VersionKey
from tests.backends.programs import Change, archived, changed, json_change, records, small

INPUTS: dict[str, Array] = {"codes": np.zeros((2, 1), np.int64), "numbers": np.zeros((2, 2), np.float32)}
LOAD_BY_TORCH = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
sys.path.insert(0, sys.argv[2])
for path in json.loads(sys.argv[1]):
    try:
        program = torch.export.load(path)
        program.module()(torch.zeros((2, 1), dtype=torch.int64), torch.zeros((2, 2)))
    except Exception as error:
        print(path, type(error).__name__, str(error)[:200].replace(chr(10), " "))
"""


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.mark, "w")


def graph(change: Callable[[Any, Any], None]) -> Callable[[str], Change]:
    """A change to the parsed program and its graph, given the mark."""
    return lambda mark: json_change(PROGRAM, lambda parsed: change(parsed, mark))


def _sample_inputs(mark: str) -> Change:
    return lambda found: found.update({"data/sample_inputs/model.pt": pickle.dumps(Touch(mark), 2)})


def _pickled(config: str, record: str, key: str) -> Callable[[str], Change]:
    def with_mark(mark: str) -> Change:
        def change(found: dict[str, bytes]) -> None:
            parsed = json.loads(found[config])
            parsed["config"][key] |= {"path_name": record.rpartition("/")[2], "use_pickle": True, "tensor_meta": None}
            found[config] = json.dumps(parsed).encode()
            found[record] = pickle.dumps(Touch(mark), 2)

        return change

    return with_mark


def _expression(parsed: Any, mark: str) -> None:
    size = parsed["graph_module"]["graph"]["tensor_values"]["sigmoid"]["sizes"]
    size[0] = {"as_expr": {"expr_str": f"open({mark!r}, 'w').fileno()", "hint": {"as_int": 4}}}


def _file_operator(parsed: Any, mark: str) -> None:
    """The program's constant becomes a number mapped from a file, which the operator creates."""
    nodes, meta = (parsed["graph_module"]["graph"][part] for part in ("nodes", "tensor_values"))
    meta["mapped"] = meta["c_factor"]
    for node in nodes:
        for argument in node["inputs"]:
            if argument["arg"] == {"as_tensor": {"name": "c_factor"}}:
                argument["arg"] = {"as_tensor": {"name": "mapped"}}
    given = [("filename", {"as_string": mark}), ("shared", {"as_bool": True}), ("size", {"as_int": 1})]
    mapped: dict[str, Any] = {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [{"name": name, "arg": argument, "kind": 1} for name, argument in given],
        "outputs": [{"as_tensor": {"name": "mapped"}}],
        "metadata": {},
        "is_hop_single_tensor_return": None,
        "name": "mapped",
    }
    nodes.insert(0, mapped)


def _guards(parsed: Any, mark: str) -> None:
    parsed["guards_code"] = [f"open({mark!r}, 'w') is not None"]


def _tree(parsed: Any, mark: str) -> None:
    context = json.dumps([{"__enum__": True, "fqn": f"{Path(mark).stem}_module:X"}])
    spec = json.dumps([1, {"type": "builtins.dict", "context": context, "children_spec": []}])
    for entry in parsed["graph_module"]["module_call_graph"]:
        if entry["signature"]:
            entry["signature"]["in_spec"] = spec


@dataclass(frozen=True)
class Vector:
    """One way in. `refusal` is part of what the server says; None: the server never opens that record, and serves."""

    make: Callable[[str], Change]
    refusal: str | None


EXECUTED = {
    "sample_inputs": Vector(_sample_inputs, None),
    "pickled_weight": Vector(_pickled(WEIGHTS_CONFIG, "data/weights/weight_0", "table"), "'weight_0' is a pickle"),
    "pickled_constant": Vector(_pickled(CONSTANTS_CONFIG, "data/constants/tensor_0", "factor"), "'tensor_0' is a pickle"),
    "opaque_object": Vector(
        _pickled(CONSTANTS_CONFIG, "data/constants/opaque_obj_0", "factor"), "'archive/data/constants/opaque_obj_0' is not one"
    ),
    "expression": Vector(graph(_expression), "tensor 'sigmoid': \"open("),
    "file_operator": Vector(graph(_file_operator), "nodes[0] (torch.ops.aten.from_file.default)"),
    "guards": Vector(graph(_guards), None),
    "tree": Vector(graph(_tree), None),
}
"""Files whose code runs when torch has them."""


def load(folder: Path, content: bytes) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    (folder / "program.pt2").write_bytes(content)
    backend = open_backend(LoadTask(VersionKey("m", 1), folder, ModelSettings()))
    return backend.run(INPUTS)


def build(folder: Path) -> dict[str, Path]:
    """Every hostile file by name; its mark is `<name>.mark` beside it."""
    paths = {}
    base = small()
    for name, vector in EXECUTED.items():
        mark = folder / f"{name}.mark"
        (folder / f"{name}_module.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
        paths[name] = folder / f"{name}.pt2"
        paths[name].write_bytes(changed(base, vector.make(str(mark))))
    return paths


def marks(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.mark")}


def test_torch_executes_what_these_files_bring(tmp_path: Path) -> None:
    paths = build(tmp_path)
    command = [sys.executable, "-c", LOAD_BY_TORCH, json.dumps([str(path) for path in paths.values()]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert sorted(marks(tmp_path)) == sorted(EXECUTED), done.stdout


@pytest.mark.parametrize("name", EXECUTED)
def test_the_server_executes_none_of_it(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    content = build(tmp_path)[name].read_bytes()
    refusal = EXECUTED[name].refusal
    if refusal is None:
        answer = load(tmp_path / "1", content)["sigmoid"]
        assert np.array_equal(answer, load(tmp_path / "2", small())["sigmoid"])
    else:
        with pytest.raises(LoadFailed) as caught:
            load(tmp_path / "1", content)
        assert refusal in str(caught.value)
    assert marks(tmp_path) == set()


@pytest.mark.parametrize(
    "record",
    [
        "data/aotinductor/model/model.so",
        "data/constants/custom_obj_0",
        "data/weights/../../etc/passwd",
        "../outside",
        "/etc/passwd",
        "models/other.json",
        "extra/../x",
        "extra\\x",
        "data/weights/weight_",
    ],
)
def test_records_that_no_program_needs_are_refused_by_name(tmp_path: Path, record: str) -> None:
    with pytest.raises(LoadFailed, match=r"is not one that a served program may have"):
        load(tmp_path / "1", changed(small(), lambda found: found.update({record: b"x"})))


def test_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path) -> None:
    found = records(small())
    found["data/weights/weight_9"] = bytes(50_000_000)
    packed = archived(found, compression=zipfile.ZIP_DEFLATED)
    assert len(packed) < 100_000
    with pytest.raises(LoadFailed, match="is compressed or encrypted"):
        load(tmp_path / "1", packed)


OPERATORS = [
    "torch.ops.aten.__class__.default",
    "torch.ops.aten.save.default",
    "torch.ops.aten.add.__call__",
    "torch.ops.aten.add._Tensor",
    "torch.ops.aten.add.out",
    "torch.ops.aten.add_.Tensor",
    "torch.ops.aten.empty.memory_format",
    "torch.ops.aten.rand.default",
    "torch.ops.aten.add",
    "torch.ops.higher_order.cond",
    "torch.ops.mkldnn._linear_pointwise.default",
    "torch.serialization.os.system",
    "_operator.attrgetter",
    "_operator.pow",
    "math.factorial",
    "#extension:x",
    "os.system",
    "",
]


@pytest.mark.parametrize("target", OPERATORS)
def test_operators_that_are_not_listed_are_refused(tmp_path: Path, target: str) -> None:
    def change(parsed: Any) -> None:
        parsed["graph_module"]["graph"]["nodes"][0]["target"] = target

    with pytest.raises(LoadFailed, match=r"program\.pt2: .*(operator|writes into|arithmetic)"):
        load(tmp_path / "1", changed(small(), json_change(PROGRAM, change)))
