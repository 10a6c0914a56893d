"""Which operators an exported program may name, and the arithmetic it may do with sizes. **Pure.** Floor 2.

A list of what is allowed, never of what is forbidden: `torch.ops.aten` also holds operators that write files (`save`), map
files into memory (`from_file`), write into their arguments, or show memory that nobody has filled (`empty`). What is listed
reads its arguments and makes its results; nothing here names a file, a device of another kind, or a random number.
Source: PyTorch's Core ATen operators (`torch.Tag.core`, torch 2.13), without those above and without derivatives, and the
composite ones that `run_decompositions({})` leaves in a program.
"""

import math
import operator
from collections.abc import Callable, Mapping

Number = int | float | bool

PREFIX = "torch.ops.aten."
_LARGEST = 2**63

_LISTED = {
    # one number at a time
    "elements": """
    abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or
    bitwise_right_shift bitwise_xor ceil clamp clamp_max clamp_min clip copysign cos cosh deg2rad div elu eq erf erfc exp exp2
    expm1 floor floor_divide fmod frac ge gelu glu gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot isfinite
    isinf isnan isneginf isposinf le leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not
    logical_or logical_xor logit lt masked_fill maximum minimum mish mul nan_to_num ne neg pow prelu rad2deg reciprocal relu
    relu6 remainder round rsqrt rsub selu sigmoid sign sgn signbit silu sin sinc sinh softplus softshrink sqrt square
    sub tan tanh threshold trunc where xlogy
    """,
    # over a dimension
    "dimensions": """
    _log_softmax _softmax all amax amin any argmax argmin argsort bincount cummax cummin cumprod cumsum diff log_softmax
    logcumsumexp logsumexp max mean median min mode norm linalg_norm linalg_vector_norm nansum prod softmax sort std std_mean
    sum topk var var_mean kthvalue aminmax count_nonzero cosine_similarity
    """,
    # shapes, and which elements stand where
    "shapes": """
    alias arange as_tensor atleast_1d broadcast_to bucketize cat chunk clone col2im concat constant_pad_nd contiguous copy
    detach diag_embed diagonal dstack expand expand_as eye fill flatten flip full full_like gather hstack im2col index
    index_add index_copy index_put index_select isin lift_fresh_copy linspace masked_scatter masked_select meshgrid movedim
    narrow new_full new_ones new_zeros nonzero one_hot ones ones_like pad permute pixel_shuffle pixel_unshuffle ravel
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d
    replication_pad3d reshape roll rot90 scalar_tensor scatter scatter_add scatter_reduce searchsorted select select_scatter
    slice slice_scatter split split_with_sizes squeeze stack swapaxes t take take_along_dim tile transpose tril triu type_as
    unbind unflatten unfold unsqueeze view view_as vstack zeros zeros_like to _to_copy
    """,
    # layers
    "layers": """
    _adaptive_avg_pool2d _adaptive_avg_pool3d _cdist_forward _embedding_bag_forward_only _native_batch_norm_legit_no_training
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d addbmm addmm addmv
    avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear bmm cdist conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d convolution cross dot dropout einsum embedding embedding_bag grid_sampler
    grid_sampler_2d grid_sampler_3d group_norm gru inner instance_norm layer_norm linear lstm matmul max_pool1d max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices mm mv native_group_norm native_layer_norm outer rms_norm
    scaled_dot_product_attention upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """,
    # sizes as numbers, and what the exporter asserts about them
    "sizes": """
    _assert_scalar _local_scalar_dense item sym_constrain_range sym_constrain_range_for_size sym_numel sym_size
    """,
}
ATEN = frozenset(name for names in _LISTED.values() for name in names.split())
"""Names below `torch.ops.aten`. Each overload that is used is also asked whether it writes into its arguments."""

IGNORED = frozenset({"torch.ops.aten._assert_tensor_metadata.default"})
"""Assertions about types that the exporter saw; those of the inputs are checked on the way in, and the rest follow."""

MUST_BE: Mapping[str, tuple[str, object]] = {
    "batch_norm": ("training", False),
    "dropout": ("train", False),
    "instance_norm": ("running_mean", None),
    "lstm": ("train", False),
    "gru": ("train", False),
    "scaled_dot_product_attention": ("dropout_p", 0.0),
}
"""Arguments that make an operator answer by chance or, undeclared, write into the weights: what they must be instead."""

HARMLESS_IF_ABSENT = frozenset({"scaled_dot_product_attention"})
"""Operators whose argument of `MUST_BE` has that value where it is left out."""


def _bounded(function: Callable[..., Number]) -> Callable[..., Number]:
    def bounded(*numbers: Number) -> Number:
        result = function(*numbers)
        if isinstance(result, int) and abs(result) > _LARGEST:
            raise OverflowError("a size is larger than 64 bits hold")
        return result

    return bounded


_ARITHMETIC: Mapping[str, Callable[..., Number]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.truediv": operator.truediv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.lt": operator.lt,
    "_operator.le": operator.le,
    "_operator.gt": operator.gt,
    "_operator.ge": operator.ge,
    "_operator.and_": operator.and_,
    "_operator.or_": operator.or_,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "torch.sym_float": float,
    "torch.sym_not": operator.not_,
    "math.ceil": math.ceil,
    "math.floor": math.floor,
    "math.trunc": math.trunc,
}
NUMBERS = {name: _bounded(function) for name, function in _ARITHMETIC.items()}
"""Arithmetic with sizes, by the program's word for it. Each takes and gives plain numbers of at most 64 bits: no power and no
shift, by which a few letters ask for gigabytes."""


def aten_name(target: str) -> str | None:
    """The name and overload of an allowed aten operator; None for everything else.

    >>> aten_name("torch.ops.aten.add.Tensor"), aten_name("torch.ops.aten.from_file.default"), aten_name("os.system")
    ('add.Tensor', None, None)
    """
    name, dot, overload = target.removeprefix(PREFIX).partition(".")
    allowed = target.startswith(PREFIX) and name in ATEN and dot and overload.isidentifier() and not overload.startswith("_")
    return f"{name}.{overload}" if allowed else None
