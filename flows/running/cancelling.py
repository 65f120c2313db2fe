"""Being cancelled: said when it begins, because stages take their time to stop and the process may be killed meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

AnswerT = TypeVar("AnswerT")


async def told_at_once(work: Coroutine[Any, Any, AnswerT], tell: Callable[[], None]) -> AnswerT:
    """What `work` returns. When this is cancelled, `tell` is called before `work` has come to its end, which is waited for."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if not cancelled:
                cancelled = True
                tell()
            if not task.cancelling():  # the end of the loop has cancelled it already, and twice would hurry it
                task.cancel()
        except Exception:
            break
    if cancelled:
        raise asyncio.CancelledError
    return task.result()
