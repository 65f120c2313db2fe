"""The reward of kind vr_cli: what the plan in each response does for the completion of its prompt. Source: vrcli.md, sections 1 and 7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_processing.errors import ConfigError, DataError
from rlhf_core.credit.vr_cli.baseline import Baseline
from rlhf_core.credit.vr_cli.completions import CompletionRow, FrozenGenerator, Record
from rlhf_core.credit.vr_cli.improvement import improvement_percent, improvement_reward, perplexity
from rlhf_core.credit.vr_cli.plans import Plan, copied_share, extract_plan
from rlhf_core.models.passes import Tell
from rlhf_core.rewards.base import ScoredResponse, Scores
from rlhf_core.settings.rewards.vr_cli import BASELINE, GENERATOR, VrCliReward
from rlhf_core.settings.vr_cli import VrCliBaselineConfig

if TYPE_CHECKING:
    from rlhf_core.rewards.build import Around

# Baselines that are computed again when the first responses are scored.
_LOOKED_AT = 32


@dataclass(frozen=True, slots=True)
class Improved:
    """What a response's plan did: `percent` is None where it could not be scored, and `failure` says why."""

    plan: Plan
    plan_tokens: int
    copied: float
    baseline_nll: float
    plan_nll: float | None = None
    failure: str | None = None

    @property
    def percent(self) -> float | None:
        """The improvement; 0 without a plan."""
        return None if self.plan_nll is None else improvement_percent(self.baseline_nll, self.plan_nll)


