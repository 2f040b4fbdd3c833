"""The model card of an exported model: Markdown with the metadata header of the Hugging Face hub."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from fedhet.export.export import Exported
from fedhet.report import number_format
from fedhet.runs.event_log import read_rows
from fedhet.runs.saved_run import Finished

MAX_ROWS = 64
"""Rows of the table of clients, at most; beyond it clients are counted by rank."""


def card(done: Finished, what: Exported) -> str:
    """The text of an exported folder's README.md."""
    row = done.result.row
    name = " + ".join([str(row["strategy"]), *row.get("replaced", ())])
    head: dict[str, Any] = {"tags": ["federated-learning", "fedhet", str(row["strategy"])]}
    if what.kind == "adapter":
        head |= {"library_name": "peft", "tags": ["lora", *head["tags"]]}
        if not (what.folder / what.base).exists():
            head["base_model"] = what.base
    parts = [
        "---\n" + OmegaConf.to_yaml(OmegaConf.create(head)) + "---",
        f"# {what.kind.capitalize()} weights trained with {name} on {row['clients']} clients",
        _use(what),
        "## Training\n\n" + _table(("", ""), _facts(done)),
        "## Metrics\n\nOf the last version, on the run's test data.\n\n" + _table(("metric", "value"), _metrics(row)),
        _client_ranks(done),
        _layer_ranks(what),
        "## Versions\n\n" + ", ".join(f"{name} {number}" for name, number in row["packages"].items()) + ".",
        f"Steps of small perceptrons: {row['mlp_backend']}." if "mlp_backend" in row else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(what: Exported) -> str:
    if what.kind == "merged":
        return "Whole weights: `model.safetensors`."
    load = "model = PeftModel.from_pretrained(base, '.')"
    note = f"`base` is `{what.base}`; scaling is 1 and all layers have rank {what.rank}."
    if what.base.endswith(".safetensors"):
        note += " It holds the weights of the module the run began with."
        load = f"base.load_state_dict(safetensors.torch.load_file('{what.base}'))\n{load}"
    return f"{note}\n\n```python\n{load}\n```"


def _facts(done: Finished) -> list[tuple[str, str]]:
    row, cfg = done.result.row, done.cfg
    parts = {
        axis: str(cfg[axis]["_target_"]).rpartition(".")[2] for axis in ("schedule", "space", "rule", "work", "budget")
    }
    return [
        ("method", f"{row['strategy']} ({', '.join(f'{k} {v}' for k, v in parts.items())})"),
        ("clients", f"{row['clients']:,}"),
        ("rounds (versions)", f"{row['versions']:,}"),
        ("client tasks", f"{row['client_tasks']:,}, of which {row['updates']['accepted']:,} were combined"),
        ("traffic", f"{number_format.size(row['bytes_up'])} up, {number_format.size(row['bytes_down'])} down"),
        ("time of the run", number_format.seconds(row["virtual_seconds"])),
        ("data", str(cfg["data"]["_target_"])),
        ("seed", str(row["seed"])),
    ]


def _metrics(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = ("accuracy", "loss", "worst_decile_accuracy")
    return [(name.replace("_", " "), f"{row[name]:.4f}") for name in names if row[name] is not None]


def _client_ranks(done: Finished) -> str:
    """A section on the ranks that clients were given, from events.jsonl; "" without ranks."""
    given: dict[int, Counter[int]] = defaultdict(Counter)
    for event in read_rows(done.folder / "events.jsonl"):
        if event["event"] == "assign":
            given[event["client"]][event["rank"]] += 1
    ranks = {client: "/".join(map(str, sorted(counts))) for client, counts in sorted(given.items())}
    if not any(any(counts) for counts in given.values()):
        return ""  # the budget of this run assigns no ranks
    note = "## Ranks of clients\n\nAs asked for by the budget, less what a client gave up; 0 is the space's own.\n\n"
    if len(ranks) <= MAX_ROWS:
        rows = [(str(c), rank, str(sum(given[c].values()))) for c, rank in ranks.items()]
        return note + _table(("client", "rank", "jobs"), rows)
    return note + _table(("rank", "clients"), [(r, str(n)) for r, n in sorted(Counter(ranks.values()).items())])


def _layer_ranks(what: Exported) -> str:
    if what.ranks is None or what.lost is None:
        return ""
    rows = [(f"`{n}`", str(r), f"{what.lost[n]:.2e}") for n, r in what.ranks.items()]
    saved = f" Saved whole: {', '.join(f'`{n}`' for n in what.whole)}." if what.whole else ""
    note = f"Padded with zeros to {what.rank}; the error is relative to what training added.{saved}"
    return f"## Ranks of layers\n\n{note}\n\n" + _table(("layer", "rank", "error"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
