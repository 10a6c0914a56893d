"""Memory that a closed backend leaves with the allocator, given back to the system. Floor 2."""

import ctypes

# glibc only: elsewhere freed memory returns by the allocator's own rules
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Return what is free. Without it glibc keeps the weights of models that are gone."""
    if _malloc_trim is not None:
        _malloc_trim(0)
