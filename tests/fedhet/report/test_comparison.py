"""Comparisons: means and spreads against the statistics module, and runs that did not reach the target."""

import io
import json
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fedhet.report import ReportError, comparison_rows, comparison_table, summary_table, write_comparison
from fedhet.report.run_groups import average
from fedhet.report.run_labels import variants


def result(strategy, seed, time, accuracy=0.9, **more):
    updates = {"accepted": 10, "late": {"late": 2, "stale": 1}, "rejected": {"norm": 4}, "failed": {}}
    numbers = {"accuracy": accuracy, "worst_decile_accuracy": accuracy - 0.1, "bytes_up": 1000 * (seed + 1)}
    return {
        "strategy": strategy,
        "seed": seed,
        "target": 0.85,
        "time_to_target": time,
        "updates": updates,
        **numbers,
        **more,
    }


def shown(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


times = st.lists(st.floats(min_value=0.001, max_value=1e6), min_size=1, max_size=8)


@given(times, times)
def test_means_deviations_and_ratios_are_those_of_the_statistics_module(a, b):
    runs = [result("a", k, t) for k, t in enumerate(a)] + [result("b", k, t) for k, t in enumerate(b)]
    first, second = comparison_rows(runs)
    assert first["seconds_mean"] == pytest.approx(statistics.fmean(a))
    assert second["seconds_mean"] == pytest.approx(statistics.fmean(b))
    for row, values in ((first, a), (second, b)):
        sd = None if len(values) == 1 else pytest.approx(statistics.stdev(values), rel=1e-6, abs=1e-9)
        assert row["seconds_sd"] == sd
        assert row["bytes_up_mean"] == statistics.fmean(1000 * (k + 1) for k in range(len(values)))
        assert row["seeds"] == list(range(len(values)))
    fast = min((first, second), key=lambda row: row["seconds_mean"])
    assert fast["fastest"] and fast["reference"] and fast["ratio"] == 1.0
    assert min(first["ratio"], second["ratio"]) == 1.0
    by_name = comparison_rows(runs, reference="b")
    assert by_name[0]["ratio"] == pytest.approx(statistics.fmean(a) / statistics.fmean(b))
    assert by_name[1]["ratio"] == 1.0 and not by_name[0]["reference"]


@pytest.mark.parametrize(
    ("reached", "of", "has"), [(0, 1, False), (1, 3, False), (2, 4, True), (2, 3, True), (3, 3, True)]
)
def test_a_strategy_that_reached_in_fewer_than_half_of_its_runs_has_no_time(reached, of, has):
    runs = [result("a", k, 10.0 if k < reached else None) for k in range(of)]
    row = comparison_rows([*runs, result("b", 0, 5.0)])[0]
    assert (row["reached"], row["runs"]) == (reached, of)
    assert (row["seconds_mean"], row["ratio"]) == ((10.0, 2.0) if has else (None, None))
    line = next(line for line in shown(comparison_table([*runs, result("b", 0, 5.0)])).splitlines() if " a " in line)
    cells = [cell.strip() for cell in line.split("│")[1:-1]]
    assert cells[1] == f"{reached}/{of}"
    assert (cells[3] == "-") == (not has)


def test_updates_are_counted_with_and_without_reasons():
    row = comparison_rows([result("a", 0, 1.0)])[0]
    assert [row[f"{k}_mean"] for k in ("accepted", "late", "rejected", "failed")] == [10, 3, 4, 0]


def test_another_target_needs_the_evaluations():
    run = result(
        "a", 0, 9.0, metrics=[{"t": 1.0, "accuracy": 0.4}, {"t": 2.0, "accuracy": 0.5}, {"t": 3.0, "accuracy": 0.7}]
    )
    assert comparison_rows([run], 0.5)[0]["seconds_mean"] == 2.0
    assert comparison_rows([run], 0.95)[0]["reached"] == 0
    assert comparison_rows([run], 0.85)[0]["seconds_mean"] == 9.0
    with pytest.raises(ReportError, match="its evaluations are needed"):
        comparison_rows([result("a", 0, 9.0)], 0.5)


def test_runs_that_do_not_go_together_are_refused():
    with pytest.raises(ReportError, match=r"different targets \(0.85 in result 1, 0.5 in result 2\)"):
        comparison_rows([result("a", 0, 1.0), {**result("a", 1, 1.0), "target": 0.5}])
    with pytest.raises(ReportError, match="nothing to compare"):
        comparison_rows([])
    with pytest.raises(ReportError, match="reference 'c' is not among the strategies: a"):
        comparison_rows([result("a", 0, 1.0)], reference="c")


def test_the_terminal_does_not_read_markup_in_names():
    name = "[bold]x[/bold] [/]"
    assert name in shown(comparison_table([result(name, 0, 1.0)]))
    text = shown(summary_table({**result(name, 0, 75.0), "virtual_seconds": 90.0, "weights_sha256": "f00"}))
    assert name in text and "75 s" in text and "3 (late 2, stale 1)" in text and "f00" in text


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6), st.integers(2, 5))
def test_the_mean_of_equal_curves_is_the_curve_without_spread(ys, copies):
    curve = [(float(k), y) for k, y in enumerate(ys)]
    points, band = average([curve] * copies)
    held = dict(curve)
    assert all(y == pytest.approx(held[float(int(x + 1e-9))]) for x, y in points)
    assert all(high - low < 1e-6 for _, low, high in band)
    assert average([curve]) == (curve, [])


