"""Conversations to token rows: the chat template is the only source of special tokens, spans are found by construction.

What the template renders before an assistant turn (the generation prompt included) is never a target; what it adds for
the turn, up to and with the token that ends it, is. Each partial rendering is checked to be a prefix of the next, so a
template that rewrites earlier turns is refused instead of being learnt from wrongly. A prompt's tokens never depend on
what follows it, so training sees exactly the prompts that sampling sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError, DataError
from data_processing.turns import PLAIN_KEYS, TEXT_ROLE
from rlhf_core.batching.abilities import refusals
from rlhf_core.batching.chat_template import STAND_IN, ChatTemplate, Message, Tools
from rlhf_core.batching.growing import GrowingTokens, always_splits
from rlhf_core.batching.literal import LiteralText
from rlhf_core.batching.rendering import Rendering, read_rendering
from rlhf_core.batching.rows import TokenRow
from rlhf_core.batching.sharing import shared_beginning
from rlhf_core.batching.shown import check_shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# For models without a chat template: a heading for every turn, and EOS after every assistant turn.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}:\n{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


class Renderer:
    """Tokens of conversations under one chat template.

    `chat_template` replaces the tokenizer's own; None keeps that one, or takes the plain one where there is none. `template`
    is the one in use, complete: give it to the tokenizer that is saved with the model. `rendering` None takes what the
    tokenizer's model folder carries, so whoever loads a folder renders as everyone does. Raises `ConfigError` for a template
    that fails on one question and answer, does not end answers with a special token, or starts with two BOS tokens.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template: str | None = None, rendering: Rendering | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.template: str = chat_template or _own_template(tokenizer) or _plain_template(tokenizer)
        self._text = ChatTemplate(tokenizer, self.template, rendering or _own_rendering(tokenizer))
        self._literal = LiteralText(tokenizer)
        self._end_id: int = tokenizer.convert_tokens_to_ids(self._text.end_token)
        self._split = self._text.end_token if always_splits(tokenizer, self._text.end_token) else None
        if self.prompt_ids([{"role": "user", "content": "Hello"}])[:2] == [tokenizer.bos_token_id] * 2:
            raise ConfigError(f"chat_template starts conversations with {tokenizer.bos_token!r} twice: remove one from it")

    @property
    def refuses(self) -> dict[str, str]:
        """Kinds of rows that the template cannot render, with the reason (see `abilities.refusals`)."""
        return refusals(self._text)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the one that ends an assistant turn, and EOS where that is another one."""
        eos = self.tokenizer.eos_token_id
        return [self._end_id] if eos is None or eos == self._end_id else [self._end_id, eos]

    def prompt_ids(self, prompt: Sequence[Message], tools: Tools = None) -> list[int]:
        """What the sampler is given: the prompt's messages and the opening of an assistant turn.

        Raises `DataError`, as the others do, for what the template refuses or leaves out.
        """
        messages, functions = self._given(prompt, tools)
        text = self._text.opening(messages, functions)
        check_shown(messages, text, first_learnt=len(messages))
        return self._literal.encode(text)

    def answer_ids(self, text: str) -> list[int]:
        """Tokens of an answer by itself, whatever it follows: so it is the same ids behind every prompt. Without what ends the turn."""
        return self._literal.encode(self._literal.marked(text))

    @property
    def ending_ids(self) -> tuple[int, list[int]]:
        """The token that ends an assistant turn, and those that the template puts behind it before the next turn begins."""
        return self._end_id, self._literal.encode(self._text.after_end)

    def reply_ids(self, before: Sequence[Message], turn: Message, reply: Sequence[Message], tools: Tools = None) -> list[int]:
        """Tokens from behind the end of `turn`, an assistant's, to the opening of the next assistant turn: what says `reply`.

        What stands before is not encoded again, so it may be what a model has sampled; the turn's content is not looked at, so that no
        template rewrites it. Raises `DataError` for a reply that the template refuses or leaves out.
        """
        messages, functions = self._given([*before, {**turn, "content": STAND_IN}, *reply], tools)
        text = self._text.behind_turn(messages, len(before), functions)
        check_shown(messages[len(before) + 1 :], text, first_learnt=len(reply))
        return self._literal.encode(text)

    def prompt_and_response(self, prompt: Sequence[Message], response: Sequence[Message], tools: Tools = None) -> TokenRow:
        """Prompt, then response; targets are the assistant turns of the response. Starts with `prompt_ids(prompt, tools)`."""
        return self._row([*prompt, *response], len(prompt), tools)

    def conversation(self, messages: Sequence[Message], tools: Tools = None, *, last_only: bool = False) -> TokenRow:
        """The conversation up to the end of its last assistant turn; targets are all assistant turns.

        With `last_only` it ends with the last that is learnt at all, and that is the target. One message of role `text` is rendered
        without a template, and learnt whole.
        """
        if [message["role"] for message in messages] == [TEXT_ROLE]:
            return self._plain_text(messages[0]["content"])
        learnt = [i for i, message in enumerate(messages) if message["role"] == "assistant" and message.get("weight", 1) != 0]
        if last_only and learnt:
            return self._row(messages[: learnt[-1] + 1], learnt[-1], tools)
        return self._row(messages, 0, tools)

    def steps(self, prompt: Sequence[Message], steps: Sequence[str], separator: str, tools: Tools = None) -> TokenRow:
        """Prompt, then one answer of all steps with `separator` between them; targets are the tokens that end the steps.

        A step ends before the first token that depends on the next, so it ends with the separator where that is a token of its own. The
        last ends with the token that ends the turn. Raises `DataError` also for a step within a token.
        """
        messages = [*prompt, {"role": "assistant", "content": separator.join(steps)}]
        given, functions = self._given(messages, tools)
        opening, answer = self._text.turn(given, functions)
        check_shown(given, opening + answer, len(prompt))
        starts, end = list[int](), 0
        for step in self._literal.marked([step.strip() for step in steps]):
            starts.append(answer.index(step, end))
            end = starts[-1] + len(step)
        ids = self._tokens(opening, answer)
        ends = [shared_beginning(ids, self._tokens(opening, answer[:start])) - 1 for start in starts[1:]] + [len(ids) - 1]
        is_target = [i in ends for i in range(len(ids))]
        if sum(is_target) < len(steps) or ends[0] < len(self._tokens(opening, "")):
            raise DataError(
                "two of its steps end in one token: give steps of a word or more, or another reward_model.step_separator"
            )
        return TokenRow(ids, is_target)

    def _tokens(self, opening: str, answer: str) -> list[int]:
        tokens = GrowingTokens(self._literal.encode, self._split)
        tokens.add(opening)
        tokens.add(answer)
        return tokens.ids

    def _row(self, messages: Sequence[Message], first_target: int, tools: Tools) -> TokenRow:
        """Row whose targets are the assistant turns from message `first_target` on; without any it is the bare prompt.

        Turns of weight 0 are no targets, but what follows them is behind them.
        """
        text, tokens = "", GrowingTokens(self._literal.encode, self._split)
        weights: list[float] = []
        given, functions = self._given(messages, tools)
        last = 0
        for i in range(first_target, len(given)):
            if given[i]["role"] != "assistant":
                continue
            opening, answer = self._text.turn(given[: i + 1], functions)
            if not opening.startswith(text):
                raise self._text.rewrites(i, text, opening)
            weights += [0] * tokens.add(opening.removeprefix(text))
            weights += [messages[i].get("weight", 1)] * tokens.add(answer)
            tokens.end_turn(self._end_id)
            text, last = opening + answer, i + 1
        if not last:
            ids = self.prompt_ids(messages, tools)
            return TokenRow(ids, [False] * len(ids))
        check_shown(given[:last], text, first_target)
        is_target = [weight != 0 for weight in weights]
        return TokenRow(tokens.ids, is_target, None if set(weights) <= {0, 1} else weights)

    def _given(self, messages: Sequence[Message], tools: Tools) -> tuple[Sequence[Message], Tools]:
        """The messages and tools as the template gets them: control tokens that people typed are broken."""
        rich = bool(tools) or any(len(message) > PLAIN_KEYS for message in messages)
        if not rich:
            typed = any(self._literal.first_in(message["content"]) for message in messages)
            return (self._literal.marked(list(messages)) if typed else messages), None
        seen = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
        given, tools = self._text.given(self._literal.marked(seen)), self._literal.marked(tools)
        self._text.check_calls(given, tools)
        return given, tools

    def _plain_text(self, text: str) -> TokenRow:
        """BOS where the tokenizer puts one, the text, EOS. A control token in the text would be none of ours to put there."""
        bos, eos = self.tokenizer.bos_token, self.tokenizer.eos_token or self._text.end_token
        adds_bos = bos is not None and self.tokenizer("Hello")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        bare = text.removeprefix(bos or "").removesuffix(eos)
        if typed := self._literal.first_in(bare):
            raise DataError(
                f"a text without turns holds {typed!r}, a control token of this model: give the conversation in 'messages' and leave "
                "the control tokens to the chat template, or remove them"
            )
        ids = self._literal.encode((bos if adds_bos else "") + bare + eos)
        return TokenRow(ids, [False] + [True] * (len(ids) - 1))


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    if tokenizer.chat_template is None:
        return None
    template: str = tokenizer.get_chat_template()
    return template


def _own_rendering(tokenizer: PreTrainedTokenizerBase) -> Rendering:
    """What the folder says that the tokenizer was loaded from; a tokenizer made in memory has none."""
    return read_rendering(tokenizer.name_or_path) if tokenizer.name_or_path else Rendering()


def _plain_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The plain template, with a BOS in front where the tokenizer insists on one."""
    if tokenizer.eos_token is None:
        raise ConfigError("the tokenizer has neither a chat template nor an EOS token: give a template in model.chat_template")
    adds_bos = tokenizer.bos_token_id is not None and tokenizer("Hello")["input_ids"][:1] == [tokenizer.bos_token_id]
    return ("{{ bos_token }}" if adds_bos else "") + PLAIN_TEMPLATE
