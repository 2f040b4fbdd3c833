"""The page of one run: one safe file with the content of the event log."""

import json
import re
from html.parser import HTMLParser

import pytest

from fedhet.report import ReportError, timeline, write_report

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&"


class Page(HTMLParser):
    """Elements by class, text, and everything that could fetch or run."""

    def __init__(self, path):
        super().__init__(convert_charrefs=True)
        self.elements, self.text, self.scripts = [], "", 0
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.scripts += tag == "script"

    def handle_data(self, data):
        self.text += data

    def count(self, cls, tag=None):
        return sum(cls in (a.get("class") or "").split() for t, a in self.elements if tag in (None, t))


def edit(path, change):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "fedcompass"])
def test_a_bar_per_job_a_mark_per_version_a_lane_per_client(fake_run, strategy):
    folder = fake_run(strategy=strategy)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    page = Page(write_report(folder))
    assert page.count("job", "g") == sum(e["event"] == "assign" for e in events)
    assert page.count("version", "g") == sum(e["event"] == "combined" for e in events)
    assert page.count("lane", "g") == 12
    assert "Adds up" in page.text and "Does not add up" not in page.text
    groups = {e["group"] for e in events if e["event"] == "note"}
    assert page.count("group", "g") == len(groups) or f"of {len(groups)} groups" in page.text
    assert (strategy == "fedcompass") == bool(groups)


def test_answers_late_for_their_group_are_marked_and_counted(fake_run):
    folder = fake_run(strategy="fedcompass")
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    due, placed = {}, {}
    late, answers = 0, 0
    for row in rows:  # a second reading of the log: who was placed in a group with a latest second, and came after it
        if row["event"] == "note":
            placed[row["client"]] = row.get("latest")
        elif row["event"] == "assign":
            due[row["job"]] = placed.pop(row["client"], None)
        elif row["event"] == "arrived" and due[row["job"]] is not None:
            answers += 1
            late += row["t"] > due[row["job"]] + 1e-9
    assert late, "the example needs late answers"
    page = Page(write_report(folder))
    assert f"{late} of {answers} answers came late for a group" in page.text
    assert page.count("overdue", "path") >= late and page.count("overdue", "i") == 1
    assert "after its group's latest second" in page.text
    assert Page(write_report(fake_run(strategy="fedavg"))).count("overdue") == 0


def test_the_headline_is_the_result(fake_run):
    folder = fake_run(seed=2)
    result = json.loads((folder / "result.json").read_text())
    page = Page(write_report(folder))
    assert f"{100 * result['accuracy']:.1f}%" in page.text
    assert result["weights_sha256"] in page.text and "strategies.rules.mean.WeightedMean" in page.text


def test_one_file_that_fetches_nothing_and_runs_only_its_own_script(fake_run):
    page = Page(write_report(fake_run(strategy="fedcompass")))
    names = {"src", "href", "srcset", "action", "data", "poster", "xlink:href"}
    assert [(t, k) for t, a in page.elements for k in a if k in names] == []
    assert "http:" not in page.source and "https:" not in page.source
    assert set(re.findall(r"url\(([^)]*)\)", page.source)) == {"#hatch", "#window"}
    assert not re.search(r"@import|@font-face|fetch\(|XMLHttpRequest|WebSocket|import\(", page.source)
    assert page.scripts == 1
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy
    assert not [a for _, a in page.elements if any(k.startswith("on") for k in a)]


def test_a_hostile_record_is_shown_as_text(fake_run):
    folder = fake_run(strategy="fedcompass")

    def poison(rows):
        for row in rows:
            if row["event"] == "failed":
                row["reason"] = EVIL
            if row["event"] == "rejected":
                row["code"] = EVIL
            if row["event"] == "note":
                row["group"] = f"{row['group']}{EVIL}"
            if row.get("client") == 3:
                row["client"] = f"3{EVIL}"
        rows[-1]["reason"] = EVIL
        return rows

    edit(folder / "events.jsonl", poison)
    result = json.loads((folder / "result.json").read_text())
    result["strategy"] = result["transport"] = EVIL
    result["packages"] = {EVIL: EVIL}
    result["updates"] = {}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "config.yaml").write_text(f"name: {EVIL}\n{EVIL}: 1\n")
    page = Page(write_report(folder))
    assert page.scripts == 1
    assert not [t for t, _ in page.elements if t == "img"]
    assert not [a for _, a in page.elements if any(k.startswith("on") for k in a)]
    assert page.text.count(EVIL) > 10


