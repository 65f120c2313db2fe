"""What one run of tested code may use, and how it may end."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Ending(StrEnum):
    """How a run ended."""

    DONE = "done"
    RAISED = "raised"
    TIME = "time"
    MEMORY = "memory"
    FORBIDDEN = "forbidden"
    TOO_MUCH = "too_much"
    NOT_CONFINED = "not_confined"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one run may use. Threads and files are counted every 20 ms, the rest by the kernel at once."""

    wall_s: float = 10.0
    cpu_s: int = 10
    memory_mib: int = 512
    disk_mib: int = 16
    output_kib: int = 1024
    open_files: int = 32
    threads: int = 64

    @property
    def disk_bytes(self) -> int:
        """Space for files."""
        return self.disk_mib << 20

    @property
    def output_bytes(self) -> int:
        """The most that is read of what it writes."""
        return self.output_kib << 10

    def of_kernel(self) -> dict[str, int]:
        """Those that the kernel keeps, by its names."""
        return {
            "RLIMIT_CPU": self.cpu_s,
            "RLIMIT_AS": self.memory_mib << 20,
            "RLIMIT_FSIZE": self.disk_bytes,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True, slots=True)
class Within:
    """What runs are confined to; `is_strict` refuses to run where the kernel cannot confine. `packages` may be imported from."""

    limits: Limits = field(default_factory=Limits)
    packages: tuple[str, ...] = ()
    is_strict: bool = True


@dataclass(frozen=True, slots=True)
class Ran:
    """How a run ended, and what it wrote: its standard output, or what its tests reported."""

    ending: Ending
    output: bytes
