"""`podium prune`: say which versions may go and why the others stay, and remove them when told to.

Floor 7: it puts registry pieces together and prints; every rule lives below.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from datetime import timedelta

from server.commands.verb import add_repository, model_of, reporting, size_text, source_of
from server.registry.keeping import Rules
from server.registry.names import version_number
from server.registry.prune import prune

_KEEP_DAYS = 14
"""Two weeks of rollbacks: long enough to notice that a champion is worse than the one before."""
_MAX_DAYS = 36_500


def add_prune(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium prune`."""
    parser = subparsers.add_parser("prune", help="remove versions that nobody needs; without --apply only say which")
    add_repository(parser)
    parser.add_argument("name", metavar="NAME", nargs="?", help="model (default: all of them)")
    parser.add_argument("--keep", type=_positive, required=True, metavar="N", help="keep the newest N versions")
    parser.add_argument(
        "--keep-days",
        type=_days,
        default=_KEEP_DAYS,
        metavar="D",
        help="keep what an alias left in the last D days (default %(default)s)",
    )
    parser.add_argument("--apply", action="store_true", help="remove them")
    parser.set_defaults(run=reporting(_run_prune))


def _run_prune(arguments: Namespace) -> int:
    models = source_of(arguments).scan()
    names = sorted(models) if arguments.name is None else [model_of(models, arguments.name).name]
    rules = Rules(newest=arguments.keep, recent=timedelta(days=arguments.keep_days))
    gone, freed_bytes = 0, 0
    word = "removed" if arguments.apply else "would remove"
    for name in names:
        for decision in prune(arguments.repository, name, rules, apply=arguments.apply):
            if decision.reasons:
                print(f"keep  {name}:{decision.version}  {', '.join(decision.reasons)}")
            else:
                print(f"{word}  {name}:{decision.version}  {size_text(decision.size_bytes)}")
                gone, freed_bytes = gone + 1, freed_bytes + decision.size_bytes
    hint = "" if arguments.apply or not gone else "; add --apply to do it"
    print(f"{word} {gone} versions, {size_text(freed_bytes)}{hint}")
    return 0


def _positive(text: str) -> int:
    number = version_number(text)
    if number is None:
        raise ArgumentTypeError(f"{text!r} must be an integer > 0")
    return number


def _days(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= _MAX_DAYS:
        raise ArgumentTypeError(f"{text!r} must be a number of days from 0 to {_MAX_DAYS}")
    return value
