"""How the inputs of one model are made of features, and what callers may bring instead. **Pure.**

Decided once, when a version is loaded: whatever does not fit is refused then, with what to do about it, and never met by a
request.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

from feature_client.feature_set import FeatureSet
from feature_client.schema import Feature
from feature_client.view import View
from server.core.errors import LoadFailed
from server.core.feature_settings import ModelFeatures
from server.core.signature import Signature
from server.core.tensors import TensorSpec

DATATYPES: Mapping[str, str] = {
    **{f"float{bits}": f"FP{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"INT{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"UINT{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
    "bytes": "BYTES",
}
"""What the types of definitions are called on the wire."""
_KEY_DATATYPES = {
    "bytes": ("BYTES",),
    # whatever width a caller's integers have: the same entity is the same key
    "int64": ("INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8"),
}
RESERVED = "podium_"
"""Names that begin like this are the server's own."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Binding:
    """The inputs of one model and where each comes from.

    `model` is the model's own signature, `signature` what callers see. `taken`: for each input of the model that features make
    up, their names; those in `packed` are one column each. `keys`: for each join key the input that brings it; `as_of` the one
    that states the instant, "" none.
    """

    model: Signature
    signature: Signature
    features: FeatureSet
    taken: Mapping[str, tuple[str, ...]]
    packed: frozenset[str]
    keys: Mapping[str, str]
    as_of: str

    @property
    def names(self) -> tuple[str, ...]:
        """The features, in the order of statuses."""
        return tuple(self.features.features)


def bind(features: FeatureSet, settings: ModelFeatures, model: Signature, reads: Collection[str]) -> Binding:
    """`reads`: the features that the model was trained to take. Raises: LoadFailed where these do not fit each other."""
    if not model.max_batch:
        raise LoadFailed("a model without a batch dimension cannot have features: they are found and computed for batches")
    packed = {each.name: each.columns for each in settings.inputs}
    taken = {name: (name,) for name in features.features if name in model.input_names} | packed
    _check_packed(features, model, packed)
    _check_reads(features, model, taken, reads)
    keys = _key_inputs(features, settings)
    callers = _Callers(model, {name: _fitted(model, name, features, taken, packed) for name in taken})
    for name, dtype in features.request.items():
        callers.add(name, f"the request's '{name}'", (DATATYPES[dtype],))
    for key, name in keys.items():
        callers.add(name, f"the join key '{key}'", _KEY_DATATYPES[features.keys[key]])
    if settings.as_of:
        callers.add(settings.as_of, "'as_of'", ("INT64",))
    for feature in features.features.values():
        callers.add_feature(feature)
    signature = replace(model, inputs=tuple(callers.inputs.values()))
    for spec in (*signature.inputs, *signature.outputs):
        if spec.name.startswith(RESERVED):
            raise LoadFailed(f"'{spec.name}' cannot be an input or output beside features: '{RESERVED}...' is the server's own")
    return Binding(model, signature, features, taken, frozenset(packed), keys, settings.as_of)


def _check_packed(features: FeatureSet, model: Signature, packed: Mapping[str, tuple[str, ...]]) -> None:
    for name, columns in packed.items():
        if name not in model.input_names:
            raise LoadFailed(f"[[features.inputs]] packs '{name}', which is no input of the model; {_inputs_of(model)}")
        if name in features.features:
            raise LoadFailed(f"[[features.inputs]] packs '{name}', which is the name of a feature itself")
        for column in columns:
            if column not in features.features:
                raise LoadFailed(f"[[features.inputs]] packs '{column}' into '{name}', but no view has such a feature")
            if column in model.input_names:
                raise LoadFailed(f"'{column}' is packed into '{name}', but the model also has an input '{column}'")


def _check_reads(features: FeatureSet, model: Signature, taken: Mapping[str, tuple[str, ...]], reads: Collection[str]) -> None:
    """What the model was trained to take must reach it, and nothing else."""
    ends = {name for each in taken.values() for name in each}
    passed_on = {name for view in features.computed for name in view.inputs}
    for name, view in features.view_of.items():
        if name in reads and name not in ends and name not in passed_on:
            raise LoadFailed(
                f"the feature '{name}' of '{view.ref}' ends nowhere: no input of the model has its name, none is packed of it,"
                f" and no view takes it; {_inputs_of(model)}"
            )
        if name in ends and name not in reads:
            raise LoadFailed(f"the model takes the feature '{name}' of '{view.ref}', but its contract says that it does not")


def _inputs_of(model: Signature) -> str:
    return f"its inputs are {', '.join(model.input_names)}"


