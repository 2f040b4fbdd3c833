"""HTML and SVG as text, safe against injection: a plain `str` is always escaped, only `Html` is inserted unchanged."""

from __future__ import annotations

import html
import math

from fedhet.display import shown_lines


class Html(str):
    """Safe markup, made by `tag` and `join`. Wrap only literals in it."""

    __slots__ = ()


VOID = frozenset({"meta", "path", "rect", "line", "circle", "stop", "br"})


def tag(name: str, /, *children: str | None, **attributes: str | float | bool | None) -> Html:
    """One element. Keywords are attributes: `cls` is class, `_` becomes `-`, None and False leave it out."""
    pairs = "".join(
        f' {"class" if key == "cls" else key.rstrip("_").replace("_", "-")}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = join(*children)
    if not inside and name in VOID:
        return Html(f"<{name}{pairs}/>")
    return Html(f"<{name}{pairs}>{inside}</{name}>")


def join(*parts: str | None, by: str = "") -> Html:
    """Parts in a row; plain text is escaped."""
    return Html(by.join(part if isinstance(part, Html) else escape(part) for part in parts if part is not None))


def escape(value: str) -> Html:
    """Escape text. Control and direction characters are spelled out (fedhet/display.py)."""
    return Html(html.escape(shown_lines(value), quote=True))


def xy(value: float) -> str:
    """A coordinate: at most three decimals, no trailing zeros."""
    if not math.isfinite(value):
        raise ValueError(f"a coordinate must be finite, not {value}")
    text = f"{value:.3f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _value(value: str | float | bool) -> str:
    if value is True:
        return ""
    return xy(value) if isinstance(value, int | float) else escape(value)
