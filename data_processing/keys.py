"""What makes two rows the same, as 64-bit hashes; and what is kept of every row to compare it with all others.

Tables may be larger than memory, so what is kept is 25 bytes a row: the hashes of its id, its content and its prompt, and its
split; and 8 more of a pair or a judged answer, for what it says. Two different rows among n have a hash in common by chance with probability n² / 2^65 (3e-8 in a million).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_processing.config import SPLITS, Split
from data_processing.schemas import canonical_json, hash64

# Columns that do not make two rows different: they say where a row is from, not what is learnt from it.
_ASIDE = frozenset({"id", "source", "detail", "pass_rate"})
# Columns that make two rows different where they have a value.
_FURTHER = ("margin", "turns", "extra", "condition")
# What shows nothing where it stands: the code points that Unicode calls default ignorable (zero-width ones and their like).
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f"
    "\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_ASCII_WHITE_SPACE = "\t\n\v\f\r\x1c\x1d\x1e\x1f"  # without " ", by what str.split takes for white space

Row = dict[str, Any]
Messages = list[dict[str, Any]]
Hashes = NDArray[np.uint64]


# A row's id_key, content_key, prompt_key and stance_key: by these it is compared.
RowKey = tuple[int, int, int, int | None]


def row_key(row: Row) -> RowKey:
    """The hashes of a row of any table."""
    return id_key(row["id"]), content_key(row), prompt_key(prompt_of(row)), stance_key(row)


def source_row_key(row: Row, given_id: str | None, prompt: Messages) -> RowKey:
    """Give a row its id, or that of its content, and return its hashes. Its messages hold all keys of their turns."""
    content = content_key(row)
    row["id"] = given_id or f"{content:016x}"
    return id_key(row["id"]), content, prompt_key(prompt), stance_key(row)


def stance_key(row: Row) -> int | None:
    """Hash of what a pair or a judged answer says, whatever its margin; that of its opposite differs in the last bit alone.

    The opposite of a pair has its sides swapped, that of a judged answer is judged otherwise. Other rows have no opposite.
    """
    if "rejected" in row:
        chosen, rejected = canonical_json(row["chosen"]), canonical_json(row["rejected"])
        texts, holds = (canonical_json([row["prompt"], row.get("tools")]), *sorted((chosen, rejected))), chosen < rejected
    elif "desirable" in row:
        texts, holds = (canonical_json([row["prompt"], row["response"], row.get("tools")]),), row["desirable"]
    else:
        return None
    return hash64(b"".join(texts)) & ~1 | holds


def id_key(row_id: str) -> int:
    """Hash of an id."""
    return hash64(row_id.encode())


def content_key(row: Row) -> int:
    """Hash of all columns that make two rows different; raises `UnicodeEncodeError` for text that is not valid Unicode."""
    content = [value for name, value in row.items() if name not in _ASIDE and name not in _FURTHER]
    if further := {name: row[name] for name in _FURTHER if row.get(name) is not None}:
        content.append(further)
    return hash64(canonical_json(content))


def prompt_of(row: Row) -> Messages:
    """The prompt of a row of any table; in the sft table what stands before the last turn, or a text that is the only one."""
    prompt: Messages = row["prompt"] if "prompt" in row else row["messages"][:-1] or row["messages"]
    return prompt


def prompt_key(prompt: Messages) -> int:
    """What makes two prompts the same, and places their rows in a split: roles and words as `normalised` has them."""
    return hash64(canonical_json([[message["role"], normalised(message["content"])] for message in prompt]))


def normalised(text: str) -> str:
    """The words of a text whatever their case, white space and normal form, without what shows nothing (NFKC_Casefold of Unicode).

    For ASCII that is `" ".join(text.casefold().split())`, here in half its time.
    """
    if not text.isascii():
        visible = unicodedata.normalize("NFKC", _IGNORABLE.sub("", text))
        return " ".join(unicodedata.normalize("NFKC", visible.casefold()).split())
    folded = text.lower()
    for white in _ASCII_WHITE_SPACE:
        folded = folded.replace(white, " ")
    while len(shorter := folded.replace("  ", " ")) < len(folded):
        folded = shorter
    return folded.strip(" ")


class TableKeys:
    """The keys, the splits and the origins of the rows of one table, in their order."""

    def __init__(self) -> None:
        self._ids, self._contents, self._prompts, self._stances = array("Q"), array("Q"), array("Q"), array("Q")
        self._staged = array("B")
        self._moved: NDArray[np.uint8] | None = None
        # A run of consecutive rows of one origin: index of the first, origin, its number there minus its index here.
        self._runs: list[tuple[int, str, int]] = []

    def __len__(self) -> int:
        return len(self._staged)

    def add(self, key: RowKey, split: Split, origin: str, number: int) -> None:
        """Take in the next row; `origin` and `number` say where it came from (for example "chat.jsonl line" and 7)."""
        offset = number - len(self._staged)
        if not self._runs or self._runs[-1][1:] != (origin, offset):
            self._runs.append((len(self._staged), origin, offset))
        row_id, content, prompt, stance = key
        self._ids.append(row_id)
        self._contents.append(content)
        self._prompts.append(prompt)
        self._staged.append(SPLITS.index(split))
        if stance is not None:
            self._stances.append(stance)

    def move(self, prompt: int, split: int) -> None:
        """Put all rows of a prompt into another split, an index into `SPLITS`."""
        rows = self.prompts == prompt
        if rows.any():
            self._moved = np.where(rows, np.uint8(split), self.splits)

    @property
    def ids(self) -> Hashes:
        """uint64[rows], as are contents and prompts."""
        return np.asarray(self._ids)

    @property
    def contents(self) -> Hashes:
        """The content keys of all rows."""
        return np.asarray(self._contents)

    @property
    def prompts(self) -> Hashes:
        """The prompt keys of all rows."""
        return np.asarray(self._prompts)

    @property
    def stances(self) -> Hashes:
        """The stance keys of all rows; none in tables whose rows have no opposite."""
        return np.asarray(self._stances)

    @property
    def staged(self) -> NDArray[np.uint8]:
        """uint8[rows]: indices into `SPLITS`, those the rows were added with."""
        return np.asarray(self._staged)

    @property
    def splits(self) -> NDArray[np.uint8]:
        """uint8[rows]: indices into `SPLITS`, those the rows belong to."""
        return self.staged if self._moved is None else self._moved

    def where(self, index: int) -> str:
        """Where a row came from, for messages."""
        _, origin, offset = self._runs[bisect_right(self._runs, index, key=lambda run: run[0]) - 1]
        return f"{origin} {index + offset}"
