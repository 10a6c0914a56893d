"""A configuration sent with a Load changes what it says, all that it says, and nothing else."""

import json
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import given
from hypothesis import strategies as st

from protos.model_config_pb2 import ModelConfig
from server.core.errors import InvalidRequest
from server.core.settings import (
    BatchingSettings,
    ModelSettings,
    OnnxSettings,
    QueueSettings,
    TensorSettings,
    VersionPolicy,
    buckets_for,
)
from server.core.signature import Signature
from server.core.tensors import NUMPY_DTYPES, TensorSpec
from server.transport import describe
from server.transport.config_override import _KNOWN, DEFAULT_CACHE_BYTES, settings_from_config

BASE = ModelSettings(
    backend="onnx",
    max_batch=32,
    batching=BatchingSettings(buckets=(1, 8), padding=False, max_queue_delay_us=5),
    queue=QueueSettings(max_requests=7, priority_levels=2, default_priority=1, default_timeout_us=9, early_drop=False),
    versions=VersionPolicy(policy="all"),
    load_retries=3,
)


def changed(base: ModelSettings = BASE, **config: Any) -> ModelSettings:
    return settings_from_config(json.dumps(config), "m", base)


def refusal(**config: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        changed(**config)
    return str(caught.value)


def test_nothing_said_changes_nothing() -> None:
    assert changed() == BASE
    assert changed(name="m", backend="onnxruntime", platform="onnxruntime_onnx", default_model_filename="model.onnx") == BASE
    assert changed(response_cache={"enable": False}, modelTransactionPolicy={}, max_batch_size=None) == BASE


def test_a_response_cache_has_a_size_of_its_own_or_the_usual_one() -> None:
    def bound(enable: bool, base: ModelSettings) -> int:
        text = json.dumps({"response_cache": {"enable": enable}})
        return settings_from_config(text, "m", base).cache.max_bytes

    sized = ModelSettings.model_validate({"cache": {"max_bytes": 5}})
    assert (bound(True, BASE), bound(False, BASE)) == (DEFAULT_CACHE_BYTES, 0)
    assert (bound(True, sized), bound(False, sized)) == (5, 0)
    assert settings_from_config("{}", "m", sized) == sized
    decoupled = ModelSettings(decoupled=True)
    with pytest.raises(InvalidRequest, match="a decoupled model cannot have a response cache"):
        settings_from_config('{"response_cache": {"enable": true}}', "m", decoupled)


@pytest.mark.parametrize("spelling", ["max_batch_size", "maxBatchSize"])
def test_max_batch_size_zero_is_something_said(spelling: str) -> None:
    def said(size: int) -> ModelSettings:
        return settings_from_config(json.dumps({spelling: size}), "m", BASE)

    no_buckets = BASE.batching.model_copy(update={"buckets": ()})
    assert said(0) == BASE.model_copy(update={"max_batch": 0, "batching": no_buckets})
    assert said(16) == BASE.model_copy(update={"max_batch": 16})
    assert "max_batch" in refusal(**{spelling: -1})


def test_backends() -> None:
    assert changed(backend="fake").backend == "fake"
    assert changed(platform="onnxruntime_onnx", base=ModelSettings()).backend == "onnx"
    assert "sets 'backend' to 'python', which this server does not implement" in refusal(backend="python")
    assert "sets 'platform' to 'tensorrt_plan'" in refusal(platform="tensorrt_plan")
    assert "disagree" in refusal(backend="fake", platform="onnxruntime_onnx")
    assert "'default_model_filename' to 'other.onnx'" in refusal(default_model_filename="other.onnx")
    assert "'default_model_filename'" in refusal(backend="fake", default_model_filename="model.onnx")


def test_torch_programs_have_their_own_words_file_and_device() -> None:
    base = ModelSettings(backend="torch")
    assert changed(backend="pytorch", platform="pytorch_libtorch", default_model_filename="program.pt2", base=base) == base
    assert "is 'program.pt2'" in refusal(backend="pytorch", default_model_filename="model.onnx")
    assert changed(default_model_filename="program.pt2", base=ModelSettings()) == ModelSettings()
    on_gpu = changed(instance_group=[{"kind": "KIND_GPU", "gpus": [1]}], base=base)
    assert (on_gpu.torch.device, on_gpu.torch.device_id, on_gpu.onnx) == ("cuda", 1, base.onnx)
    again = changed(instance_group=[{"kind": "KIND_GPU"}], base=on_gpu)
    assert again.torch.device_id == 1
    assert changed(instance_group=[{"kind": "KIND_CPU"}], base=on_gpu).torch.device == "cpu"
    assert changed(instance_group=[{"kind": "KIND_AUTO"}], base=on_gpu) == on_gpu


def test_tensors_replace_the_settings_of_that_side() -> None:
    got = changed(
        input=[{"name": "x", "data_type": "TYPE_STRING", "dims": [-1, 3], "optional": True}, {"name": "z"}],
        output=[{"name": "y", "data_type": "TYPE_BF16", "dims": [2]}],
    )
    assert got.inputs == (TensorSettings(name="x", datatype="BYTES", shape=(-1, 3), optional=True), TensorSettings(name="z"))
    assert got.outputs == (TensorSettings(name="y", datatype="BF16", shape=(2,)),)
    assert "dimensions of 'x' must be positive" in refusal(input=[{"name": "x", "dims": [0]}])
    assert "tensor 'x' has the unknown data_type 99" in refusal(input=[{"name": "x", "data_type": 99}])


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        ({"latest": {"num_versions": 2}}, VersionPolicy(policy="latest", count=2)),
        ({"all": {}}, VersionPolicy(policy="all")),
        ({"specific": {"versions": [3, 5]}}, VersionPolicy(policy="specific", specific=(3, 5))),
        ({}, None),
    ],
)
def test_version_policies(policy: dict[str, Any], versions: VersionPolicy | None) -> None:
    assert changed(version_policy=policy).versions == versions


