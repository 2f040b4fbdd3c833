"""The one error a report raises."""

from __future__ import annotations

from pathlib import Path


class ReportError(ValueError):
    """A run folder that cannot be read; the message names the file, the line if there is one, and what is wrong."""

    @classmethod
    def at(cls, path: Path, problem: str, line: int | None = None) -> ReportError:
        """The error for one place in one file."""
        return cls(f"{path}{'' if line is None else f', line {line}'}: {problem}")
