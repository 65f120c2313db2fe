"""Conversations to token rows: the chat template is the only source of special tokens, spans are found by construction.

What the template renders before an assistant turn (the generation prompt included) is never a target; what it adds for
the turn, up to and with the token that ends it, is. Each partial rendering is checked to be a prefix of the next, so a
template that rewrites earlier turns is refused instead of being learnt from wrongly. A prompt's tokens never depend on
what follows it, so training sees exactly the prompts that sampling sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

from jinja2.exceptions import TemplateError

from data_processing.errors import ConfigError, DataError
from rlhf_core.batching.rows import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, str]

# For models without a chat template: a heading for every turn, and EOS after every assistant turn.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)

_QUESTION: Message = {"role": "user", "content": "Hello"}


class Renderer:
    """Tokens of conversations under one chat template.

    `chat_template` replaces the tokenizer's own; None keeps that one, or takes the plain one where there is none. `template`
    is the one in use, complete: give it to the tokenizer that is saved with the model. Raises `ConfigError` for a template
    that fails on one question and answer, does not end answers with a special token, or starts with two BOS tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template: str = chat_template or _own_template(tokenizer) or _plain_template(tokenizer)
        try:
            self._heading = self._missing_heading()
            self._end_token, self._after_end = self._ending()
            first_ids = self.prompt_ids([_QUESTION])[:2]
        except DataError as error:
            raise ConfigError(f"chat_template fails on one question and answer: {error}") from error
        if first_ids == [tokenizer.bos_token_id] * 2:
            raise ConfigError(f"chat_template starts conversations with {tokenizer.bos_token!r} twice: remove one from it")

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the one that ends an assistant turn, and EOS where that is another one."""
        end_of_turn: int = self.tokenizer.convert_tokens_to_ids(self._end_token)
        eos = self.tokenizer.eos_token_id
        return [end_of_turn] if eos is None or eos == end_of_turn else [end_of_turn, eos]

    def prompt_ids(self, prompt: Sequence[Message]) -> list[int]:
        """What the sampler is given: the prompt's messages and the opening of an assistant turn."""
        return self._encode(self._opening(prompt))

    def prompt_and_response(self, prompt: Sequence[Message], response: Sequence[Message]) -> TokenRow:
        """Prompt, then response; targets are the assistant turns of the response. Starts with `prompt_ids(prompt)`."""
        return self._row([*prompt, *response], first_target=len(prompt))

    def conversation(self, messages: Sequence[Message]) -> TokenRow:
        """The conversation up to the end of its last assistant turn; targets are all assistant turns."""
        return self._row(messages, first_target=0)

    def _row(self, messages: Sequence[Message], first_target: int) -> TokenRow:
        """Row whose targets are the assistant turns from message `first_target` on; without any it is the bare prompt."""
        text, ids, is_target = "", list[int](), list[bool]()
        for i in range(first_target, len(messages)):
            if messages[i]["role"] != "assistant":
                continue
            opening, answer = self._turn(messages[: i + 1])
            if not opening.startswith(text):
                raise _rewrites(f"assistant turns before message {i}")
            for piece, learnt in ((opening.removeprefix(text), False), (answer, True)):
                new_ids = self._continue(text, ids, piece)
                text, ids, is_target = text + piece, ids + new_ids, is_target + [learnt] * len(new_ids)
        ids = ids or self.prompt_ids(messages)
        return TokenRow(ids, is_target or [False] * len(ids))

    def _turn(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Texts before and of the last message, an assistant turn; the second ends with the token that ends the turn."""
        opening, rendered = self._opening(messages[:-1]), self._render(messages, add_generation_prompt=False)
        if not rendered.startswith(opening) or not rendered.endswith(self._end_token + self._after_end):
            raise _rewrites(f"message {len(messages) - 1}, an assistant turn,")
        return opening, rendered.removeprefix(opening).removesuffix(self._after_end)

    def _continue(self, text: str, ids: list[int], piece: str) -> list[int]:
        """Tokens of `piece` after `text`, whose tokens are `ids`: as in the whole text, unless a merge would change `ids`."""
        whole = self._encode(text + piece)
        return whole[len(ids) :] if whole[: len(ids)] == ids else self._encode(piece)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        return ids

    def _opening(self, messages: Sequence[Message]) -> str:
        if not messages:
            raise DataError("a conversation starts with an assistant turn: put a user or system turn before it")
        return self._render(messages, add_generation_prompt=True) + self._heading

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        plain = [{"role": message["role"], "content": message["content"]} for message in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(
                plain, chat_template=self.template, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template refuses a conversation with roles {roles}: {error}") from error
        return text

    def _missing_heading(self) -> str:
        """Heading of an assistant turn where the template leaves it out of its generation prompt; else empty."""
        before = self._render([_QUESTION], add_generation_prompt=False)
        if self._render([_QUESTION], add_generation_prompt=True) != before:
            return ""
        heading = _shared_start(*self._two_answers()).removeprefix(before)
        # A bare space belongs to the answer: tokenizers join it to the first word.
        return heading if heading.strip() else ""

    def _ending(self) -> tuple[str, str]:
        """The special token that ends an assistant turn, and the text from there to the end of the rendering."""
        first, second = self._two_answers()
        ending = _shared_start(first[::-1], second[::-1])[::-1]
        added = self.tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        found = [(ending.index(token), token) for token in special if token in ending]
        if not found:
            raise ConfigError(
                f"chat_template ends assistant turns with {ending!r}, which holds no special token of the tokenizer, so a model "
                "would never learn to stop: end them with {{ eos_token }}"
            )
        start, token = min(found)
        return token, ending[start + len(token) :]

    def _two_answers(self) -> tuple[str, str]:
        """Renderings that differ in the assistant's content alone."""
        zero, one = ({"role": "assistant", "content": content} for content in "01")
        return self._render([_QUESTION, zero], False), self._render([_QUESTION, one], False)


def _shared_start(one: str, other: str) -> str:
    return "".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _rewrites(where: str) -> ConfigError:
    return ConfigError(
        f"chat_template renders {where} differently once the conversation goes on (templates that drop earlier reasoning do), so "
        "its tokens cannot be told from the user's: give rows with a single assistant turn, or a template that keeps turns as "
        "they were in model.chat_template"
    )


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if tokenizer.chat_template is None:
        return None
    template: str = tokenizer.get_chat_template()
    return template


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The plain template, with a BOS in front where the tokenizer insists on one."""
    if tokenizer.eos_token is None:
        raise ConfigError("the tokenizer has neither a chat template nor an EOS token: give a template in model.chat_template")
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("Hello")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
