from collections.abc import Callable

import pytest

from server.core.errors import LoadFailed
from server.core.versions import VersionKey
from server.lifecycle.estimate import Estimate
from server.lifecycle.ledger import PAGE_BYTES, Budget, Holding, Ledger, LedgerReading, Reservation, amount

MIB = 2**20
TOTAL = 1000 * MIB
A, B = VersionKey("a", 1), VersionKey("b", 2)


class Device:
    """A device whose memory a test takes and gives back."""

    def __init__(self) -> None:
        self.used: int | None = 0

    def __call__(self, device: str) -> tuple[int, int] | None:
        return None if device == "cpu" or self.used is None else (self.used, TOTAL)

    def take(self, nbytes: int) -> Callable[[], None]:
        """Returns what gives it back."""
        assert self.used is not None
        self.used += nbytes

        def give_back() -> None:
            assert self.used is not None
            self.used -= nbytes

        return give_back


class Scene:
    def __init__(self, ratio: float = 0.5) -> None:
        self.device = Device()
        self.ledger = Ledger(self.device, ratio)

    def reserve(self, key: VersionKey, mib: int, device: str = "cuda:0") -> Reservation:
        made = self.ledger.reserve(key, device, Estimate(mib * MIB, "a guess"))
        assert made is not None
        return made

    def hold(self, key: VersionKey, mib: int) -> tuple[Reservation, Callable[[], None]]:
        """A version in memory that takes what was expected."""
        made = self.reserve(key, mib)
        give_back = self.device.take(mib * MIB)
        assert made.measure() == mib * MIB
        made.check()
        return made, give_back

    def refusal(self, key: VersionKey, mib: int) -> str:
        with pytest.raises(LoadFailed) as caught:
            self.reserve(key, mib)
        return str(caught.value)


def test_what_fits_is_reserved_then_measured_then_given_back() -> None:
    scene = Scene()
    made = scene.reserve(A, 300)
    assert scene.ledger.reading == LedgerReading((Holding(A, "cuda:0", 300 * MIB, 0),), (Budget("cuda:0", 500 * MIB, 0),))
    give_back = scene.device.take(280 * MIB)
    assert made.measure() == 280 * MIB
    made.check()
    assert scene.ledger.reading.holdings == (Holding(A, "cuda:0", 280 * MIB, 280 * MIB),)
    assert made.release(give_back) == 0
    assert scene.ledger.reading == LedgerReading((), (Budget("cuda:0", 500 * MIB, 0),))


def test_the_whole_budget_fits_and_a_byte_more_does_not() -> None:
    scene = Scene()
    scene.reserve(A, 500).release(lambda: None)
    with pytest.raises(LoadFailed):
        scene.ledger.reserve(A, "cuda:0", Estimate(500 * MIB + 1, "a guess"))
    assert scene.ledger.reading.holdings == ()


def test_a_refusal_tells_who_holds_what_the_largest_first() -> None:
    scene = Scene()
    scene.hold(A, 100)
    scene.hold(B, 250)
    scene.device.take(30 * MIB)  # by another process
    assert scene.refusal(VersionKey("c", 1), 121) == (
        f"cuda:0 has no room for it: it needs 121.0 MiB ({121 * MIB} bytes) (a guess), and 120.0 MiB ({120 * MIB} bytes) of the"
        f" budget of 500.0 MiB ({500 * MIB} bytes) (of 1000.0 MiB ({TOTAL} bytes) in all) are free; held by:"
        f" b:2 250.0 MiB ({250 * MIB} bytes), a:1 100.0 MiB ({100 * MIB} bytes),"
        f" others (other processes, and what no version accounts for) 30.0 MiB ({30 * MIB} bytes)"
    )
    scene.reserve(VersionKey("c", 1), 120)


def test_a_refusal_of_an_empty_device_says_so() -> None:
    assert Scene().refusal(A, 501).endswith("are free; held by: nobody")


def test_what_others_hold_beyond_the_budget_leaves_nothing() -> None:
    scene = Scene()
    scene.device.take(600 * MIB)
    assert "and 0 bytes of the budget" in scene.refusal(A, 1)


def test_what_was_reserved_and_not_taken_yet_is_nobody_elses() -> None:
    scene = Scene()
    scene.reserve(A, 300)
    assert "a:1 300.0 MiB" in scene.refusal(B, 201)
    scene.reserve(B, 200)


def test_a_reload_needs_room_for_both() -> None:
    scene = Scene()
    scene.hold(A, 300)
    needs_both = "; a reload needs room for both: it would fit once the a:1 that is in memory has been unloaded"
    assert scene.refusal(A, 400).endswith(needs_both)
    assert "reload" not in scene.refusal(A, 501), "unloading would not help"
    assert "reload" not in scene.refusal(B, 400), "another version's memory is not its own to give"
    new = scene.reserve(A, 200)
    scene.device.take(200 * MIB)
    new.measure()
    assert scene.ledger.reading.holdings == (Holding(A, "cuda:0", 500 * MIB, 500 * MIB),)


