"""Stage merge: several models become one, without training."""

from __future__ import annotations

from collections.abc import Collection

from data_processing.errors import ConfigError
from data_processing.wording import did_you_mean
from rlhf_core.settings.models import MergeConfig
from tasks.runtime.contract.context import ANY, Input, Stage, StageContext

BASE = "base"


def check(config: MergeConfig, inputs: Collection[str]) -> None:
    """Raise `ConfigError` unless there are models to merge, and the weights are theirs."""
    models = [name for name in inputs if name != BASE]
    if len(models) < 2:
        raise ConfigError(
            f"merge takes at least two models beside '{BASE}', got {models}; name them, for example first: sft, second: dpo"
        )
    if unknown := [name for name in config.weights if name not in models]:
        hint = did_you_mean(unknown[0], models)
        raise ConfigError(f"weights names '{unknown[0]}', which is no input; {hint}allowed are {', '.join(models)}")
    total = sum(config.weights.get(name, 1.0) for name in models)
    if config.method == "linear" and total <= 0:
        raise ConfigError(
            f"weights add up to {total:g} with method 'linear', which is a mean by them; use a sum above 0, or another method"
        )


def run(context: StageContext[MergeConfig]) -> None:
    """Merge the models tensor by tensor, and generate with the result; the model card carries the lineage."""
    from rlhf_core.engine.convert import check_generates
    from rlhf_core.models.load import load_lm
    from rlhf_core.models.merge import merge_models

    lineage = {name: ref.model_dump(exclude={"uri"}) for name, ref in context.refs.items()}
    models = {name: folder for name, folder in context.inputs.items() if name != BASE}

    def tell(done: int, total: int) -> None:
        context.events.progress(done, total + 1, f"tensor {done} of {total}")

    facts = merge_models(
        models, context.inputs[BASE], context.output, context.config, seed=context.seed, lineage=lineage, tell=tell
    )
    merged = load_lm(context.output, dtype="bf16", attention="auto", trust_remote_code=True)
    check_generates(merged, context.output)
    context.events.progress(facts["tensors"] + 1, facts["tensors"] + 1, "model folder written and generated with")
    context.events.summary(facts)


STAGE = Stage(
    name="merge",
    kind="model",
    role="policy",
    config=MergeConfig,
    inputs={BASE: Input("policy", default=BASE), ANY: Input("policy")},
    check=check,
    run=run,
    libraries=("torch", "transformers", "peft", "safetensors"),
)
