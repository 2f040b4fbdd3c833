"""BibTeX for the parts of a composed method: the papers that their docstrings name, with data from
conf/bibliography.yaml. A paper that is not in that file gets an entry with its arXiv number only.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig

from fedhet.config import catalog

CITED = (*catalog.METHOD[1:], "fleet", "data", "partition", "model", "attack", "aggregation")
"""The axes whose parts may cite papers, in the order of printing."""


def papers(cfg: DictConfig | Mapping[str, Any]) -> dict[str, list[str]]:
    """The parts of a composed configuration, and its preset, by the key of the paper that they cite."""
    found: dict[str, list[str]] = {}
    strategy = cfg.get("strategy")
    for entry in catalog.entries("strategy"):
        if entry.name == strategy:
            for paper in entry.papers:
                found.setdefault(paper, []).append(f"strategy={entry.name}")
    for axis in CITED:
        for target in catalog.targets(cfg.get(axis)):
            for paper in catalog.cited(target):
                part = f"{axis}: {target.rpartition('.')[2]}"
                if part not in found.setdefault(paper, []):
                    found[paper].append(part)
    return found


def bibtex(cfg: DictConfig | Mapping[str, Any]) -> str:
    """One entry per paper, with a comment that names the parts that cite it. Deterministic."""
    return "\n\n".join(f"% {', '.join(parts)}\n{entry(paper)}" for paper, parts in papers(cfg).items())


def entry(paper: str) -> str:
    """The BibTeX entry of a paper."""
    known = catalog.bibliography().get(paper)
    if known is None:
        return f"@misc{{arxiv{paper.replace('.', '_')},\n{_fields({'eprint': paper, 'archivePrefix': 'arXiv'})}\n}}"
    fields = {
        "title": f"{{{known['title']}}}",
        "author": " and ".join(known["authors"]),
        "year": str(known["year"]),
    }
    if "venue" in known:
        kind, fields["booktitle"] = "inproceedings", known["venue"]
    else:
        kind = "misc"
        fields |= {"eprint": paper, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{paper}"}
    return f"@{kind}{{{_key(known)},\n{_fields(fields)}\n}}"


def _fields(fields: Mapping[str, str]) -> str:
    return ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())


def _key(known: Mapping[str, Any]) -> str:
    """Surname of the first author, year, first long word of the title, in plain ASCII."""
    surname = known["authors"][0].split()[-1]
    word = next((w for w in known["title"].replace(":", " ").split() if len(w) > 3), "")
    plain = unicodedata.normalize("NFKD", f"{surname}{known['year']}{word}").encode("ascii", "ignore").decode()
    return "".join(c for c in plain if c.isalnum()).lower()
