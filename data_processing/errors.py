"""The errors a stage may end with, each with the exit code the runtime reports.

Anything that is not one of these is infrastructure: the runtime may try it again.
"""


class AlignflowError(Exception):
    """Base of every error alignflow raises on purpose; `exit_code` is what a worker process exits with."""

    exit_code = 1


class ConfigError(AlignflowError):
    """A setting, path or combination that cannot work; the message names field, value, what is allowed, what to do."""

    exit_code = 10


class DataError(AlignflowError):
    """Rows or tables that break their contract; the message names the table and the rows."""

    exit_code = 11


class DivergedError(AlignflowError):
    """NaN or infinite loss or gradient, an infinite reward, or sampler and trainer too far apart."""

    exit_code = 12


class OutOfMemoryError(AlignflowError):
    """Host or device memory ran out; the message names the settings that lower it."""

    exit_code = 13


class PreemptedError(AlignflowError):
    """The stage was asked to stop and has saved a checkpoint to resume from."""

    exit_code = 14


class SupersededError(AlignflowError):
    """A newer attempt owns this key: this one may not publish."""

    exit_code = 15
