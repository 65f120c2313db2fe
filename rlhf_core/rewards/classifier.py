"""Any sequence classifier as a reward: it reads text with its own tokenizer, and one of its outputs counts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from rlhf_core.device import device_for
from rlhf_core.models.lean_import import import_transformers
from rlhf_core.models.load import TORCH_DTYPES
from rlhf_core.precision import Dtype
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.rewards.services.conversation_text import as_text
from rlhf_core.settings.rewards.models import ClassifierReward

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

Reads = Literal["chat", "pair", "response"]


class ClassifierScorer:
    """Scores texts with the classifier in `folder`; a forward pass holds at most `batch_tokens`.

    A text that is longer than the classifier's positions is NaN. Raises `ConfigError` for a folder that holds no classifier, an output
    that it lacks, and `reads` "chat" without a chat template.
    """

    name = "classifier"

    def __init__(
        self,
        folder: Path,
        *,
        reads: Reads,
        label: str | int | None,
        as_probability: bool,
        dtype: Dtype,
        batch_tokens: int,
        gpus: float = 0.0,
        trust_remote_code: bool = False,
    ) -> None:
        import_transformers()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        where = {"pretrained_model_name_or_path": folder, "local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(**where)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                **where, dtype=TORCH_DTYPES[dtype], output_loading_info=True
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"rewards: kind 'classifier': {folder} holds no sequence classifier: {error}") from error
        if missing := sorted(found["missing_keys"]):
            raise ConfigError(
                f"rewards: kind 'classifier': {folder} lacks the weights {missing[:5]}, so its scores would be random: name the folder of a "
                "trained classifier"
            )
        if reads == "chat" and not self._tokenizer.chat_template:
            raise ConfigError(f"rewards: kind 'classifier': {folder} has no chat template; use reads: pair, or response")
        self._device = device_for(gpus)
        self._model: Any = model.to(self._device).eval()
        self._output = _output(model.config.id2label, label, folder)
        self._reads, self._as_probability, self._batch_tokens = reads, as_probability, batch_tokens
        self._longest = getattr(model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """The output that counts, of each text."""
        encoded = [self._encoded(response) for response in responses]
        lengths = [len(each["input_ids"]) for each in encoded]
        rewards, failures = (
            [math.nan] * len(responses),
            [
                f"has {length} tokens, and the classifier reads {self._longest}" if length > self._longest else None
                for length in lengths
            ],
        )
        for places in self._batches(lengths):
            for place, value in zip(places, self._values([encoded[i] for i in places]), strict=True):
                rewards[place] = value
        return Scores(rewards, failures=failures if any(failures) else ())

    def _encoded(self, response: ScoredResponse) -> Any:
        if self._reads == "chat":
            turns = [*response.prompt, {"role": "assistant", "content": response.text}]
            text = self._tokenizer.apply_chat_template(turns, tokenize=False)
            return self._tokenizer(text, add_special_tokens=False)
        texts = (as_text(response.prompt), response.text) if self._reads == "pair" else (response.text,)
        return self._tokenizer(*texts)

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Places of the texts that can be read, those of similar length together: padding counts too."""
        batch: list[int] = []
        for place in sorted(range(len(lengths)), key=lengths.__getitem__):
            if lengths[place] > self._longest:
                break
            if batch and (len(batch) + 1) * lengths[place] > self._batch_tokens:
                yield batch
                batch = []
            batch.append(place)
        if batch:
            yield batch

    @torch.inference_mode()
    def _values(self, encoded: Sequence[Any]) -> list[float]:
        # Without a padding token each is read by itself: the mask of a text alone needs none.
        if self._tokenizer.pad_token is None or self._model.config.pad_token_id is None:
            return [
                value for each in encoded for value in self._read(self._tokenizer.pad([each], return_tensors="pt", padding=False))
            ]
        return self._read(self._tokenizer.pad(list(encoded), return_tensors="pt"))

    def _read(self, batch: Any) -> list[float]:
        logits = self._model(**batch.to(self._device)).logits.float()
        if not self._as_probability:
            return list(logits[:, self._output].tolist())
        several = logits.shape[1] > 1
        return list((logits.softmax(-1)[:, self._output] if several else logits[:, 0].sigmoid()).tolist())


def build(source: ClassifierReward, around: Around) -> ClassifierScorer:
    """From settings."""
    engine = around.engine
    return ClassifierScorer(
        Path(source.path),
        reads=source.reads,
        label=source.label,
        as_probability=source.output == "probability",
        dtype=engine.precision,
        batch_tokens=engine.micro_batch_tokens,
        gpus=engine.gpus_per_rank,
        trust_remote_code=source.trust_remote_code,
    )


def _output(names: dict[int, str], label: str | int | None, folder: Path) -> int:
    """The number of the output that counts; `ConfigError` where that is none of them, or not said."""
    if label is None and len(names) == 1:
        return 0
    by_name = {name: number for number, name in names.items()}
    if isinstance(label, int) and label in names:
        return label
    if isinstance(label, str) and label in by_name:
        return by_name[label]
    hint = did_you_mean(str(label), by_name) if label is not None else ""
    raise ConfigError(
        f"rewards: kind 'classifier': label={label!r} is no output of {folder}; {hint}it has {', '.join(f'{i}: {n}' for i, n in names.items())}"
    )
