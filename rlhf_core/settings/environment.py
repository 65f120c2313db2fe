"""Settings of the environment that answers between the policy's turns."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from data_processing.settings import Settings, operational


class EnvironmentSettings(Settings):
    """What answers the policy, and when a conversation is over."""

    path: str | None = Field(
        None, description="Import path module:Class of the environment (docs/environments.md); null: one turn a response"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="Arguments that each environment is made with")
    max_turns: int = Field(4, ge=1, description="Turns of the policy at most")
    max_response_tokens: int | None = Field(
        None, ge=1, description="Tokens of all turns and replies together; null: what max_length_tokens leaves behind the prompt"
    )
    max_seconds: float | None = Field(None, gt=0.0, description="A conversation that goes on for longer ends; null: no limit")
    tool_parser: str | None = Field(
        None,
        description="vLLM's parser of tool calls for this model (hermes, llama3_json, ...); null: calls are text to the environment",
    )
    step_timeout_s: float = operational(
        60.0, "Seconds an environment may take for one answer; then the response is invalid", gt=0
    )

    @model_validator(mode="after")
    def _options_need_a_class(self) -> EnvironmentSettings:
        if self.path is None and (self.options or self.tool_parser):
            raise ValueError("environment.path is null, and its options or tool_parser are given: name the class that takes them")
        return self
