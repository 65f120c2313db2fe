"""Source text run as a module, and how the process says that it ended. Imported at each start of a child, so it imports little."""

from __future__ import annotations

import sys

# What a program is called that is not run as a script.
PROGRAM = "solution"
# Exit codes of a child: it raised, memory ran out, and it could not be confined.
RAISED, OUT_OF_MEMORY, NOT_CONFINED = 1, 77, 78


def add_module(name: str, names: dict[str, object]) -> dict[str, object]:
    """Make a module that has these names; returns all names in it."""
    module = sys.modules[name] = type(sys)(name)
    vars(module).update(names)
    return vars(module)


def run_source(source: str, name: str, scope: dict[str, object]) -> dict[str, object]:
    """Run source text as the module `name`, with these names defined; returns all names in it."""
    names = add_module(name, scope)
    exec(compile(source, f"<{name}>", "exec"), names)
    return names
