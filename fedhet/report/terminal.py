"""The same figures for the terminal, as rich tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from fedhet.display import shown
from fedhet.report import number_format
from fedhet.report.aggregate_runs import comparison_rows
from fedhet.report.run_labels import method_name
from fedhet.report.run_reader import Row
from fedhet.report.update_accounting import ACCOUNTS


def spread(mean: float | None, sd: float | None, kind: str) -> str:
    """ "91.2% ± 0.4", in the unit of `kind`: share, time, bytes or count. A single run has no spread."""
    if mean is None:
        return "-"
    match kind:
        case "share":
            return number_format.percent(mean) + ("" if sd is None else f" ± {100 * sd:.1f}")
        case "time":
            return number_format.seconds(mean) + ("" if sd is None else f" ± {number_format.seconds(sd)}")
        case "bytes":
            return number_format.size(mean)
        case "count":
            return number_format.count(mean)
        case other:
            raise ValueError(f"kind {other!r} is none of share, time, bytes, count")


def ratio(row: Mapping[str, Any]) -> str:
    """ "1.00x" for the reference; "-" if either has no time to the target."""
    return "-" if row["ratio"] is None else f"{row['ratio']:.2f}x"


def comparison_table(
    results: Sequence[Mapping[str, Any]], target: float | None = None, reference: str | None = None
) -> Table:
    """`comparison_rows` as a table; the fastest strategy is highlighted. Raises ReportError."""
    rows = comparison_rows(results, target, reference)
    table = Table(
        title=f"time to {number_format.percent(rows[0]['target'])} accuracy" if rows else None, title_justify="left"
    )
    table.add_column("strategy", overflow="fold")
    for name in (
        "reached",
        "time to target",
        "ratio",
        "accuracy",
        "worst tenth",
        "up",
        "down",
        "tasks",
        "accepted",
        "late",
        "rejected",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(shown(row["strategy"])),
            f"{row['reached']}/{row['runs']}",
            spread(row["seconds_mean"], row["seconds_sd"], "time"),
            ratio(row),
            spread(row["accuracy_mean"], row["accuracy_sd"], "share"),
            spread(row["worst_decile_accuracy_mean"], row["worst_decile_accuracy_sd"], "share"),
            spread(row["bytes_up_mean"], None, "bytes"),
            spread(row["bytes_down_mean"], None, "bytes"),
            *(spread(row[f"{key}_mean"], None, "count") for key in ("client_tasks", "accepted", "late", "rejected")),
            style="bold green" if row["fastest"] else "",
        )
    return table


def summary_table(result: Mapping[str, Any]) -> Table:
    """One run's result.json: accuracy, times, traffic, memory, and the ledger of updates."""
    row = Row(Path(str(result.get("path", "result"))), None, result)
    table = Table(
        title=Text(shown(f"{method_name(row)}, seed {row.text('seed', '?')}")),
        title_justify="left",
        show_header=False,
    )
    table.add_column("figure", style="dim", no_wrap=True)
    table.add_column("value", overflow="fold")
    reached, span, wall = (row.optional(k) for k in ("time_to_target", "virtual_seconds", "wall_seconds"))
    up, down = number_format.size(row.optional("bytes_up")), number_format.size(row.optional("bytes_down"))
    met = "not reached" if reached is None else number_format.seconds(reached)
    updates = row.inner("updates") if "updates" in result else Row(row.path, None, {})
    lines = [
        ("accuracy", number_format.percent(row.optional("accuracy"), 2)),
        ("worst tenth of clients", number_format.percent(row.optional("worst_decile_accuracy"), 2)),
        (f"time to {number_format.level(row.optional('target'))}", met),
        ("time", f"{number_format.seconds(span)} (computed in {number_format.seconds(wall)})"),
        ("versions", number_format.count(row.optional("versions"))),
        ("client tasks", number_format.count(row.optional("client_tasks"))),
        ("bytes", f"{up} up, {down} down"),
        ("peak memory", number_format.size(row.optional("peak_rss_bytes"))),
    ]
    for account in ACCOUNTS:
        tally = updates.tally(account)
        if tally or account == "accepted":
            reasons = ", ".join(f"{reason} {n}" for reason, n in tally.items() if reason)
            lines.append((account, number_format.count(sum(tally.values())) + (f" ({reasons})" if reasons else "")))
    lines += [("failing" if at == 0 else "", told) for at, told in enumerate(row.texts("failing"))]
    lines.append(("weights", row.text("weights_sha256", number_format.NONE)))
    for name, value in lines:
        table.add_row(name, Text(shown(value)))
    return table
