"""Send the tracker what waits in a home: `python -m tasks.runtime.tracking HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from tasks.runtime.contract.home import Home
from tasks.runtime.tracking.tracker import recover

if __name__ == "__main__":
    recover(Home.open(Path(sys.argv[1])))
