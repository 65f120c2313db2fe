"""Rubrics that come with alignflow. The text under a name never changes: a better one has the next version in its name."""

from __future__ import annotations

RUBRICS: dict[str, str] = {
    "quality-v1": """\
Judge how good the last response is as an answer to the conversation before it.
- Best: does all that was asked, is correct, is clear, and holds nothing that is not needed.
- Middle: helps, with a gap, a slip, or much that is not to the point.
- Worst: wrong, empty, off the subject, in another language than was wanted, or harmful.
Length, politeness and confidence are worth nothing by themselves. A response that breaks off is judged by what is there.
""",
    "correctness-v1": """\
Judge only whether the final answer of the last response is correct; compare it with the reference answer where one is given.
- Best: the final answer means the same as the reference, or is right where there is none; another notation does not matter.
- Worst: the final answer is wrong, is missing, or there are several that differ.
Give a score between only for an answer that has several parts of which some are right. Ignore style and how the answer was found.
""",
}


def is_text(rubric: str) -> bool:
    """Whether a rubric is spelled out, and neither a name nor the path of a file: it has lines, or words and no ending of a file's."""
    return "\n" in rubric.strip("\r") or (" " in rubric.strip() and not rubric.endswith((".txt", ".md")))
