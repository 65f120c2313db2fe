"""Run the worked pipelines of docs/pipelines.md, each in an empty home, and print how long each took and what its last line was.

    python benchmarks/worked_pipelines.py [NAME ...]

Without a name all but side_by_side, which takes the 135M model. Times belong on the page when nothing else ran.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
PIPELINES = dict(re.findall(r"<!-- (\w+) -->\n```yaml\n(.*?)```", PAGE, flags=re.DOTALL))


def main() -> None:
    """Run, and print a row for each pipeline."""
    parser = argparse.ArgumentParser(description="Time the worked pipelines of docs/pipelines.md")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(PIPELINES))
    names = parser.parse_args().names or [name for name in PIPELINES if name != "side_by_side"]
    for name in names:
        with tempfile.TemporaryDirectory(prefix="pipelines-") as folder:
            seconds, log = run(name, Path(folder))
        print(f"{name}\t{seconds:.0f} s\tload {os.getloadavg()[0]:.1f}\t{log[-1]}", flush=True)


def run(name: str, folder: Path) -> tuple[float, list[str]]:
    """Seconds of one pipeline from an empty home, and the lines that it printed."""
    (folder / f"{name}.yaml").write_text(PIPELINES[name], encoding="utf-8")
    write_own_package(folder / "packages")
    environment = os.environ | {"ALIGNFLOW_HOME": str(folder / "home"), "PYTHONPATH": f"{folder}/packages:{ROOT}"}
    command = [str(Path(sys.executable).with_name("alignflow")), "run", "--preset", str(folder / f"{name}.yaml")]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return time.monotonic() - began, done.stdout.strip().splitlines()


def write_own_package(folder: Path) -> None:
    """`my_desk`, as docs/extending.md shows it."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    [stages] = re.findall(r"```python\n# my_desk/stages\.py\n(.*?)```", page, flags=re.DOTALL)
    (folder / "my_desk").mkdir(parents=True)
    (folder / "my_desk" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "my_desk" / "words.py").write_text("def shout(text):\n    return text.upper()\n", encoding="utf-8")
    (folder / "my_desk" / "stages.py").write_text(stages, encoding="utf-8")


if __name__ == "__main__":
    main()