def _key_inputs(features: FeatureSet, settings: ModelFeatures) -> dict[str, str]:
    """The input that brings each join key: one for all views, as a training set has one column for it."""
    views = {view.ref: view for view in features.views}
    keys: dict[str, str] = {}
    for each in settings.views:
        entity = views[each.view].entity
        own = {} if entity is None else entity.keys
        for key in each.keys:
            if key not in own:
                known = f"its join keys are {', '.join(own)}" if own else "it has no join keys"
                raise LoadFailed(f"[[features.views]] of '{each.view}' names the join key '{key}'; {known}")
        for key in own:
            name = each.keys.get(key, key)
            if keys.setdefault(key, name) != name:
                raise LoadFailed(
                    f"the join key '{key}' is brought by the input '{keys[key]}' and, in '{each.view}', by '{name}': it must be"
                    " one for all views, as in training"
                )
    return keys


def _fitted(
    model: Signature,
    name: str,
    features: FeatureSet,
    taken: Mapping[str, tuple[str, ...]],
    packed: Mapping[str, tuple[str, ...]],
) -> TensorSpec:
    """The model's input as features fill it, free dimensions fixed. Raises: LoadFailed where they cannot."""
    spec = model.input_names[name]
    if spec.pad_to:
        raise LoadFailed(f"the model's input '{name}' has pad_to, but features fill it: their sizes are fixed")
    made = [features.features[each] for each in taken[name]]
    for feature in made:
        what = f"the feature '{feature.name}' of '{features.view_of[feature.name].ref}'"
        if DATATYPES[feature.dtype] != spec.datatype:
            expected = f"the model's input '{name}' is {spec.datatype}"
            raise LoadFailed(f"{what} is {feature.dtype} ({DATATYPES[feature.dtype]}), but {expected}")
        if feature.dtype == "bytes" and feature.null == "keep":
            raise LoadFailed(f"{what} keeps nulls, but the model's input '{name}' can hold none: BYTES has no null")
        if name in packed and feature.shape:
            raise LoadFailed(f"{what} has the shape {list(feature.shape)} and cannot be one column of '{name}'")
    fits: tuple[Shape, ...] = ((len(made),),) if name in packed else _shapes(made[0])
    for shape in fits:
        if len(shape) == len(spec.shape) and all(want in (-1, got) for want, got in zip(spec.shape, shape, strict=True)):
            return replace(spec, shape=shape, optional=True)
    columns = f"{len(made)} packed columns fill" if name in packed else f"the feature '{name}' fills"
    raise LoadFailed(f"{columns} {list(fits[0])} of each row, but the model's input '{name}' is {list(spec.shape)}")


def _shapes(feature: Feature) -> tuple[Shape, ...]:
    """Shapes of one row that a feature's value can have."""
    return (feature.shape,) if feature.shape else ((1,), ())


class _Callers:
    """The inputs that callers see, in order: the model's own, then what views need, then features."""

    def __init__(self, model: Signature, fitted: Mapping[str, TensorSpec]) -> None:
        self.inputs = {spec.name: fitted.get(spec.name, spec) for spec in model.inputs}
        self._fitted = fitted
        self._brings: dict[str, str] = {}

    def add(self, name: str, what: str, datatypes: tuple[str, ...]) -> None:
        """An input of one number or text a row, unless there is one that fits."""
        if name in self._fitted:
            raise LoadFailed(f"the input '{name}' cannot bring {what}: it is made of features itself")
        spec = self.inputs.setdefault(name, TensorSpec(name, datatypes[0], (1,), optional=True))
        if spec.datatype not in datatypes or spec.shape not in ((), (1,)):
            raise LoadFailed(
                f"the input '{name}' is {spec.datatype} {list(spec.shape)} and cannot bring {what}, which is {datatypes[0]} [1]"
            )
        self._brings.setdefault(name, what)

    def add_feature(self, feature: Feature) -> None:
        """Every feature can be given in place of the one that would be found or computed."""
        name = feature.name
        if name in self._brings:
            raise LoadFailed(
                f"the input '{name}' brings {self._brings[name]}, but '{name}' is also a feature: name another one"
            )
        self.inputs.setdefault(name, TensorSpec(name, DATATYPES[feature.dtype], _shapes(feature)[0], optional=True))


def alternatives(binding: Binding, view: View) -> Iterator[str]:
    """The inputs that a view cannot do without and that are no features, by name."""
    if view.kind == "stored":
        yield from (binding.keys[key] for key in (view.entity.keys if view.entity is not None else ()))
    else:
        yield from (name for name in view.inputs if name not in binding.features.features)
