"""Commands that use a finished run's model: evaluate and export."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fedhet.cli.common import print_table
from fedhet.errors import InputError
from fedhet.runs.saved_run import Finished


def evaluate(folder: Path, texts: Sequence[str], config_dir: Path | None, as_json: bool) -> None:
    """Print the final model's scores next to those that the run recorded."""
    done = Finished.read(folder)
    world = done.world(texts, config_dir)
    scores = done.evaluate(world)
    row: dict[str, Any] = {
        "run": str(folder),
        **world.describe(),
        "accuracy": scores.accuracy,
        "loss": scores.loss,
        "worst_decile_accuracy": scores.worst_decile if math.isfinite(scores.worst_decile) else None,
    }
    if as_json:
        print(json.dumps(row, indent=1))
        return
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("score", style="bold")
    table.add_column(str(row.get("data", "now")), justify="right")
    table.add_column("at the run's end", justify="right")
    for name, form in (("accuracy", "{:.2%}"), ("loss", "{:.4f}"), ("worst_decile_accuracy", "{:.2%}")):
        cells = [form.format(v) if v is not None else "–" for v in (row[name], done.result.row[name])]
        table.add_row(name.replace("_", " "), *cells)
    print_table(table)


def export(
    folder: Path, texts: Sequence[str], kind: str, out: Path, max_rank: int | None, config_dir: Path | None
) -> None:
    """Write an adapter or complete weights with a model card; the last line printed is their folder."""
    from fedhet.export import export as exports
    from fedhet.export.model_card import card

    if kind not in ("adapter", "merged"):
        raise InputError(f"--to {kind}: use adapter or merged")
    if max_rank is not None and kind == "merged":
        raise InputError("--max-rank belongs to --to adapter: merged weights have no rank")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not empty: choose another folder with --out")
    done = Finished.read(folder)
    first = done.world(texts, config_dir).model().module
    what = exports.merged(done, first, out) if kind == "merged" else exports.adapter(done, first, out, max_rank)
    (out / "README.md").write_text(card(done, what), encoding="utf-8")
    if what.ranks is not None and what.lost is not None:
        worst = max(what.lost.values())
        print(f"rank {what.rank}, {len(what.ranks)} layers, {worst:.1e} of a layer's change left out at most")
    print(out)
