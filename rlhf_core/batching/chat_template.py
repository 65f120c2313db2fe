"""Conversations to text under one chat template: what stands before an assistant turn, and what the turn itself is.

Nothing is guessed about a template's make: each text is compared with what the template renders for the same beginning, and
what does not fit is refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from jinja2.exceptions import TemplateError

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.chat_templates import BUNDLED, marks, read_template
from rlhf_core.batching.rendering import SYSTEM, Rendering, check_arguments
from rlhf_core.batching.shown import with_reasoning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]  # role, content, and what else the turn holds (data_processing/turns.py)
Tools = Sequence[Mapping[str, Any]] | None  # the functions that a conversation may call

_QUESTION: Message = {"role": "user", "content": "Hello"}
# The two answers that the template is tried with.
_ZERO, _ONE = ([_QUESTION, {"role": "assistant", "content": content}] for content in "01")
_OPEN_TAG = re.compile(r"\s*<(\w+)>\s*")
_SHOWN_CHARACTERS = 40
# The content of a turn where only what follows it is rendered: nothing that anybody writes, and nothing that a template changes.
STAND_IN = "\u2042said\u2042"


class ChatTemplate:
    """One template, tried with one question and answer.

    `end_token` is the special token that ends an assistant turn, `after_end` what stands behind it. Raises `ConfigError` for a template that fails on a question
    and an answer, leaves contents out, or does not end answers with a special token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str, rendering: Rendering) -> None:
        check_arguments(rendering.chat_template_kwargs, template)
        self._tokenizer, self._template = tokenizer, template
        self._arguments, self._no_system = rendering.arguments(), rendering.refuses.get(SYSTEM)
        try:
            self._choose_contents()
            self.end_token, self.after_end = self._ending()
            self._heading = self._missing_heading()
            self._unanswered = self._unanswered_opening()
        except DataError as error:
            raise ConfigError(
                f"chat_template fails on one question and answer: {error}; correct it, or give another in model.chat_template"
            ) from error

    def given(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The messages with reasoning where this template looks for it."""
        return with_reasoning(messages, in_content="</think>" in self._template)

    def opening(self, messages: Sequence[Message], tools: Tools = None) -> str:
        """The text that an answer to `messages` follows: they, and the opening of an assistant turn."""
        if not messages:
            raise DataError("a conversation starts with an assistant turn: put a user or system turn before it")
        return self._render(messages, add_generation_prompt=True, tools=tools) + self._heading

    def turn(self, messages: Sequence[Message], tools: Tools = None) -> tuple[str, str]:
        """Texts before and of the last message, an assistant turn; the second ends with the token that ends the turn."""
        *before, answer = messages
        opening = self.opening(before, tools)
        thought, content = self._thought(answer["content"])
        rendered = self._render([*before, {**answer, "content": content}], add_generation_prompt=False, tools=tools)
        start = opening.removesuffix(self._unanswered) if thought else opening
        where, end = f"message {len(before)}, an assistant turn,", self.end_token + self.after_end
        if not rendered.startswith(start):
            prompted, got = _difference(start, rendered)
            raise DataError(
                f"the chat template does not render {where} behind the prompt that sampling is given (the prompt has {prompted!r} "
                f"where the turn has {got!r}): change the row, or give another template in model.chat_template"
            )
        if not rendered.endswith(end):
            raise DataError(
                f"the chat template ends {where} with {rendered[-_SHOWN_CHARACTERS:]!r}, but a plain answer with {end!r}: change the "
                "row, or give another template in model.chat_template"
            )
        return opening, thought + rendered.removeprefix(start).removesuffix(self.after_end)

    def behind_turn(self, messages: Sequence[Message], number: int, tools: Tools = None) -> str:
        """What follows the end of message `number`, an assistant turn with the content `STAND_IN`, up to the next assistant turn."""
        whole = self.opening(messages, tools)
        if STAND_IN in whole:
            rest = whole.rpartition(STAND_IN)[2]
            ends = [(rest.index(token), token) for token in self._special if token in rest]
            if not ends:
                raise DataError(
                    f"the chat template ends message {number}, an assistant turn, with no special token once others follow"
                )
            place, token = min(ends)
            return rest[place + len(token) :]
        # A turn that calls functions may be rendered without its content.
        head = "".join(self.turn(messages[: number + 1], tools))
        if not whole.startswith(head):
            raise self.rewrites(number + 1, head, whole)
        return whole.removeprefix(head)

    def rewrites(self, number: int, before: str, after: str) -> DataError:
        """The error for a conversation whose turns before message `number` render as `after`, having been learnt as `before`."""
        was, now = _difference(before, after)
        fitting = ", ".join(self._bundled_alike)
        return DataError(
            f"the chat template renders the turns before message {number} otherwise once it follows ({was!r} becomes {now!r}; "
            "templates that drop earlier reasoning do): give rows with a single assistant turn, or set model.chat_template to one "
            "that keeps turns as they were" + (f" (bundled for these control tokens: {fitting})" if fitting else "")
        )

    def check_calls(self, messages: Sequence[Message], tools: Tools) -> None:
        """Raise `DataError` where the template renders the same without the functions that may be called, or without the calls."""
        if tools and self.opening(messages, tools) == self.opening(messages):
            raise DataError(
                "the chat template does not render tools, so the functions of this row would be left out: give another template in "
                "model.chat_template, or rows without tools"
            )
        for number, message in enumerate(messages):
            if not message.get("tool_calls"):
                continue
            *before, _ = beginning = list(messages[: number + 1])
            silent = {name: value for name, value in message.items() if name != "tool_calls"}
            if self._render(beginning, False, tools) == self._render([*before, silent], False, tools):
                raise DataError(
                    f"the chat template does not render the tool calls of message {number}: give another template in "
                    "model.chat_template, or rows without tool calls"
                )

    @cached_property
    def _bundled_alike(self) -> list[str]:
        """The bundled templates whose control tokens this tokenizer has, with a generation prompt that ends as this one's."""
        end = self.opening([_QUESTION])[-8:]
        known = set(self._tokenizer.get_vocab())
        fitting = [(name, text) for name in BUNDLED if marks(text := read_template(name)) <= known and text != self._template]
        return [name for name, text in fitting if self._applied(text, [_QUESTION], True).endswith(end)]

    def _thought(self, content: str) -> tuple[str, str]:
        """What an answer begins with before the template's rendering of the rest, and that rest.

        Where the generation prompt opens a think block, an answer goes on inside it: with its own reasoning, up to and with
        the closing tag, or by closing the block at once.
        """
        if not self._unanswered:
            return "", content
        tag = self._unanswered.strip()
        close = tag.replace("<", "</")
        opened = content.lstrip().startswith(tag)
        # What the generation prompt has of the block already is left out.
        inside = content.lstrip().removeprefix(tag).removeprefix(self._unanswered.partition(tag)[2]) if opened else content
        reasoning, closed, answer = inside.rpartition(close)
        if opened and not closed:
            raise DataError(f"an assistant turn opens {tag} and never closes it: end the reasoning with {close}")
        if not closed:
            return f"\n{close}\n\n", content
        rest = answer.lstrip()
        return reasoning + close + answer.removesuffix(rest), rest

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, tools: Tools = None) -> str:
        if self._no_system and any(message["role"] == "system" for message in messages):
            raise DataError(f"the conversation has a system turn: {self._no_system}")
        plain = [{**message, "content": self._content(message["content"])} for message in messages]
        try:
            return self._applied(self._template, plain, add_generation_prompt, tools)
        except TemplateError as error:
            raise DataError(
                f"the chat template refuses a conversation with roles {_roles(messages)}: {error}; change the row, or give another "
                "template in model.chat_template"
            ) from error
        except Exception as error:  # what a faulty expression raises: a TypeError, a KeyError, anything
            raise ConfigError(
                f"chat_template fails on a conversation with roles {_roles(messages)}: {type(error).__name__}: {error}; correct it, "
                "or give another in model.chat_template"
            ) from error

    def _applied(
        self, template: str, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool, tools: Tools = None
    ) -> str:
        text: str = self._tokenizer.apply_chat_template(
            messages,
            tools=tools,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **self._arguments,
        )
        return text

    def _content(self, text: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": text}] if self._takes_parts else text

    def _choose_contents(self) -> None:
        """Texts; or lists of parts, as templates of multimodal families have it, where texts would not be rendered at all."""
        for takes_parts in (False, True):
            self._takes_parts = takes_parts
            zero, one = self._two_answers()
            if zero != one:
                return
        raise ConfigError("chat_template renders the content of an answer as nothing: give another in model.chat_template")

    def _missing_heading(self) -> str:
        """Heading of an assistant turn where the template leaves it out of its generation prompt; else empty."""
        before = self._render([_QUESTION], add_generation_prompt=False)
        if self._render([_QUESTION], add_generation_prompt=True) != before:
            return ""
        heading = _shared_start(*self._two_answers()).removeprefix(before)
        # A bare space belongs to the answer: tokenizers join it to the first word.
        return heading if heading.strip() else ""

    def _unanswered_opening(self) -> str:
        """The opening tag of a think block that ends the generation prompt and is not rendered before an answer; else empty."""
        opening = self.opening([_QUESTION])
        end = opening.removeprefix(_shared_start(opening, self._two_answers()[0]))
        return end if _OPEN_TAG.fullmatch(end) else ""

    def _ending(self) -> tuple[str, str]:
        """The special token that ends an assistant turn, and the text from there to the end of the rendering."""
        special = self._special
        first, second = self._two_answers()
        ending = _shared_start(first[::-1], second[::-1])[::-1]
        found = [(ending.index(token), token) for token in special if token in ending]
        if not found:
            raise ConfigError(
                f"chat_template ends assistant turns with {ending!r}, which holds no special token of the tokenizer, so a model "
                "would never learn to stop: end them with {{ eos_token }}"
            )
        start, token = min(found)
        return token, ending[start + len(token) :]

    @cached_property
    def _special(self) -> set[str]:
        added = self._tokenizer.added_tokens_decoder.values()
        return {token.content for token in added if token.special} | set(self._tokenizer.all_special_tokens)

    def _two_answers(self) -> tuple[str, str]:
        """Renderings that differ in the assistant's content alone."""
        return self._render(_ZERO, add_generation_prompt=False), self._render(_ONE, add_generation_prompt=False)


def _roles(messages: Sequence[Message]) -> str:
    return ", ".join(message["role"] for message in messages)


def _shared_start(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _difference(one: str, other: str) -> tuple[str, str]:
    """Both texts from where they part, cut to what can be shown."""
    start = len(_shared_start(one, other))
    return one[start : start + _SHOWN_CHARACTERS], other[start : start + _SHOWN_CHARACTERS]
