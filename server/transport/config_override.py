"""The `config` parameter of RepositoryModelLoad: NVIDIA Triton's ModelConfig as JSON, to changes of `ModelSettings`.

Floor 6, pure over values. A message that is given (`dynamic_batching`, its `default_queue_policy`, `version_policy`) is
meant wholly, its absent fields being the protocol's defaults; one that is left out leaves the settings as they are. A field
that is set and has no meaning here is refused by name: nothing is ignored. It never writes settings back to a repository.
"""

import json
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from pydantic import ValidationError

from protos.model_config_pb2 import DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOutput
from server.core.errors import InvalidRequest
from server.core.settings import ModelSettings, OnnxSettings
from server.transport.describe import BACKENDS, DATA_TYPES

_KNOWN: dict[str, frozenset[str]] = {
    "ModelConfig": frozenset(
        {"name", "platform", "backend", "version_policy", "max_batch_size", "input", "output"}
        | {"dynamic_batching", "instance_group", "default_model_filename", "response_cache", "model_transaction_policy"}
    ),
    "ModelInput": frozenset({"name", "data_type", "dims", "optional"}),
    "ModelOutput": frozenset({"name", "data_type", "dims", "label_filename"}),
    "ModelInstanceGroup": frozenset({"name", "kind", "count", "gpus"}),
    "ModelDynamicBatching": frozenset(
        {"preferred_batch_size", "max_queue_delay_microseconds"}
        | {"priority_levels", "default_priority_level", "default_queue_policy"}
    ),
    "ModelQueuePolicy": frozenset({"default_timeout_microseconds", "allow_timeout_override", "max_queue_size"}),
}
"""Fields with a meaning here, per message. A message that is not listed is understood whole."""

DEFAULT_CACHE_BYTES = 64 * 2**20
"""Bound of a response cache that a configuration enables for a model without one: the protocol's field has no size."""

_SETTINGS_BACKENDS = {
    "onnxruntime": "onnx",
    "onnxruntime_onnx": "onnx",
    "pytorch": "torch",
    "pytorch_libtorch": "torch",
    "text": "text",
    "fake": "fake",
}
_FILENAMES = {_SETTINGS_BACKENDS[backend]: filename for backend, filename in BACKENDS.values()}
_DEVICES = {"torch": "cuda", "fake": "accelerator"}
_DATATYPES: dict[int, str | None] = {DataType.TYPE_INVALID: None} | {number: name for name, number in DATA_TYPES.items()}


def settings_from_config(json_text: str, name: str, base: ModelSettings) -> ModelSettings:
    """`base` with the changes that a configuration of model `name` asks for.

    Raises: InvalidRequest for text that is no ModelConfig, another model's name, or a value or field this server has no
    meaning for, which the text names.
    """
    config, given = _parse(json_text, name)
    _refuse_unknown(config, ())
    if config.name not in ("", name):
        raise InvalidRequest(f"config override for model '{name}' has the name '{config.name}'")
    changed: dict[str, Any] = base.model_dump()
    backend = _backend(config)
    if backend is not None:
        changed["backend"] = backend
    _check_filename(config, changed["backend"])
    # proto3 cannot tell an explicit 0 (the model does not batch) from silence; the text can
    if not given.isdisjoint({"max_batch_size", "maxBatchSize"}):
        changed["max_batch"] = config.max_batch_size
        # the settings' own buckets were for their own largest batch
        changed["batching"]["buckets"] = [size for size in base.batching.buckets if size <= config.max_batch_size]
    if config.input:
        # a ModelConfig has no word for padding
        padding = {each.name: {"pad_to": each.pad_to, "pad_value": each.pad_value} for each in base.inputs}
        changed["inputs"] = [
            {**_tensor(tensor), "optional": tensor.optional, **padding.get(tensor.name, {})} for tensor in config.input
        ]
    if config.output:
        changed["outputs"] = [{**_tensor(tensor), "labels": tensor.label_filename or None} for tensor in config.output]
    if config.HasField("version_policy"):
        changed["versions"] = _versions(config)
    if config.HasField("dynamic_batching"):
        _batching(config.dynamic_batching, changed, name)
    if config.instance_group and config.instance_group[0].count:
        changed["instances"] = config.instance_group[0].count
    if config.HasField("response_cache"):
        changed["cache"]["max_bytes"] = (base.cache.max_bytes or DEFAULT_CACHE_BYTES) if config.response_cache.enable else 0
    if config.HasField("model_transaction_policy"):
        changed["decoupled"] = config.model_transaction_policy.decoupled
    devices = changed["devices"] = _devices(config.instance_group, base.devices)
    if changed["backend"] in ("torch", "fake"):
        own = changed[changed["backend"]]
        here = base.onnx.model_copy(update={"device_id": own["device_id"]})
        own.update(_device(_instances(config.instance_group, here, devices), _DEVICES[changed["backend"]]))
    else:
        changed["onnx"].update(_instances(config.instance_group, base.onnx, devices))
    try:
        return ModelSettings.model_validate(changed)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, part['loc']))}: {part['msg']}" for part in error.errors())
        raise InvalidRequest(f"config override for model '{name}' is invalid: {found}") from None


def _parse(json_text: str, name: str) -> tuple[ModelConfig, frozenset[str]]:
    """The message, and the names of the fields the text has at its top."""
    try:
        config = json_format.Parse(json_text, ModelConfig())
        given = json.loads(json_text)
        # the parser takes an empty list or string for an empty message
        if not isinstance(given, dict):
            raise ValueError("expected a JSON object")
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"config override for model '{name}' is not a ModelConfig: {error}") from None
    return config, frozenset(key for key, value in given.items() if value is not None)