def test_a_mean_is_drawn_only_where_every_run_has_evaluations():
    points, band = average([[(0.0, 0.0), (10.0, 1.0)], [(2.0, 0.5), (6.0, 0.5)]])
    assert (points[0][0], points[-1][0]) == (2.0, 6.0)
    assert points[0][1] == 0.25 and band[0][1] == 0.0
    assert average([[(0.0, 1.0)], [(1.0, 1.0)]]) == ([], [])


def test_labels_of_configurations_are_their_differences_except_the_seed():
    base = "strategy: x\nseed: {}\nsize: {}\n"
    assert variants([base.format(0, 4), base.format(1, 4)]) == ["", ""]
    assert variants([base.format(0, 4), base.format(1, 9), base.format(1, 4)]) == ["size=4", "size=9", "size=4"]


def test_the_page_has_a_curve_a_row_and_a_bar_per_strategy(fake_run, tmp_path):
    runs = [fake_run(f"{s}{k}", s, seed=k, speed=4.0) for s in ("fedavg", "fedbuff", "fedcompass") for k in range(2)]
    runs += [fake_run(f"big{k}", "fedbuff", seed=k, size=12, speed=4.0) for k in range(2)]
    out = write_comparison(runs, tmp_path / "comparison.html")
    page = out.read_text()
    assert out == tmp_path / "comparison.html"
    assert page.count('class="curve ') == 3 * 4
    assert page.count('class="band ') == 3 * 4
    for name in ("fedavg", "fedbuff · schedule.size=4", "fedbuff · schedule.size=12", "fedcompass"):
        assert f'<th scope="row">{name}</th>' in page
    assert page.count(">1.00x</td>") == 1
    assert "http:" not in page and "https:" not in page


def test_names_in_a_comparison_are_text(fake_run, tmp_path):
    folder = fake_run()
    row = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**row, "strategy": "<script>x</script>"}))
    page = write_comparison([folder], tmp_path / "c.html").read_text()
    assert page.count("<script>") == 1 and "&lt;script&gt;x" in page


def test_what_a_method_wants_to_be_said_stands_on_the_page_once_a_strategy(fake_run, tmp_path):
    folders = [fake_run("a"), fake_run("b", seed=1), fake_run("c", "plain")]
    for folder in folders[:2]:
        row = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps({**row, "notices": ["it looks at data"]}))
    page = write_comparison(folders, tmp_path / "c.html").read_text()
    assert page.count("it looks at data") == 1 and f"Notice, {row['strategy']}: it looks at data" in page


def test_a_broken_run_is_named(fake_run, tmp_path):
    good, bad = fake_run("good"), fake_run("bad")
    (bad / "metrics.jsonl").write_text('{"t":0}\n{"t":-1}\n')
    with pytest.raises(ReportError, match=r"bad/metrics\.jsonl, line 2: 't' is -1"):
        write_comparison([good, bad], tmp_path / "c.html")
    with pytest.raises(ReportError, match="nothing to compare"):
        write_comparison([], tmp_path / "c.html")
