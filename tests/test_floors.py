"""Imports point down only, and what is heavy or impure stays where it is meant to be: a table, and one assert per rule."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.pure_coverage import is_pure

ROOT = Path(__file__).parents[1]
FLOORS = {
    **dict.fromkeys(
        (
            "server",
            "server.app",
            "server.process",
            "server.restart",
            "server.handed_on",
            "server.optional",
            "server.device_memory",
            "server.levels",
            "server.held_folder",
            "server.monitored",
            "server.retrain",
            "server.monitored_versions",
            "server.monitor_process",
            "server.__main__",
            "server.commands",
            "server.consumers_command",
            "server.health_command",
        ),
        7,
    ),
    "server.transport": 6,
    "server.service": 5,
    **dict.fromkeys(("server.lifecycle", "server.traffic", "server.monitoring"), 4),
    "server.dataplane": 3,
    **dict.fromkeys(("server.backends", "server.registry", "server.telemetry", "server.features"), 2),
    **dict.fromkeys(("server.core", "server.statistics"), 1),
    **dict.fromkeys(("protos", "feature_client"), 0),
}
ROOF = 7
"""The roof is one room; everywhere else a room is below only if its floor has a lower number."""
BESIDE = {
    "loadtest": {"protos"},
    "models": {
        "server.core",
        "server.monitoring",
        "server.registry",
        "server.statistics",
        "server.telemetry",
        "feature_client",
    },
}
"""Packages that stand beside the house, and what they may import of it: the load test judges the server from outside; recipes
register what they build, and the demo reads its histograms."""
WIRE = {"grpc", "grpc_health", "grpc_tools", "protos"}
HEAVY = {"torch", "onnxruntime", "tokenizers", "redis", "pyarrow", "pynvml", "opentelemetry", "matplotlib"}
BACKENDS = {"torch": "server/backends/torch_"}
"""Heavy packages that take more than one file: the beginning of their paths."""
IMPURE = HEAVY | WIRE - {"protos"}
IMPURE |= {
    "asyncio",
    "threading",
    "time",
    "random",
    "secrets",
    "socket",
    "select",
    "subprocess",
    "os",
    "shutil",
    "tempfile",
    "logging",
}


def room(module: str) -> str | None:
    """The room or package of this project that a module belongs to; None for everybody else's modules."""
    parts = module.split(".")
    name = ".".join(parts[: 2 if parts[0] == "server" else 1])
    return name if name in FLOORS or name in BESIDE else None


def imports(path: Path, tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Every module a file imports, and whether it does so on the file's first level."""
    top = set(map(id, ast.iter_child_nodes(tree)))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # with the name: `from server import core` names a room by it, and one name of the clock is no constant
            yield from ((f"{node.module}.{alias.name}", id(node) in top) for alias in node.names)


FILES = {
    path: list(imports(path, ast.parse(path.read_text("utf-8"))))
    for package in ("server", "protos", "feature_client", *BESIDE)
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.stem.endswith(("_pb2", "_pb2_grpc"))
}


def own_room(path: Path) -> str:
    found = room(".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
    assert found, f"{path}: this room has no floor yet: give it one in FLOORS"
    return found


def may_import(source: str, target: str) -> bool:
    if source == target:
        return True
    if source in BESIDE:
        return target in BESIDE[source]
    return target in FLOORS and (FLOORS[target] < FLOORS[source] or FLOORS[source] == ROOF)


def named(paths_and_modules: Iterator[tuple[Path, str]]) -> list[str]:
    return [f"{path.relative_to(ROOT)} imports {module}" for path, module in paths_and_modules]


def test_imports_point_down() -> None:
    each = ((path, module, room(module)) for path, found in FILES.items() for module, _ in found)
    assert not named((path, module) for path, module, target in each if target and not may_import(own_room(path), target))


def test_no_import_hides() -> None:
    assert not named((path, module) for path, found in FILES.items() for module, top in found if not top)


def test_only_the_door_speaks_the_wire() -> None:
    doors = {"server.transport", "server.app", "server.monitor_process", *BESIDE, "protos"}
    inside = ((path, module) for path, found in FILES.items() if own_room(path) not in doors for module, _ in found)
    assert not named((path, module) for path, module in inside if module.split(".")[0] in WIRE)


def test_what_is_heavy_is_imported_by_one_file_or_by_the_files_of_one_backend() -> None:
    users: defaultdict[str, set[str]] = defaultdict(set)
    for path, found in FILES.items():
        for module, _ in found:
            if own_room(path).startswith("server") and module.split(".")[0] in HEAVY:
                users[module.split(".")[0]].add(path.relative_to(ROOT).with_suffix("").as_posix())
    assert users.keys() == HEAVY - {"redis"}, "redis is the feature client's"
    for heavy, paths in users.items():
        backend = BACKENDS.get(heavy)
        assert len(paths) == 1 if backend is None else all(path.startswith(backend) for path in paths), (heavy, paths)


def test_files_of_a_backend_are_imported_by_it_alone() -> None:
    """Else whoever imports one of them would pay for its heavy package."""
    for backend in BACKENDS.values():
        names = backend.replace("/", ".")
        for path, found in FILES.items():
            own = path.relative_to(ROOT).as_posix().startswith(backend)
            assert own or not [module for module, _ in found if module.startswith(names)], path


def test_the_pure_import_nothing_impure() -> None:
    pure = {path: found for path, found in FILES.items() if is_pure(path)}
    assert len(pure) > 30
    each = ((path, module) for path, found in pure.items() for module, _ in found)
    assert not named(
        (path, module) for path, module in each if module.split(".")[0] in IMPURE or module == "server.core.clock.monotonic_ns"
    )
