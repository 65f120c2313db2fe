"""What is checked in: the rooms of the project, and nothing that a run or a machine has left."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"flows", "tasks", "rlhf_core", "data_processing", "evaluation", "deployments", "tests", "benchmarks", "docs", ".ci"}
FILES = {"pyproject.toml", "README.md", "LICENSE", "Makefile", ".gitignore"}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name]


def test_the_top_level_is_the_rooms_of_the_project(tracked: list[Path]) -> None:
    assert {path.parts[0] for path in tracked} == ROOMS | FILES


def test_no_file_names_a_place_of_one_machine(tracked: list[Path]) -> None:
    ours = Path(__file__).relative_to(ROOT)
    assert [str(path) for path in tracked if path != ours and any(_machine_paths(ROOT / path))] == []


def _machine_paths(path: Path) -> Iterator[bytes]:
    content = path.read_bytes() if path.is_file() else b""
    return (place for place in (b"/work/", b"/opt/pypi") if place in content)
