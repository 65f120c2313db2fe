"""From the entries of a pipeline to their nodes, a conversion behind each that makes a checkpoint.

Every name, kind and setting is checked here, before anything is started. What follows a model is in `flows.graph.build`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from pydantic import ValidationError

from data_processing.errors import ConfigError
from data_processing.settings import Settings
from data_processing.wording import did_you_mean
from flows.graph.nodes import Node
from flows.graph.variants import SEED, Axes, Reference, Variant, joined, labels, name_of, points
from flows.settings.config import PipelineConfig
from flows.settings.entries import Entry, with_sources
from flows.settings.layers import merge, set_nested
from flows.settings.messages import validation_message
from rlhf_core.methods.row import no_reader, without
from rlhf_core.settings.training import MethodConfig
from tasks.runtime.contract.context import ANY, Input, Stage
from tasks.runtime.contract.registry import load_stage, makers_of

CHECKPOINT, POLICY = "checkpoint", "policy"  # a kind of artifact, and a role


@dataclass
class Expansion:
    """The entries of a pipeline with their stages, the variants of each, and the nodes that they become.

    Raises `ConfigError` for an unknown stage, input or entry, an input of another kind, a circle, and settings that a stage refuses.
    """

    config: PipelineConfig
    entries: dict[str, Entry] = field(init=False)
    stages: dict[str, Stage[Any]] = field(init=False)
    nodes: dict[str, Node] = field(default_factory=dict)
    variants: dict[str, list[Variant]] = field(default_factory=dict)
    # By entry, for each of its variants: the method, and the settings that it does not read.
    unread: defaultdict[str, list[tuple[str, dict[str, Any]]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.entries = with_sources(self.config.pipeline)
        self.stages = {name: _stage(name, entry) for name, entry in self.entries.items()}
        for name in self.entries:
            self._add(name, ())
        self._check_sections()

    def makers(self, role: str) -> list[str]:
        """The entries that make a `role`."""
        return [name for name, stage in self.stages.items() if stage.makes == role]

    def chosen(self, place: str, text: str, role: str) -> list[Variant]:
        """The variants that a user means by `text`; raises `ConfigError` naming `place`."""
        reference = self._reference(place, text, role)
        return reference.choose(self.variants[reference.entry], place)

    def one(self, place: str, text: str, role: str) -> Variant:
        """As `chosen`, where it can only be one."""
        chosen = self.chosen(place, text, role)
        if len(chosen) > 1:
            raise ConfigError(
                f"{place}: '{text}' has several variants, and one is needed; name it: {', '.join(v.node for v in chosen)}"
            )
        return chosen[0]

    def _add(self, name: str, above: tuple[str, ...]) -> None:
        """The nodes of entry `name`, after those of the entries it is made from; `above` are the entries that wait for it."""
        if name in above:
            circle = " -> ".join((*above[above.index(name) :], name))
            raise ConfigError(f"pipeline: entries are made from each other in a circle: {circle}; take one of these inputs out")
        if name in self.variants:
            return
        entry = self.entries[name]
        settings = {name_of(name, labels(name, axes)): self._settings(name, values) for axes, values in points(name, entry.each)}
        references = self._references(name, list(settings.values()))
        self._check_inputs(name, references, list(settings.values()))
        for reference in references.values():
            self._add(reference.entry, (*above, name))
        found: list[Variant] = []
        for inputs, inherited in self._choices(name, references):
            for axes, values in points(name, entry.each):
                own = settings[name_of(name, labels(name, axes))]
                seed = _seed(values.get(SEED), entry.seed, inputs)
                found += self._add_rounds(Variant(name, "", "", {**inherited, **axes}, seed), own, inputs)
        self.variants[name] = found

    def _settings(self, name: str, values: Mapping[str, Any]) -> Settings:
        """The stage's section, the entry's `set` over it, and `values` of its sweep over that."""
        entry, stage = self.entries[name], self.stages[name]
        together = self.config.section(entry.stage)
        for path, value in entry.set.items():
            if "." in path:
                set_nested(together, path, value)
            else:
                together = merge(together, {path: value})
        for path, value in values.items():
            if path != SEED:
                set_nested(together, path, value)
        try:
            settings: Settings = stage.config.model_validate(together)
        except ValidationError as error:
            raise ConfigError(_prefixed(f"pipeline.{name}.set", validation_message(error, stage.config))) from error
        return self._as_read(name, settings, {*_paths(entry.set), *values}) if isinstance(settings, MethodConfig) else settings

    def _as_read(self, name: str, settings: MethodConfig[Any], given: Collection[str]) -> Settings:
        """The settings without what the entry's method does not read of them, which its section may have for others.

        Raises `ConfigError` for one that is `given` for this very entry.
        """
        unread = settings.unread()
        for path, value in unread.items():
            if path in given:
                raise ConfigError(
                    f"pipeline.{name}.set.{no_reader(type(settings), path, value, settings.method, settings.methods)}"
                )
        self.unread[name].append((settings.method, unread))
        return without(settings, unread)

    def _check_sections(self) -> None:
        """Raise `ConfigError` for a setting of a section that no entry of its stage reads."""
        for stage in {self.entries[name].stage: self.stages[name] for name in self.unread}.values():
            found = [each for name, variants in self.unread.items() if self.stages[name] is stage for each in variants]
            for path, value in found[0][1].items():
                if all(path in unread for _, unread in found):
                    methods = "', '".join(dict.fromkeys(method for method, _ in found))
                    raise ConfigError(f"{stage.name}.{no_reader(stage.config, path, value, methods, stage.config.methods)}")

    def _references(self, name: str, settings: Sequence[Settings]) -> dict[str, Reference]:
        """What each input of the entry is taken from: what it names, the stage's default, or the only entry of the right kind."""
        entry, stage = self.entries[name], self.stages[name]
        inputs = {given: what for given, what in stage.inputs.items() if given != ANY}
        if ANY in stage.inputs:
            any_one = stage.inputs[ANY]
            # A name close to an input's is meant for that one, where what it names could be no other.
            further = [
                given
                for given, text in entry.inputs.items()
                if given not in inputs and (self._can_be(text, any_one.role) or not did_you_mean(given, inputs))
            ]
            inputs |= dict.fromkeys(further, any_one)
        if unknown := [given for given in entry.inputs if given not in inputs]:
            allowed = [*inputs, *Entry.model_fields]
            raise ConfigError(
                f"pipeline.{name}: stage '{stage.name}' has no input '{unknown[0]}'; {did_you_mean(unknown[0], allowed)}"
                f"its inputs are {', '.join(inputs) or 'none'}, other fields {', '.join(Entry.model_fields)}"
            )
        wanted = {wish for own in settings for wish in (*stage.wants(own), *stage.needs(own))}
        needed = {wish for own in settings for wish in stage.needs(own)}
        references: dict[str, Reference] = {}
        for given, what in inputs.items():
            text = entry.inputs.get(given) or what.default
            if text is None and (given in wanted or not what.optional):
                text = self._only_entry(name, given, what, given in needed or not what.optional)
            if text is not None:
                references[given] = self._reference(f"pipeline.{name}.{given}", text, what.role)
        return references

    def _can_be(self, text: str, role: str) -> bool:
        """Whether `text` names an entry that makes a `role`."""
        stage = self.stages.get(text.partition("@")[0])
        return stage is not None and stage.makes == role

    def _check_inputs(self, name: str, inputs: Collection[str], settings: Sequence[Settings]) -> None:
        for own in settings:
            try:
                self.stages[name].check(own, inputs)
            except ConfigError as error:
                raise ConfigError(f"pipeline.{name}: {error}") from error

    def _only_entry(self, name: str, given: str, what: Input, needed: bool) -> str | None:
        """The one entry that makes what the input takes; None where there is none and it can be done without."""
        makers = [other for other in self.makers(what.role) if other != name]
        if len(makers) == 1:
            return makers[0]
        if makers:
            raise ConfigError(f"pipeline.{name}: say which '{given}' it takes; {', '.join(makers)} make one")
        if needed:
            raise ConfigError(
                f"pipeline.{name}: its settings need the input '{given}', and no entry makes a {what.role}; add an entry of stage "
                f"{' or '.join(makers_of(what.role))}, or change the settings"
            )
        return None

    def _reference(self, place: str, text: str, role: str) -> Reference:
        """`text`, read, of an entry that there is and that makes a `role`."""
        reference = Reference.read(text, place)
        if reference.entry not in self.entries:
            known = list(self.entries)
            raise ConfigError(
                f"{place}: there is no entry '{reference.entry}'; {did_you_mean(reference.entry, known)}allowed are {', '.join(known)}"
            )
        makes = self.stages[reference.entry].makes
        if makes != role:
            fitting = self.makers(role)
            raise ConfigError(
                f"{place}: '{reference.entry}' makes a {makes}, and a {role} is expected; allowed are {', '.join(fitting) or 'none here'}"
            )
        return reference

    def _choices(self, name: str, references: Mapping[str, Reference]) -> Iterator[tuple[dict[str, Variant], Axes]]:
        """Every combination of variants that the inputs name, with what it varies in."""
        meant = {
            given: reference.choose(self.variants[reference.entry], f"pipeline.{name}.{given}")
            for given, reference in references.items()
        }
        for chosen in product(*meant.values()):
            axes = joined(reference.open_axes(v) for reference, v in zip(references.values(), chosen, strict=True))
            if axes is not None:
                yield dict(zip(meant, chosen, strict=True)), axes

    def _add_rounds(self, variant: Variant, settings: Settings, inputs: Mapping[str, Variant]) -> Iterator[Variant]:
        """`variant` with its node, or one a round; each round but the first takes what the round before made."""
        name = variant.entry
        stage, rounds = self.stages[name], self.entries[name].rounds
        again = next((given for given, what in stage.inputs.items() if what.role == stage.makes), None)
        if rounds > 1 and again is None:
            raise ConfigError(
                f"pipeline.{name}.rounds: got {rounds}; stage '{stage.name}' takes no {stage.makes}, which is what it makes, so it "
                "cannot start from a round before; use 1"
            )
        made_from = {given: variant.result for given, variant in inputs.items()}
        for number in range(1, rounds + 1):
            this = replace(variant, round=number if rounds > 1 else None, is_last=number == rounds)
            node = Node(name_of(name, this.labels), self.entries[name].stage, settings, dict(made_from), self._seed(this), name)
            result = self._put(node, stage)
            yield replace(this, node=node.name, result=result)
            if again is not None:
                made_from[again] = result

    def _put(self, node: Node, stage: Stage[Any]) -> str:
        """Add the node, and its conversion where it makes a checkpoint; returns the node that others take."""
        self.nodes[node.name] = node
        if stage.kind != CHECKPOINT:
            return node.name
        start = next((given for given, what in stage.inputs.items() if what.role == POLICY), None)
        if start is None:
            raise ConfigError(
                f"stage '{stage.name}' makes a checkpoint and takes no policy; its conversion needs the model it started from"
            )
        inputs = {"checkpoint": node.name, "base": node.inputs[start]}
        converted = Node(f"convert_{node.name}", "convert", self.config.convert, inputs, node.seed)
        self.nodes[converted.name] = converted
        return converted.name

    def _seed(self, variant: Variant) -> int:
        return self.config.run.seed if variant.seed is None else variant.seed


def _stage(name: str, entry: Entry) -> Stage[Any]:
    try:
        return load_stage(entry.stage)
    except ConfigError as error:
        raise ConfigError(f"pipeline.{name}.stage: {error}") from error


def _seed(swept: Any, own: int | None, inputs: Mapping[str, Variant]) -> int | None:
    """The sweep's, else the entry's own, else that of the first input that has one."""
    return next((seed for seed in (swept, own, *(variant.seed for variant in inputs.values())) if seed is not None), None)


def _prefixed(place: str, lines: str) -> str:
    return "\n".join(f"{place}.{line}" for line in lines.splitlines())


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted paths of nested values, those of the mappings among them too."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{name}.")
