"""The peer's arm: TRL's trainers on the same weights and rows, reporting each step. Runs in the peer's own environment.

python -m compare.arm_trl spec.json      (started by compare/duel.py)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)

from compare.process_tree import resident_mib
from compare.rewards import reward_for_peer
from compare.turns import Turns

Rows = list[dict[str, Any]]


def main() -> None:
    """Train as the spec says."""
    spec = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    turns = Turns(Path(spec["turns"]), spec["runner_pid"])
    steps: list[Rows] = json.loads((Path(spec["work"]) / "peer.json").read_text())["steps"]
    (turns.folder / "libraries_mib").write_text(str(resident_mib()))
    trainer = TRAINERS[spec["recipe"]](spec, steps, turns)
    trainer.add_callback(_TakeTurns(trainer, turns))
    trainer.train()


class _TakeTurns(TrainerCallback):  # type: ignore[misc]
    """Reports every optimizer step with its loss, as exact as the trainer has it (its own log rounds)."""

    def __init__(self, trainer: Any, turns: Turns) -> None:
        self.turns, self.losses = turns, list[float]()
        inner = trainer.training_step

        def training_step(*args: Any, **kwargs: Any) -> Any:
            loss = inner(*args, **kwargs)
            self.losses.append(loss.item())
            return loss

        trainer.training_step = training_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss, self.losses = sum(self.losses), []
        self.turns.report(state.global_step, loss=loss)


def _sft(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    """Rows are tokenised already. Packed: a step's rows are one block, as TRL's best-fit packing would hand it over."""
    arguments = _arguments(spec, turns, batch_size=len(steps[0]))
    if spec["settings"].get("packing"):
        arguments["per_device_train_batch_size"] = 1
        rows = [_block(step) for step in steps]
    else:
        rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for step in steps for row in step]
    config = trl.SFTConfig(**arguments, max_length=None, dataset_kwargs={"skip_prepare_dataset": True})
    model, tokenizer = _lm(spec)
    return trl.SFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _block(rows: Rows) -> dict[str, Any]:
    return {
        "input_ids": [i for row in rows for i in row["input_ids"]],
        "labels": [i for row in rows for i in row["labels"]],
        "seq_lengths": [len(row["input_ids"]) for row in rows],
    }


def _dpo(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    """DPOTrainer only tokenises itself: it is given the messages, and its template makes the same tokens of them."""
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for step in steps for row in step]
    config = trl.DPOConfig(**_arguments(spec, turns, batch_size=len(steps[0])))
    model, tokenizer = _lm(spec)
    return trl.DPOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _kto(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    """Every pair is two examples, the chosen answers of a step before its rejected ones."""
    rows = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for step in steps
        for name in ("chosen", "rejected")
        for row in step
    ]
    return _judged(rows, 2 * len(steps[0]), spec, turns)


def _unpaired_kto(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    rows = [{name: row[name] for name in ("prompt", "completion", "label")} for step in steps for row in step]
    return _judged(rows, len(steps[0]), spec, turns)


def _judged(rows: Rows, batch_size: int, spec: dict[str, Any], turns: Turns) -> Any:
    config = trl.KTOConfig(**_arguments(spec, turns, batch_size=batch_size))
    model, tokenizer = _lm(spec)
    return trl.KTOTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _cpo(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    return _of_pairs(CPOConfig, CPOTrainer, spec, steps, turns)


def _orpo(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return _of_pairs(ORPOConfig, ORPOTrainer, spec, steps, turns)


def _of_pairs(config: Any, trainer: Any, spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    """They count words where a limit is not given as a number."""
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for step in steps for row in step]
    arguments = config(**_arguments(spec, turns, batch_size=len(steps[0])), max_length=8192)
    model, tokenizer = _lm(spec)
    return trainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _gkd(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    rows = [{"messages": row["messages"]} for step in steps for row in step]
    model, tokenizer = _lm(spec)
    teacher = AutoModelForCausalLM.from_pretrained(Path(spec["work"]) / "teacher", dtype=torch.float32)
    return GKDTrainer(
        model=model,
        teacher_model=teacher,
        args=GKDConfig(**_arguments(spec, turns, batch_size=len(steps[0]))),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )


def _reward(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    """The head starts at zero in both arms, so that both start from the same scores."""
    rows = [{"chosen_ids": row["chosen_ids"], "rejected_ids": row["rejected_ids"]} for step in steps for row in step]
    config = trl.RewardConfig(**_arguments(spec, turns, batch_size=len(steps[0])))
    folder = Path(spec["work"]) / "model"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return trl.RewardTrainer(model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)


def _grpo(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    return _sampling(trl.GRPOConfig, _GrpoKeepsSamples, spec, steps, turns)


def _rloo(spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    return _sampling(trl.RLOOConfig, _RlooKeepsSamples, spec, steps, turns)


def _sampling(config: Any, trainer: Any, spec: dict[str, Any], steps: list[Rows], turns: Turns) -> Any:
    rows = [{"prompt": row["prompt"]} for step in steps for row in step]
    samples = spec["settings"]["num_generations"]
    arguments = config(**_arguments(spec, turns, batch_size=samples * len(steps[0])), shuffle_dataset=False)
    model, tokenizer = _lm(spec)
    made = trainer(
        model=model,
        reward_funcs=reward_for_peer,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    made.samples_path = turns.folder / "samples.json"
    return made


class _SampleKeeping:
    """Keeps the first step's samples with the log-probs that training computes for them, for the runner to compare."""

    samples_path: Path

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *more: Any, **kwargs: Any
    ) -> Any:
        result = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            model, input_ids, attention_mask, logits_to_keep, *more, **kwargs
        )
        if not self.samples_path.exists():
            rows = [row[mask.bool()].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)]
            lengths = attention_mask[:, -logits_to_keep:].sum(1).tolist()
            logprobs = [row[:length].tolist() for row, length in zip(result[0].detach(), lengths, strict=True)]
            self.samples_path.write_text(json.dumps({"ids": rows, "response_tokens": lengths, "logprobs": logprobs}))
        return result


