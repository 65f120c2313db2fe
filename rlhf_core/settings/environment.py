"""Settings of the environment that answers between the policy's turns."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from data_processing.libraries import distribution_of, environment_module
from data_processing.settings import Settings, operational

_FROM_VERIFIERS = "rlhf_core.environments.from_verifiers:FromVerifiers"


class EnvironmentSettings(Settings):
    """What answers the policy, and when a conversation is over."""

    path: str | None = Field(
        None, description="Import path module:Class of the environment (docs/environments.md); null: one turn a response"
    )
    verifiers: str | None = Field(
        None, description="Instead of path: an environment of the library verifiers, by the name that its load_environment takes"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Arguments that each environment is made with, or those of verifiers' load_environment"
    )
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
        if self.path is not None and self.verifiers is not None:
            raise ValueError(
                "environment.path and environment.verifiers are both given: a response has one environment; remove one"
            )
        if not self.is_given and (self.options or self.tool_parser):
            raise ValueError("environment.path is null, and its options or tool_parser are given: name the class that takes them")
        return self

    @property
    def is_given(self) -> bool:
        """Whether anything answers the policy."""
        return self.path is not None or self.verifiers is not None

    @property
    def said(self) -> str:
        """The setting that names it, as messages say it."""
        return f"environment.path='{self.path}'" if self.verifiers is None else f"environment.verifiers='{self.verifiers}'"

    @property
    def hosted(self) -> tuple[str, dict[str, Any]]:
        """The class that answers, as `module:Class`, and what it is made with."""
        assert self.is_given, "there is an environment"
        if self.verifiers is None:
            return self.path or "", self.options
        return _FROM_VERIFIERS, {"name": self.verifiers, "arguments": self.options}

    @property
    def modules(self) -> list[str]:
        """The user's modules that answer: that of the class, or of the named environment where it is no installed library."""
        if self.verifiers is None:
            return [self.path.partition(":")[0]] if self.path else []
        module = environment_module(self.verifiers)
        return [] if distribution_of(module) else [module]

    @property
    def libraries(self) -> list[str]:
        """The distributions whose versions can change what is answered."""
        if self.verifiers is None:
            return []
        distribution = distribution_of(environment_module(self.verifiers))
        return ["verifiers", distribution] if distribution else ["verifiers"]