def test_impossible_version_policies() -> None:
    assert "versions.count" in refusal(version_policy={"latest": {"num_versions": 0}})
    assert "versions" in refusal(version_policy={"specific": {"versions": []}})


def test_dynamic_batching_is_meant_wholly_and_its_queue_policy_too() -> None:
    got = changed(dynamic_batching={})
    assert got.batching == BatchingSettings(buckets=(), padding=False, max_queue_delay_us=0)
    assert got.queue == BASE.queue.model_copy(update={"priority_levels": 0, "default_priority": 0})
    got = changed(
        dynamic_batching={
            "preferred_batch_size": [16, 4, 4],
            "max_queue_delay_microseconds": 100,
            "priority_levels": 5,
            "default_priority_level": 3,
            "default_queue_policy": {"default_timeout_microseconds": "50", "timeout_action": "REJECT"},
        }
    )
    assert got.batching == BatchingSettings(buckets=(4, 16), padding=False, max_queue_delay_us=100)
    assert got.queue == QueueSettings(
        priority_levels=5, default_priority=3, default_timeout_us=50, allow_timeout_override=False, early_drop=False
    )


def test_impossible_batching() -> None:
    assert refusal(max_batch_size=4, dynamic_batching={"preferred_batch_size": [8]}) == (
        "dynamic batching preferred size must be <= max batch size for m"
    )
    assert changed(ModelSettings(), dynamic_batching={"preferred_batch_size": [8]}).batching.buckets == (8,)
    assert "batching.buckets" in refusal(dynamic_batching={"preferred_batch_size": [-1]})
    assert "default_priority must be one of the levels" in refusal(dynamic_batching={"default_priority_level": 1})
    assert "max_queue_delay_us" in refusal(dynamic_batching={"max_queue_delay_microseconds": 2**63})


def test_instance_groups_name_the_device() -> None:
    def onnx(base: OnnxSettings = BASE.onnx, **group: Any) -> tuple[tuple[str, ...], int]:
        got = changed(BASE.model_copy(update={"onnx": base}), instance_group=[group]).onnx
        return got.providers, got.device_id

    assert onnx() == ((), 0)
    assert onnx(kind="KIND_CPU", count=1) == (("cpu",), 0)
    assert changed(BASE, instance_group=[{"count": 3}]).instances == 3
    assert changed(BASE.model_copy(update={"instances": 2}), instance_group=[{"kind": "KIND_CPU"}]).instances == 2
    assert onnx(kind="KIND_GPU", gpus=[1]) == (("cuda",), 1)
    assert onnx(kind="KIND_GPU", base=OnnxSettings(device_id=2)) == (("cuda",), 2)
    assert onnx(kind="KIND_GPU", base=OnnxSettings(providers=("tensorrt", "cuda"))) == (("tensorrt", "cuda"), 0)


