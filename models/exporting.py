"""What recipes share: a torch network as the bytes of `program.pt2` or `model.onnx`.

What depends on the exporting machine or process (stack traces, file names, identities of objects) is left out: equal networks
give equal bytes, and `torch.export.load` and onnx still read them. Never trains and never writes a file.
"""

import contextlib
import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

_NAMES = "podium.json"
_GRAPH = "models/model.json"
_IDENTITY = ".data/serialization_id"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)
_OPSET = 18
_IR_VERSION = 10


def program_bytes(module: Any, examples: Sequence[Any], dynamic: Any, names: Mapping[str, Any], root: str) -> bytes:
    """A module in eval mode as a program. `names` is its record `podium.json`, `root` the archive's folder."""
    stored = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals; its errors still get through
        exported = torch.export.export(module, _apart(examples), dynamic_shapes=dynamic)
        # without operators that write in place, which a served program may not use
        program = exported.run_decompositions({})
        torch.export.save(program, stored, extra_files={_NAMES: json.dumps(names, sort_keys=True)})
    return _rewritten(stored.getbuffer(), root)


def onnx_bytes(
    module: Any, examples: Sequence[Any], dynamic: Any, inputs: Sequence[str], outputs: Sequence[str], root: str
) -> bytes:
    """A module in eval mode as an ONNX file, weights included: below 2 GB."""
    graph_model = onnx_model(module, examples, dynamic, inputs, outputs)
    remove_traces(graph_model, root)
    return bytes(graph_model.SerializeToString(deterministic=True))


def onnx_model(module: Any, examples: Sequence[Any], dynamic: Any, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """A module as an `onnx.ModelProto`, as the exporter leaves it."""
    with _silent():
        program = torch.onnx.export(
            module,
            _apart(examples),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return program.model_proto


def remove_traces(graph_model: Any, root: str) -> None:
    """Take out of a model what its exporter's machine left in it. `root`: the graph's name."""
    graph = graph_model.graph
    graph_model.producer_name, graph_model.producer_version = f"models.{root}", ""
    graph_model.ir_version = _IR_VERSION
    graph.name, graph.doc_string, graph_model.doc_string = root, "", ""
    holders = [graph_model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for holder in holders:
        holder.ClearField("metadata_props")
    for part in [*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]:
        part.ClearField("doc_string")


def _apart(examples: Sequence[Any]) -> tuple[Any, ...]:
    """The exporter takes two inputs with one tensor as their example for one input, and drops the other."""
    return tuple(example.clone() for example in examples)


def _rewritten(content: Any, root: str) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as new:
        for info in old.infolist():
            _, _, name = info.filename.partition("/")
            record = old.read(info)
            if name == _IDENTITY:
                continue  # a digest of records that have changed; no reader asks for it
            if name == _GRAPH:
                record = _without_traces(record)
            new.writestr(zipfile.ZipInfo(f"{root}/{name}", _LONG_AGO), record)
    return written.getvalue()


def _without_traces(record: bytes) -> bytes:
    parsed = json.loads(record)
    for node in parsed["graph_module"]["graph"]["nodes"]:
        node["metadata"] = {}
    return json.dumps(parsed, sort_keys=True, separators=(",", ":")).encode()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """The exporter prints, logs and warns about its own internals; its errors still get through."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
