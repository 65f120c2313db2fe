"""The changes that show what tests notice: what is changed, what is left as it is, and that each can be told and undone."""

from __future__ import annotations

import ast
from pathlib import Path

import mutation
import pytest
from mutants import mutants

ROOT = Path(__file__).resolve().parent.parent.parent


def _changes(source: str) -> list[str]:
    return [f"{mutant.original} → {mutant.mutated}" for mutant in mutants("x.py", source.encode())]


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("a < b", ["a < b → a <= b"]),
        ("a and b or c", ["a and b or c → (a and b) and c", "a and b → a or b"]),
        ("x = not a", ["not a → a"]),
        ("x = a - b", ["a - b → a + b"]),
        ("n += 1", ["n += 1 → n -= 1", "1 → 2"]),
        ("x = ['a', '', True, None]", ["'a' → 'XXa'", "True → False"]),
        ("def f():\n    return g()", ["return g() → return None"]),
        ("async def f():\n    await g()", ["await g() → pass"]),
        ("if a:\n    raise E", ["a → True", "a → False", "raise E → pass"]),
        ("for a in b:\n    continue", ["continue → break"]),
    ],
)
def test_a_change_is_small_and_of_one_place(source: str, changes: list[str]) -> None:
    assert _changes(source) == changes


@pytest.mark.parametrize(
    "source",
    [
        '"""What this is."""',
        "def f(a: Literal['x']) -> Literal['y']: ...",
        "x: Literal['x']",
        "x = f'{a} of {len(b) + 1}'",
        "x = ConfigError('no', 3)",
        "_LOG.warning('no')",
        "if TYPE_CHECKING:\n    x = 1",
        "x = 'a text for people'",
        "if found := f():\n    pass",
    ],
)
def test_what_tests_need_not_see_is_left_as_it_is(source: str) -> None:
    assert _changes(source) == []


def test_a_change_keeps_its_place_among_what_binds_more_closely() -> None:
    [change] = [mutant for mutant in mutants("x.py", b"x = a and not (b or c)") if mutant.original.startswith("not")]
    assert ast.dump(ast.parse(change.applied(b"x = a and not (b or c)"))) == ast.dump(ast.parse("x = a and (b or c)"))


def test_every_file_and_test_that_is_named_is_there_and_every_reason_belongs_to_a_change() -> None:
    changes = set()
    for files in mutation.TESTS.values():
        for file, tests in files.items():
            assert all((ROOT / "tests" / test).is_file() for test in tests)
            found = mutants(file, (ROOT / file).read_bytes())
            changes |= {(file, mutant.text, f"{mutant.original} → {mutant.mutated}") for mutant in found}
    assert mutation.EQUIVALENT.keys() - changes == set()
