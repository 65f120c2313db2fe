"""Five hundred random inputs: each ends in success, or in one line that names what is wrong and what to do.

`make fuzz` tries ten thousand.
"""

from __future__ import annotations

import logging
import os

import pytest

from tests.fuzz.run_fuzz import KINDS, inputs, run, told

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("ALIGNFLOW_FUZZ", "500"))
SEED = int(os.environ.get("ALIGNFLOW_FUZZ_SEED", "0"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_random_inputs_end_in_success_or_in_a_line(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNFLOW_HOME", "")  # what each input sets is taken back afterwards
    logging.disable(logging.CRITICAL)
    failed = []
    try:
        for number in (number for of_kind, number in inputs(COUNT) if of_kind == kind):
            try:
                run(SEED, kind, number)
            except (Exception, SystemExit) as error:
                failed.append(told(SEED, kind, number, error))
    finally:
        logging.disable(logging.NOTSET)
    assert not failed, "\n".join(failed)
