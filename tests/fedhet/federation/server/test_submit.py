"""`fedhet submit`: checks before a run, and following it. With real devices: test_live_runs."""

import contextlib
import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.cli import submit as cli_submit
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import connected_clients, submit
from fedhet.federation.server.connected_clients import ConnectedClients
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.submit import Submission
from fedhet.federation.server.superlink import SuperLink
from fedhet.runs.run_ending import FAILED, STOPPED, RunEnding
from fedhet.runs.write_ahead_log import alone

found = importlib.util.spec_from_file_location("living", Path(__file__).parents[1] / "living.py")
living = importlib.util.module_from_spec(found)
found.loader.exec_module(living)


THREE = ConnectedClients(("a", "b", "c"), ("a", "b", "c"), 3)


def code_of(output):
    return json.loads(output)["error"]["code"]


def run(*words, code):
    result = CliRunner().invoke(main.app, [*map(str, words), "--json"])
    assert result.exit_code == code, result.output
    return result.output


def test_nothing_is_submitted_where_nothing_is_served(tmp_path):
    home = tmp_path / "op"
    assert code_of(run("submit", "--home", home, code=76)) == "E306"
    Federation.create(home, "test", "localhost:1").close()
    assert code_of(run("submit", "--home", home, code=82)) == "E312"
    link = SuperLink(home / "flower")
    link.prepare(0.0)
    assert code_of(run("submit", "--home", home, code=82)) == "E312"
    assert code_of(run("follow", tmp_path, code=76)) == "E306"
    assert not (tmp_path / "runs").exists()


def test_a_run_needs_clients_that_are_there():
    for there, least, word in (
        (ConnectedClients((), (), 0), None, "invite"),
        (ConnectedClients(("a", "b"), (), 2), None, "none of a, b"),
        (ConnectedClients(("a", "b"), ("a",), 2), 3, "2 are enrolled"),
    ):
        with pytest.raises(EnrollError, match=word) as caught:
            connected_clients.required_clients(there, least)
        assert caught.value.code == "E313"
    assert connected_clients.required_clients(ConnectedClients(("a", "b"), ("a",), 2), None) == (1, 1)
    assert connected_clients.required_clients(ConnectedClients(("a", "b"), ("a",), 2), 2) == (
        2,
        2,
    )  # the second may still come


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("all of it")
    with pytest.raises(EnrollError) as caught:
        submit.prepare(tmp_path / "run", {"seed": 1})
    assert caught.value.code == "E306" and len(list((tmp_path / "run").iterdir())) == 1


def test_the_operator_is_shown_what_a_method_does_to_the_clients_before_it_is_submitted(tmp_path, capsys):
    words = ["strategy=gradient_inversion", "fleet=linear_grid", "model=mlp"]
    path = cli_submit._prepare(words, None, tmp_path / "run", THREE)
    told = capsys.readouterr()
    assert told.err.startswith("notice: the server reconstructs data") and told.out == ""
    assert (path / "config.yaml").is_file()
    cli_submit._prepare(["strategy=fedavg"], None, tmp_path / "plain", THREE)
    assert capsys.readouterr().err == ""


class Told(SuperLink):
    """A SuperLink that says what a test wants it to say."""

    def __new__(cls, folder, status, details=""):
        made = object.__new__(cls)
        object.__setattr__(made, "folder", folder)
        object.__setattr__(made, "port", 1)
        object.__setattr__(made, "_answer", {"runs": [{"status": status, "status-details": details}]})
        return made

    def __init__(self, *_):
        pass

    def flwr(self, *_):
        return self._answer

    def text(self, *_):
        return "x" * 5000 + "ValueError: no such file"


def row(version):
    return {"t": 2.0 * version, "version": version, "accuracy": 0.1 * version, "client_tasks": 3 * version}


