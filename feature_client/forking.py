"""What a forked child must not share with its parent starts anew in it, before anything else runs there.

A connection used by two processes gives each the other's replies, and a lock that another thread held is held for ever.
"""

import os
import weakref
from typing import Protocol


class StartsAnew(Protocol):
    """Something with connections, locks or threads."""

    def start_anew(self) -> None:
        """Forget what belongs to the parent, without harm to it. Called in the child, which has one thread."""
        ...


_here: "weakref.WeakSet[StartsAnew]" = weakref.WeakSet()


def start_anew_in_children(each: StartsAnew) -> None:
    """Have `start_anew` called in every child that is forked from now on. Ownership: it is not kept alive by this."""
    _here.add(each)


def _start_anew() -> None:
    for each in tuple(_here):
        each.start_anew()


os.register_at_fork(after_in_child=_start_anew)
