"""Memory of the local services, as they are: `alignflow up`, wait a minute, then

    python benchmarks/idle_memory.py

Proportional set sizes, in which memory that processes share is counted once; of Linux.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from flows.services.processes import Records  # noqa: E402
from tasks.runtime.contract.home import Home  # noqa: E402


def main() -> None:
    print("| | processes | MiB |\n|---|---|---|")
    total = [0, 0]
    for record in Records(Home.open(to_read=True).pids).all():
        sizes = []
        for process in record.family:
            with suppress(psutil.Error):
                sizes.append(process.memory_full_info().pss)
        print(f"| {record.name} | {len(sizes)} | {sum(sizes) >> 20} |")
        total = [total[0] + len(sizes), total[1] + (sum(sizes) >> 20)]
    print(f"| all | {total[0]} | {total[1]} |")


if __name__ == "__main__":
    main()
