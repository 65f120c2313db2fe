"""What may go wrong in a reward, and how to tell what may work at the next try. docs/rewards.md says what follows from it."""

from __future__ import annotations

from typing import Any

from data_processing.errors import AlignflowError, DivergedError


class TransientRewardError(AlignflowError):
    """A reward that may be there at the next try. Raise it in a reward function for a service that is busy or away.

    The call is made again as `online.reward_retries` says. If it still fails the stage ends like one whose machine went
    away: the rounds done are saved, and the runtime tries it again.
    """


class InfiniteRewardError(DivergedError):
    """A source gave an infinite number; the message names source, response and value."""


# Errors of the file system that come from the function, not from the machine.
_PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError)
# Those of HTTP's client errors that another try may cure: time-out, conflict, too early, too many requests.
_TRANSIENT_STATUS = (408, 409, 425, 429)
# Base classes, by top package and name, of errors of the network that are no `OSError`. Those of requests are.
_NETWORK_ERRORS = {
    ("http", "HTTPException"),
    ("httpx", "TransportError"),
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
    ("urllib3", "HTTPError"),
    ("openai", "APIConnectionError"),
    ("anthropic", "APIConnectionError"),
}


def is_transient(error: BaseException) -> bool:
    """Whether what a reward function raised may work at the next try: `TransientRewardError`, time-outs and the network.

    An HTTP answer is judged by its status: 5xx and "later, please" are transient, the other client errors are not.
    """
    if isinstance(error, TransientRewardError):
        return True
    status = _http_status(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUS
    if isinstance(error, _PERMANENT):
        return False
    bases = {(base.__module__.partition(".")[0], base.__name__) for base in type(error).__mro__}
    return isinstance(error, OSError) or bool(bases & _NETWORK_ERRORS)


def _http_status(error: BaseException) -> int | None:
    """The status of the answer that the error stands for: as urllib, aiohttp, requests, httpx and their users say it."""
    answer: Any = getattr(error, "response", None)
    for holder, name in ((answer, "status_code"), (error, "status_code"), (error, "status"), (error, "code")):
        status = getattr(holder, name, None)
        if isinstance(status, int) and 400 <= status < 600:
            return status
    return None
