"""The id of a record: the same on every machine, another one for another completion of the same prompt. Source: vrcli.md, section 2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_processing.schemas import canonical_json

_HEX_DIGITS = 32


def record_id(messages: Sequence[Mapping[str, Any]]) -> str:
    """Of messages whose last is the completion: the first 32 hex digits of the sha256 of their compact, key-sorted JSON."""
    return hashlib.sha256(canonical_json([dict(message) for message in messages])).hexdigest()[:_HEX_DIGITS]
