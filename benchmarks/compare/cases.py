"""The comparisons: which rows, which arms, what must be reached. Criteria are numbered as in docs/performance.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal

from compare.duel import LEARNING_RATE, Arm
from compare.verdict import OverheadLimit, Target
from compare.workload import Lengths, RowMaker, Shape

# What TRL 1.16 offers beyond its defaults that makes it faster here: no recomputation of activations; one line a batch;
# or one row at a time, its gradients accumulated, so that nothing is padded.
NO_CHECKPOINTS = {"gradient_checkpointing": False}
PACKED = {"packing": True, **NO_CHECKPOINTS}

Row = dict[str, Any]
Unit = Literal["real tokens", "pairs", "answers", "new tokens"]


@dataclass(frozen=True)
class Scale:
    """How large the comparison is: full, or a smoke test of our arms alone."""

    shape: Shape
    lengths: Lengths
    repeats: int = 5
    rows: int = 8
    tokens: int = 4096
    peer: bool = True


FULL = Scale(Shape(), Lengths())
QUICK = Scale(Shape(512, 2, 64, 2, 2, 64, 512), Lengths(2.0, 0.5, 4, 12), repeats=1, rows=2, tokens=128, peer=False)


@dataclass(frozen=True)
class Part:
    """One comparison: the rows of each step (the dropped one first), counted in `unit`, and the arms that take them."""

    name: str
    table: str
    steps: list[list[Row]]
    unit: Unit
    units_per_step: Callable[[Sequence[Row]], float]
    arms: list[Arm]
    targets: list[Target]
    shape: Shape
    # Sampled rows differ from arm to arm, and so do the losses on them; there log-probs on one arm's samples are compared.
    samples: bool = False
    # Where the peer's loss is another by definition, so that losses say nothing on whether both compute the same rows.
    losses_differ: bool = False
    limits: list[OverheadLimit] = field(default_factory=list)
    # Arms that compute beyond the steps they report, or need every core, cannot take turns: each runs by itself, twice.
    apart: bool = False


@dataclass(frozen=True)
class Case:
    """A criterion's comparisons; `file` is where their results go, without ending."""

    criteria: tuple[str, ...]
    file: str
    title: str
    parts: Callable[[Scale], list[Part]]


def _optimizer() -> Row:
    return {"learning_rate": LEARNING_RATE, "schedule": "constant", "warmup_fraction": 0.0}


def _training(batch_size: int, steps: int, **engine: Any) -> Row:
    """Full fine-tuning in fp32; everything else as the product has it by default."""
    return {
        "lora": {"rank": 0},
        "optimizer": _optimizer(),
        "engine": {"dtype": "fp32", **engine},
        "batch_size": batch_size,
        "max_steps": steps,
        "max_length_tokens": 8192,
        "checkpoint_every_steps": 0,
    }


def ours(recipe: str, steps: Sequence[Sequence[Row]], name: str = "alignflow", **engine: Any) -> Arm:
    """An offline recipe on `steps`, full fine-tuning in fp32; `engine` are its engine settings."""
    settings = _training(len(steps[0]), len(steps), **engine) | {"max_length_tokens": _longest(steps)}
    return Arm(name, "ours", recipe, settings, threads=engine.get("threads_per_rank", 1))


def _longest(steps: Sequence[Sequence[Row]]) -> int:
    """A limit in tokens that no row reaches: every message's words, and room for the template's tokens."""
    return max(sum(len(str(value).split()) for value in row.values()) for step in steps for row in step) + 64


def _one_at_a_time(rows: int) -> Row:
    return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": rows, **NO_CHECKPOINTS}


def _tokens(rows: Sequence[Row]) -> float:
    return float(sum(row["tokens"] for row in rows))


def _sft_rows(scale: Scale, n_rows: int) -> list[list[Row]]:
    maker = RowMaker(scale.shape)
    drawn = maker.drawn(scale.lengths)
    return [[maker.sft(n_words) for n_words in islice(drawn, n_rows)] for _ in range(scale.repeats + 1)]


