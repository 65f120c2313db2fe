"""`alignflow chat MODEL`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from data_processing.errors import ConfigError, DataError
from flows.commands.named_models import find_model
from tasks.runtime.contract.home import Home
from tasks.runtime.store.places import store_of

_HELP = "type, and end with Enter; /new begins anew, /exit (or Ctrl-D) leaves"


@dataclass(frozen=True)
class Manner:
    """How a model is talked to; lengths in tokens."""

    system: str | None
    temperature: float
    max_new_tokens: int
    max_length_tokens: int
    gpus: float


def chat_with(name: str, prompt: str | None, manner: Manner) -> None:
    """Talk with a model on the terminal, or answer `prompt` and leave. Answers are printed as they are drawn."""
    from rlhf_core.batching.templates import Renderer
    from rlhf_core.models.load import load_tokenizer
    from rlhf_core.precision import native_dtype
    from rlhf_core.rollout.talk import Talker

    home = Home.open(to_read=True)
    store = store_of(home)  # lives as long as the conversation, and the model stays on this disk with it
    folder = find_model(home, store, name).folder(store)
    renderer = Renderer(load_tokenizer(folder, trust_remote_code=True))
    talker = Talker(
        folder,
        renderer.tokenizer,
        renderer.stop_ids,
        dtype=native_dtype(on_gpu=manner.gpus > 0),
        max_length_tokens=manner.max_length_tokens,
        gpus=manner.gpus,
    )
    opening = [{"role": "system", "content": manner.system}] if manner.system else []
    messages = list(opening)
    for said in [prompt] if prompt is not None else _lines(name):
        if said == "/new":
            messages = list(opening)
            continue
        messages.append({"role": "user", "content": said})
        try:
            pieces = talker.answer(
                renderer.prompt_ids(messages), temperature=manner.temperature, max_new_tokens=manner.max_new_tokens
            )
            messages.append({"role": "assistant", "content": _print(pieces)})
        except (ConfigError, DataError) as error:  # what was said does not fit; the conversation stands as it was
            if prompt is not None:
                raise
            messages.pop()
            print(f"error: {error}", file=sys.stderr)


def _print(pieces: Iterator[str]) -> str:
    answer = ""
    for piece in pieces:
        answer += piece
        print(piece, end="", flush=True)
    print()
    return answer


def _lines(name: str) -> Iterator[str]:
    """What is typed, or comes through a pipe; empty lines are nothing."""
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        print(f"{name}: {_HELP}")
    while True:
        try:
            line = input("> " if on_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if line == "/exit":
            return
        if line:
            yield line
