"""The error that reports raise."""

from __future__ import annotations

from pathlib import Path


class ReportError(ValueError):
    """A run folder cannot be read; the message names the file, the line if there is one, and the fault."""

    @classmethod
    def at(cls, path: Path, problem: str, line: int | None = None) -> ReportError:
        """The error for one place in one file."""
        return cls(f"{path}{'' if line is None else f', line {line}'}: {problem}")
