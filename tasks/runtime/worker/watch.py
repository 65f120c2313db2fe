"""The thread beside a working stage: prints its events for people, keeps the heartbeat, and ends a stage that hangs."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import Any

from tasks.runtime.contract.liveness import beat
from tasks.runtime.contract.spec import ERROR_FILE, EVENTS_FILE, STOP_FILE, Failure, Spec, write_record
from tasks.runtime.execution.event_tail import EventTail

_TICK_S = 0.25
_BEAT_S = 2.0
_EXIT_CODE = 1
_SIGNAL_AFTER_S = 5.0  # the signal of an executor comes sooner
_GIL_MARGIN_S = 60.0


class StageWatch:
    """Watches the attempt's `events.jsonl` while the `with` block runs.

    After `stall_after_s` without an event the stacks of all threads are printed and the process exits: a hung
    collective holds the main thread, so no exception would reach anyone. A second timer, in C, covers threads that
    never give the interpreter back. A file that cannot be read or touched for a while (a full disk, a shared folder that
    is away) ends neither the watch nor the stage.
    """

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._stall_after_s = spec.stall_after_s
        self._tail = EventTail(spec.folder / EVENTS_FILE)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stage-watch", daemon=True)
        self._stopping_since: float | None = None

    def __enter__(self) -> StageWatch:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            self._print_new_events()

    def publishing(self) -> None:
        """The stage's work is done; hashing what it made has no events, and takes as long as it takes."""
        self._stall_after_s = None

    def _run(self) -> None:
        last_event = last_beat = time.monotonic()
        while not self._ended.wait(_TICK_S):
            now, limit_s = time.monotonic(), self._stall_after_s
            with suppress(OSError):
                if self._print_new_events():
                    last_event = now
            if now - last_beat > _BEAT_S:
                last_beat = now
                if limit_s:
                    faulthandler.dump_traceback_later(limit_s + _GIL_MARGIN_S, exit=True)
                else:
                    faulthandler.cancel_dump_traceback_later()
                with suppress(OSError):
                    beat(self._spec.folder)
                    self._stop_where_asked(now)
            if limit_s and now - last_event > limit_s:
                self._end_stalled(limit_s)

    def _stop_where_asked(self, now: float) -> None:
        """End as a signal would, where those who asked could not send one: on another machine, or past a cluster that is away."""
        if not (self._spec.folder / STOP_FILE).exists():
            return
        self._stopping_since = self._stopping_since or now
        if now - self._stopping_since > _SIGNAL_AFTER_S:
            os.kill(os.getpid(), signal.SIGTERM)
            self._stopping_since = math.inf

    def _print_new_events(self) -> bool:
        events = self._tail.read()
        for event in events:
            if line := event_line(event):
                print(line, flush=True)
        return bool(events)

    def _end_stalled(self, stall_after_s: float) -> None:
        message = (
            f"no event for {stall_after_s:g} s (stall_after_s): the stage counts as hung and was ended; "
            "the stacks of its threads are in the log. Raise stall_after_s if its steps really take that long"
        )
        print(message, file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        write_record(self._spec.folder / ERROR_FILE, Failure(exit_code=_EXIT_CODE, error="StageStalled", message=message))
        sys.stderr.flush()
        os._exit(_EXIT_CODE)


def event_line(event: dict[str, Any]) -> str | None:
    """One event as a line for people; None for those that only trackers read."""
    if event["type"] == "progress":
        return f"[{event['done']}/{event['total']}] {event['message']}".rstrip()
    if event["type"] == "waiting":
        return str(event["message"])
    if event["type"] == "warning":
        return f"warning: {event['message']}"
    return None
