"""What a cluster has and can grow to, and whether that is enough for a stage, now or ever. Knows no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_core.cluster.resources import Bundle, Resources, in_words


@dataclass(frozen=True)
class NodeKind:
    """Nodes that are alike: how many there are, or can be (`math.inf` where nothing bounds them), and what each has."""

    resources: Mapping[str, float]
    count: float = 1


@dataclass(frozen=True)
class Capacity:
    """The most that a cluster can have: `now` are its nodes, `later` those of an autoscaler at its maximum, head included.

    `limits` bound all nodes of an autoscaler together. `unbounded`: it grows, and nobody knows how far. `name` is for people.
    """

    now: tuple[NodeKind, ...]
    later: tuple[NodeKind, ...] = ()
    limits: Mapping[str, float] | None = None
    unbounded: bool = False
    name: str = "the cluster"

    def most(self, name: str) -> float:
        """The most there can ever be of a resource, over all nodes."""
        if self.unbounded:
            return math.inf
        later = min(_total(self.later, name), (self.limits or {}).get(name, math.inf))
        return max(_total(self.now, name), later)

    def refusal(self, wanted: Resources) -> str | None:
        """Why all of `wanted` can never be there at once, and what to do; None where it can, or where nobody knows.

        It errs on the side of waiting: bundles that differ are looked at each for itself.
        """
        if self.unbounded or not (obstacle := self._obstacle(wanted)):
            return None
        on_cpu = " (0 computes on the CPU)" if wanted.gpus else ""
        return f"needs {wanted}, and {self.name} {obstacle}; lower {wanted.settings or 'that'}{on_cpu}, or add machines"

    def _obstacle(self, wanted: Resources) -> str | None:
        if short := [name for name, amount in wanted.to_ray().items() if amount > self.most(name)]:
            return f"never has more than {' and '.join(in_words(name, self.most(name)) for name in short)}"
        for bundle in dict.fromkeys(wanted.bundles):
            places = max(_places(self.now, bundle), _places(self.later, bundle))
            if places < wanted.bundles.count(bundle):
                return f"has nodes for {places:g} of them at most"
        return None


def no_kind_was_named(kind_of_node: Mapping[str, str]) -> bool:
    """Whether kinds of nodes, by node, are what Ray makes up where no autoscaler has named any: an autoscaler's have names."""
    return bool(kind_of_node) and all(kind == f"node_{node}" for node, kind in kind_of_node.items())


def _total(kinds: tuple[NodeKind, ...], name: str) -> float:
    # Without this, infinitely many nodes that have none of it would be "not a number".
    return sum(kind.resources[name] * kind.count for kind in kinds if kind.resources.get(name))


def _places(kinds: tuple[NodeKind, ...], bundle: Bundle) -> float:
    """How many processes that each reserve `bundle` fit on the nodes, were they empty."""
    fitting = ((kind.count, _places_on_one(kind.resources, bundle)) for kind in kinds)
    return sum(count * places for count, places in fitting if places)


def _places_on_one(node: Mapping[str, float], bundle: Bundle) -> float:
    return min((_times(node.get(name, 0.0), name, amount) for name, amount in bundle.to_ray().items()), default=math.inf)


def _times(have: float, name: str, amount: float) -> float:
    if name == "GPU" and amount < 1:
        # Part of a GPU is always of one GPU: 0.6 fit once on each.
        return math.floor(have) * math.floor(1 / amount + 1e-6)
    return math.floor(have / amount + 1e-6)