def test_a_run_is_followed_row_by_row_to_its_end(tmp_path):
    metrics, shown, wait = tmp_path / "metrics.jsonl", [], iter(range(4))

    def nap(seconds):
        step = next(wait)
        with metrics.open("a") as file:
            file.write(json.dumps(row(step)) + "\n")
            if step == 3:
                (tmp_path / "result.json").write_text("{}")

    Submission(Told(tmp_path, "running"), tmp_path, 1).follow(shown.append, {"versions": 4, "tasks": None}, nap)
    assert [r["version"] for r in shown] == [0, 1, 2, 3] or [r["version"] for r in shown] == [0, 1, 2, 3, 3]
    assert [r["share"] for r in shown[:3]] == [0.0, 0.25, 0.5] and shown[-1]["share"] == 1.0
    assert shown[-1]["tasks"] == 9


def test_a_run_that_failed_says_why_in_its_own_words(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "STATUS_INTERVAL_S", -1.0)
    made = Submission(Told(tmp_path, "finished:failed", "whatever"), tmp_path, 1)
    with pytest.raises(EnrollError) as caught:
        made.follow(lambda row: None, {}, lambda seconds: None)
    assert caught.value.code == "E314" and caught.value.data["killed"], "it wrote nothing: it was killed"
    assert caught.value.data["log"].endswith("ValueError: no such file") and len(caught.value.data["log"]) <= 1500
    RunEnding(FAILED, "ValueError: no data", "Traceback: ...").write(tmp_path)
    with pytest.raises(EnrollError, match="ValueError: no data") as caught:
        made.follow(lambda row: None, {}, lambda seconds: None)
    assert not caught.value.data["killed"] and caught.value.data["log"] == "Traceback: ..."


def test_a_run_that_was_stopped_did_not_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(submit, "STATUS_INTERVAL_S", -1.0)
    made = Submission(Told(tmp_path, "finished:stopped"), tmp_path, 1)
    with pytest.raises(EnrollError, match="fedhet submit --resume") as caught:
        made.follow(lambda row: None, {}, lambda seconds: None)
    assert caught.value.code == "E315"


def test_who_follows_a_run_outlasts_a_superlink_that_is_started_again(tmp_path, monkeypatch):
    class Away(Told):
        calls = 0

        def flwr(self, *_):
            Away.calls += 1
            if Away.calls <= 5:
                raise EnrollError("E308", "connection refused")
            return self._answer

        def listens(self):
            return Away.calls > 4

    naps = []
    monkeypatch.setattr(submit.time, "sleep", naps.append)
    assert Submission(Away(tmp_path, "running"), tmp_path, 1).status()[0] == "running"
    assert len(naps) == 5

    Away.calls = -100
    monkeypatch.setattr(Away, "listens", lambda self: True)
    with pytest.raises(EnrollError, match="E308"):
        Submission(Away(tmp_path, "running"), tmp_path, 1).status()
    assert Away.calls == -97, "a SuperLink that is there is not asked for ever"


@pytest.mark.parametrize(
    ("status", "ended", "code", "killed"),
    [("running", None, "E314", True), ("finished:failed", None, "E314", True), ("finished:stopped", None, "E315", None),
     ("running", RunEnding(FAILED, "ValueError", "its trace"), "E314", False),
     ("running", RunEnding(STOPPED, ""), "E315", None)],
)  # fmt: skip
def test_a_server_process_that_is_gone_is_missed_at_once(tmp_path, monkeypatch, status, ended, code, killed):
    monkeypatch.setattr(submit, "STOP_NOTICE_S", 0.7)
    monkeypatch.setattr(submit, "STATUS_INTERVAL_S", 1e9)
    monkeypatch.setattr(Told, "text", lambda self, *_: "its last words", raising=False)
    monkeypatch.setattr(Told, "listens", lambda self: True)
    made, lock = Submission(Told(tmp_path, status), tmp_path, 1), contextlib.ExitStack()
    naps = []

    def nap(_):
        naps.append(1)
        if len(naps) == 2:
            lock.enter_context(alone(tmp_path))
        if len(naps) == 4:
            if ended is not None:
                ended.write(tmp_path)
            lock.close()

    with pytest.raises(EnrollError) as caught:
        made.follow(lambda row: None, {}, nap)
    assert caught.value.code == code and caught.value.data.get("killed") is killed and len(naps) == 4
    if code == "E314":
        assert caught.value.data["log"] == ("its last words" if ended is None else "its trace")
