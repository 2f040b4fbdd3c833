"""A live run that is killed at any moment continues where it was."""

import contextlib
import importlib.util
import json
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedhet.deployment.live_run import live
from fedhet.engine.stopping import Limits
from fedhet.engine.update_validation import Gate
from fedhet.flower.compat import claim_identity
from fedhet.numerics import wire_format
from fedhet.runs.event_log import read_rows
from fedhet.runs.journaled_server import Journaled, replay
from fedhet.runs.session import Session
from fedhet.runs.write_ahead_log import Journal, JournalError, alone
from fedhet.system.file_lock import occupied
from fedhet.types import Budget, Job, Update
from strategies.schedules.fedbuff import FedBuff
from strategies.schedules.sync import Sync

found = importlib.util.spec_from_file_location("small_grid", Path(__file__).parents[1] / "small_grid.py")
small = importlib.util.module_from_spec(found)
found.loader.exec_module(small)
Killed, SmallGrid, WORLD = small.Killed, small.SmallGrid, small.WORLD
contexts, counting_app, experiment = small.contexts, small.counting_app, small.experiment


def audit(folder):
    """Every update that was accepted, and every that was combined; nothing is lost, nothing counts twice."""
    with sqlite3.connect(folder / "journal.db") as db:
        accepted = [job for (job,) in db.execute("SELECT job FROM rows WHERE kind = 'arrived' ORDER BY n")]
    rows = read_rows(folder / "events.jsonl")
    arrived = [row["job"] for row in rows if row["event"] == "arrived"]
    combined = [job for row in rows if row["event"] == "combined" for job in row["jobs"]]
    assert arrived == accepted, "all that was accepted, in the order of acceptance"
    assert len(combined) == len(set(combined)) and set(combined) <= set(accepted)
    row = json.loads((folder / "result.json").read_text())
    assert len(combined) == row["updates"]["accepted"]
    assert len(arrived) - len(combined) == row["updates"]["buffered"] + sum(row["updates"]["late"].values())
    return row


@pytest.mark.parametrize(
    ("schedule", "control"),
    [(Sync, False), (Sync, True), (lambda: FedBuff(size=3), False)],
    ids=["sync", "with memories on the clients", "fedbuff"],
)
@pytest.mark.parametrize("every", [1e9, 0.0], ids=["journal", "checkpoints"])
def test_a_server_that_is_killed_after_every_few_calls_loses_nothing_and_trains_nothing_twice(
    tmp_path, schedule, control, every
):
    claim_identity(1)
    folder, trained, lives = tmp_path / "run", [], 0
    while True:
        lives += 1
        e = experiment(schedule(), control=control, checkpoint_every=every)
        grid = SmallGrid(counting_app(e, trained), contexts(tmp_path), 17 + lives % 7)
        try:
            live(e, folder, grid, wanted=4, poll=1e-4, resume=True)
            break
        except Killed:
            assert lives < 60
    assert lives > 4
    row = audit(folder)
    assert row["versions"] == 6
    assert len(trained) == len(set(trained)), "a job that comes again is answered from the disk"
    if schedule is Sync:
        quiet = experiment(Sync(), control=control)
        undisturbed = live(quiet, tmp_path / "quiet", SmallGrid(counting_app(quiet, []), contexts(tmp_path / "q")),
                           wanted=4, poll=1e-4)  # fmt: skip
        assert row["weights_sha256"] == undisturbed.row["weights_sha256"], "bit for bit the run that nobody disturbed"
        assert row["updates"] == undisturbed.row["updates"] and row["bytes_up"] == undisturbed.row["bytes_up"]


def test_a_word_is_on_the_disk_before_the_server_hears_it(tmp_path):
    class Deaf:
        now = 0.0

        def arrived(self, update, now):
            raise Killed

    journal = Journal(tmp_path)
    update = Update(Job(0, 1, 0, 0, Budget(), 0.0), WORLD.model().tree(), 5.0, metrics={"loss": 0.1})
    with pytest.raises(Killed):
        Journaled(Deaf(), journal).arrived(update, 1 / 3)
    journal.close()
    [row] = Journal(tmp_path).rows()
    assert (row.kind, row.at, row.job) == ("arrived", 1 / 3, 0)
    assert (row.data["weight"], row.data["metrics"]) == (5.0, {"loss": 0.1})
    assert wire_format.open_tree(row.payload)["x"].tolist() == [0.0, 0.0]


