"""Statistics of a partition's heterogeneity, its card for the terminal, and (from `drawing`) its picture.

size Gini        sum_ij |n_i - n_j| / (2 N sum_i n_i): 0 when sizes are equal, towards 1 when one client has all
label distance   mean over clients of 1/2 sum_c |p_ic - p_c|, total variation between its labels and all labels
"""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from clients.data.drawing import color, picked, picture
from clients.data.partition import Partition

__all__ = ["card", "describe", "gini", "label_distances", "picture"]

LOOKED_AT = 1000
"""Number of clients whose labels are counted where all draw from the same data."""

ROWS, WIDTH, BAR = 24, 40, 8
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def describe(partition: Partition) -> dict[str, Any]:
    """The statistics as plain numbers, for result files; without those of labels for data without labels."""
    data, counts = partition.dataset, partition.counts
    out: dict[str, Any] = {
        "clients": partition.clients,
        "shared": partition.train.alike,
        "samples": int(counts.sum()),
        "unused": 0 if partition.train.alike else int(len(data.x_train) - counts.sum()),
        "size": {**_spread(counts), "gini": gini(counts)},
    }
    if not data.labelled:
        return out
    histogram = _histogram(partition)
    owned = histogram > 0
    distance = label_distances(histogram, _whole(partition, histogram))
    return out | {
        "classes": data.classes,
        "classes_per_client": _spread(owned.sum(1)),
        "clients_without_class": [int(n) for n in (~owned).sum(0)],
        "label_distance": {"mean": float(distance.mean()), "max": float(distance.max())},
        "clients_looked_at": len(histogram),
    }


def card(partition: Partition) -> RenderableType:
    """The statistics and up to 24 clients with their labels, one character per fortieth of a client's data."""
    facts, data = describe(partition), partition.dataset
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    for key, value in _facts(facts):
        table.add_row(key, value)
    if partition.notice:
        table.add_row("notice", partition.notice)
    shown = picked(partition.clients, ROWS)
    rows = Table(show_edge=False, pad_edge=False, header_style="bold", box=None, padding=(0, 1))
    for name in ("client", "samples"):
        rows.add_column(name, justify="right", no_wrap=True)
    rows.add_column("", no_wrap=True)
    if data.labelled:
        rows.add_column("label mix", no_wrap=True)
        rows.add_column("distance", justify="right", no_wrap=True)
        histogram = partition.labels(shown)
        distance = label_distances(histogram, _whole(partition, histogram))
    largest = max(int(partition.counts[c]) for c in shown)
    for at, client in enumerate(shown):
        size = int(partition.counts[client])
        cells: list[RenderableType] = [str(client), f"{size:,}", "▪" * max(1, round(BAR * size / largest))]
        if data.labelled:
            cells += [_mix(histogram[at]), f"{distance[at]:.2f}"]
        rows.add_row(*cells)
    note = "" if len(shown) == partition.clients else f"\n{len(shown)} of {partition.clients:,} clients are shown"
    return Group(table, Text(""), rows, Text(note, style="dim"))


def gini(sizes: np.ndarray) -> float:
    """The Gini coefficient of positive sizes."""
    ordered, n = np.sort(sizes).astype(np.float64), len(sizes)
    return float(((2 * np.arange(1, n + 1) - n - 1) * ordered).sum() / (n * ordered.sum()))


def label_distances(histogram: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Total variation between each row of counts (clients, classes) and the counts of all (classes,)."""
    shares = histogram / histogram.sum(1, keepdims=True)
    distance: np.ndarray = np.abs(shares - whole / whole.sum()).sum(1) / 2
    return distance


def _histogram(partition: Partition) -> np.ndarray:
    if partition.train.alike:
        return partition.labels(range(min(partition.clients, LOOKED_AT)))
    return partition.histogram


def _whole(partition: Partition, histogram: np.ndarray) -> np.ndarray:
    """Labels of all samples that are used."""
    if partition.train.alike:
        return np.bincount(partition.dataset.labels, minlength=partition.dataset.classes)
    return np.asarray(partition.histogram.sum(0))


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"min": int(values.min()), "median": float(np.median(values)), "max": int(values.max())}


def _facts(facts: dict[str, Any]) -> list[tuple[str, str]]:
    size = facts["size"]
    shared = " drawn from data that all share" if facts["shared"] else ""
    unused = f", {facts['unused']:,} unused" if facts["unused"] else ""
    out = [
        ("clients", f"{facts['clients']:,}"),
        ("samples", f"{facts['samples']:,}{shared}{unused}"),
        ("a client's samples", f"{_range(size)}; Gini {size['gini']:.2f} (0 equal, 1 one has all)"),
    ]
    if "classes" not in facts:
        return [*out, ("labels", "none: each sample is a sequence")]
    distance, without = facts["label_distance"], facts["clients_without_class"]
    looked = "" if facts["clients_looked_at"] == facts["clients"] else f" ({facts['clients_looked_at']:,} clients)"
    unowned = sum(n == facts["clients_looked_at"] for n in without)
    return [
        *out,
        ("a client's classes", f"{_range(facts['classes_per_client'])} of {facts['classes']}{looked}"),
        ("label distance", f"{distance['mean']:.2f} on average, at most {distance['max']:.2f} (0 as all, 1 disjoint)"),
        (
            "missing classes",
            f"a class is missing at {min(without):,} to {max(without):,} clients"
            + (f"; {unowned} classes have no owner" if unowned else ""),
        ),
    ]


def _range(spread: dict[str, float]) -> str:
    if spread["min"] == spread["max"]:
        return f"{spread['min']:,}"
    return f"{spread['min']:,} to {spread['max']:,}, median {spread['median']:,g}"


def _mix(counts: np.ndarray) -> Text:
    """`WIDTH` characters in proportion to the counts, by largest remainder; each class has a digit and a colour."""
    exact = counts / counts.sum() * WIDTH
    cells = np.floor(exact).astype(int)
    cells[np.argsort(cells - exact, kind="stable")[: WIDTH - cells.sum()]] += 1
    text = Text()
    for label, count in enumerate(cells):
        text.append(DIGITS[label % len(DIGITS)] * int(count), style=f"#ffffff on {color(label, len(counts))}")
    return text
