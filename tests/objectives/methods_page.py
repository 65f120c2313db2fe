"""Write the tables of methods into docs/methods.md, from their rows.

python -m tests.objectives.methods_page
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rlhf_core.methods.online import ONLINE, OnlineMethod
from rlhf_core.methods.preference import PREFERENCE
from rlhf_core.settings.online import OnlineConfig

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"
BEGIN, END = "<!-- {name}: python -m tests.objectives.methods_page -->\n", "<!-- end of {name} -->\n"


def main() -> None:
    """Put the tables between their marks."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables().items():
        before, _, rest = page.partition(BEGIN.format(name=name))
        _, _, after = rest.partition(END.format(name=name))
        page = f"{before}{BEGIN.format(name=name)}{text}{END.format(name=name)}{after}"
    PAGE.write_text(page, encoding="utf-8")


def tables() -> dict[str, str]:
    """By the name of their marks."""
    return {"preference": "".join(_preference()), "online": "".join(_online())}


def _preference() -> Iterator[str]:
    yield "| `method` | what it is | reads | null means | reference pass |\n|---|---|---|---|---|\n"
    for name, row in PREFERENCE.items():
        reads = ", ".join(f"`{setting}`" for setting in sorted(row.settings))
        own = ", ".join(f"`{setting}` {value:g}" for setting, value in row.defaults.items())
        yield f"| `{name}` | {row.about} | {reads} | {own} | {'yes' if row.needs_reference else 'no'} |\n"


def _online() -> Iterator[str]:
    yield "| `method` | what it is | advantages | loss | as one number | KL | null means | samples |\n|---|---|---|---|---|---|---|---|\n"
    for name, row in ONLINE.items():
        advantages = _function(row.advantages) + (", whitened" if row.whiten else "") + "".join(f", {role}" for role in row.roles)
        own = ", ".join(f"`{setting}` {value:g}" for setting, value in row.defaults.items() if setting != "kl_coef")
        yield (
            f"| `{name}` | {row.about} | {advantages} | {_function(row.loss)} | {row.aggregation} | {_kl(name, row)} | {own} | "
            f"{row.min_samples}+ |\n"
        )


def _kl(name: str, row: OnlineMethod) -> str:
    coefficient = OnlineConfig(method=name).value("kl_coef")
    return f"{coefficient:g} x {row.kl_estimate} in the {row.kl_place}" if coefficient else "none"


def _function(path: str) -> str:
    return f"`{path.partition(':')[2]}`"


if __name__ == "__main__":
    main()
