"""What an answer says of its features, where it was asked to. **Pure.**

Floor 6: the words of `feature_client`, in JSON, because a parameter of an answer has no lists.
"""

import json
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from feature_client.schema import status_text


def worth_telling(names: Sequence[str], statuses: NDArray[np.uint8]) -> str:
    """Every feature that was not simply there in some row, with its status in each row, as JSON.

    Shapes: `statuses` `[N, F]`, F names.

    >>> worth_telling(("a", "b"), np.array([[0, 0x83], [0, 0]], np.uint8)), worth_telling(("a",), np.zeros((1, 1), np.uint8))
    ('{"b": ["DEFAULTED(STALE)", "PRESENT"]}', '{}')
    """
    texts = {status: status_text(status) for status in np.unique(statuses).tolist()}
    told = np.flatnonzero(statuses.any(axis=0)).tolist()
    return json.dumps({names[index]: [texts[status] for status in statuses[:, index].tolist()] for index in told})
