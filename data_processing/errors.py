"""The errors a stage may end with: each with the exit code the runtime reports, what that means to a user, and what to do.

Anything that is not one of these is infrastructure: the runtime may try it again. It tries none again that is `final`, because
that cannot help.
"""


class AlignflowError(Exception):
    """Base of every error alignflow raises on purpose; `exit_code` is what a worker process exits with."""

    exit_code = 1
    final = False
    meaning = "the machinery failed, not the stage"
    what_to_do = "look at its log; starting the run again resumes it"


class ConfigError(AlignflowError):
    """A setting, path or combination that cannot work; the message names field, value, what is allowed, what to do."""

    exit_code = 10
    final = True
    meaning = "a setting cannot work"
    what_to_do = "correct the setting named above"


class DataError(AlignflowError):
    """Rows or tables that break their contract; the message names the table and the rows."""

    exit_code = 11
    final = True
    meaning = "bad data"
    what_to_do = "correct the rows or tables named above, or raise the tolerance that is named"


class DivergedError(AlignflowError):
    """NaN or infinite loss or gradient, an infinite reward, or sampler and trainer too far apart."""

    exit_code = 12
    final = True
    meaning = "training diverged"
    what_to_do = "lower the stage's learning rate or raise its KL weight; the last good checkpoint is kept"


class OutOfMemoryError(AlignflowError):
    """Host or device memory ran out; the message names the settings that lower it."""

    exit_code = 13
    meaning = "out of memory"
    what_to_do = "lower the settings named above, or runtime.max_parallel_stages"


class PreemptedError(AlignflowError):
    """The stage was asked to stop and has saved a checkpoint to resume from."""

    exit_code = 14
    meaning = "stopped, with a checkpoint saved"
    what_to_do = "start the run again: it resumes"


class SupersededError(AlignflowError):
    """A newer attempt owns this key: this one may not publish."""

    exit_code = 15
    meaning = "a newer attempt owns this result"
    what_to_do = "start the run again: it takes the newer result"