def _refuse_unknown(message: Message, path: tuple[str, ...]) -> None:
    known = _KNOWN.get(message.DESCRIPTOR.name)
    for field, value in message.ListFields():
        where = (*path, field.name)
        if known is not None and field.name not in known:
            # a message that says nothing changes nothing, unless its presence chooses a scheduler
            if isinstance(value, Message) and not value.ByteSize() and field.containing_oneof is None:
                continue
            raise InvalidRequest(f"config override sets '{'.'.join(where)}', which this server does not implement")
        if isinstance(value, Message):
            _refuse_unknown(value, where)
        elif field.message_type is not None:
            for element in value:
                _refuse_unknown(element, where)


def _backend(config: ModelConfig) -> str | None:
    found: dict[str, str] = {}
    for field, word in (("backend", config.backend), ("platform", config.platform)):
        if word:
            backend = _SETTINGS_BACKENDS.get(word)
            if backend is None:
                raise InvalidRequest(f"config override sets '{field}' to '{word}', which this server does not implement")
            found[field] = backend
    if len(set(found.values())) > 1:
        raise InvalidRequest(f"config override: backend '{config.backend}' and platform '{config.platform}' disagree")
    return next(iter(found.values()), None)


def _check_filename(config: ModelConfig, backend: str | None) -> None:
    """The file's name is fixed: saying it is no change, saying another one is an error."""
    names = list(_FILENAMES.values()) if backend is None else [_FILENAMES[backend]] if backend in _FILENAMES else []
    if config.default_model_filename and config.default_model_filename not in names:
        fixed = " or ".join(f"'{name}'" for name in names) or "fixed"
        raise InvalidRequest(
            f"config override sets 'default_model_filename' to '{config.default_model_filename}', which this server does"
            f" not implement: the file of this model is {fixed}"
        )


def _tensor(tensor: ModelInput | ModelOutput) -> dict[str, Any]:
    """One tensor's settings; what is not said is read from the model's file."""
    # an enum's number may be any: those without a name come through the parser
    if tensor.data_type not in _DATATYPES:
        raise InvalidRequest(f"config override: tensor '{tensor.name}' has the unknown data_type {tensor.data_type}")
    return {"name": tensor.name, "datatype": _DATATYPES[tensor.data_type], "shape": tuple(tensor.dims) or None}


def _versions(config: ModelConfig) -> dict[str, Any] | None:
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "latest":
            return {"policy": "latest", "count": policy.latest.num_versions}
        case "all":
            return {"policy": "all"}
        case "specific":
            return {"policy": "specific", "specific": tuple(policy.specific.versions)}
        case _:
            return None


def _batching(batching: ModelDynamicBatching, changed: dict[str, Any], name: str) -> None:
    preferred = sorted(set(batching.preferred_batch_size))
    largest = changed["max_batch"]
    if preferred and largest is not None and preferred[-1] > largest:
        raise InvalidRequest(f"dynamic batching preferred size must be <= max batch size for {name}")
    changed["batching"].update(buckets=preferred, max_queue_delay_us=batching.max_queue_delay_microseconds)
    queue = changed["queue"]
    queue.update(priority_levels=batching.priority_levels, default_priority=batching.default_priority_level)
    if batching.HasField("default_queue_policy"):
        policy = batching.default_queue_policy
        queue.update(
            default_timeout_us=policy.default_timeout_microseconds or None,
            allow_timeout_override=policy.allow_timeout_override,
            max_requests=policy.max_queue_size,
        )


def _devices(groups: Sequence[ModelInstanceGroup], base: tuple[int, ...]) -> tuple[int, ...]:
    """The devices that an instance group asks for, where they are several, or as the model's settings state them."""
    if not groups or (not groups[0].gpus and groups[0].kind != ModelInstanceGroup.KIND_CPU):
        return base
    gpus = tuple(groups[0].gpus)
    return gpus if len(gpus) > 1 or gpus == base else ()


def _instances(groups: Sequence[ModelInstanceGroup], base: OnnxSettings, devices: tuple[int, ...]) -> dict[str, Any]:
    """The kind of device that an instance group asks for, and its number, where that is not for `devices` to say."""
    if not groups:
        return {}
    group = groups[0]
    if len(groups) > 1:
        raise InvalidRequest("config override: 'instance_group' must be one group")
    if group.kind == ModelInstanceGroup.KIND_GPU:
        # providers that are on a GPU already may say more than "cuda" does
        providers = base.providers if {"cuda", "tensorrt"}.intersection(base.providers) else ("cuda",)
        return {"providers": providers, "device_id": group.gpus[0] if group.gpus and not devices else base.device_id}
    if group.kind not in (ModelInstanceGroup.KIND_CPU, ModelInstanceGroup.KIND_AUTO) or group.gpus:
        raise InvalidRequest("config override: 'instance_group' must be of KIND_CPU, KIND_GPU or KIND_AUTO; gpus need KIND_GPU")
    return {"providers": ("cpu",)} if group.kind == ModelInstanceGroup.KIND_CPU else {}


def _device(found: dict[str, Any], name: str) -> dict[str, Any]:
    """What `_instances` found, in the words of `[torch]` and `[fake]`, which call a device that is not the CPU by this name."""
    if not found:
        return {}
    return {"device": name, "device_id": found["device_id"]} if "device_id" in found else {"device": "cpu"}
