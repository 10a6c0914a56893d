"""Floor 7: the command line over the registry. Registry pieces are put together and printed; every rule lives below.

Never tells a running server anything: it notices what changed in the repository by itself. One verb asks one: `podium drift`.
"""

from argparse import ArgumentParser, _SubParsersAction

from server.commands.drift import add_drift
from server.commands.features import add_features
from server.commands.listing import add_lineage, add_models
from server.commands.measured import add_measured
from server.commands.monitor import add_monitor
from server.commands.pruning import add_prune
from server.commands.registering import add_alias, add_register
from server.commands.reproducing import add_reproduce


def add_commands(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add the registry's commands; each parser sets `run`, which takes the parsed arguments and returns an exit code."""
    for add in (
        add_register,
        add_alias,
        add_models,
        add_lineage,
        add_reproduce,
        add_prune,
        add_measured,
        add_features,
        add_drift,
        add_monitor,
    ):
        add(subparsers)
