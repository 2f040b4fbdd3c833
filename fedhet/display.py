"""What others said, as it may stand on a terminal, in a log or on a page: whatever steers a display is spelled out.

Names, reasons, versions, addresses and error texts come from devices, and on a device from its server. A control
sequence in them could recolour a screen, set its title or rewrite a line above; a bidirectional mark could make a word
read as another. Everything that has no mark of its own is shown as its escape: ESC as \\x1b, U+202E as \\u202e.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
from types import TracebackType
from typing import Any


def shown(text: object, keep: str = "") -> str:
    """A text whose every character is visible; those in `keep`, such as a newline, stay as they are."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def shown_lines(text: object) -> str:
    """The same for a text of several lines."""
    return shown(text, "\n\t")


def shown_json(value: Any, indent: int | None = 1) -> str:
    """JSON for a person or a program to read; every character is printable ASCII."""
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


class ShownFormatter(logging.Formatter):
    """Log lines of one line each, whoever wrote them; a traceback keeps its own lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The message's line."""
        return shown(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:
        """The traceback below it."""
        return shown_lines(super().formatException(ei))


def log_to_terminal() -> None:
    """Log lines of this process go to standard error with their time, from the level INFO on."""
    handler = logging.StreamHandler()
    handler.setFormatter(ShownFormatter("%(asctime)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)


def shown_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """An `excepthook`: a message may hold the end of a log that other programs wrote."""
    print(shown_lines("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _escaped(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
