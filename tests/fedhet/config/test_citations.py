"""`fedhet list` and `fedhet cite` agree with the docstrings of the composed options."""

from __future__ import annotations

import re

import pytest

from fedhet.config import catalog, citations, composition
from fedhet.errors import ConfigError
from fedhet.provenance import source_tree


def _braces(text: str) -> int:
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    return depth


def test_every_paper_the_code_names_is_in_the_bibliography():
    named = set()
    for tree in ("strategies", "clients", "fedhet", "conf"):
        for path in [*(source_tree.root() / tree).rglob("*.py"), *(source_tree.root() / tree).rglob("*.yaml")]:
            named |= set(catalog.ARXIV.findall(path.read_text()))
    assert sorted(named - set(catalog.bibliography())) == []


def test_the_bibliography_is_complete_in_itself():
    for paper, known in catalog.bibliography().items():
        arxiv = re.fullmatch(r"\d{4}\.\d{4,5}", paper)
        assert set(known) == {"title", "authors", "year"} | (set() if arxiv else {"venue"})
        assert len(known["authors"]) >= 1 and all(" " in name for name in known["authors"])
        assert known["title"][0].isupper() and not known["title"].endswith(".")
        assert not arxiv or known["year"] == 2000 + int(paper[:2])  # the number begins with the year and month


def test_keys_of_entries_are_distinct():
    keys = [citations.entry(paper).split("{", 1)[1].split(",")[0] for paper in catalog.bibliography()]
    assert len(set(keys)) == len(keys)


def test_bibtex_names_each_composed_paper_once_and_no_other():
    cfg = composition.resolved(composition.compose(["strategy=fedbuff", "optimizer=none"]))
    text = citations.bibtex(cfg)
    assert text.count("eprint = {2106.06639}") == 1
    assert "1812.06127" not in text
    assert "2003.00295" not in text
    assert "2003.00295" in citations.bibtex(composition.resolved(composition.compose(["strategy=fedadam"])))
    assert _braces(text) == 0


def test_each_entry_says_which_part_rests_on_it():
    found = citations.papers(composition.resolved(composition.compose(["strategy=fedbuff"])))
    assert "strategy=fedbuff" in found["2106.06639"]
    assert "schedule: FedBuff" in found["2106.06639"]


def test_an_unknown_paper_gets_its_number_and_nothing_made_up():
    assert (
        citations.entry("9912.00001")
        == "@misc{arxiv9912_00001,\n  eprint = {9912.00001},\n  archivePrefix = {arXiv}\n}"
    )


def test_layers_inside_a_mapping_are_cited_too():
    layer = {"_target_": "strategies.optimizers.fedopt.Adam"}
    assert "2003.00295" in citations.papers({"strategy": "x", "optimizer": {"one": layer}})


def test_every_option_is_listed_with_a_line_about_it():
    entries = catalog.entries()
    assert {entry.axis for entry in entries} == set(composition.options())
    assert [f"{e.axis}={e.name}" for e in entries if not e.about] == []
    assert [f"{e.axis}={e.name}" for e in entries if "\n" in e.about] == []


def test_every_target_in_conf_is_found_and_has_a_docstring():
    missing = [f"{e.axis}={e.name}: {t}" for e in catalog.entries() for t in e.targets if not catalog.describe(t)]
    assert missing == []


def test_every_published_strategy_names_its_paper_or_venue():
    unnamed = [e.name for e in catalog.entries("strategy") if not e.papers and not re.search(r"\(.*\d{4}", e.about)]
    assert unnamed == []


def test_a_paper_without_an_arxiv_number_is_found_by_its_title():
    text = 'Su, Li, "How Asynchronous can\n    Federated Learning Be?", 2022; arXiv:1602.05629'
    assert catalog.named(text) == ["1602.05629", "port"]
    assert "booktitle = {IEEE/ACM International Symposium on Quality of Service (IWQoS)}" in citations.entry("port")


def test_one_axis_can_be_asked_for_and_an_unknown_one_is_refused():
    assert {entry.axis for entry in catalog.entries("schedule")} == {"schedule"}
    with pytest.raises(ConfigError, match="no axis 'shedule'"):
        catalog.entries("shedule")


def test_listing_imports_no_plug_in():
    import subprocess
    import sys

    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fedhet.config import catalog; catalog.entries(); "
        "assert not {'torch', 'flwr', 'strategies.rules.mean'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(source_tree.root())], check=True)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One idea. Another.", "One idea"),
        ("One idea, told\nover lines.\n\nMore.", "One idea, told over lines"),
        ("Nguyen et al. showed this. More.", "Nguyen et al. showed this"),
        ("A factor of 0.5 is used. More.", "A factor of 0.5 is used"),
        ("no end", "no end"),
        ("", ""),
    ],
)
def test_the_first_sentence_is_found(text, first):
    assert catalog.sentence(text) == first
