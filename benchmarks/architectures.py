"""Measure a tiny random model of each architecture, and write what was seen into the table of docs/models.md.

    python benchmarks/architectures.py

In every layout two rows are compared with the same rows alone; then the model is trained for a step with adapters, converted
and loaded again. Takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from data_processing.errors import ConfigError  # noqa: E402
from rlhf_core.batching.collate import collate, target_mask  # noqa: E402
from rlhf_core.batching.rows import TokenRow  # noqa: E402
from rlhf_core.engine.convert import convert_checkpoint  # noqa: E402
from rlhf_core.engine.engine import TrainingEngine  # noqa: E402
from rlhf_core.engine.rehearsal import convert_outline, rehearse_convert  # noqa: E402
from rlhf_core.models.load import load_lm, load_scorer  # noqa: E402
from rlhf_core.models.lora import add_lora  # noqa: E402
from rlhf_core.models.modules import PolicyModule, ScoreModule  # noqa: E402
from rlhf_core.settings.models import ConvertConfig  # noqa: E402
from rlhf_core.settings.training import EngineSettings, LoraSettings, OptimizerSettings  # noqa: E402
from tests.architectures import ARCHITECTURES, architecture  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
COMMAND, END = "python benchmarks/architectures.py", "<!-- end -->"
COLUMNS = (
    "model type",
    "attention",
    "padded",
    "packed",
    "prompt shared",
    "train = eval",
    "log-probs from",
    "convert rehearsed",
    "converted",
    "scorer",
    "result",
)
# Nats, in fp32.
SAME = 1e-4


@dataclass(frozen=True, slots=True)
class Trained:
    """What a step of training changed, and how far the converted model is from the trained one (nats, the largest).

    `rehearsed`: what came of converting it before that step, once really and once in names and shapes alone.
    """

    change: float
    gap: float
    rehearsed: str


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description="Write the table of docs/models.md")
    parser.add_argument("--page", type=Path, default=PAGE, help="a page with the two markers of the table")
    page = parser.parse_args().page
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measured(name, Path(folder)) for name in ARCHITECTURES]
    page.write_text(with_table(page.read_text(encoding="utf-8"), table([COLUMNS, *rows]), COMMAND), encoding="utf-8")
    print(f"wrote {page}")


def measured(name: str, tmp: Path) -> tuple[str, ...]:
    """The row of one architecture, for the table."""
    folder = architecture(tmp, name)
    hf = load_lm(folder, dtype="fp32", attention="auto")
    attention = str(hf.config._attn_implementation)
    try:
        module = PolicyModule(hf)
    except ConfigError as error:
        return (name, attention, *["not used"] * (len(COLUMNS) - 3), f"refused: {error}")
    layouts, alone = module.layouts, each_alone(module)
    trained = trained_and_converted(folder, tmp / f"{name} trained", LoraSettings(rank=4))
    cells = (
        said(lambda: gap(alone, together(module, packed=False))),
        said(lambda: gap(alone, together(module, packed=True))),
        said(lambda: gap(alone, together(module, packed=True, shared=True))) if layouts.shared else "not used",
        said(lambda: gap(alone, each_alone(module.train()))),
        "its head" if layouts.own_head else "its logits",
        trained.rehearsed,
        shown(trained.gap),
        "yes" if scores(folder) else "no",
    )
    result = "packs and shares prompts" if layouts.shared else "packs" if layouts.packed else "pads"
    return (name, attention, *cells, result)


def scores(folder: Path) -> bool:
    """Whether the model can be trained to give scores."""
    try:
        ScoreModule(load_scorer(folder, dtype="fp32", attention="auto", new_head=True))
    except ConfigError:
        return False
    return True


def trained_and_converted(folder: Path, tmp: Path, lora: LoraSettings | None) -> Trained:
    """Train for a step, write the checkpoint, convert it in fp32 and load it again, all below `tmp`."""
    before = each_alone(PolicyModule(load_lm(folder, dtype="fp32", attention="auto")))
    hf = load_lm(folder, dtype="fp32", attention="auto")
    if lora is not None:
        add_lora(hf, lora)
    module = PolicyModule(hf)
    optimizer = OptimizerSettings(learning_rate=1e-2, warmup_fraction=0.0)
    engine = TrainingEngine(module, optimizer=optimizer, engine=EngineSettings(dtype="fp32"), total_steps=2)
    rehearsed = came_of(lambda: (rehearse_convert(engine, tmp / "rehearsal"), convert_outline(module)))
    engine.train_step([lambda: -together(module, packed=module.layouts.packed).mean()])
    (tmp / "checkpoint").mkdir(parents=True)
    engine.save_final(tmp / "checkpoint")
    convert_checkpoint(tmp / "checkpoint", folder, tmp / "model", ConvertConfig(dtype="fp32"), {})
    trained = each_alone(module)
    after = each_alone(PolicyModule(load_lm(tmp / "model", dtype="fp32", attention="auto")))
    return Trained(gap(before, trained), gap(trained, after), rehearsed)


def came_of(rehearsal: Callable[[], object]) -> str:
    """Whether it passed."""
    try:
        rehearsal()
    except ConfigError as error:
        return f"refused: {error}"
    return "passes"


def two_rows() -> list[TokenRow]:
    """Two rows with one prompt, long enough to run over windows, convolutions and states, and of two lengths."""
    ids = (torch.randperm(256, generator=torch.Generator().manual_seed(1)) + 128).tolist()
    return [TokenRow.from_prompt_response(ids[:16], ids[20:52]), TokenRow.from_prompt_response(ids[:16], ids[60:81])]


def each_alone(module: PolicyModule) -> Tensor:
    """Log-probs of each row in a batch of its own, one after the other; in the mode that the module is in."""
    return torch.cat([_logprobs(module, [row], packed=True) for row in two_rows()]).detach()


def together(module: PolicyModule, *, packed: bool, shared: bool = False) -> Tensor:
    """The same from one batch."""
    return _logprobs(module, two_rows(), packed=packed, shared=shared)


def gap(one: Tensor, two: Tensor) -> float:
    """The largest difference (nats)."""
    return float((one - two).abs().max())


def said(measure: Callable[[], float]) -> str:
    """A difference for people, or the kind of error that was met on the way to it."""
    try:
        return shown(measure())
    except Exception as error:  # what a model does with a layout that it was not made for is anyone's guess
        return type(error).__name__


def shown(difference: float) -> str:
    """A difference for people; one that is more than rounding stands out."""
    if difference == 0:
        return "0"
    return f"{difference:.0e}" if difference <= SAME else f"**{difference:.2g}**"


def table(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a Markdown table; the first is its head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def with_table(page: str, text: str, command: str) -> str:
    """The page with `text` between the markers of the table that `command` writes."""
    before, begin, rest = page.partition(_begin(command))
    _, _, after = rest.partition(END)
    return f"{before}{begin}\n{text}\n{END}{after}"


def rows_on(page: str, command: str) -> list[tuple[str, ...]]:
    """The rows of the table that `command` has written on the page."""
    _, _, rest = page.partition(_begin(command))
    lines = rest.partition(END)[0].strip().splitlines()[2:]
    return [tuple(line.strip("| ").split(" | ")) for line in lines]


def _begin(command: str) -> str:
    return f"<!-- begin: {command} -->"


def _logprobs(module: PolicyModule, rows: Sequence[TokenRow], *, packed: bool, shared: bool = False) -> Tensor:
    """Of all targets, row after row."""
    batch = collate(rows, pad_id=0, packed=packed, shared=shared)
    return module(batch)[0][target_mask(batch)]


if __name__ == "__main__":
    main()
