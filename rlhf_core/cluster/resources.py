"""What a stage reserves on a cluster before it works, and how it waits for it. Knows no Ray: plan, checks and walk read it too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bundle:
    """What one process reserves, all of it on one node. Part of a GPU shares one with other processes."""

    cpus: float = 0.0
    gpus: float = 0.0
    memory_gib: float = 0.0

    def to_ray(self) -> dict[str, float]:
        """Under the names that Ray gives them, without what is not asked for; its memory is counted in bytes."""
        amounts = {"CPU": self.cpus, "GPU": self.gpus, "memory": self.memory_gib * 2**30}
        return {name: amount for name, amount in amounts.items() if amount}

    def __str__(self) -> str:
        return " and ".join(in_words(name, amount) for name, amount in self.to_ray().items()) or "nothing"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a stage reserves: its `bundles` all at once, or none of them, so that no two stages hold halves of what both need.

    Without bundles a stage runs in its own process and reserves nothing. `settings` are the fields that say how much it is.
    """

    bundles: tuple[Bundle, ...] = ()
    settings: str = ""

    @property
    def gpus(self) -> float:
        """GPUs of all bundles together."""
        return round(sum(bundle.gpus for bundle in self.bundles), 6)

    def to_ray(self) -> dict[str, float]:
        """All bundles together, under Ray's names."""
        total: Counter[str] = Counter()
        for bundle in self.bundles:
            total.update(bundle.to_ray())
        return {name: round(amount, 6) for name, amount in total.items()}

    def __str__(self) -> str:
        """For people: `4 x (1 CPU and 1 GPU)`."""
        counted = Counter(str(bundle) for bundle in self.bundles)
        return ", ".join(f"{count} x ({bundle})" for bundle, count in counted.items()) or "nothing"


def ranks(count: int, *, threads: int = 1, gpus: float = 0.0, settings: str = "") -> Resources:
    """Of `count` processes with `gpus` each. One alone that needs no GPU takes no part in this: it is the stage's own process."""
    if count == 1 and not gpus:
        return Resources()
    return Resources((Bundle(float(threads), gpus),) * count, settings)


def in_words(name: str, amount: float) -> str:
    """An amount of one of Ray's resources for people: `2 GPUs`, `0.5 GPU`, `1.5 GiB memory`."""
    if name == "memory":
        return f"{amount / 2**30:.3g} GiB memory"
    return f"{amount:.4g} {name}{'s' if amount > 1 or amount == 0 else ''}"


def _ignore(_: Any = None) -> None:
    return


@dataclass(frozen=True)
class Waiting:
    """How a stage waits for what it reserves: at most `limit_s` seconds, and without an end where that is None.

    `say` is told now and then what it waits for. `meanwhile` is called every second or so; what it raises ends the wait.
    """

    limit_s: float | None = None
    say: Callable[[str], object] = _ignore
    meanwhile: Callable[[], object] = _ignore