class VrCliScorer:
    """Improvements, and what they are worth.

    `baseline` None computes baselines as they are needed, for answers that are tried outside of a run.
    """

    name = "vr_cli"

    def __init__(
        self, settings: VrCliReward, how: VrCliBaselineConfig, generator: FrozenGenerator, baseline: Baseline | None
    ) -> None:
        self._settings, self._how, self._generator, self._baseline = settings, how, generator, baseline
        self._is_checked = baseline is None
        self._n_seen, self._n_marked = 0, 0

    @property
    def notes(self) -> tuple[str, ...]:
        """The generator's, and one where no response has had a marker yet."""
        if not self._n_seen or self._n_marked or not self._settings.markers:
            return self._generator.notes
        what = "so each is a plan as a whole" if not self._settings.require_marker else "so none has a plan"
        unmarked = (
            f"reward '{self.name}': none of {self._n_seen} responses has one of the markers {self._settings.markers}, {what}; tell the policy "
            "to use one (data.prompts[].instruction), or set markers"
        )
        return (*self._generator.notes, unmarked)

    def score(self, responses: Sequence[ScoredResponse]) -> Scores:
        """What each response's plan earns; NaN where the generator cannot read it. Raises as `improved` does."""
        found = self.improved(responses)
        return Scores(
            [self.worth(each) for each in found],
            {
                "improvement": [each.percent for each in found],
                "above_zero": [None if each.percent is None else float(each.percent > 0) for each in found],
                "marked": [float(each.plan.marked) for each in found],
                "plan_tokens": [float(each.plan_tokens) for each in found],
                "copied": [each.copied for each in found],
                "baseline_perplexity": [perplexity(each.baseline_nll) for each in found],
                "plan_perplexity": [None if each.plan_nll is None else perplexity(each.plan_nll) for each in found],
            },
            failures=[each.failure for each in found],
        )

    def improved(self, responses: Sequence[ScoredResponse], tell: Tell = lambda done, total: None) -> list[Improved]:
        """What the plan of each response did. Equal plans to a prompt are scored once, those to one prompt share it.

        Raises `ConfigError` for a prompt without a completion, and for a baseline that is of other data or another model.
        """
        records = [self._record(response) for response in responses]
        known = self._baselines(responses, records)
        settings = self._settings
        plans = [extract_plan(r.text, settings.markers, require_marker=settings.require_marker) for r in responses]
        self._n_seen = self._n_seen or len(plans)  # of the first responses: it is told once
        self._n_marked += sum(plan.marked for plan in plans)
        cut = [self._generator.cut(plan.text, settings.max_plan_tokens) for plan in plans]
        found = [
            Improved(plan, tokens, copied_share(text, record.completion), nll, nll if not text else None)
            for plan, (text, tokens), record, nll in zip(plans, cut, records, known, strict=True)
        ]
        rows: dict[int, CompletionRow] = {}
        # Those to one prompt next to each other.
        for place in sorted(range(len(responses)), key=lambda i: (records[i].id, i)):
            if plan := cut[place][0]:
                try:
                    rows[place] = self._row(records[place], plan)
                except DataError as error:
                    found[place] = replace(found[place], failure=str(error))
        for place, nll in zip(rows, self._generator.nll(list(rows.values()), tell), strict=True):
            found[place] = replace(found[place], plan_nll=nll.mean)
        return found

    def _row(self, record: Record, plan: str) -> CompletionRow:
        row = self._generator.row(record, plan)
        if len(row.ids) > self._how.max_length_tokens:
            raise DataError(
                f"prompt, plan and completion have {len(row.ids)} tokens, more than the baseline's max_length_tokens="
                f"{self._how.max_length_tokens}; set max_plan_tokens, or raise it there"
            )
        return row

    def worth(self, each: Improved) -> float:
        """The reward; NaN for a plan that could not be scored."""
        settings = self._settings
        if each.percent is None:
            return float("nan")
        if not each.plan.text:
            return settings.no_plan_reward if settings.mode == "positive_fraction" else settings.empty_plan_reward
        return improvement_reward(each.percent, settings.mode, settings.cuts_percent, settings.levels)

    def _record(self, response: ScoredResponse) -> Record:
        record = Record.of(response.prompt, response.label, response.columns, self._how.gold)
        if record is None:
            raise ConfigError(
                f"prompt '{response.prompt_id}' has no completion to be made likelier: its row needs a label or an answer, or name its "
                "column in vr_cli_baseline.gold"
            )
        return record

    def _baselines(self, responses: Sequence[ScoredResponse], records: Sequence[Record]) -> list[float]:
        """Nats a token without a plan."""
        if self._baseline is None:
            return [nll.mean for nll in self._generator.nll([self._generator.row(record) for record in records])]
        known = [self._baseline.mean_nll(r.prompt_id, record) for r, record in zip(responses, records, strict=True)]
        if not self._is_checked:
            self._check(records, known)
        return known

    def _check(self, records: Sequence[Record], known: Sequence[float]) -> None:
        """Raise `ConfigError` where some of the baselines, computed again, are not what they were."""
        some = {record.id: (record, nll) for record, nll in zip(records, known, strict=True)}
        looked_at = list(some.values())[:_LOOKED_AT]
        again = self._generator.nll([self._generator.row(record) for record, _ in looked_at])
        worst = max(abs(improvement_percent(nll, now.mean)) for (_, nll), now in zip(looked_at, again, strict=True))
        if not worst <= self._settings.max_noise_percent:  # also where it is no number
            raise ConfigError(
                f"a baseline that was computed again differs by {worst:.3g} %, more than max_noise_percent={self._settings.max_noise_percent}: "
                "rewards below that are noise. Compute it in fp32 (vr_cli_baseline.dtype), run its entry again on this kind of machine, or "
                "raise the limit"
            )
        self._is_checked = True


def build(source: VrCliReward, around: Around) -> VrCliScorer:
    """From settings; raises as `scorer_with` does."""
    generator = around.scorer(source, GENERATOR)
    baseline = Baseline.read(around.scorers[BASELINE]) if BASELINE in around.scorers else None
    return scorer_with(source, generator, baseline, around.engine.gpus_per_rank)


def scorer_with(settings: VrCliReward, generator: Path, baseline: Baseline | None, gpus: float) -> VrCliScorer:
    """The scorer of a generator. The baseline says how that is asked; raises `ConfigError` where it was computed with another model."""
    how = VrCliBaselineConfig() if baseline is None else baseline.about.settings
    if baseline is not None:
        baseline.check_generator(generator)
    return VrCliScorer(settings, how, FrozenGenerator(generator, how, gpus=gpus), baseline)
