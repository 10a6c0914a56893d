import pytest
import torch

from server.backends.pt2_operators import ATEN, MUST_BE, NUMBERS, aten_name

FORBIDDEN = {
    "save",
    "from_file",
    "set_",
    "empty",
    "empty_like",
    "new_empty",
    "rand",
    "randn",
    "bernoulli",
    "multinomial",
    "copy_",
}


def readers(name: str) -> list[str]:
    """The overloads of an operator that only read."""
    packet = getattr(torch.ops.aten, name)
    return [kind for kind in packet.overloads() if not getattr(packet, kind)._schema.is_mutable]


def test_every_listed_operator_exists_and_has_a_form_that_only_reads() -> None:
    assert [name for name in sorted(ATEN) if not readers(name)] == []
    assert not ATEN & FORBIDDEN
    assert not any(name.endswith("_") and not name.endswith("__") for name in ATEN)


def test_operators_that_draw_random_numbers_are_few_and_known() -> None:
    seeded = torch.Tag.nondeterministic_seeded
    found = {name for name in ATEN for kind in readers(name) if seeded in getattr(getattr(torch.ops.aten, name), kind).tags}
    assert found <= set(MUST_BE)


@pytest.mark.parametrize("name", MUST_BE)
def test_arguments_that_are_restricted_exist_under_that_name(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    wanted = MUST_BE[name][0]
    named = {kind: [argument.name for argument in getattr(packet, kind)._schema.arguments] for kind in readers(name)}
    assert all(wanted in arguments for arguments in named.values()), named


@pytest.mark.parametrize(
    "target",
    ["torch.ops.aten.add", "torch.ops.aten.add.", "torch.ops.aten.add._x", "torch.ops.aten.add.a.b", "aten.add.Tensor", ""],
)
def test_what_is_no_operator_of_the_list(target: str) -> None:
    assert aten_name(target) is None


def test_arithmetic_stays_within_64_bits() -> None:
    assert NUMBERS["_operator.mul"](2**31, 4) == 2**33
    assert NUMBERS["_operator.truediv"](1, 2) == 0.5
    assert NUMBERS["torch.sym_max"](3, 5) == 5
    with pytest.raises(OverflowError, match="64 bits"):
        NUMBERS["_operator.mul"](2**62, 4)
