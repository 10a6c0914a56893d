"""The kinds of data plane that tests run on: both where the native one is built, the python one alone elsewhere."""

from importlib.util import find_spec

MODULE = "podium_native"
PLANES = ("python", "native") if find_spec(MODULE) else ("python",)


def told() -> str:
    """One line for the head of a run: nobody may take half of a suite for the whole of it."""
    if "native" in PLANES:
        return "data planes: python and native"
    return f"data planes: python alone, because {MODULE} cannot be imported (docs/NATIVE.md says how to build it)"