@pytest.mark.parametrize("backend", ["onnx", "torch", "fake"])
def test_instance_groups_may_name_several_devices(backend: str) -> None:
    base = ModelSettings.model_validate({"backend": backend, backend: {"device_id": 4}})
    both = changed(base, instance_group=[{"kind": "KIND_GPU", "gpus": [0, 1], "count": 2}])
    assert (both.devices, both.instances, getattr(both, backend).device_id) == ((0, 1), 2, 4)
    assert changed(both, instance_group=[{"kind": "KIND_GPU", "gpus": [0, 1]}]) == both
    for group in ({"kind": "KIND_GPU"}, {"kind": "KIND_AUTO"}, {"count": 2}):
        assert changed(both, instance_group=[group]).devices == (0, 1)
    one = changed(both, instance_group=[{"kind": "KIND_GPU", "gpus": [1]}])
    assert (one.devices, getattr(one, backend).device_id) == ((), 1)
    assert changed(both, instance_group=[{"kind": "KIND_CPU"}]).devices == ()
    stated = both.model_copy(update={"devices": (1,)})
    assert changed(stated, instance_group=[{"kind": "KIND_GPU", "gpus": [1]}]) == stated
    assert "devices must be distinct" in refusal(instance_group=[{"kind": "KIND_GPU", "gpus": [1, 1]}])
    assert "devices.0" in refusal(instance_group=[{"kind": "KIND_GPU", "gpus": [-1, 1]}])


def test_an_instance_group_says_whether_a_fake_is_on_an_accelerator() -> None:
    base = ModelSettings(backend="fake")
    on = changed(base, instance_group=[{"kind": "KIND_GPU", "gpus": [3]}])
    assert (on.fake.device, on.fake.device_id) == ("accelerator", 3)
    assert changed(on, instance_group=[{"kind": "KIND_CPU"}]).fake.device == "cpu"


@pytest.mark.parametrize(
    "groups",
    [
        [{}, {}],
        [{"kind": "KIND_CPU", "gpus": [0]}],
        [{"gpus": [0]}],
        [{"kind": "KIND_MODEL"}],
        [{"kind": 77}],
        [{"kind": "KIND_CPU", "gpus": [0, 1]}],
    ],
)
def test_instance_groups_that_mean_nothing_here(groups: list[dict[str, Any]]) -> None:
    assert "'instance_group' must be" in refusal(instance_group=groups)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "null",
        '"x"',
        "{",
        '{"no_such_field": 1}',
        '{"max_batch_size": "many"}',
        '{"max_batch_size": 1e20}',
        '{"name": "m", "name": "m"}',
        "[" * 100_000,
        '{"input": ' * 500,
    ],
)
def test_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(InvalidRequest, match="config override for model 'm' is not a ModelConfig"):
        settings_from_config(text, "m", BASE)


def test_labels_of_outputs() -> None:
    got = changed(output=[{"name": "y", "label_filename": "names/y.txt"}, {"name": "z"}]).outputs
    assert got == (TensorSettings(name="y", labels="names/y.txt"), TensorSettings(name="z"))
    assert "labels of 'y' must be a plain relative path" in refusal(output=[{"name": "y", "label_filename": "../y.txt"}])


def test_the_name_must_be_the_models() -> None:
    assert refusal(name="other") == "config override for model 'm' has the name 'other'"


@pytest.mark.parametrize(
    ("config", "where"),
    [
        ({"sequence_batching": {}}, "sequence_batching"),
        ({"parameters": {"k": {"string_value": "v"}}}, "parameters"),
        ({"input": [{"name": "x", "reshape": {"shape": [1]}}]}, "input.reshape"),
        ({"output": [{"name": "y", "is_shape_tensor": True}]}, "output.is_shape_tensor"),
        ({"dynamic_batching": {"preserve_ordering": True}}, "dynamic_batching.preserve_ordering"),
        ({"dynamic_batching": {"priority_queue_policy": {"1": {}}}}, "dynamic_batching.priority_queue_policy"),
        (
            {"dynamic_batching": {"default_queue_policy": {"timeout_action": "DELAY"}}},
            "dynamic_batching.default_queue_policy.timeout_action",
        ),
        ({"instance_group": [{"passive": True}]}, "instance_group.passive"),
    ],
)
def test_what_has_no_meaning_here_is_refused_by_name(config: dict[str, Any], where: str) -> None:
    assert refusal(**config) == f"config override sets '{where}', which this server does not implement"


def filled(message: Any, field: FieldDescriptor) -> None:
    """Set one field to something that is not its default."""
    kind: Descriptor | None = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key = "1" if kind.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING else 1
        if kind.fields_by_name["value"].message_type is not None:
            getattr(message, field.name)[key].SetInParent()
        else:
            getattr(message, field.name)[key] = "1"
    elif kind is not None:
        inner = getattr(message, field.name)
        target = inner.add() if field.is_repeated else inner
        target.SetInParent()
        if not field.is_repeated:
            filled(target, kind.fields[0])
    else:
        text = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)
        value = "1" if field.type in text else True if field.type == FieldDescriptor.TYPE_BOOL else 1
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)


