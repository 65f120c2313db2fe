"""No text can become markup: parsed back, it is the text that was put in."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report.markup import Markup, escape, join, preformatted, tag

hostile = st.one_of(
    st.text(),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "</pre><iframe>",
            "&lt;b&gt;",
            "<!--",
            "]]>",
            "' onload='x",
        ]
    ),
    st.text(alphabet="<>&\"'=/ scriptonx\n\x00\u202e"),
)


class Reader(HTMLParser):
    """Tags, attributes and text of a fragment."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def cleaned(text: str) -> str:
    """What HTML can hold of a text."""
    return re.sub("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]", "\ufffd", text)


@given(hostile)
def test_text_between_tags_stays_text(text: str) -> None:
    read = Reader(tag("p", text))
    assert read.tags == ["p"]
    assert read.text == cleaned(text)


@given(hostile)
def test_text_in_attributes_stays_there(text: str) -> None:
    read = Reader(tag("a", "x", title=text, class_="c"))
    assert read.tags == ["a"]
    assert read.attributes == [("title", cleaned(text)), ("class", "c")]
    assert read.text == "x"


@given(hostile)
def test_preformatted_text_keeps_its_first_newline(text: str) -> None:
    assert Reader(preformatted("\n" + text)).text == "\n\n" + cleaned(text)


def test_markup_is_not_escaped_twice_and_none_is_left_out() -> None:
    inner = tag("b", "1 < 2")
    assert join(inner, None, "&") == "<b>1 &lt; 2</b>&amp;"
    assert isinstance(tag("p", inner), Markup)
    assert escape(escape("<")) == "&lt;"


def test_lone_surrogates_can_be_written_as_utf8() -> None:
    assert tag("p", "\ud800x").encode("utf-8") == "<p>\ufffdx</p>".encode()


def test_element_names_cannot_be_made_up() -> None:
    with pytest.raises(ValueError, match="not the name of an element"):
        tag("p onload=x", "text")
