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


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module or "")
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downwards(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    above = set(ORDER[: ORDER.index(package)]) | {"tests", "benchmarks"}
    forbidden = above | FORBIDDEN.get(package, set())
    assert not imported_modules(path) & forbidden


def test_every_folder_with_code_is_listed_for_packaging() -> None:

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {".".join(path.parent.relative_to(ROOT).parts) for path in FILES}
    assert folders <= listed
    assert all((ROOT / name.replace(".", "/") / "__init__.py").is_file() for name in listed)
