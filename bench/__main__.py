"""`python -m bench [NAME …]`: run all benchmarks, or those named."""

import sys

from bench import (
    core,
    features_builder,
    features_read,
    many_models,
    monitoring_cost,
    monitoring_counting,
    native_plane,
    overload,
)
from bench.drift import command as drift

BENCHMARKS = {
    "core": core.main,
    "drift": drift.main,
    "features_builder": features_builder.main,
    "features_read": features_read.main,
    "many_models": many_models.main,
    "monitoring_cost": monitoring_cost.main,
    "monitoring_counting": monitoring_counting.main,
    "native_plane": native_plane.main,
    "overload": overload.main,
}


def main(names: list[str]) -> int:
    """The exit status is 1 if any benchmark missed what it requires."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.stderr.write(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}\n")
        return 2
    return max(BENCHMARKS[name]() for name in names or BENCHMARKS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
