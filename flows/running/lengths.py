"""Once base model and data are there, the rows are looked at for all that follows, before it starts: their lengths, and judgements."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_processing.config import DataConfig
from data_processing.errors import DataError
from evaluation.config import EvaluateConfig
from flows.graph.nodes import Node, ancestors
from flows.graph.plan import Plan
from flows.running.check_stages import tables_of
from flows.running.progress import LOG
from rlhf_core.recipes.judgements import check_both_kinds
from rlhf_core.recipes.lengths import Found, Window
from rlhf_core.settings.models import BaseModelConfig
from rlhf_core.settings.online import OnlineConfig
from rlhf_core.settings.own_answers import IterativeConfig, SampleConfig
from rlhf_core.settings.preference import PreferenceConfig
from rlhf_core.settings.supervised import SftConfig
from rlhf_core.settings.training import TrainingConfig
from tasks.runtime.contract.context import ArtifactRef
from tasks.runtime.store.base import ArtifactStore


class LengthCheck:
    """The check of one run: made once for each data node, by whoever comes first, for all nodes of the plan that have work."""

    def __init__(self, plan: Plan, store: ArtifactStore) -> None:
        self._plan, self._store = plan, store
        self._graph = {name: planned.node for name, planned in plan.items()}
        self._results: dict[str, ArtifactRef] = {}
        self._checks: dict[str, asyncio.Task[None]] = {}

    def made(self, node: str, result: ArtifactRef) -> None:
        """`node` is done."""
        self._results[node] = result

    async def before(self, node: Node) -> None:
        """Return when the rows that `node` reads are known to fit what follows them; `DataError` naming what does not."""
        data = node.inputs.get("data")
        if not self._plan[node.name].runs or data is None or not isinstance(self._graph[data].settings, DataConfig):
            return
        if not list(windows_of(node)):
            return
        if data not in self._checks:
            self._checks[data] = asyncio.ensure_future(self._check(data, node.name))
        await asyncio.shield(self._checks[data])

    async def _check(self, data: str, node: str) -> None:
        bases = [above for above in ancestors(self._graph, [node]) if isinstance(self._graph[above].settings, BaseModelConfig)]
        if not bases or data not in self._results or bases[0] not in self._results:
            return
        readers = [p.node for p in self._plan.values() if p.runs and p.node.inputs.get("data") == data]
        windows = [window for reader in readers for window in windows_of(reader)]
        refs = (self._results[data], self._results[bases[0]])
        rows, model = [await asyncio.to_thread(self._store.fetch, ref.kind, ref.key) for ref in refs]
        if rows is None or model is None:
            return
        if any(isinstance(reader.settings, PreferenceConfig) and "unpaired" in tables_of(reader) for reader in readers):
            check_both_kinds(rows)
        found = await _measured(rows, model, windows)
        for line in found.lines:
            LOG.info(line)
        if found.errors:
            more = f" (and {len(found.errors) - 1} more such)" if len(found.errors) > 1 else ""
            raise DataError(
                f"{found.errors[0]}{more}; shorten or remove these rows, raise the limit, or let them be dropped (overlong: drop, "
                "max_dropped_fraction)"
            )


def windows_of(node: Node) -> Iterator[Window]:
    """What a node takes of its tables; nothing for nodes that read none."""
    settings = node.settings
    if isinstance(settings, EvaluateConfig):
        fraction, most, new = settings.max_dropped_fraction, settings.max_prompts, settings.max_new_tokens
        yield Window(
            node.name, "prompts", "test", None, new, True, fraction, f"the model's positions less max_new_tokens={new}", most
        )
        if "perplexity" in settings.metrics:
            yield Window(node.name, "sft", "test", None, 0, True, fraction, "the model's positions", most)
    if not isinstance(settings, (TrainingConfig, SampleConfig)):
        return
    limit, drops, fraction = settings.max_length_tokens, settings.overlong == "drop", settings.max_dropped_fraction
    for table in tables_of(node):
        if isinstance(settings, (OnlineConfig, SampleConfig, IterativeConfig)):
            new = (settings.sample if isinstance(settings, IterativeConfig) else settings).rollout.max_new_tokens
            said = f"max_length_tokens={limit} less rollout.max_new_tokens={new}"
            yield Window(node.name, "prompts", "train", limit, new, drops, fraction, said)
        else:
            cuts = isinstance(settings, SftConfig) and settings.cut_texts
            for split in ("train", "validation"):
                said = f"max_length_tokens={limit}"
                yield Window(node.name, table, split, limit, 0, drops, fraction, said, cuts_texts=cuts)


async def _measured(data: Path, model: Path, windows: list[Window]) -> Found:
    """In a process of its own: a run imports neither torch nor transformers."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder, "asked.json"), Path(folder, "found.json")
        asked.write_text(
            json.dumps({"data": str(data), "model": str(model), "windows": [asdict(window) for window in windows]}),
            encoding="utf-8",
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rlhf_core.recipes.lengths", str(asked), str(answer)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await process.communicate()
        except asyncio.CancelledError:
            process.kill()
            raise
        if not answer.is_file():
            # What it cannot do the stages will say: this is a look ahead, not a stage.
            return Found([f"warning: lengths were not measured: {(said.decode().strip().splitlines() or ['?'])[-1]}"], [])
        return Found(**json.loads(answer.read_text(encoding="utf-8")))