def _equal_rows(scale: Scale, n_rows: int) -> list[list[Row]]:
    """Rows of the same length that fill `scale.tokens`: the template adds four tokens to the words of an answer."""
    maker = RowMaker(scale.shape)
    return [[maker.sft(scale.tokens // n_rows - 4) for _ in range(n_rows)] for _ in range(scale.repeats + 1)]


def _pairs(scale: Scale, n_pairs: int) -> list[list[Row]]:
    """Pairs whose rows (prompt and answer) are as long as other rows: half of a drawn length is prompt, half answer."""
    maker = RowMaker(scale.shape)
    halves = (n_words // 2 for n_words in maker.drawn(scale.lengths))
    return [[maker.pair(*islice(halves, 3)) for _ in range(n_pairs)] for _ in range(scale.repeats + 1)]


def _prompts(scale: Scale, n_prompts: int) -> list[list[Row]]:
    maker = RowMaker(scale.shape)
    drawn = maker.drawn(scale.lengths)
    return [[maker.prompt(n_words) for n_words in islice(drawn, n_prompts)] for _ in range(scale.repeats + 1)]


def sft_speed(scale: Scale) -> list[Part]:
    """C1."""
    steps = _sft_rows(scale, scale.rows)
    arms = [
        ours("sft", steps),
        Arm("TRL, packed", "trl", "sft", PACKED),
        Arm("TRL, packed, full logits", "trl", "sft", PACKED | {"full_logits": True}),
        Arm("TRL, one row at a time", "trl", "sft", _one_at_a_time(scale.rows)),
        Arm("TRL, one row at a time, full logits", "trl", "sft", _one_at_a_time(scale.rows) | {"full_logits": True}),
        Arm("TRL, default", "trl", "sft", {}),
    ]
    best = tuple(arm.name for arm in arms[1:])
    targets = [
        Target("C1", "real tokens per CPU-second, against TRL's default", "alignflow", ("TRL, default",), 1.3),
        Target("C1", "against TRL's best", "alignflow", best, 1.05),
    ]
    return [Part("SFT", "sft", steps, "real tokens", _tokens, arms, targets, scale.shape)]


def sft_memory(scale: Scale) -> list[Part]:
    """C2. Two threads each: memory is what counts here."""
    steps = _equal_rows(scale, n_rows=8)
    engine = {"micro_batch_tokens": scale.tokens, "threads_per_rank": 2}
    arms = [
        ours("sft", steps, **engine),
        ours("sft", steps, "alignflow, checkpointing", **engine, gradient_checkpointing=True),
        Arm("TRL, full logits", "trl", "sft", NO_CHECKPOINTS | {"full_logits": True}, threads=2),
        Arm("TRL, chunked", "trl", "sft", NO_CHECKPOINTS, threads=2),
        Arm("TRL, default", "trl", "sft", {}, threads=2),
    ]
    over = "peak over the model's own, B·T = 4096, against "
    targets = [
        Target("C2", over + "full logits", "alignflow", ("TRL, full logits",), 1 / 0.5, "over_own_mib"),
        Target("C2", over + "TRL's chunked loss", "alignflow", ("TRL, chunked",), 1 / 0.9, "over_own_mib"),
        Target("C2", over + "TRL's, both recompute", "alignflow, checkpointing", ("TRL, default",), 1 / 0.9, "over_own_mib"),
    ]
    return [Part("SFT memory", "sft", steps, "real tokens", _tokens, arms, targets, scale.shape)]


def dpo(scale: Scale) -> list[Part]:
    """C3."""
    steps = _pairs(scale, scale.rows // 2)
    cached = {"precompute_ref_log_probs": True}
    one_at_a_time = cached | _one_at_a_time(len(steps[0]))
    arms = [
        ours("preference", steps),
        Arm("TRL, precomputed, one pair at a time", "trl", "dpo", one_at_a_time),
        Arm("TRL, precomputed, one pair at a time, full logits", "trl", "dpo", one_at_a_time | {"full_logits": True}),
        Arm("TRL, precomputed, no checkpointing", "trl", "dpo", cached | NO_CHECKPOINTS),
        Arm("TRL, precomputed, full logits", "trl", "dpo", cached | NO_CHECKPOINTS | {"full_logits": True}),
        Arm("TRL, default", "trl", "dpo", {}),
    ]
    best = tuple(arm.name for arm in arms[1:-1])
    targets = [
        Target("C3", "DPO pairs per CPU-second, against TRL's default", "alignflow", ("TRL, default",), 1.5),
        Target("C3", "against a precomputed reference", "alignflow", best, 1.1),
    ]
    return [Part("DPO", "preference", steps, "pairs", len, arms, targets, scale.shape)]


def reward_model(scale: Scale) -> list[Part]:
    """C6."""
    steps = _pairs(scale, scale.rows)
    arms = [
        ours("reward_model", steps),
        Arm("TRL, one pair at a time", "trl", "reward", _one_at_a_time(len(steps[0]))),
        Arm("TRL, no checkpointing", "trl", "reward", NO_CHECKPOINTS),
        Arm("TRL, default", "trl", "reward", {}),
    ]
    # A choice of ours that the peer has not by default.
    arms[0].settings["center_coef"] = 0.0
    best = tuple(arm.name for arm in arms[1:])
    targets = [Target("C6", "reward-model pairs per CPU-second, against TRL's best", "alignflow", best, 1.2)]
    return [Part("Reward model", "preference", steps, "pairs", len, arms, targets, scale.shape)]


def kto(scale: Scale) -> list[Part]:
    """C6, batches of answers without partners. The peer's trainer takes whole batches only."""
    steps = _pairs(scale, scale.rows // 2)
    cached = {"precompute_ref_log_probs": True}
    arms = [
        ours("preference", steps),
        Arm("TRL, precomputed, no checkpointing", "trl", "kto", cached | NO_CHECKPOINTS),
        Arm("TRL, precomputed, full logits", "trl", "kto", cached | NO_CHECKPOINTS | {"full_logits": True}),
        Arm("TRL, default", "trl", "kto", {}),
    ]
    arms[0].settings["method"] = "kto"
    best = tuple(arm.name for arm in arms[1:])
    targets = [Target("C6", "KTO pairs per CPU-second, against TRL's best", "alignflow", best, 1.2)]
    return [Part("KTO", "preference", steps, "pairs", len, arms, targets, scale.shape)]


def pair_methods(scale: Scale) -> list[Part]:
    """Methods without a reference. The peer's are its experimental ones, which have full logits only."""
    gamma = 1.0
    simpo = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": gamma}
    return [
        _pair_method(scale, "SimPO", {"method": "simpo", "simpo": {"gamma": gamma}}, "cpo", simpo),
        _pair_method(scale, "CPO", {"method": "cpo"}, "cpo", {"cpo_alpha": 1.0, "beta": 0.1}),
        # The peer's likelihood term has the prompt's tokens in it.
        _pair_method(scale, "ORPO", {"method": "orpo"}, "orpo", {"beta": 0.1}, losses_differ=True),
    ]


def _pair_method(scale: Scale, name: str, settings: Row, recipe: str, peer: Row, *, losses_differ: bool = False) -> Part:
    steps = _pairs(scale, scale.rows // 2)
    arms = [
        ours("preference", steps),
        Arm("TRL, one pair at a time", "trl", recipe, peer | _one_at_a_time(len(steps[0]))),
        Arm("TRL, no checkpointing", "trl", recipe, peer | NO_CHECKPOINTS),
        Arm("TRL, default", "trl", recipe, peer),
    ]
    arms[0].settings.update(settings)
    targets = _against_defaults_and_best(name, "pairs per CPU-second", arms)
    return Part(name, "preference", steps, "pairs", len, arms, targets, scale.shape, losses_differ=losses_differ)


def _against_defaults_and_best(name: str, unit: str, arms: Sequence[Arm]) -> list[Target]:
    """C11: twice as fast as the peer's defaults, which are its last arm, and 1.2 times as its other settings."""
    first = arms[0].name
    best = tuple(arm.name for arm in arms[1:-1])
    return [
        Target("C11", f"{name}, {unit}, against TRL's default", first, ("TRL, default",), 2.0),
        Target("C11", f"{name}, against TRL's best", first, best, 1.2),
    ]


def unpaired_kto(scale: Scale) -> list[Part]:
    """Judged answers, each to a prompt of its own."""
    maker = RowMaker(scale.shape)
    halves = (n_words // 2 for n_words in maker.drawn(scale.lengths))
    steps = [
        [maker.judged(*islice(halves, 2), desirable=number % 2 == 0) for number in range(scale.rows)]
        for _ in range(scale.repeats + 1)
    ]
    cached = {"precompute_ref_log_probs": True}
    arms = [
        ours("preference", steps),
        Arm("TRL, precomputed, no checkpointing", "trl", "unpaired_kto", cached | NO_CHECKPOINTS),
        Arm("TRL, precomputed, full logits", "trl", "unpaired_kto", cached | NO_CHECKPOINTS | {"full_logits": True}),
        Arm("TRL, default", "trl", "unpaired_kto", {}),
    ]
    arms[0].settings["method"] = "kto"
    targets = _against_defaults_and_best("unpaired KTO", "answers per CPU-second", arms)
    return [Part("KTO, unpaired", "unpaired", steps, "answers", len, arms, targets, scale.shape)]


def distillation(scale: Scale) -> list[Part]:
    """A teacher as large as the student, on the table's rows; the peer's experimental GKD, without answers of its own."""
    steps = _sft_rows(scale, scale.rows)
    peer = {"lmbda": 0.0, "beta": 0.5, "temperature": 1.0, "max_length": 8192}
    arms = [
        ours("distill", steps),
        Arm("TRL, one row at a time", "trl", "gkd", peer | _one_at_a_time(len(steps[0]))),
        Arm("TRL, no checkpointing", "trl", "gkd", peer | NO_CHECKPOINTS),
        Arm("TRL, default", "trl", "gkd", peer),
    ]
    arms[0].settings.update({"divergence": "jsd", "jsd_beta": 0.5})
    targets = _against_defaults_and_best("distillation", "tokens per CPU-second", arms)
    return [Part("Distillation (JSD)", "sft", steps, "real tokens", _tokens, arms, targets, scale.shape)]


def rloo(scale: Scale) -> list[Part]:
    """Sampling with transformers on both sides."""
    prompts, samples, new_tokens = (2, 4, 64) if scale.peer else (2, 2, 8)
    steps = _prompts(scale, prompts)
    peer = {"num_generations": samples, "max_completion_length": new_tokens, "beta": 0.0}
    arms = [
        _online(steps, samples, new_tokens, "alignflow", "hf", method="rloo"),
        Arm("TRL, no checkpointing", "trl", "rloo", peer | NO_CHECKPOINTS),
        Arm("TRL, full logits", "trl", "rloo", peer | NO_CHECKPOINTS | {"full_logits": True}),
        Arm("TRL, default", "trl", "rloo", peer),
    ]
    name = f"{prompts * samples} × {new_tokens}"
    targets = _against_defaults_and_best("RLOO", f"CPU-seconds of a step of {name}", arms)
    part = Part(
        f"RLOO, {name} new tokens", "prompts", steps, "new tokens", _new_tokens(samples, new_tokens), arms, targets, scale.shape
    )
    return [replace(part, samples=True)]


def _new_tokens(samples: int, new_tokens: int) -> Callable[[Sequence[Row]], float]:
    return lambda rows: len(rows) * samples * new_tokens


def grpo(scale: Scale) -> list[Part]:
    """C4 and C5."""
    return [_grpo(scale, 2, 4, 64), _grpo(scale, 4, 4, 128)] if scale.peer else [_grpo(scale, 2, 4, 8)]


def _grpo(scale: Scale, prompts: int, samples: int, new_tokens: int) -> Part:
    steps = _prompts(scale, prompts)
    peer = {"num_generations": samples, "max_completion_length": new_tokens, "beta": 0.0, "loss_type": "grpo"}
    hf, vllm = "alignflow, transformers", "alignflow, vLLM"
    full_logits, its_own = "TRL, full logits", ("TRL, no checkpointing", "TRL, default")
    arms = [
        _online(steps, samples, new_tokens, hf, "hf"),
        _online(steps, samples, new_tokens, vllm, "vllm"),
        Arm("TRL, no checkpointing", "trl", "grpo", peer | NO_CHECKPOINTS),
        Arm(full_logits, "trl", "grpo", peer | NO_CHECKPOINTS | {"full_logits": True}),
        Arm("TRL, default", "trl", "grpo", peer),
    ]
    name = f"{prompts * samples} × {new_tokens}"
    return Part(
        f"GRPO, {name} new tokens",
        "prompts",
        steps,
        "new tokens",
        lambda rows: len(rows) * samples * new_tokens,
        arms if scale.peer else arms[:1],
        [
            Target("C4", f"GRPO step {name}, both with transformers generation", hf, (full_logits, *its_own), 1.5),
            Target("C5", f"GRPO step {name}, vLLM against transformers generation", vllm, its_own, 2.5),
            Target("C5", f"GRPO step {name}, vLLM, the peer with full logits", vllm, (full_logits,), None),
        ],
        scale.shape,
        samples=True,
        limits=[OverheadLimit("C5", f"GRPO step {name} with vLLM: neither generation nor gradient", vllm, 0.1)],
    )


def overlap(scale: Scale) -> list[Part]:
    """Generation beside training: rollouts one step old, with the correction, against taking turns."""
    prompts, samples, new_tokens = (4, 4, 128) if scale.peer else (2, 2, 8)
    engine = "vllm" if scale.peer else "hf"
    steps = _prompts(scale, prompts)
    arms = [
        _online(steps, samples, new_tokens, "async", engine, async_steps=1),
        _online(steps, samples, new_tokens, "in turn", engine),
    ]
    for arm in arms:
        # A round more than is measured: the last one has no next to begin, and would be cheaper for it.
        arm.settings["steps"] = len(steps) + 1
    what = f"GRPO step {prompts * samples} × {new_tokens} with vLLM, wall time: rollouts one step old"
    return [
        Part(
            "GRPO with async_steps 1 and 0",
            "prompts",
            steps,
            "new tokens",
            lambda rows: len(rows) * samples * new_tokens,
            arms,
            [Target("async", what, "async", ("in turn",), None, "wall_s")],
            scale.shape,
            samples=True,
            apart=True,
        )
    ]


def _online(steps: Sequence[Sequence[Row]], samples: int, new_tokens: int, name: str, engine: str, **changes: Any) -> Arm:
    settings = {
        "method": "grpo",
        "steps": len(steps),
        "prompts_per_step": len(steps[0]),
        "samples_per_prompt": samples,
        "kl_coef": 0.0,
        "rewards": [{"kind": "python", "function": "compare.rewards:even_share"}],
        "rollout": {"engine": engine, "max_new_tokens": new_tokens},
        "lora": {"rank": 0},
        "optimizer": _optimizer(),
        "engine": {"dtype": "fp32"},
        "max_length_tokens": _longest(steps) + new_tokens,
        # Random weights hardly ever end a response.
        "gates": {"max_truncated_fraction": 1.0},
        "checkpoint_every_steps": 0,
    }
    return Arm(name, "ours", "online", settings | changes)


def ranks(scale: Scale) -> list[Part]:
    """C9: one thread a rank; the batch is twice that of the other cases, as there are twice the ranks."""
    return [_ranks(scale, stage) for stage in (1, 2, 3)]


def _ranks(scale: Scale, stage: int) -> Part:
    steps = _sft_rows(scale, 2 * scale.rows)
    arms = [
        ours("sft", steps, name, zero_stage=stage, world_size=world_size)
        for name, world_size in (("two ranks", 2), ("one rank", 1))
    ]
    bound = 1.6 if stage == 1 else None
    targets = [Target("C9", f"tokens/s of two ranks over one, ZeRO {stage}", "two ranks", ("one rank",), bound, "wall_s")]
    # Two ranks use both cores, so an arm that waited beside them, with a Ray of its own, would cost them time.
    return Part(f"ZeRO {stage}", "sft", steps, "real tokens", _tokens, arms, targets, scale.shape, apart=True)


CASES = [
    Case(("C1",), "sft_speed", "Supervised fine-tuning: speed", sft_speed),
    Case(("C2",), "sft_memory", "Supervised fine-tuning: peak memory", sft_memory),
    Case(("C3",), "dpo", "Direct preference optimisation", dpo),
    Case(("C4", "C5"), "grpo", "Online training: GRPO", grpo),
    Case(("async",), "overlap", "Online training: generation beside training", overlap),
    Case(("C6",), "reward_model", "Reward model", reward_model),
    Case(("C6",), "kto", "KTO", kto),
    Case(("C11",), "pair_methods", "Preference methods without a reference", pair_methods),
    Case(("C11",), "unpaired_kto", "KTO on judged answers", unpaired_kto),
    Case(("C11",), "distillation", "Distillation", distillation),
    Case(("C11",), "rloo", "Online training: RLOO", rloo),
    Case(("C9",), "ranks", "Two ranks against one", ranks),
]
