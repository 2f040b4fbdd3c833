"""`fedhet bench`: benchmarks on the user's own machine."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fedhet.errors import InputError


def bench(only: Sequence[str], as_json: bool) -> None:
    """Measure and print one section after another; as JSON, all at the end. Raises InputError for an unknown
    section."""
    from fedhet.bench import table

    unknown = [name for name in only if name not in table.SECTIONS]
    if unknown:
        raise InputError(f"--only {unknown[0]}: the sections are {', '.join(table.SECTIONS)}")
    names = tuple(name for name in table.SECTIONS if not only or name in only)
    about, began, found = table.machine(), time.monotonic(), []
    out, talk = Console(), Console(stderr=True)
    with talk.status("measuring", spinner="dots") as status:
        for number, section in enumerate(table.sections(names)):
            found.append(section)
            if not as_json:
                _put(section, out)
            status.update(f"measuring {names[min(number + 1, len(names) - 1)]}")
    seconds = time.monotonic() - began
    if as_json:
        rows = [dataclasses.asdict(section) for section in found]
        print(json.dumps({"machine": about, "seconds": seconds, "sections": rows}, indent=1))
        return
    values = ", ".join(f"{key} {value:.1f}" if key == "load" else f"{key} {value}" for key, value in about.items())
    print(f"{values}; measured in {seconds:.0f} s")
    if float(about["load"]) > 0.5 * float(about["cores"]):
        print("note: this machine is busy with other processes, so wall-clock times are unreliable", file=sys.stderr)


def _put(section: object, out: Console) -> None:
    from fedhet.bench.table import Section

    assert isinstance(section, Section)
    shown = Table(title=section.title, caption=section.note, title_justify="left", caption_justify="left")
    for column in section.columns:
        text = all(isinstance(row.get(column, ""), str) for row in section.rows)
        shown.add_column(column, justify="left" if text else "right", overflow="fold")
    for row in section.rows:
        shown.add_row(*(_cell(row.get(column, "")) for column in section.columns))
    out.print(shown)


def _cell(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f}"