class _GrpoKeepsSamples(_SampleKeeping, trl.GRPOTrainer):  # type: ignore[misc]
    """GRPO."""


class _RlooKeepsSamples(_SampleKeeping, trl.RLOOTrainer):  # type: ignore[misc]
    """RLOO."""


def _lm(spec: dict[str, Any]) -> tuple[Any, Any]:
    folder = Path(spec["work"]) / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def _arguments(spec: dict[str, Any], turns: Turns, batch_size: int) -> dict[str, Any]:
    """What every arm has in common, then the arm's own settings."""
    common = {
        "output_dir": str(turns.folder / "output"),
        "use_cpu": True,
        "bf16": False,
        "seed": spec["seed"],
        "max_steps": spec["steps"],
        "per_device_train_batch_size": batch_size,
        "train_sampling_strategy": "sequential",
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    settings = dict(spec["settings"])
    if settings.pop("full_logits", False):
        trl.trainer.utils._ChunkedLogProbFunction = _FullLogits
    return common | settings


class _FullLogits:
    """In the place of TRL's chunked log-probs: all logits at once, as a plain script has them.

    Not a setting of TRL's, but faster than its own where there is no Triton. What is only logged is not computed.
    """

    @staticmethod
    def apply(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, *_: Any) -> Any:
        logits = functional.linear(hidden, weight, bias)
        logits = logits if temperature == 1.0 else logits / temperature
        logprobs = -functional.cross_entropy(logits, targets, reduction="none")
        unused = torch.zeros_like(logprobs)
        return logprobs, unused, unused, unused, unused.bool()


TRAINERS = {
    "sft": _sft,
    "dpo": _dpo,
    "kto": _kto,
    "unpaired_kto": _unpaired_kto,
    "cpo": _cpo,
    "orpo": _orpo,
    "gkd": _gkd,
    "reward": _reward,
    "grpo": _grpo,
    "rloo": _rloo,
}

if __name__ == "__main__":
    main()
