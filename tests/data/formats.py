"""Write the table of formats and tables into docs/data.md, from the rows that the golden tests use.

python -m tests.data.formats
"""

from __future__ import annotations

from pathlib import Path

from data_processing.prepare import TABLES
from data_processing.sources.columns import ROW_BUILDERS
from data_processing.sources.recognise import recognise
from data_processing.sources.record import check
from data_processing.sources.turn import BadRow, refuse_media
from tests.data.shape_cases import CASES, ShapeCase

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BEGIN, END = "<!-- formats: python -m tests.data.formats -->\n", "<!-- end of formats -->\n"


def main() -> None:
    """Put the table between its marks."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


def table() -> str:
    """A line a format: which tables use its rows."""
    head = f"| family | columns | {' | '.join(f'`{name}`' for name in TABLES)} |\n|---|---|{'---|' * len(TABLES)}\n"
    return head + "".join(f"| {case.family} | {case.columns} | {' | '.join(_used(case))} |\n" for case in CASES)


def _used(case: ShapeCase) -> list[str]:
    return ["used" if _is_used(case, index) else "refused" for index in range(len(TABLES))]


def _is_used(case: ShapeCase, index: int) -> bool:
    name = TABLES[index]
    try:
        refuse_media(case.row, "column ")
        record, _ = recognise(case.row, name)
        check(record, name)
        ROW_BUILDERS[name](record, case.row)
    except BadRow:
        return False
    return True


if __name__ == "__main__":
    main()
