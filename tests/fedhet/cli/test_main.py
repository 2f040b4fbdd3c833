"""The command line: output streams, exit codes, and no files after bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fedhet import native
from fedhet.cli.progress import Bar, describe
from fedhet.provenance import source_tree
from fedhet.runs.explain import explain, text

QUICK = ["debug=quick", "fleet=homogeneous", "fleet.clients=3", "model=softmax"]
"""Three versions of a linear model on three equal clients, in this process."""


def test_help_needs_neither_torch_nor_flower_nor_hydra():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from fedhet.cli import main; assert main.main(['--help']) == 0; "
        "heavy = {'torch', 'flwr', 'hydra', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source_tree.root())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for command in (
        "run",
        "compare",
        "demo",
        "list",
        "cite",
        "explain",
        "report",
        "simulate",
        "version",
        "join",
        "serve",
    ):
        assert command in done.stdout


def test_help_of_run_lists_the_axes_and_their_options(fedhet):
    code, out, _ = fedhet("run", "--help")
    assert code == 0
    assert "schedule: " in out and "fedbuff" in out and "transport: " in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["run", "strategi=fedbuff"], ["strategi=fedbuff", "nearest: strategy"]),
        (["run", "strategy=fedbuf"], ["strategy=fedbuf", "nearest: fedbuff"]),
        (["run", "seed=abc"], ["seed=abc", "integer"]),
        (["run", "seed=-1"], ["seed=-1", "0 or more"]),
        (["run", "stop.target=95"], ["stop.target=95", "did you mean 0.95?"]),
        (["run", "schedule.per_round=-1"], ["schedule.per_round=-1"]),
        (["run", "work=scaffold", "space=full"], ["Scaffold needs ['control']"]),
        (["run", "stop.versions=null"], ["a run needs an end"]),
        (["run", "stop.versions=-2"], ["error: stop.versions=-2", "positive"]),
        (["run", "partition.alpha=-1"], ["error: partition.alpha=-1", "positive"]),
        (["run", "rule=nnm", "rule.before.nnm.f=-1"], ["error: rule.before.nnm.f=-1"]),
        (["run", "data=mnist", "data.path=absent"], ["error: data.path=absent"]),
        (["run", "max_weight=-1"], ["error: max_weight=-1", "positive"]),
        (["run", "++a.b=1"], ["a.b=1: there is no key 'a.b'"]),
        (["run", "++work.lrr=0.1"], ["work.lrr: Sgd has no parameter 'lrr' (nearest: lr)"]),
        (["run", "evaluate.every_versions=0"], ["evaluate.every_versions=0", "1 or more"]),
        (["run", "checkpoint.every_seconds=-1"], ["checkpoint.every_seconds=-1"]),
        (["fleet", "show", "--picture", "absent/x.svg"], ["--picture absent/x.svg", "no folder absent"]),
        (["run", "gate.clip=-1"], ["gate.clip=-1", "positive"]),
        (["run", "strategy=flora", "budget.rank=9"], ["client 0 rank 9, above space.rank=8"]),
        (["run", "strategy=flora", "budget=by_memory", "budget.max_rank=64"], ["above space.rank=8"]),
        (["run", "seed=1,2"], ["--multirun"]),
        (["run", "data=mnist"], ["data.path="]),
        (["run", "fleet.clients=100000"], ["100000 clients cannot share 1437 samples", "fleet.clients to 1 to 1437"]),
        (["run", "--multirun", "seed=1,2", "strategy=fedavg,nope"], ["strategy=nope"]),
        (["run", "--multirun", "work.lr=interval(0.1,1)"], ["no finite list"]),
        (["run", "--nope"], ["--nope", "--help"]),
        (["run", "--cfg", "hydra"], ["--cfg job"]),
        (["run", "--resume", "absent"], ["absent is not a run folder"]),
        (["run", "--resume", "absent", "seed=2"], ["seed=2", "only workers=N"]),
        (["run", "--resume", "absent", "--out", "x"], ["--out cannot be used with --resume"]),
        (["compare", "strategy=fedavg,nope"], ["strategy=nope"]),
        (["compare", "target=0.5,0.9"], ["a comparison has one target"]),
        (["compare", "--resume", "absent"], ["absent contains no comparison"]),
        (["compare", "--resume", "absent", "seed=1"], ["use it without other arguments"]),
        (["list", "shedule"], ["no axis 'shedule'", "nearest: schedule"]),
        (["run", "debug=quick", "--out", "/proc/absent"], ["error: --out /proc/absent: No such file or directory\n"]),
        (["run", "debug=quick", "out=/proc/absent/runs"], ["error: out=/proc/absent/runs: No such file", "absent"]),
        (["list", "axs"], ["no axis 'axs'", "`fedhet list` without a word"]),
        (["list", "agg"], ["no axis 'agg'", "nearest: aggregation"]),
        (["list", "krum"], ["no axis 'krum'", "krum is an option of rule, strategy"]),
        (["list", "fedcompas"], ["nearest: fedcompass, an option of"]),
        (["cite", "strategy=nope"], ["strategy=nope"]),
        (["explain", "absent", "--client", "1"], ["absent is not a run folder"]),
        (["report", "absent"], ["absent contains no finished run"]),
        (["simulate", "absent.py:server", "absent.py:client"], ["absent.py"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_bad_input_is_one_line_exit_two_and_nothing_written(fedhet, tmp_path, arguments, parts):
    code, out, err = fedhet(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    for part in parts:
        assert part in err
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback(fedhet):
    with pytest.raises(ValueError, match="seed=abc"):
        fedhet("run", "seed=abc", "--debug")


@pytest.mark.parametrize("how", ["plain", "debug"])
def test_what_steers_a_display_is_spelled_out_in_every_error(fedhet, capsys, monkeypatch, how):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    words = ["run", "fleet=trace", "fleet.path='\x1b]0;owned\x07.json'"]
    if how == "debug":
        with pytest.raises(Exception, match="owned") as caught:
            fedhet(*words, "--debug")
        sys.excepthook(caught.type, caught.value, caught.tb)
        err = capsys.readouterr().err
        assert "Traceback" in err and "\n" in err
    else:
        _, _, err = fedhet(*words)
    assert "\\x1b]0;owned\\x07" in err and "\x1b" not in err and "\x07" not in err


def test_a_configuration_is_printed_and_nothing_run(fedhet, tmp_path):
    code, out, _ = fedhet("run", "strategy=fedbuff", "--cfg", "job")
    assert code == 0 and "strategy: fedbuff" in out and "${" in out
    code, out, _ = fedhet("run", "strategy=fedbuff", "seed=7", "--cfg", "job", "--resolve")
    assert code == 0 and "seed: 7" in out and "${" not in out
    assert list(tmp_path.iterdir()) == []


def test_a_run_ends_with_its_folder_and_json_is_the_result(fedhet):
    code, out, err = fedhet("run", *QUICK)
    folder = Path(out.splitlines()[-1])
    assert code == 0, err
    assert folder.parent == Path("runs") and folder.name.startswith("fedavg-seed0-")
    kept = {"config.yaml", "events.jsonl", "metrics.jsonl", "model.safetensors", "report.html", "result.json"}
    assert kept <= {p.name for p in folder.iterdir()}
    assert "version 3" in err and "accuracy" in out

    code, out, _ = fedhet("run", "--resume", str(folder), "--json")
    assert code == 0
    assert json.loads(out) == json.loads((folder / "result.json").read_text())
    assert json.loads(out)["versions"] == 3


@pytest.mark.parametrize("preset", ["fedbuff", "fedcompass"])
def test_a_semi_asynchronous_method_runs_behind_a_robust_rule(fedhet, preset):
    code, out, err = fedhet("run", *QUICK, f"strategy={preset}", "rule=robust", "attack=sign_flip", "--json")
    assert code == 0, err
    assert json.loads(out)["versions"] == 3


def test_many_clients_of_few_labels_get_their_least_and_the_run_says_so(fedhet):
    code, out, err = fedhet("run", "strategy=fedavg", "data=digits", "partition=dirichlet", "partition.alpha=0.1",
                            "fleet=exponential", "fleet.clients=100", "schedule.per_round=10", "seed=3",
                            "stop.versions=1", "--json")  # fmt: skip
    assert code == 0
    (told,) = json.loads(out)["notices"]
    assert told.startswith("partition=dirichlet: no draw gave all 100 clients min_size=2 samples")
    assert f"notice: {told}" in err
    assert "largest clients" in fedhet("partition", "show", "partition=dirichlet", "partition.alpha=0.1",
                                       "fleet.clients=100", "seed=3")[1]  # fmt: skip


def test_a_folder_that_holds_something_is_not_touched(fedhet, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    code, _, err = fedhet("run", *QUICK, "--out", "mine")
    assert code == 2 and "not empty" in err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_interrupted_run_says_how_to_go_on_and_ends_as_if_nothing_had_been(fedhet, monkeypatch):
    code, out, _ = fedhet("run", *QUICK, "checkpoint.every_seconds=0.0", "--out", "whole", "--json")
    whole = json.loads(out)
    plain = Bar.__call__

    def interrupt(self, row):
        plain(self, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bar, "__call__", interrupt)
        code, _, err = fedhet("run", *QUICK, "checkpoint.every_seconds=0.0", "--out", "half")
    assert code == 130
    assert "error: interrupted; continue with: fedhet run --resume half" in err
    assert not Path("half/result.json").exists()

    code, out, _ = fedhet("run", "--resume", "half", "workers=0", "--json")
    assert code == 0
    assert [json.loads(out)[k] for k in ("weights_sha256", "events_sha256", "versions")] == [
        whole[k] for k in ("weights_sha256", "events_sha256", "versions")
    ]


def test_a_run_that_fails_is_exit_one_and_names_its_folder(fedhet, monkeypatch):
    from fedhet.runs import evaluator

    def broken(self, *given, **named):
        raise ArithmeticError("no accuracy today")

    monkeypatch.setattr(evaluator.Evaluator, "evaluate_if_due", broken)
    code, out, err = fedhet("run", *QUICK, "--out", "broken")
    assert code == 1 and out == ""
    assert "error: broken: ArithmeticError: no accuracy today" in err
    assert not Path("broken/result.json").exists()


def test_list_shows_one_line_and_the_papers_of_each_option(fedhet):
    code, out, _ = fedhet("list", "schedule")
    assert code == 0 and "fedbuff" in out and "2106.06639" in out
    code, out, _ = fedhet("list", "--json")
    assert {"axis", "name", "about", "targets", "papers"} == set(json.loads(out)[0])


def test_cite_prints_bibtex_for_the_composed_parts(fedhet):
    code, out, err = fedhet("cite", "strategy=fedbuff", "optimizer=none")
    assert code == 0 and err == ""
    assert out.count("eprint = {2106.06639}") == 1


def test_version_names_what_results_depend_on(fedhet):
    code, out, _ = fedhet("version")
    assert code == 0 and out.startswith("fedhet 0.1.0") and source_tree.fingerprint() in out and "torch 2" in out
    assert [f"{of} backend: {native.backend(of)}" in out for of in ("mlp", "sum", "stack")] == [True] * 3


def test_a_report_is_written_again(fedhet):
    assert fedhet("run", *QUICK, "--out", "one")[0] == 0
    Path("one/report.html").unlink()
    code, out, _ = fedhet("report", "one")
    assert code == 0 and out == "one/report.html\n" and Path("one/report.html").exists()


def test_explain_tells_a_clients_jobs(fedhet):
    assert fedhet("run", *QUICK, "--out", "one")[0] == 0
    code, out, _ = fedhet("explain", "one", "--client", "2")
    assert code == 0
    assert out.startswith("client 2: 3 jobs\n0.000 s  job 2, model version 0: ")
    assert "combined into version 1" in out
    code, _, err = fedhet("explain", "one", "--client", "9")
    assert code == 2 and "its clients are 0 to 2" in err


def test_explain_tells_why_a_client_got_its_steps(fedhet):
    more = ["strategy=fedcompass", "stop.versions=8", "fleet=exponential"]
    assert fedhet("run", *QUICK, *more, "--out", "one")[0] == 0
    code, out, _ = fedhet("explain", "one", "--client", "1")
    assert code == 0
    first, later = out.split("\n", 3)[2], out.split("why: ")[2]
    assert first == "    why: first task: steps 20; its speed was not known yet"
    assert later.startswith("group: group ") and ", due " in later and ", latest " in later
    assert re.search(r"how (joined|founded), step_seconds 0\.\d+; measured 0\.\d+ s a step so far", later)


ROWS = [
    {"t": 0.0, "event": "started", "clients": 3, "method": "m"},
    {"t": 0.0, "event": "note", "kind": "group", "client": 1, "group": 4, "due": 12.5},
    {"t": 0.0, "event": "assign", "job": 0, "client": 1, "version": 0, "turn": 0, "steps": 8, "rank": 0, "width": 1.0},
    {"t": 4.0, "event": "arrived", "job": 0, "client": 1, "version": 0, "seconds": 4.0, "weight": 1, "metrics": {}},
    {"t": 4.0, "event": "combined", "version": 3, "jobs": [0], "clients": [1], "staleness": [2], "scales": [0.5]},
    {"t": 5.0, "event": "assign", "job": 1, "client": 1, "version": 3, "turn": 1, "steps": 2, "rank": 4, "width": 0.5},
    {"t": 6.0, "event": "failed", "job": 1, "client": 1, "reason": "dropout"},
    {"t": 6.0, "event": "assign", "job": 2, "client": 0, "version": 3, "turn": 0, "steps": 2, "rank": 0, "width": 1.0},
]


def test_an_explanation_joins_notes_measured_speed_and_fate():
    story = explain(ROWS, 1)
    first, second = story.jobs
    assert (first.steps, first.why, first.known) == (8, ["group: group 4, due 12.5"], None)
    assert first.end == "arrived at 4.000 s, after 4.000 s, combined into version 3, 2 versions late, scaled by 0.5"
    assert (second.known, second.why) == (0.5, [])
    assert second.end == "failed at 6.000 s (dropout)"
    told = text(story)
    assert "its speed was not known yet" in told and "measured 0.5 s a step so far" in told
    assert "2 steps, rank 4, width 0.5" in told and "the budget policy alone" in told
    assert text(story, 1).splitlines()[-1] == "... and 1 more jobs (--all shows them)"
    assert explain(ROWS, 0).jobs[0].end == "still out when the record ends"


def test_a_client_without_a_job_differs_from_one_that_does_not_exist():
    with pytest.raises(ValueError, match="client 2 got no job in this run"):
        explain(ROWS, 2)
    with pytest.raises(ValueError, match="no client 3 in this run; its clients are 0 to 2"):
        explain(ROWS, 3)


def test_progress_without_a_terminal_is_plain_lines_now_and_then():
    import io

    stream = io.StringIO()
    with Bar("mine", stream) as show:
        for share in (0.0, 0.1, 0.2, 1.0, 1.0):
            show({"t": 2.5, "version": 3, "tasks": 9, "accuracy": None, "share": share})
        show({"t": 2.5, "version": 3, "tasks": 9, "accuracy": 0.5, "share": None})
    first, last = stream.getvalue().splitlines()
    assert first == "mine:   0% version 3, 2.5 s, 9 tasks"
    assert last.startswith("mine: 100% version 3, 2.5 s, 9 tasks")
    assert describe({"t": 1, "version": 2, "tasks": 3, "accuracy": 0.25}).endswith("accuracy 0.250")


def test_a_flower_app_is_simulated_on_a_fleet(fedhet, tmp_path):
    (tmp_path / "app.py").write_text(
        "from flwr.app import ConfigRecord, Message, RecordDict\n"
        "from flwr.clientapp import ClientApp\n"
        "from flwr.serverapp import ServerApp\n"
        "client, server = ClientApp(), ServerApp()\n"
        "@client.train()\n"
        "def train(message, context):\n"
        "    return Message(RecordDict({'c': ConfigRecord({'x': 2})}), reply_to=message)\n"
        "@server.main()\n"
        "def main(grid, context):\n"
        "    nodes = list(grid.get_node_ids())\n"
        "    replies = grid.send_and_receive([Message(RecordDict(), n, 'train') for n in nodes])\n"
        "    assert sum(r.content['c']['x'] for r in replies) == 2 * len(nodes) * context.run_config['k']\n"
    )
    asked = ["simulate", "app.py:server", "app.py:client", "workers=0", "--nodes", "5", "--fleet", "homogeneous"]
    code, out, err = fedhet(*asked, "--run-config", "k=1", "--json", "--steps", "3")
    assert code == 0, err
    assert json.loads(out)["messages"] == 5 and json.loads(out)["virtual_seconds"] > 0
    code, _, err = fedhet("simulate", "app.py:client", "app.py:client")
    assert code == 2 and "is no ServerApp" in err
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.config]\nk = 1\nlonger-name = 2\n")
    assert fedhet(*asked)[0] == 0, "the app's own configuration is read"
    code, _, err = fedhet(*asked, "--run-config", "longer-nam=3")
    assert code == 2 and "did you mean 'longer-name'" in err


@pytest.mark.parametrize(("thing", "word"), [("fleet", "client"), ("partition", "client")])
def test_fleets_and_partitions_are_shown(fedhet, tmp_path, thing, word):
    code, out, err = fedhet(thing, "show", *QUICK, "--picture", "picture.svg")
    assert code == 0, err
    assert word in out
    assert (tmp_path / "picture.svg").read_text().lstrip().startswith("<svg")
