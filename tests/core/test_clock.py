from server.core.clock import NS_PER_MS, NS_PER_S, NS_PER_US, monotonic_ns


def test_units() -> None:
    assert (1000 * NS_PER_US, 1000 * NS_PER_MS) == (NS_PER_MS, NS_PER_S)


def test_the_clock_never_goes_back() -> None:
    readings = [monotonic_ns() for _ in range(1000)]
    assert readings == sorted(readings)
