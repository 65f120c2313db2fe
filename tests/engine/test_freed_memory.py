"""Memory that a training step frees is there for the next one."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

ROUNDS, MIB = 10, 64
FAULTS = f"""
import resource
{{before}}
bytearray({MIB} << 20)
began = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    bytearray({MIB} << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - began)
"""


def faults(before: str) -> int:
    """How many pages a process asks for while it allocates the same again and again."""
    done = subprocess.run([sys.executable, "-c", FAULTS.format(before=before)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="this C library has no mallopt")
def test_the_same_pages_serve_again() -> None:
    kept = faults("from rlhf_core.allocator import keep_freed_memory; keep_freed_memory()")
    assert kept < faults("") / 10
