"""The routes at which a reward model is served: alignflow's own form, and those of vLLM's /score and of OpenRLHF."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel, Field, model_validator

from data_processing.errors import AlignflowError
from rlhf_core.serving.served_model import Asked, Scored

Submit = Callable[[Sequence[Asked]], "Future[list[Scored]]"]


class RewardsRequest(BaseModel):
    """alignflow's own form, of which a reward model reads this much. A prompt is messages, or the text of one user turn."""

    prompts: list[list[dict[str, Any]] | str]
    responses: list[str]
    finish_reasons: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_entry_a_response(self) -> RewardsRequest:
        lengths = {len(self.prompts), len(self.responses), len(self.finish_reasons or self.responses)}
        if len(lengths) != 1:
            raise ValueError(f"prompts, responses and finish_reasons have {sorted(lengths)} entries; give one a response")
        return self

    def asked(self) -> list[Asked]:
        """What is to be scored."""
        reasons = self.finish_reasons or ["stop"] * len(self.responses)
        return [
            Asked(_messages(prompt), text, reason == "length")
            for prompt, text, reason in zip(self.prompts, self.responses, reasons, strict=True)
        ]


class ScoreRequest(BaseModel):
    """vLLM's form: pairs of texts, or one text and several others. `text_1` is a user turn, `text_2` the answer to it."""

    text_1: list[str] | str
    text_2: list[str] | str
    model: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, values: Any) -> Any:
        names = {"queries": "text_1", "documents": "text_2", "data_1": "text_1", "data_2": "text_2"}
        return {names.get(name, name): value for name, value in values.items()} if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _pairs(self) -> ScoreRequest:
        if len(_texts(self.text_1)) not in (1, len(_texts(self.text_2))):
            raise ValueError(
                f"{len(_texts(self.text_1))} text_1 and {len(_texts(self.text_2))} text_2: give one text_1, or one for each"
            )
        return self

    def asked(self) -> list[Asked]:
        """What is to be scored."""
        answers = _texts(self.text_2)
        prompts = _texts(self.text_1) * (len(answers) if len(_texts(self.text_1)) == 1 else 1)
        return [Asked(_messages(prompt), answer) for prompt, answer in zip(prompts, answers, strict=True)]


class GetRewardRequest(BaseModel):
    """OpenRLHF's form, of which a reward model reads this much: prompt and response as one text, with control tokens."""

    query: list[str]

    def asked(self) -> list[Asked]:
        """What is to be scored."""
        return [Asked(None, text) for text in self.query]


def app_of(submit: Submit, model: str, key: str | None) -> FastAPI:
    """The application. With a `key` only those who send it as bearer token are answered; anybody may ask for /health."""
    app = FastAPI(title="alignflow reward model", docs_url=None, redoc_url=None, openapi_url=None)
    guards = [] if key is None else [Depends(_guard(key))]

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": model}

    @app.post("/rewards", dependencies=guards)
    async def rewards(request: RewardsRequest) -> dict[str, Any]:
        scored = await _scored(submit, request.asked())
        return {"rewards": [one.score for one in scored], "failures": [one.failure for one in scored]}

    @app.post("/score", dependencies=guards)
    async def score(request: ScoreRequest) -> dict[str, Any]:
        scored = _all_right(await _scored(submit, request.asked()))
        tokens = sum(one.tokens for one in scored)
        return {
            "id": f"score-{secrets.token_hex(16)}",
            "object": "list",
            "created": int(time.time()),
            "model": model,
            "data": [{"index": i, "object": "score", "score": one.score} for i, one in enumerate(scored)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    @app.post("/get_reward", dependencies=guards)
    async def get_reward(request: GetRewardRequest) -> dict[str, Any]:
        return {"rewards": [one.score for one in _all_right(await _scored(submit, request.asked()))]}

    return app


def _guard(key: str) -> Callable[[Request], None]:
    expected = f"Bearer {key}".encode()

    def check(request: Request) -> None:
        if not secrets.compare_digest(request.headers.get("Authorization", "").encode(), expected):
            raise HTTPException(401, "send the key of this service as bearer token")

    return check


async def _scored(submit: Submit, asked: Sequence[Asked]) -> list[Scored]:
    try:
        return await asyncio.wrap_future(submit(asked))
    except AlignflowError as error:
        raise HTTPException(500, str(error)) from error


def _all_right(scored: list[Scored]) -> list[Scored]:
    """The same; forms that know no failures refuse the request over the first of them."""
    for number, one in enumerate(scored):
        if one.failure:
            raise HTTPException(422, f"response {number}: {one.failure}")
    return scored


def _messages(prompt: list[dict[str, Any]] | str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _texts(value: list[str] | str) -> list[str]:
    return [value] if isinstance(value, str) else value
