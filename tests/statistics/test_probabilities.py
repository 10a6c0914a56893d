"""What is called a probability is one, to the last bit: an e-value is made of nothing else."""

import numpy as np
import pytest

from server.statistics.detector import e_value
from server.statistics.noncentral import survival


@pytest.mark.parametrize("df", [1, 4, 9, 19])
def test_a_tail_is_between_0_and_1(df: int) -> None:
    tails = [survival(x, df, centre) for centre in np.linspace(0.5, 120, 240) for x in (1e-9, 0.1, 1.0, 3.0, 400.0)]
    assert 0.0 <= min(tails) < 1e-6
    assert max(tails) == 1.0  # where x is far below the centre: nothing but that can be said in 53 bits
    assert all(e_value(tail) >= 0 for tail in tails)
