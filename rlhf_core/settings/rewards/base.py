"""What every kind of reward can have."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from data_processing.settings import Settings


class RewardSettings(Settings):
    """One source of reward: its `kind` says which, and has the settings that only it reads."""

    kind: str = Field(description="What it is that says what a response is worth")
    weight: float = Field(1.0, description="Factor in the weighted sum; 0: only told")
    final_weight: float | None = Field(
        None, description="Factor in the last round; it goes there from `weight` in a straight line; null: it stays"
    )
    normalise: Literal["group", "running"] | None = Field(
        None,
        description="group: less the mean, and divided by the deviation, of the prompt's responses; running: of all responses so "
        "far; null: as it is",
    )
    name: str | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Its name in metrics and tables; null: that of its kind"
    )

    @property
    def inputs(self) -> frozenset[str]:
        """The inputs of the entry that it cannot do without."""
        return frozenset()

    @property
    def modules(self) -> tuple[str, ...]:
        """The user's modules that it runs."""
        return ()

    @property
    def libraries(self) -> tuple[str, ...]:
        """Distributions whose version can change what it says."""
        return ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders on this disk that it reads: what they hold is in the key."""
        return ()

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses that it asks."""
        return ()

    @property
    def of_tokens(self) -> bool:
        """Whether it rewards single tokens of a response."""
        return False

    @property
    def may_hang(self) -> bool:
        """Whether asking it may not come to an end: it runs what others wrote, or waits for them."""
        return bool(self.urls or self.modules)

    @property
    def computes(self) -> bool:
        """Whether it needs torch, and a GPU where there are some."""
        return False
