"""Measurements in turns, with ratios within a turn; and the sections of `fedhet bench` at a small size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedhet.bench import aggregation, rules, table
from fedhet.bench.turns import Cost, in_turns, peak
from fedhet.cli.main import main


def test_ratios_are_taken_within_a_turn() -> None:
    ours, theirs = Cost((1.0, 10.0, 4.0), (1.0, 1.0, 1.0), None), Cost((2.0, 20.0, 2.0), (3.0, 3.0, 6.0), None)
    assert theirs.times(ours) == 2.0 and ours.times(theirs) == 0.5
    assert theirs.seconds == 2.0 and theirs.cpu_times(ours) == 3.0


def test_systems_take_turns_after_one_warm_up_each() -> None:
    calls: list[str] = []
    costs = in_turns({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 3)
    assert "".join(calls) == "ab" + "ababab"
    assert len(costs["a"].wall) == len(costs["b"].cpu) == 3
    with pytest.raises(ValueError, match="repeats=0"):
        in_turns({}, 0)


def test_the_peak_is_what_a_call_needs_beyond_what_is_held() -> None:
    found = peak(lambda: bytearray(64 * 2**20))
    assert found is None or 0.9 * 64 * 2**20 < found < 1.5 * 64 * 2**20


def test_all_systems_combine_the_same_updates() -> None:
    costs = aggregation.weighted_sum(3, 1000, 1, 1)
    assert set(costs) == {aggregation.READ, aggregation.OURS, aggregation.TORCH, aggregation.FLOWER}
    assert set(aggregation.opening(1000, 1)) == {aggregation.READ, aggregation.OURS, aggregation.FLOWER}


def test_every_rule_is_measured_or_says_why_not() -> None:
    costs, refused = rules.costs(10, 50, 1)
    assert {"mean", "krum", "median", aggregation.READ} <= set(costs)
    assert set(costs) - {aggregation.READ} | set(refused) == set(rules.configured(2))
    assert all(refused.values())


def test_sections_are_printed_as_tables_and_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ({"system": "one", "ms": 1234.5}, {"system": "two", "ms": "refused"})
    made: dict[str, Any] = {
        name: lambda name=name: table.Section(name, f"Title of {name}", "note", ("system", "ms"), rows)
        for name in table.SECTIONS
    }
    monkeypatch.setattr(table, "SECTIONS", made)
    assert main(["bench", "--only", "rules", "--only", "decode"]) == 0
    told = capsys.readouterr().out
    assert told.index("Title of decode") < told.index("Title of rules") and "1,234" in told and "refused" in told
    assert "Title of simulation" not in told
    assert main(["bench", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [s["name"] for s in found["sections"]] == list(table.SECTIONS)
    assert found["sections"][0]["rows"][0] == rows[0] and found["machine"]["cores"] >= 1


def test_an_unknown_section_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--only", "speed"]) == 2
    assert "the sections are simulation, aggregation, decode, rules" in capsys.readouterr().err
