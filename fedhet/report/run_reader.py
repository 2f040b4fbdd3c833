"""Reading a run folder: every value is checked where it is read, and errors say which file and line.

The contents of a run folder are not trusted. Files are read line by line, with memory for the longest line only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from fedhet.report.errors import ReportError

Name: TypeAlias = int | str
"""Name of a client or group in the log."""

LARGEST = 1e300
"""Largest accepted magnitude; differences of larger numbers could overflow. NaN is rejected as well."""


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object and where it was read. The accessors raise ReportError for a missing or wrongly typed field."""

    path: Path
    line: int | None
    data: Mapping[str, Any]

    def fail(self, problem: str) -> NoReturn:
        raise ReportError.at(self.path, problem, self.line)

    def number(self, key: str) -> float:
        """A number; NaN and infinities are numbers here."""
        value = self._maybe(key)
        if value is None:
            self.fail(f"{key!r} is {self.data.get(key)!r}, not a number")
        return value

    def _maybe(self, key: str) -> float | None:
        return as_number(self.data.get(key))

    def time(self, key: str) -> float:
        """Seconds since the run began."""
        value = self.number(key)
        if not 0 <= value <= LARGEST:
            self.fail(f"{key!r} is {value}, not seconds since the run began")
        return value

    def optional(self, key: str) -> float | None:
        """A finite number, or None if the field is missing, null, NaN, infinite or beyond `LARGEST`."""
        if self.data.get(key) is None:
            return None
        value = self.number(key)
        return value if abs(value) <= LARGEST else None

    def whole(self, key: str) -> int:
        """A whole number."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            self.fail(f"{key!r} is {value!r}, not a whole number")
        return value

    def name(self, key: str) -> Name:
        """A whole number or a text."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, int | str):
            self.fail(f"{key!r} is {value!r}, not a name or a whole number")
        return value

    def text(self, key: str, default: str = "") -> str:
        """Any scalar as text."""
        value = self.data.get(key)
        return default if value is None else str(value)

    def texts(self, key: str) -> list[str]:
        """A list of texts; a missing field is empty."""
        values = self.data.get(key, [])
        if not isinstance(values, list) or any(not isinstance(v, str) for v in values):
            self.fail(f"{key!r} is {short(values)}, not a list of texts")
        return values

    def wholes(self, key: str) -> list[int]:
        """A list of whole numbers."""
        values = self.data.get(key)
        if not isinstance(values, list) or any(isinstance(v, bool) or not isinstance(v, int) for v in values):
            self.fail(f"{key!r} is {short(values)}, not a list of whole numbers")
        return values

    def numbers(self, key: str) -> list[float]:
        """A list of numbers."""
        values = self.data.get(key)
        numbers = [as_number(v) for v in values] if isinstance(values, list) else [None]
        if any(n is None for n in numbers):
            self.fail(f"{key!r} is {short(values)}, not a list of numbers")
        return [n for n in numbers if n is not None]

    def tally(self, key: str) -> dict[str, int]:
        """Counts by reason; a bare whole number is one count without a reason, a missing field is empty."""
        value = self.data.get(key)
        if value is None:
            return {}
        if isinstance(value, int) and not isinstance(value, bool):
            return {"": value} if value else {}
        if not isinstance(value, Mapping) or any(isinstance(n, bool) or not isinstance(n, int) for n in value.values()):
            self.fail(f"{key!r} is {short(value)}, not a count or counts by reason")
        return {str(reason): n for reason, n in value.items() if n}

    def inner(self, key: str) -> Row:
        """The object inside a field."""
        value = self.data.get(key)
        if not isinstance(value, Mapping):
            self.fail(f"{key!r} is {short(value)}, not an object")
        return Row(self.path, self.line, value)


def as_number(value: object) -> float | None:
    """A JSON number as a float; None for everything else, a whole number beyond float range included."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def short(value: object) -> str:
    """A value for a message: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def lines(path: Path) -> Iterator[Row]:
    """The rows of a JSON-lines file, one at a time. Raises ReportError for anything that is not a JSON object."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield Row(path, number, _object(path, line, number))
    except OSError as error:
        raise ReportError.at(path, error.strerror or str(error)) from None


def document(path: Path) -> Row:
    """The object in a JSON file."""
    return Row(path, None, _object(path, text(path).encode(), None))


def text(path: Path) -> str:
    """A UTF-8 text file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ReportError.at(path, error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise ReportError.at(path, f"not UTF-8 text ({error.reason} at byte {error.start})") from None


def _object(path: Path, data: bytes, line: int | None) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        place = line if line is not None else getattr(error, "lineno", None)
        raise ReportError.at(path, f"not JSON ({error})", place) from None
    if not isinstance(value, dict):
        raise ReportError.at(path, f"{short(value)} is not a JSON object", line)
    return value
