"""What conversations are rendered with besides the template: the date it sees and its arguments, kept in the model's folder.

A template that asks for today's date would give other tokens every day. So the date is decided once, when the pipeline's
base model is made, and travels with the tokenizer to whoever renders for that model.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from data_processing.wording import did_you_mean
from rlhf_core.settings.models import TemplateArgument

RENDERING_NAME = "rendering.json"
# The kind of rows, in `Rendering.refuses`, that have a system turn.
SYSTEM = "system"
# The one clock that transformers gives to templates.
_CLOCK = "strftime_now"
# What apply_chat_template and the renderer set themselves.
_TAKEN = ("messages", "tools", "documents", "add_generation_prompt", "chat_template", "conversation", "tokenize", _CLOCK)


class Rendering(Settings):
    """How the conversations of one model are rendered."""

    date: datetime.date | None = Field(
        None, description="The day that the template takes for today; null: the day of the rendering"
    )
    chat_template_kwargs: dict[str, TemplateArgument] = Field(
        default_factory=dict, description="Arguments of the template, for example enable_thinking"
    )

    refuses: dict[str, str] = Field(
        default_factory=dict,
        description="Kinds of rows that the template cannot render, with the reason; seen when the model is taken in",
    )

    def arguments(self) -> dict[str, Any]:
        """Variables for the template: its arguments, and a clock that stands still at 0:00."""
        moment = datetime.datetime.combine(self.date or today(), datetime.time())
        return {**self.chat_template_kwargs, _CLOCK: moment.strftime}

    def settled(self, template_date: datetime.date | None, arguments: Mapping[str, TemplateArgument]) -> Rendering:
        """This with the settings' date and arguments over its own; today's date where neither has one."""
        return Rendering(
            date=template_date or self.date or today(), chat_template_kwargs={**self.chat_template_kwargs, **arguments}
        )


def today() -> datetime.date:
    """The day by this machine's clock; nothing else here reads it."""
    return datetime.date.today()


def uses_date(template: str) -> bool:
    """Whether the template can ask for the date."""
    return _CLOCK in template


def read_rendering(folder: str | Path) -> Rendering:
    """The rendering that a model folder carries; without a file the template sees today, and no arguments.

    Raises `ConfigError` for a file that cannot be read.
    """
    path = Path(folder) / RENDERING_NAME
    try:
        return Rendering.model_validate_json(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return Rendering()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): correct it, or remove it to render with today's date") from error


def write_rendering(rendering: Rendering, folder: Path) -> None:
    """Keep `rendering` in a model folder, in place of what is there (a link is replaced, not followed)."""
    path = folder / RENDERING_NAME
    path.unlink(missing_ok=True)
    path.write_text(rendering.model_dump_json(indent=1) + "\n", encoding="utf-8")


def check_arguments(arguments: Mapping[str, Any], template: str) -> None:
    """Raise `ConfigError` for an argument that the template does not read, or that is not for users to set."""
    words = set(re.findall(r"\w+", template))
    for name in arguments:
        if name in _TAKEN:
            raise ConfigError(f"model.chat_template_kwargs: '{name}' is set by the renderer; remove it")
        if name not in words:
            hint = did_you_mean(name, words)
            raise ConfigError(f"model.chat_template_kwargs: the chat template does not read '{name}'; {hint}remove or correct it")
