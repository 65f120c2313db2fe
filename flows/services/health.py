"""Waiting for a service to answer, and asking whether one does."""

from __future__ import annotations

import logging
import ssl
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from urllib.error import HTTPError

from flows.services.processes import ProcessRecord, ServiceError, log_tail

# A service that dies is noticed at once; one that lives may be starting on a machine that is very busy.
START_LIMIT_S = 600.0
_POLL_S = 0.2
_TELL_EVERY_S = 15.0
_LOG = logging.getLogger("alignflow")


def wait_until_answers(
    record: ProcessRecord, path: str, timeout_s: float = START_LIMIT_S, headers: Mapping[str, str] | None = None
) -> None:
    """Return when `record.url + path` answers 200; `ServiceError` with the log when it ends first or takes longer.

    A wait that takes its time is told to the logger `alignflow` every 15 s.
    """
    began = time.monotonic()
    tell_at = began + _TELL_EVERY_S
    while not answers(_base(record.url) + path, headers):
        now = time.monotonic()
        if record.process is None:
            raise ServiceError(f"{record.name} ended while starting; {log_tail(record.log)}")
        if now > began + timeout_s:
            raise ServiceError(f"{record.name} does not answer at {record.url} after {timeout_s:g} s; {log_tail(record.log)}")
        if now > tell_at:
            tell_at += _TELL_EVERY_S
            _LOG.warning(
                "waiting for %s to answer at %s, for %d s now; its log is %s", record.name, record.url, now - began, record.log
            )
        time.sleep(_POLL_S)


def answers(url: str, headers: Mapping[str, str] | None = None, timeout_s: float = 5.0) -> bool:
    """Whether a GET of `url` is answered with 200."""
    request = urllib.request.Request(url, headers=dict(headers or {}))
    # No proxy: these are addresses of this machine or of a cluster beside it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except (HTTPException, OSError, ValueError):  # something else may listen there, and speak no HTTP
        return False


def responds(url: str, timeout_s: float = 5.0) -> bool:
    """Whether anything answers a GET of `url`, whatever it says: a server that asks for a login is there."""
    return http_status(url, timeout_s) is not None


def http_status(url: str, timeout_s: float = 5.0) -> int | None:
    """The status that a GET of `url` is answered with, through a proxy where there is one; None where nothing answers.

    0 where somebody answers whose certificate is not trusted here: a client may have been told to trust it.
    """
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code
    except (HTTPException, OSError, ValueError) as error:
        return 0 if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError) else None


def _base(url: str) -> str:
    return url.removesuffix("/api")
