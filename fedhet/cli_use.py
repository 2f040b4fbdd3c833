"""Commands that use a finished run's model: evaluate."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fedhet.cli_run import put
from fedhet.finished import Finished


def evaluate(folder: Path, texts: Sequence[str], config_dir: Path | None, as_json: bool) -> None:
    """The final model's scores beside those the run recorded."""
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
    for name, told in (("accuracy", "{:.2%}"), ("loss", "{:.4f}"), ("worst_decile_accuracy", "{:.2%}")):
        cells = [told.format(v) if v is not None else "–" for v in (row[name], done.result.row[name])]
        table.add_row(name.replace("_", " "), *cells)
    put(table)