@pytest.mark.parametrize("field", list(ModelConfig.DESCRIPTOR.fields), ids=lambda field: field.name)
def test_every_field_of_the_configuration_is_understood_or_refused(field: FieldDescriptor) -> None:
    config = ModelConfig()
    filled(config, field)
    text = json_format.MessageToJson(config)
    try:
        settings_from_config(text, "m", BASE)
    except InvalidRequest as error:
        refused = f"config override sets '{field.name}', which this server does not implement" in str(error)
    else:
        refused = False
    assert refused == (field.name not in _KNOWN["ModelConfig"])


SPECS = st.builds(
    TensorSpec,
    st.text("abc", min_size=1, max_size=3),
    st.sampled_from(list(NUMPY_DTYPES)),
    st.lists(st.one_of(st.just(-1), st.integers(1, 9)), min_size=1, max_size=3).map(tuple),
)
SIGNATURES = st.builds(
    Signature,
    st.just("m"),
    st.lists(SPECS, min_size=1, max_size=3).map(tuple),
    st.lists(SPECS, min_size=1, max_size=3).map(tuple),
    st.integers(0, 600),
)


@given(
    SIGNATURES,
    st.sampled_from([None, VersionPolicy(policy="all"), VersionPolicy(count=2)]),
    st.integers(1, 3),
    st.sampled_from(["cpu", "cuda:1"]),
)
def test_what_config_says_may_be_sent_back_and_changes_nothing(
    signature: Signature, versions: VersionPolicy | None, priority: int, device: str
) -> None:
    providers = ("cpu",) if device == "cpu" else ("cuda",)
    base = ModelSettings(
        backend="onnx",
        max_batch=signature.max_batch,
        queue=QueueSettings(priority_levels=3, default_priority=priority, default_timeout_us=8, allow_timeout_override=False),
        versions=versions,
        onnx=OnnxSettings.model_validate({"providers": providers, "device_id": 0 if device == "cpu" else 1}),
    )
    buckets = buckets_for(signature.max_batch, base.batching)
    said = describe.config(signature, base, "onnxruntime_onnx", device, buckets).config
    got = settings_from_config(json_format.MessageToJson(said), "m", base)
    assert [(spec.name, spec.datatype, spec.shape) for spec in got.inputs] == [
        (spec.name, spec.datatype, spec.shape) for spec in signature.inputs
    ]
    assert len(got.outputs) == len(signature.outputs)
    assert buckets_for(signature.max_batch, got.batching) == buckets
    assert got.model_copy(update={"inputs": (), "outputs": (), "batching": base.batching}) == base.model_copy(
        update={"max_batch": signature.max_batch}
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from([*ModelConfig.DESCRIPTOR.fields_by_name, "kind", "latest", "versions"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_any_json_is_understood_or_refused(value: Any) -> None:
    try:
        got = settings_from_config(json.dumps(value), "m", BASE)
    except InvalidRequest:
        return
    assert isinstance(got, ModelSettings)


def test_a_smaller_batch_drops_the_buckets_above_it() -> None:
    base = ModelSettings(max_batch=16, batching=BatchingSettings(buckets=(2, 8, 16)))
    assert changed(base, max_batch_size=8).batching.buckets == (2, 8)
    assert changed(base, max_batch_size=0).batching.buckets == ()


def test_a_model_may_be_made_decoupled_and_back() -> None:
    decoupled = changed(model_transaction_policy={"decoupled": True})
    assert decoupled == BASE.model_copy(update={"decoupled": True})
    assert changed(base=decoupled) == decoupled
    assert changed(base=decoupled, model_transaction_policy={}) == BASE


def test_what_a_configuration_has_no_words_for_stays() -> None:
    base = BASE.model_copy(update={"inputs": (TensorSettings(name="ids", pad_to=(16, 32), pad_value=3),)})
    inputs = [{"name": name, "data_type": "TYPE_INT64", "dims": [-1]} for name in ("ids", "other")]
    got = changed(base, input=inputs)
    assert [(tensor.name, tensor.datatype, tensor.pad_to, tensor.pad_value) for tensor in got.inputs] == [
        ("ids", "INT64", (16, 32), 3),
        ("other", "INT64", (), 0),
    ]
