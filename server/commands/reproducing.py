"""`podium reproduce`: run a version's recipe again, and say whether the same comes out.

Floor 7: the registry runs and compares, the lifecycle's loader proves golden examples; this file puts the two together. It
never writes into the repository. It executes the recipe of the manifest: whoever can write manifests can run code here.
"""

import shlex
import shutil
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from server.commands.opened import opened
from server.commands.verb import DEFAULT_LOCK_FILE, add_repository, reporting, source_of
from server.core.errors import InvalidRequest, PodiumError, RegistryError
from server.core.settings import ModelSettings
from server.registry.durable import digest_file
from server.registry.environment import NUMERIC_PACKAGES, collect_environment
from server.registry.lineage import NO_MANIFEST
from server.registry.manifest import Manifest, missing_to_rebuild
from server.registry.rebuild import check_out, collect, command_line, run
from server.registry.reproduction import Reproduction, Verdict, compare_files, environment_differences, judge
from server.registry.resolve import resolve
from server.registry.source import FoundVersion

EXIT_CODES = {Verdict.IDENTICAL: 0, Verdict.EQUIVALENT: 10, Verdict.DIFFERENT: 11, Verdict.NOT_REPRODUCIBLE: 12}
"""1 and 2 stay what they are for every verb: a failure, and wrong usage."""

_TOLERANCE = 1e-4
_TIMEOUT_S = 3600.0


def add_reproduce(subparsers: "_SubParsersAction[ArgumentParser]") -> None:
    """Add `podium reproduce`."""
    parser = subparsers.add_parser("reproduce", help="run a version's recipe again, and say whether the same comes out")
    add_repository(parser)
    parser.add_argument("reference", metavar="NAME[@ALIAS|:N]", help="without alias or number: the champion, else the newest")
    parser.add_argument("--code", type=Path, default=Path(), metavar="DIR", help="git repository of the recipe (default: here)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the rebuilt files in this new or empty folder")
    parser.add_argument(
        "--tolerance", type=_not_negative, default=_TOLERANCE, metavar="T", help="of metrics: T + T * |recorded| (%(default)g)"
    )
    parser.add_argument(
        "--timeout-s", type=_not_negative, default=_TIMEOUT_S, metavar="S", help="for the recipe (default %(default)g)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(run=reporting(_run_reproduce))


def _run_reproduce(arguments: Namespace) -> int:
    source = source_of(arguments)
    models = source.scan()
    model = models[(key := resolve(models, arguments.reference)).model]
    found = model.versions[key.version]
    missing = _missing(found)
    if missing:
        done = Reproduction(
            model=key.model,
            version=key.version,
            verdict=Verdict.NOT_REPRODUCIBLE,
            reasons=tuple(f"missing: {m}" for m in missing),
        )
    else:
        keep: Path | None = arguments.keep
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise InvalidRequest(f"{keep} is not empty: rebuilt files are not mixed with others")
        with TemporaryDirectory(prefix="podium-rebuild-") as folder:
            scratch = Path(folder).resolve()
            out = scratch / "out" if keep is None else keep.resolve()
            done = _rebuild(arguments, found, model.settings, scratch, out)
        done = done.model_copy(update={"kept": None if keep is None else str(keep)})
    damage = _damage(arguments, found)
    if damage is not None:
        done = done.model_copy(update={"notes": (*done.notes, f"the version as it is stored: {damage}")})
    print(done.model_dump_json(indent=2) if arguments.json else _text(done))
    return EXIT_CODES[done.verdict]


def _missing(found: FoundVersion) -> list[str]:
    if found.manifest is not None:
        return missing_to_rebuild(found.manifest)
    return [found.problem or NO_MANIFEST]


def _rebuild(
    arguments: Namespace, found: FoundVersion, settings: ModelSettings | None, scratch: Path, out: Path
) -> Reproduction:
    manifest = found.manifest
    # `_missing` was empty
    assert manifest is not None
    assert manifest.code is not None
    assert manifest.recipe is not None
    assert manifest.environment is not None
    command: list[str] = []
    differences: tuple[str, ...] = ()
    code = scratch / "code"
    try:
        command = command_line(manifest.recipe, out)
        check_out(manifest.code, arguments.code, code)
        lock = code / DEFAULT_LOCK_FILE
        packages = sorted({*NUMERIC_PACKAGES, *manifest.environment.packages})
        here = collect_environment(lock if lock.is_file() else None, packages)
        differences = environment_differences(manifest.environment, here)
        print(f"podium: running {shlex.join(command)} at commit {manifest.code.commit}", file=sys.stderr, flush=True)
        out.mkdir(exist_ok=True)
        run(command, code, scratch, arguments.timeout_s)
        rebuilt = collect(out)
    except RegistryError as error:
        return Reproduction(
            model=manifest.model,
            version=manifest.version,
            verdict=Verdict.NOT_REPRODUCIBLE,
            reasons=(str(error),),
            environment=differences,
            command=tuple(command),
        )
    states = compare_files(manifest, rebuilt.files).values()
    golden_fault = None
    if "differs" in states and "missing" not in states:
        golden_fault = _golden_fault(found, manifest, settings, out, scratch)
    return judge(manifest, rebuilt, differences, golden_fault, arguments.tolerance).model_copy(
        update={"command": tuple(command)}
    )


def _golden_fault(
    found: FoundVersion, manifest: Manifest, settings: ModelSettings | None, out: Path, scratch: Path
) -> str | None:
    """Why the rebuilt files do not give the recorded golden answers within the recorded tolerance; None where they do.

    They are loaded as a server would load them, so "equivalent" means: a server that took the version takes these files too.
    """
    if manifest.golden is None:
        return "golden examples: there are none to compare answers by"
    if settings is None:
        return "golden examples: model.toml is refused, so nothing can be loaded"
    golden = manifest.golden.file
    staged = scratch / "staged" / str(manifest.version)
    try:
        for path in manifest.files:
            if path in manifest.derived and not (out / path).is_file():
                continue  # it changes no answer, and the recipe does not write it
            origin = found.folder if path == golden else out
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(origin / path, staged / path)
    except FileNotFoundError:
        return f"golden examples: {golden} is missing"
    if digest_file(staged / golden) != manifest.files[golden]:
        return f"golden examples: {golden} is not the one of the manifest"
    try:
        with opened(replace(found, folder=staged), settings):
            return None
    except PodiumError as error:
        return str(error)


def _damage(arguments: Namespace, found: FoundVersion) -> str | None:
    try:
        source_of(arguments).verify(found)
    except PodiumError as error:
        return str(error)
    return None


def _text(done: Reproduction) -> str:
    """The verdict as lines of `what  value`."""
    lines = [("version", f"{done.model}:{done.version}"), ("verdict", done.verdict.upper())]
    lines += [("reason", reason) for reason in done.reasons]
    lines += [("environment", difference) for difference in done.environment]
    lines += [("file", f"{path}  {how}") for path, how in done.files.items()]
    lines += [("note", note) for note in done.notes]
    lines += [("kept", done.kept)] if done.kept is not None else []
    return "\n".join(f"{what:<11}  {value}" for what, value in lines)


def _not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ArgumentTypeError(f"{text!r} must be a number >= 0")
    return value
