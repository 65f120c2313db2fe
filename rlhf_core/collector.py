"""Python's collector of circular garbage, switched off while many objects are made that hold no circles.

It looks through all there is again and again as their number grows: of 100,000 pairs that took three quarters of the time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_off() -> Iterator[None]:
    """For short work that makes lists of numbers, and nothing whose memory counts before it ends."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
