"""The process that environments run in: `python -m rlhf_core.environments.worker PATH OPTIONS`. Lines of JSON in, lines of JSON out.

Each line asks one conversation's environment for one thing: `{"id", "conversation", "op", "given"}`, where `op` is reset, step, end,
or tools (those of the class). Requests run in threads, so that a slow one holds up its own conversation only.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from rlhf_core.environments.base import load_environment, read_reply
from rlhf_core.imported import RAISED, awaited, last_user_line

_THREADS = 64


def main(path: str, options: dict[str, Any]) -> None:
    """Answer until the input ends."""
    out, lock = sys.stdout, threading.Lock()
    # Whatever an environment prints is no answer.
    sys.stdout = sys.stderr
    made = load_environment(path)
    if prepare := getattr(made, "prepare", None):
        prepare(**options)
    conversations: dict[int, Any] = {}

    def answer(asked: dict[str, Any]) -> None:
        found: dict[str, Any] = {"id": asked["id"]}
        try:
            found["answer"] = _answer(made, options, conversations, asked)
        except RAISED as error:
            found["error"] = f"{type(error).__name__}: {error}{last_user_line(error, __file__)}"
        try:
            line = json.dumps(found, allow_nan=False)
        except (TypeError, ValueError) as error:
            line = json.dumps({"id": asked["id"], "error": f"what it returned is no JSON: {error}"})
        with lock:
            out.write(line + "\n")
            out.flush()

    pool = ThreadPoolExecutor(_THREADS)
    for line in sys.stdin:
        pool.submit(answer, json.loads(line))
    # Whoever asked has gone: what an environment is still at, or hangs in, nobody waits for.
    os._exit(0)


def _answer(made: Any, options: dict[str, Any], conversations: dict[int, Any], asked: dict[str, Any]) -> Any:
    number, given = asked["conversation"], asked.get("given", {})
    if asked["op"] == "end":
        if close := getattr(conversations.pop(number, None), "close", None):
            awaited(close())
        return None
    if asked["op"] == "tools":
        return getattr(made, "tools", None)
    if asked["op"] == "reset":
        conversations[number] = made(**options)
        awaited(conversations[number].reset(**given))
        return None
    return asdict(read_reply(awaited(conversations[number].step(**given))))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
