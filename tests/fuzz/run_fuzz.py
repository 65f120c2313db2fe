"""Random inputs of every kind, as many as asked for: each ends in success, or in a line that says what is wrong and what to do.

    python -m tests.fuzz.run_fuzz 10000                 # so many inputs, seed 0
    python -m tests.fuzz.run_fuzz --only rows:17        # one of them, with its traceback

An input is made from the seed, its kind and its number alone. Ends with 1 where one ended otherwise, and prints for each the
command that makes it again.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers.utils import logging as transformers_logging

from tests.fuzz import fuzz_configs, fuzz_models, fuzz_rewards, fuzz_rows, fuzz_templates
from tests.fuzz.outcome import within_limit

# The kinds, and the share of each in a hundred inputs.
KINDS: dict[str, tuple[Callable[[random.Random, Path], None], int]] = {
    "configs": (fuzz_configs.attempt, 25),
    "rows": (fuzz_rows.attempt, 30),
    "templates": (fuzz_templates.attempt, 20),
    "models": (fuzz_models.attempt, 10),
    "rewards": (fuzz_rewards.attempt, 15),
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Random inputs that must end in success or in a clear line")
    parser.add_argument("count", type=int, nargs="?", default=500, help="inputs of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one input, as kind:number; or all of one kind")
    arguments = parser.parse_args()
    quiet()
    kind, _, number = (arguments.only or "").partition(":")
    if number:
        run(arguments.seed, kind, int(number))
        print("it ends well")
        return 0
    began, failed, done = time.monotonic(), 0, Counter[str]()
    for kind_of_it, number_of_it in inputs(arguments.count, kind or None):
        done[kind_of_it] += 1
        try:
            run(arguments.seed, kind_of_it, number_of_it)
        except BaseException as error:  # whatever an input gets out of us is a finding
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            print(told(arguments.seed, kind_of_it, number_of_it, error), flush=True)
    print(f"{sum(done.values())} inputs ({dict(done)}) in {time.monotonic() - began:.0f} s, {failed} ended as none may")
    return 1 if failed else 0


def inputs(count: int, only: str | None = None) -> Iterator[tuple[str, int]]:
    """Kinds and numbers of `count` inputs, by the shares of the kinds."""
    for kind, (_, share) in KINDS.items():
        if only is None or only == kind:
            yield from ((kind, number) for number in range(count * share // 100 if only is None else count))


def run(seed: int, kind: str, number: int) -> None:
    """Make an input and try it; raises whatever it should not have ended with."""
    attempt, _ = KINDS[kind]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, within_limit():
        os.environ["ALIGNFLOW_HOME"] = str(Path(folder, "home"))
        attempt(random.Random(f"{seed}:{kind}:{number}"), Path(folder))


def told(seed: int, kind: str, number: int, error: BaseException) -> str:
    """What an input ended with, where, and how to make it again."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
    again = f"python -m tests.fuzz.run_fuzz --seed {seed} --only {kind}:{number}"
    return f"{kind}:{number} {said} ({place.filename}:{place.lineno})\n    {again}"


def quiet() -> None:
    """No warnings of libraries about what is wrong on purpose."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "critical"}
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    transformers_logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
