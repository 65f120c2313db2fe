"""The reward of running what a response programs."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_processing.settings import operational
from rlhf_core.settings.rewards.base import RewardSettings


class CodeReward(RewardSettings):
    """The share of the tests of its row that the Python program in a response passes, run where it can do no harm."""

    kind: Literal["code"] = "code"
    tests: str = Field(
        "label",
        min_length=1,
        description="Column with the tests of a row (label: the prompt's label): Python code with asserts, or JSON with inputs and outputs: "
        "docs/rewards.md. It does not apply to rows without that column",
    )
    entry_point: str = Field(
        "entry_point",
        min_length=1,
        description="Column with the name of the function under test; it is given to `check` where the tests define that",
    )
    needs_fence: bool = Field(
        False, description="A response without a fenced code block is worth 0; false: all of it is the program"
    )
    all_of_them: bool = Field(False, description="1 where all tests pass, else 0; a program is not run on once one has failed")
    max_tests: int | None = Field(None, ge=1, description="Pairs of input and output that are tried, the first ones; null: all")
    tolerance: float = Field(
        0.0, ge=0.0, description="How far a number in the output may be off, as a share of it, and below 1 as it is"
    )
    packages: bool = Field(
        False, description="The program may import the libraries that are installed beside alignflow, such as numpy"
    )
    time_s: float = Field(10.0, gt=0.0, description="Seconds for one run: of all Python tests of a row, or of one input")
    memory_mib: int = Field(512, ge=64, description="Address space of one run, in MiB")
    disk_mib: int = Field(16, ge=1, description="Space for its files, in MiB")
    output_kib: int = Field(1024, ge=1, description="What it may write to its standard output, in KiB")
    confine: bool = Field(
        True, description="Refuse to start where the kernel cannot confine programs; false: only tell what it cannot"
    )
    workers: int | None = operational(None, "Programs that run side by side; null: one a core", ge=1, le=256)
