"""`podium register` and `podium alias`: a version into the repository, and names from one version to another.

Floor 7: it puts registry pieces together and prints; every rule lives below.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from pathlib import Path

from server.commands.baselines import add_baseline, baseline_of_arguments
from server.commands.verb import DEFAULT_LOCK_FILE, add_repository, model_of, reporting, source_of
from server.core.errors import InvalidRequest
from server.monitoring.baseline_document import BASELINE_FILE
from server.registry.aliases import remove_alias, set_alias
from server.registry.environment import completed
from server.registry.manifest import ManifestFields, parse_fields
from server.registry.names import check_model_name
from server.registry.register import GoldenSource, register
from server.registry.resolve import resolve_version

MODEL_FILES = {".onnx": "model.onnx", ".pt2": "program.pt2", ".json": "fake.json"}
"""The name under which a version holds its model file, by the suffix of the file that is registered."""


MODEL_HELP = "model file: .onnx, .pt2 (torch.export), or .json (fake backend)"


def add_register(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium register`."""
    parser = subparsers.add_parser("register", help="write a version into the repository, whole or not at all")
    add_repository(parser)
    parser.add_argument("--name", required=True, help="model")
    parser.add_argument(
        "--model",
        required=True,
        type=Path,
        metavar="FILE",
        help="model file: .onnx, .pt2 (torch.export), or .json (fake backend)",
    )
    parser.add_argument(
        "--file", action="append", default=[], type=_file_argument, metavar="REL=PATH", help="another file of the version"
    )
    parser.add_argument("--version", type=int, metavar="N", help="default: the next free number")
    parser.add_argument(
        "--manifest-fields",
        type=Path,
        metavar="JSON",
        help="author, run_id, code, data, seeds, hyperparameters, environment, metrics, recipe, parent",
    )
    parser.add_argument("--author", help="default: user.name of git, else the name of the user")
    parser.add_argument("--run-id", help="default: a new one, from the time")
    parser.add_argument("--parent", metavar="VERSION", help="version number or @ALIAS that this one was made from")
    parser.add_argument("--golden", type=Path, metavar="NPZ", help="golden examples")
    parser.add_argument("--golden-rtol", type=float, default=1e-5, help="relative tolerance (default %(default)g)")
    parser.add_argument("--golden-atol", type=float, default=1e-6, help="absolute tolerance (default %(default)g)")
    parser.add_argument("--alias", action="append", default=[], help="move this alias to the new version")
    parser.add_argument("--settings", type=Path, metavar="TOML", help="becomes the model's model.toml")
    parser.add_argument(
        "--lock",
        type=Path,
        metavar="FILE",
        help=f"constraints that pinned the packages (default {DEFAULT_LOCK_FILE})",
    )
    add_baseline(parser)
    parser.set_defaults(run=reporting(_run_register))


def add_alias(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium alias`."""
    alias = subparsers.add_parser("alias", help="move or remove an alias (champion, challenger, any)")
    add_repository(alias)
    alias.add_argument("name", metavar="NAME", help="model")
    alias.add_argument("alias", metavar="ALIAS")
    target = alias.add_mutually_exclusive_group(required=True)
    target.add_argument("version", metavar="VERSION", nargs="?", help="version number, or @ALIAS for where that one is")
    target.add_argument("--remove", action="store_true", help="remove the alias instead")
    alias.set_defaults(run=reporting(_run_alias))


def _run_register(arguments: Namespace) -> int:
    stored = MODEL_FILES.get(arguments.model.suffix)
    if stored is None:
        raise InvalidRequest(f"{arguments.model} is no model file: its name must end in {' or '.join(MODEL_FILES)}")
    files = {stored: arguments.model}
    for path, source in arguments.file:
        if path in files:
            raise InvalidRequest(f"file {path!r} is given twice")
        files[path] = source
    golden = None
    if arguments.golden is not None:
        golden = GoldenSource(arguments.golden, arguments.golden_rtol, arguments.golden_atol)
    fields = _fields(arguments)
    with baseline_of_arguments(arguments, files) as baseline:
        made = {} if baseline is None else {BASELINE_FILE: baseline}
        key = register(
            arguments.repository,
            arguments.name,
            files | made,
            fields,
            version=arguments.version,
            golden=golden,
            aliases=arguments.alias,
            settings_file=arguments.settings,
            derived=("baseline.json",) if made else (),
        )
    print(f"registered {key}" + "".join(f" @{alias}" for alias in arguments.alias))
    return 0


def _fields(arguments: Namespace) -> ManifestFields:
    """What the caller states (flags before the file), completed by what this process can see."""
    stated = ManifestFields()
    if arguments.manifest_fields is not None:
        stated = parse_fields(arguments.manifest_fields.read_bytes())
    said: dict[str, object] = {}
    if arguments.author is not None:
        said["author"] = arguments.author
    if arguments.run_id is not None:
        said["run_id"] = arguments.run_id
    if arguments.parent is not None:
        said["parent"] = resolve_version(model_of(source_of(arguments).scan(), arguments.name), arguments.parent).version
    lock = arguments.lock or (DEFAULT_LOCK_FILE if DEFAULT_LOCK_FILE.is_file() else None)
    return completed(stated.model_copy(update=said), Path.cwd(), lock)


def _run_alias(arguments: Namespace) -> int:
    check_model_name(arguments.name)
    folder = arguments.repository / arguments.name
    if arguments.remove:
        before = remove_alias(folder, arguments.alias)
        print(f"{arguments.name}@{arguments.alias} removed (was version {before})")
        return 0
    model = model_of(source_of(arguments).scan(), arguments.name)
    key = resolve_version(model, arguments.version)
    problem = model.versions[key.version].problem
    if problem is not None:
        raise InvalidRequest(f"alias '{arguments.alias}' cannot be moved to {key}, which would not load: {problem}")
    moved_from = set_alias(folder, arguments.alias, key.version)
    was = "new" if moved_from is None else f"was version {moved_from}"
    print(f"{arguments.name}@{arguments.alias} is version {key.version} ({was})")
    return 0


def _file_argument(text: str) -> tuple[str, Path]:
    path, separator, source = text.partition("=")
    if not separator or not path or not source:
        raise ArgumentTypeError(f"{text!r} must be REL=PATH")
    return path, Path(source)
