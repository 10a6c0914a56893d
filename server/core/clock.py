"""The one place where monotonic time enters. Pure files take `now_ns` as an argument instead."""

import time
from collections.abc import Callable

Clock = Callable[[], int]
"""Returns monotonic nanoseconds. Tests pass a function that they move by hand."""

monotonic_ns: Clock = time.monotonic_ns

NS_PER_US = 1_000
US_PER_S = 1_000_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