@pytest.mark.parametrize("key", ["mlp_backend", "small_steps"])
def test_the_page_says_what_computed_the_steps(fake_run, key):
    folder = fake_run()
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps({**result, key: "torch (no C compiler)"}))
    text = Page(write_report(folder)).text
    assert "steps of small perceptrons" in text and "torch (no C compiler)" in text


def test_what_is_not_drawn_is_said(fake_run, monkeypatch):
    monkeypatch.setattr(timeline, "MAX_BARS", 40)
    monkeypatch.setattr(timeline, "MAX_LANES", 5)
    monkeypatch.setattr(timeline, "MAX_MARKS", 3)
    folder = fake_run(strategy="fedbuff")
    page = Page(write_report(folder))
    dispatched = json.loads((folder / "result.json").read_text())["updates"]["dispatched"]
    assert page.count("lane", "g") == 5 and page.count("job", "g") == 40 and page.count("version", "g") == 3
    assert f"Showing the 5 busiest of 12 clients, the first 40 of {dispatched} jobs, the first 3 of " in page.text


def test_a_long_run_makes_a_small_page(fake_run):
    folder = fake_run(strategy="fedbuff", clients=300, seconds=240.0, pace=0.2, size=30, speed=40)
    assert sum(1 for _ in (folder / "events.jsonl").open()) > 20_000
    page = Page(write_report(folder))
    assert len(page.source) < 1_500_000
    assert page.count("job", "g") == timeline.MAX_BARS
    assert "Showing the first 200 of 300 clients." in page.text and "Adds up" in page.text


def test_a_run_without_flights_or_evaluations_or_jobs_has_a_page(fake_run):
    folder = fake_run()
    edit(folder / "events.jsonl", lambda rows: [r for r in rows if r["event"] != "client_timing"])
    assert Page(write_report(folder)).count("away", "path") > 0
    (folder / "metrics.jsonl").write_text("")
    (folder / "events.jsonl").write_text('{"t":0,"event":"started","clients":0,"method":"x"}\n')
    (folder / "result.json").write_text('{"updates":{}}')
    page = Page(write_report(folder))
    assert page.text.count("No figures were recorded.") == 3
    assert "No job was given out." in page.text and "No update was combined." in page.text


@pytest.mark.parametrize("value", [0.0, 1e-12, -3.0, 1e299, float("inf"), float("nan"), 1e400, None])
def test_any_number_in_the_metrics_can_be_drawn(fake_run, value):
    folder = fake_run(seconds=20.0)
    names = ("accuracy", "worst_decile_accuracy", "loss", "bytes_up")
    edit(
        folder / "metrics.jsonl", lambda rows: [{**r, **{n: value for n in names if k % 2}} for k, r in enumerate(rows)]
    )
    assert Page(write_report(folder)).count("curve", "g") >= 3


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "events.jsonl", "metrics.jsonl"])
def test_a_missing_file_is_named(fake_run, name):
    folder = fake_run()
    (folder / name).unlink()
    with pytest.raises(ReportError, match=re.escape(name)):
        write_report(folder)
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize(
    ("name", "text", "place"),
    [
        ("result.json", '{\n "a": 1,\n}', "result.json, line 3: not JSON"),
        ("result.json", '{"seed": 1}', "result.json: 'updates' is None"),
        ("result.json", '{"updates": {"late": "x"}}', "result.json: 'late' is 'x'"),
        (
            "metrics.jsonl",
            '{"t":0,"accuracy":0.1}\n{"t":1,"accuracy":"high"}\n',
            "metrics.jsonl, line 2: 'accuracy' is",
        ),
        ("events.jsonl", '{"t":0,"event":"woke"}\n{"t":1,"ev', "events.jsonl, line 2: not JSON"),
    ],
)
def test_a_broken_file_is_named_with_its_line(fake_run, name, text, place):
    folder = fake_run()
    (folder / name).write_text(text)
    with pytest.raises(ReportError) as error:
        write_report(folder)
    assert place in str(error.value)
