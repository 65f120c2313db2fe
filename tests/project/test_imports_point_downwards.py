"""Packages import only those below them, and each depends on nothing its place forbids."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ORDER = ["flows", "tasks", "evaluation", "rlhf_core", "data_processing"]
FORBIDDEN = {
    "data_processing": {"torch", "transformers", "prefect", "mlflow", "ray", "deepspeed", "vllm"},
    "rlhf_core": {"prefect", "mlflow"},
    "evaluation": {"prefect", "mlflow"},
    "flows": {"torch", "transformers", "deepspeed", "vllm"},
}
FILES = sorted(path for package in ORDER for path in (ROOT / package).rglob("*.py"))


# Rooms within a package, from the top: each imports only those after it.
ROOMS = {
    "flows": ["cli", "commands", "alignment", "running", "services", "graph", "settings"],
    "tasks.runtime": ["worker", "execution", "tracking", "store", "keys", "contract"],
    "rlhf_core": [
        "recipes",
        "cluster",
        "serving",
        "engine",
        "credit",
        "rewards",
        "rollout",
        "environments",
        "models",
        "batching",
        "objectives",
        "device",
        "settings",
        "methods",
    ],
}


def imported_names(path: Path) -> set[str]:
    """Full names of imported modules; of what is imported from a package, also the names under it."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
            modules.update(f"{node.module}.{alias.name}" for alias in node.names)
    return modules


def imported_modules(path: Path) -> set[str]:
    return {module.split(".")[0] for module in imported_names(path)}


def test_imports_point_downwards() -> None:
    for path in FILES:
        package = path.relative_to(ROOT).parts[0]
        above = set(ORDER[: ORDER.index(package)]) | {"tests", "benchmarks"}
        forbidden = above | FORBIDDEN.get(package, set())
        assert not imported_modules(path) & forbidden, path


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_only_those_below_them(package: str) -> None:
    order, depth = ROOMS[package], package.count(".") + 1
    folder = ROOT.joinpath(*package.split("."))
    for path in sorted(folder.rglob("*.py")):
        own = path.relative_to(folder).with_suffix("").parts[0]
        if own == "__init__":
            continue
        used = {name.split(".")[depth] for name in imported_names(path) if name.startswith(f"{package}.")}
        above = {room for room in used & set(order) if order.index(room) < order.index(own)}
        assert not above, f"{path.relative_to(ROOT)} imports from {above}, which is above it"


def test_no_two_modules_import_each_other() -> None:
    edges = {}
    for path in FILES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        edges[name] = imported_names(path)
    cycles = {tuple(sorted((one, other))) for one, used in edges.items() for other in used & edges.keys() if one in edges[other]}
    assert cycles - {(name, name) for name in edges} == set()


def test_every_folder_with_code_is_listed_for_packaging() -> None:

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert folders <= listed
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in listed)
