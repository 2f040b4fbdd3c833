"""Text is escaped and cannot become markup."""

from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhet.display import shown_lines
from fedhet.report.html import Html, escape, join, tag, xy


class Reader(HTMLParser):
    """Collects the tags, attributes and text a browser would see."""

    def __init__(self, markup):
        super().__init__(convert_charrefs=True)
        self.tags, self.text, self.attributes = [], "", []
        self.feed(markup)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc"))))
def test_any_text_comes_back_as_text_and_nothing_else(text):
    seen = Reader(tag("p", text, title=text))
    assert seen.tags == ["p"]
    assert seen.text == shown_lines(text)
    assert seen.attributes == [("title", shown_lines(text))]


def test_control_characters_and_lone_surrogates_are_spelled_out():
    assert escape("a\x00b\x1bc\nd\u202ee\x9bf") == r"a\x00b\x1bc" "\n" r"d\u202ee\x9bf"
    assert escape("\ud800").encode() == rb"\ud800"


def test_plain_text_is_escaped_next_to_markup():
    assert join(tag("b", "x"), "<b>") == "<b>x</b>&lt;b&gt;"
    assert tag("p", Html("<i></i>"), None) == "<p><i></i></p>"


def test_attributes_are_named_as_in_html():
    assert tag("i", cls="a", data_row=2.5, hidden=True, title=None) == '<i class="a" data-row="2.5" hidden=""></i>'


@given(st.floats(min_value=-1e9, max_value=1e9))
def test_a_coordinate_is_short_and_right_to_a_thousandth(value):
    assert float(xy(value)) == pytest.approx(value, abs=0.000501)
    assert "e" not in xy(value)


def test_a_coordinate_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="finite"):
        xy(float("nan"))