def test_a_version_that_took_more_than_there_was_is_refused() -> None:
    scene = Scene()
    scene.hold(A, 400)
    made = scene.reserve(B, 50)
    scene.device.take(150 * MIB)
    assert made.measure() == 150 * MIB
    with pytest.raises(LoadFailed) as caught:
        made.check()
    assert str(caught.value) == (
        f"it took 150.0 MiB ({150 * MIB} bytes) of cuda:0, where its budget had 100.0 MiB ({100 * MIB} bytes) left"
        f" (50.0 MiB ({50 * MIB} bytes) were expected: a guess)"
    )


def test_more_than_expected_is_in_order_while_there_is_room() -> None:
    scene = Scene()
    made = scene.reserve(A, 50)
    scene.device.take(500 * MIB)
    made.measure()
    made.check()
    assert "a:1 500.0 MiB" in scene.refusal(B, 1)


def test_what_does_not_come_back_is_counted() -> None:
    scene = Scene()
    for expected in (20 * MIB, 40 * MIB):
        made, give_back = scene.hold(A, 100)
        scene.device.take(0)

        def leak(give_back: Callable[[], None] = give_back) -> None:
            give_back()
            scene.device.take(20 * MIB)

        assert made.release(leak) == 20 * MIB
        assert scene.ledger.reading.budgets == (Budget("cuda:0", 500 * MIB, expected),)
    assert "others (other processes, and what no version accounts for) 40.0 MiB" in scene.refusal(A, 461)


@pytest.mark.parametrize(("left", "missing"), [(PAGE_BYTES - 1, 0), (PAGE_BYTES, PAGE_BYTES), (-50 * MIB, 0)])
def test_less_than_a_page_is_not_missed(left: int, missing: int) -> None:
    scene = Scene()
    scene.device.take(60 * MIB)
    made, give_back = scene.hold(A, 100)

    def close() -> None:
        give_back()
        scene.device.take(left)

    assert made.release(close) == missing


def test_a_load_that_failed_is_measured_by_what_it_leaves() -> None:
    scene = Scene()
    made = scene.reserve(A, 100)
    give_back = scene.device.take(70 * MIB)
    assert made.release(give_back) == 0
    made = scene.reserve(A, 100)
    scene.device.take(70 * MIB)
    assert made.release(lambda: None) == 70 * MIB
    assert scene.ledger.reading.holdings == ()


def test_the_books_are_right_even_if_closing_fails() -> None:
    scene = Scene()
    made, _ = scene.hold(A, 100)

    def fail() -> None:
        raise RuntimeError("stuck")

    with pytest.raises(RuntimeError, match="stuck"):
        made.release(fail)
    assert scene.ledger.reading == LedgerReading((), (Budget("cuda:0", 500 * MIB, 100 * MIB),))


def test_a_load_that_frees_memory_took_none() -> None:
    scene = Scene()
    scene.device.take(50 * MIB)
    made = scene.reserve(A, 10)
    scene.device.take(-20 * MIB)
    assert made.measure() == 0


def test_a_device_that_tells_nothing_has_no_ledger() -> None:
    scene = Scene()
    assert scene.ledger.reserve(A, "cpu", Estimate(10 * TOTAL, "a guess")) is None
    assert scene.ledger.reading == LedgerReading()


def test_a_device_that_falls_silent_keeps_its_estimates() -> None:
    scene = Scene()
    made = scene.reserve(A, 100)
    scene.device.used = None
    assert made.measure() is None
    made.check()
    assert made.release(lambda: None) == 0
    assert scene.ledger.reading.holdings == ()


def test_a_device_that_is_not_there_yet_is_as_large_as_it_is_said_to_be() -> None:
    scene = Scene()
    scene.device.used = None
    stated = Estimate(500 * MIB, "a guess")
    made = scene.ledger.reserve(A, "fake:0", stated, TOTAL)
    assert made is not None
    scene.device.used = 0
    scene.device.take(480 * MIB)
    assert made.measure() == 480 * MIB
    with pytest.raises(LoadFailed):
        scene.ledger.reserve(B, "fake:0", stated, TOTAL)


def test_devices_have_books_of_their_own() -> None:
    scene = Scene()
    scene.reserve(A, 300)
    other = scene.ledger.reserve(B, "cuda:1", Estimate(300 * MIB, "a guess"))
    assert other is not None
    assert [holding.device for holding in scene.ledger.reading.holdings] == ["cuda:0", "cuda:1"]


def test_amounts_are_for_people_and_programs() -> None:
    assert [amount(n) for n in (0, MIB - 1, 3 * MIB, -2 * 2**30)] == [
        "0 bytes",
        "1048575 bytes",
        "3.0 MiB (3145728 bytes)",
        "-2.0 GiB (-2147483648 bytes)",
    ]
