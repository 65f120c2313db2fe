"""Compare this checkout with an earlier commit of it on the work of the comparisons with TRL: is anything slower, or larger?

    python benchmarks/against.py COMMIT            every case
    python benchmarks/against.py COMMIT C1 dpo     by criterion or by result file

Both run in this environment, step by step in turns; figures are medians of the same steps' ratios, before over now: above 1 is faster
now. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from compare.cases import CASES, FULL, QUICK, Part
from compare.duel import ROOT, SEED, apart, duel
from compare.verdict import ratio
from compare.workload import Work


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Compare this checkout with an earlier commit of it")
    known = sorted({name for case in CASES for name in (*case.criteria, case.file)})
    parser.add_argument("commit", metavar="COMMIT")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(known))
    parser.add_argument("--quick", action="store_true", help="toy size, no repeats: does it run?")
    arguments = parser.parse_args()
    wanted = set(arguments.cases or known)
    if unknown := sorted(wanted - set(known)):
        parser.error(f"no comparison is called {', '.join(unknown)}; choose among {', '.join(known)}")
    scale = QUICK if arguments.quick else FULL
    print(f"{'case':28}{'CPU-s before':>14}{'now':>8}{'before / now':>24}{'MiB before':>12}{'now':>8}")
    with _checkout(arguments.commit) as before:
        for case in CASES:
            if wanted & {*case.criteria, case.file}:
                for part in case.parts(scale):
                    _compare(part, before)


def _compare(part: Part, before: Path) -> None:
    """One line for each of our arms of a comparison."""
    for arm in (arm for arm in part.arms if arm.by == "ours"):
        # Short, because Ray's sockets live below it.
        with tempfile.TemporaryDirectory(prefix="af", dir="/tmp", ignore_cleanup_errors=True) as folder:
            work = Work(Path(folder))
            work.write(part.table, part.shape, part.steps, SEED)
            arms = [replace(arm, name="before", root=before), replace(arm, name="now")]
            old, new = (apart if part.apart else duel)(arms, work.folder, len(part.steps))
        found = ratio([taken.cpu_s for taken in old.taken], [taken.cpu_s for taken in new.taken])
        cpu_s = [sum(taken.cpu_s for taken in run.taken) / len(run.taken) for run in (old, new)]
        peak_mib = [max(taken.peak_mib for taken in run.taken) for run in (old, new)]
        told = f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
        name = f"{part.name}, {arm.name}".removesuffix(", alignflow")
        print(f"{name[:27]:28}{cpu_s[0]:>14.2f}{cpu_s[1]:>8.2f}{told:>24}{peak_mib[0]:>12.0f}{peak_mib[1]:>8.0f}", flush=True)


@contextmanager
def _checkout(commit: str) -> Iterator[Path]:
    """A working tree of `commit`, gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="before") as folder:
        place = Path(folder) / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(place), commit], cwd=ROOT, check=True)
        try:
            yield place
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(place)], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
