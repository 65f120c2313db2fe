"""Rewards that a service gives over HTTP: one that scores, and a language model that judges."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from data_processing.settings import operational
from rlhf_core.addresses import host_of
from rlhf_core.settings.rewards.base import RewardSettings
from rlhf_core.settings.rewards.rubrics import RUBRICS, is_text

_FILES = (".txt", ".md")
RequestField = bool | int | float | str | None


class ServiceReward(RewardSettings):
    """What is asked over HTTP."""

    url: str = Field(description="Address of the service; a host other than this machine must be among the allowed hosts")
    key_from: str | None = operational(
        None,
        "Name of the environment variable whose value is sent as bearer token; null: none is sent",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
    )
    in_flight: int = operational(8, "Requests that wait for an answer at the same time", ge=1, le=256)
    timeout_s: float = operational(60.0, "Seconds that one answer may take before the request is made again", gt=0)

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, value: str) -> str:
        host_of(value)
        return value

    @property
    def urls(self) -> tuple[str, ...]:
        """The service's."""
        return (self.url,)


class HttpReward(ServiceReward):
    """A service that scores responses in batches."""

    kind: Literal["http"] = "http"
    form: Literal["alignflow", "openrlhf", "vllm_score", "vllm_classify"] = Field(
        "alignflow", description="How the service is asked, and answers: docs/rewards.md"
    )
    model: str | None = Field(None, description="Name of the model at the service (the forms of vLLM); null: the one that it has")
    batch_size: int = operational(32, "Responses in one request", ge=1)


class JudgeReward(ServiceReward):
    """A language model that gives each response a score by a rubric, at any endpoint that speaks OpenAI's chat completions."""

    kind: Literal["judge"] = "judge"
    url: str = Field(description="Base address of the endpoint, as in http://127.0.0.1:8000/v1; /chat/completions is added")
    model: str = Field(description="Name of the model at the endpoint")
    rubric: str = Field(
        "quality-v1",
        description="What a response is judged by: the name of a rubric that comes with alignflow (quality-v1, correctness-v1), the path of a "
        ".txt or .md file, which is read when the settings are, or the text itself",
    )
    score_min: float = Field(0.0, description="Score of the worst response; it earns 0")
    score_max: float = Field(10.0, description="Score of the best response; it earns 1")
    show_label: bool = Field(False, description="Show the judge the prompt's label as reference answer")
    verdict_format: Literal["text", "json_object", "json_schema"] = Field(
        "text",
        description="What the endpoint is told about the form of a verdict, beside the words: nothing; that it is JSON; its JSON schema. "
        "A verdict is checked the same way",
    )
    max_tokens: int = Field(512, ge=16, description="Longest verdict, in tokens")
    request: dict[str, RequestField] = Field(
        default_factory=dict,
        description="Further fields of each request; null leaves one out: {max_tokens: null, max_completion_tokens: 2000}",
    )
    max_calls: int | None = operational(None, "Most verdicts that may be asked for by one process; null: any number", ge=1)
    max_tokens_spent: int | None = operational(
        None, "Most tokens, of requests and verdicts, that one process may use up; null: any number", ge=1
    )

    @field_validator("rubric")
    @classmethod
    def _files_are_read(cls, value: str) -> str:
        """The text of the file, so that it is what counts in the stage's key and what every worker has."""
        if value in RUBRICS or is_text(value):
            return value
        if not value.endswith(_FILES):
            raise ValueError(
                f"allowed are {', '.join(RUBRICS)}, the path of a file ({', '.join(_FILES)}), or a text of several words"
            )
        try:
            text = Path(value).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            raise ValueError(f"the file cannot be read ({error}); correct the path") from error
        if not text:
            raise ValueError("the file is empty; write what a response is judged by")
        return f"{text}\n"

    @model_validator(mode="after")
    def _best_is_above_worst(self) -> Self:
        if not self.score_min < self.score_max:
            raise ValueError(f"score_min={self.score_min:g} must be below score_max={self.score_max:g}")
        return self
