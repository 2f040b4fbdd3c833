"""Layout of pages: the document, cards and headline tiles."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from fedhet.report.html import Html, join, tag


def page(title: str, *sections: Html) -> Html:
    """A complete document. Its content security policy forbids all requests, and all scripts but this package's."""
    style, script = _asset("style.css"), _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ("default-src 'none'", "style-src 'unsafe-inline'", f"script-src 'sha256-{digest}'", "base-uri 'none'")
    policy = "; ".join((*rules, "form-action 'none'"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · fedhet"),
        tag("style", Html(style)),
    )
    body = tag(
        "body", tag("main", *sections), tag("div", id="tip", role="tooltip", hidden=True), tag("script", Html(script))
    )
    return join(Html("<!doctype html>\n"), tag("html", head, body, lang="en"), "\n")


def card(title: str, words: str, *content: str | None, note: str = "", cls: str = "") -> Html:
    """A section with a heading, an explanation, content, and a note on what is omitted."""
    head = tag("div", tag("h2", title), tag("p", words), cls="caption")
    return tag("section", head, *content, tag("p", note, cls="note") if note else None, cls=f"card {cls}".strip())


def tile(name: str, value: str, more: str = "", cls: str = "") -> Html:
    """One headline figure."""
    return tag(
        "div",
        tag("span", name, cls="name"),
        tag("strong", value),
        tag("span", more, cls="more"),
        cls=f"tile {cls}".strip(),
    )


def _asset(name: str) -> str:
    return resources.files("fedhet.report").joinpath(name).read_text(encoding="utf-8")
