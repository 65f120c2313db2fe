"""A score a sequence for causal language models that transformers has no sequence classifier for.

The class is built from transformers' own parts, as its classifiers are: the model without its language head, and a linear
head `score`. It is made anew wherever such a folder is loaded here; elsewhere the folder's weights are read by their names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from data_processing.errors import ConfigError


def register_scorer(config: Any) -> None:
    """See to it that `AutoModelForSequenceClassification` loads a scorer for models of this config.

    Raises `ConfigError` where there is neither a classifier nor a causal language model to make one of.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    if type(config) in AutoModelForSequenceClassification._model_mapping or _brings(config, "AutoModelForSequenceClassification"):
        return
    if type(config) not in AutoModelForCausalLM._model_mapping or _brings(config, "AutoModelForCausalLM"):
        raise ConfigError(
            f"model type '{config.model_type}' has no sequence classifier, and transformers has no causal language model to make "
            "one of, so no reward model and no critic can be trained; choose another model, or train without them"
        )
    language_model = AutoModelForCausalLM._model_mapping[type(config)]
    AutoModelForSequenceClassification.register(type(config), _scorer_class(language_model), exist_ok=True)


def check_scores(model: Any, where: str) -> None:
    """Raise `ConfigError` unless the model has a linear head `score` with one output."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ConfigError(
            f"{where}: {type(model).__name__} has no linear head 'score' with one output, so no reward model and no critic can be "
            "made of it; choose a decoder-only model, or train without them"
        )


def is_own_scorer(model: Any) -> bool:
    """Whether `model` is of a class made here, which transformers by itself does not load."""
    return bool(getattr(type(model), "made_for_scores", False))


def _brings(config: Any, auto: str) -> bool:
    return auto in getattr(config, "auto_map", {})


def _scorer_class(language_model: type[Any]) -> type[Any]:
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification

    family = [
        parent for parent in language_model.__mro__ if issubclass(parent, PreTrainedModel) and parent is not PreTrainedModel
    ]
    name = language_model.__name__.replace("CausalLM", "SequenceClassification")
    members = {
        "__module__": language_model.__module__,
        "base_model_prefix": language_model.base_model_prefix,
        "forward": _forward,
        "made_for_scores": True,
    }
    # The last is what all models of the family derive from; it knows their attention and how weights begin.
    return type(name, (GenericForSequenceClassification, family[-1]), members)


def _forward(self: Any, input_ids: Tensor, **inputs: Any) -> Any:
    """Scores [B, 1] of `input_ids` [B, S] at the last token that is no padding, whatever else the model's output holds."""
    from transformers.modeling_outputs import SequenceClassifierOutput

    hidden = self.base_model(input_ids=input_ids, **inputs).last_hidden_state
    pad_id = self.config.get_text_config().pad_token_id
    if pad_id is None:
        last = torch.full((len(input_ids),), -1)
    else:
        last = (torch.arange(input_ids.shape[1], device=input_ids.device) * (input_ids != pad_id)).argmax(-1)
    return SequenceClassifierOutput(logits=self.score(hidden[torch.arange(len(input_ids)), last]))