def test_a_run_that_stops_at_its_target_stops_there_however_often_it_is_killed(tmp_path):
    claim_identity(1)
    undisturbed = experiment(Sync())
    plain = live(undisturbed, tmp_path / "plain", SmallGrid(counting_app(undisturbed, []), contexts(tmp_path / "q")),
                 wanted=4, poll=1e-4)  # fmt: skip
    target = float(plain["accuracy"][3])
    assert target > float(plain["accuracy"][2])
    folder, lives = tmp_path / "run", 0
    while True:
        lives += 1
        e = replace(experiment(Sync(), checkpoint_every=1e9), limits=Limits(versions=6, target=target))
        try:
            live(
                e,
                folder,
                SmallGrid(counting_app(e, []), contexts(tmp_path), 17 + lives % 7),
                wanted=4,
                poll=1e-4,
                resume=True,
            )
            break
        except Killed:
            assert lives < 60
    row = audit(folder)
    assert lives > 2 and row["versions"] == 3 and row["stopped"] == f"target {target:g}"
    with sqlite3.connect(folder / "journal.db") as db:
        assert db.execute("SELECT count(*) FROM rows WHERE kind = 'stop'").fetchone() == (1,)


def test_two_servers_do_not_work_on_one_run(tmp_path):
    with alone(tmp_path), pytest.raises(JournalError, match="another server"), alone(tmp_path):
        pass
    with alone(tmp_path):
        assert occupied(tmp_path)
    assert not occupied(tmp_path) and not occupied(tmp_path / "nowhere")


def test_a_job_ends_once(tmp_path):
    journal = Journal(tmp_path)
    journal.write("failed", 0.0, 3, reason="timeout")
    with pytest.raises(JournalError, match="job 3"):
        journal.write("reject", 1.0, 3, client=0, code="x", detail="")
    assert [row.kind for row in journal.rows()] == ["failed"]


def test_payloads_go_with_a_checkpoint_and_rows_stay(tmp_path):
    journal = Journal(tmp_path)
    for job in range(3):
        journal.write("arrived", 0.0, job, bytes([job]) * 10)
    journal.forget(2)
    assert len(list((tmp_path / "payloads").iterdir())) == 1
    assert [row.job for row in journal.rows(2)] == [2]
    assert journal.run == Journal(tmp_path).run and journal.last == 3


def test_a_journal_cut_at_any_row_opens_and_leads_to_a_run_of_the_same_words(tmp_path):
    """A torn write-ahead log loses its tail and nothing else: the run up to there is the same."""
    claim_identity(1)
    e = experiment(FedBuff(size=3), versions=3, checkpoint_every=1e9)
    live(e, tmp_path / "run", SmallGrid(counting_app(e, []), contexts(tmp_path)), wanted=4, poll=1e-4)
    whole = [(r["t"], r["event"]) for r in read_rows(tmp_path / "run" / "events.jsonl")]
    with contextlib.closing(Journal(tmp_path / "run")) as journal:
        last = journal.last
    for cut in range(2, last, 5):
        copy = tmp_path / f"cut-{cut}"
        shutil.copytree(tmp_path / "run", copy)
        with sqlite3.connect(copy / "journal.db") as db:
            db.execute("DELETE FROM rows WHERE n > ?", (cut,))
        given = {"resume": True, "progress": None, "code": "", "sealed": True, "journaled": True}
        session = Session(experiment(FedBuff(size=3), versions=3), copy, **given)
        with pytest.raises(JournalError, match=r"ends before events\.jsonl does"):
            session.join(None, None, lambda client: client)
        session.record.close()
        (copy / "events.jsonl").unlink()  # its owner wants to go on from what is left
        session = Session(experiment(FedBuff(size=3), versions=3), copy, **given)
        session.join(None, None, lambda client: client)
        session.record.close()
        told = [(r["t"], r["event"]) for r in read_rows(copy / "events.jsonl")]
        assert told and told == whole[: len(told)]


def test_a_server_that_would_send_other_jobs_than_it_did_says_so(tmp_path):
    journal = Journal(tmp_path)
    journal.write("start", 0.0)
    journal.write("settle", 0.0, jobs=[5, 6])

    class Other:
        def start(self):
            pass

        def settle(self, now):
            return []

    with pytest.raises(JournalError, match=r"\[5, 6\]"):
        replay(journal, 0, Other(), Gate(), lambda row, sends: None)


def test_another_runs_job_of_the_same_number_is_trained(tmp_path):
    claim_identity(1)
    for name in ("a", "b"):
        e, trained = experiment(Sync(), versions=1), []
        live(e, tmp_path / name, SmallGrid(counting_app(e, trained), contexts(tmp_path)), wanted=4, poll=1e-4)
        assert sorted(trained) == [0, 1, 2, 3]


def test_messages_have_replies(tmp_path):
    """The grid of these tests hands a reply to every message, with the id it answers."""
    claim_identity(1)
    e = experiment(Sync())
    grid = SmallGrid(counting_app(e, []), contexts(tmp_path))
    [name] = grid.push_messages([Message(RecordDict(), 10, "query.profile")])
    [reply] = grid.pull_messages([name])
    assert reply.metadata.reply_to_message_id == name
    assert dict(reply.content["profile"]) == {"partition-id": 0}, "paths on the device are not told"
