"""How a reward model of segments reads responses: what its folder says, and where segments lie in token ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from rlhf_core.credit.positions import MissingFitError, PositionFit, read_params
from rlhf_core.credit.segments import segments
from rlhf_core.credit.spans import Span, spell
from rlhf_core.credit.units import content_region, thinking_end
from rlhf_core.settings.segments import SegmentSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# In the folder of a reward model of segments, and of the checkpoint it is converted from. The frozen language model whose entropies tell
# the segments lies in a folder of its own there.
READING_NAME, PARAMS_NAME, ENTROPY_MODEL_NAME = "segments.json", "params.json", "entropy_model"
# Under these its own fit stands in `params.json`: model, dataset, method, aggregation.
OWN_FIT = ("reward_model", "preference", "peak", "avg")


class Reading(Settings):
    """What a reward model of segments was trained with, and the scores that it gave."""

    threshold_nats: float = Field(description="As in its settings")
    segment_from: Literal["response", "content"] = Field(description="As in its settings")
    method: Literal["peak"] = Field("peak", description="How segments are told")
    aggregation: Literal["avg"] = Field("avg", description="What a response is worth: the mean of its segments")
    mean: float = Field(description="Mean of responses")
    std: float = Field(description="Their standard deviation")
    positions: dict[str, Any] = Field(description="Segment rewards by position: mean, std and count")
    lines: dict[str, Any] = Field(description="Fits of mean and std over log(position), with scale and R^2")


def spans_of(
    how: Reading | SegmentSettings,
    entropy: Sequence[float],
    ids: Sequence[int],
    stop_ids: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
) -> list[Span]:
    """Segments of the response `ids`; `entropy` (nats) has one number a token."""
    ended = ids[-1] in stop_ids
    start = content_start(ids, ended, tokenizer) if how.segment_from == "content" else 0
    return segments(entropy, len(ids), how.threshold_nats, ended=ended, start=start)


def content_start(ids: Sequence[int], ended: bool, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that the answer begins at, behind what is thought before it; 0 where the tokenizer does not say."""
    spelled = spell(ids, tokenizer)
    return 0 if spelled is None else content_region(spelled, ended, thinking_end(spelled.text))[0]


def read_reading(folder: Path) -> Reading | None:
    """What the folder of a reward model says of segments; None where it reads whole responses. Raises `ConfigError` for a damaged file."""
    path = folder / READING_NAME
    if not path.is_file():
        return None
    try:
        return Reading.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} does not say how segments are read: {error}; train the reward model again") from error


def read_fit(folder: Path, reading: Reading) -> PositionFit:
    """The fit by position that belongs to the reward model in `folder`; raises `MissingFitError` where there is none, `ConfigError` for a damaged one."""
    try:
        return read_params(folder / PARAMS_NAME, OWN_FIT, reading.threshold_nats)
    except MissingFitError as error:
        raise MissingFitError(
            f"{error}. The entry that trains the reward model (reward_model, with granularity 'segment') makes it; run that again, or set "
            "credit.normalize to false, or credit.allow_missing_fit to true to take rewards as they are"
        ) from error
    except ConfigError as error:
        raise ConfigError(f"{error}; run the entry again that trains the reward model") from error


def write_reading(folder: Path, reading: Reading, params: Mapping[str, Any]) -> None:
    """Both files."""
    (folder / READING_NAME).write_text(reading.model_dump_json(indent=1), encoding="utf-8")
    (folder / PARAMS_NAME).write_text(json.dumps(params, indent=1), encoding="utf-8")
