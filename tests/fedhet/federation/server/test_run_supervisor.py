"""The server restarts a run whose process was killed, once, and no finished run."""

import contextlib
import json

import pytest

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import submit
from fedhet.federation.server.run_supervisor import MAX_FAILED_STARTS, Runs
from fedhet.federation.server.submit import Submission
from fedhet.runs.run_ending import FAILED, GIVEN_UP, STOPPED, RunEnding
from fedhet.runs.write_ahead_log import Journal, alone


class Link:
    """A SuperLink that starts what it is told to, and says of every run what a test wants it to say."""

    def __init__(self, folder):
        self.folder, self.there, self.begun, self.said = folder / "op" / "flower", True, [], ("running", "")
        self.folder.mkdir(mode=0o700, parents=True)
        self.folder.parent.chmod(0o700)

    def listens(self):
        return self.there

    def text(self, *words):
        return "its last words"

    def flwr(self, verb, *words):
        if not self.there:
            raise EnrollError("E308", "connection refused")
        if verb == "run":
            self.begun.append(words[-1])
            return {"run-id": 100 + len(self.begun)}
        known = int(words[-1]) in range(101, 101 + len(self.begun))
        return {"runs": [{"status": self.said[0], "status-details": self.said[1]}] if known else []}


class Watch:
    """A server's look at its runs, with a clock of the test's, and one submitted run."""

    def __init__(self, folder):
        self.now, self.link, self.folder = 0.0, Link(folder), folder / "run"
        self.folder.mkdir()
        self.made = Submission.begin(self.link, self.folder, 2, 1)
        self.runs = Runs(self.link, lambda: self.now)

    def look(self, after=0.0):
        self.now += after
        self.runs.step()
        return len(self.link.begun)

    @property
    def entries(self):
        return list((self.link.folder.parent / "runs").iterdir())


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path)


def test_a_killed_run_is_started_again_with_its_folder_and_its_number_of_clients(watch):
    with alone(watch.folder):
        assert watch.look() == 1
    assert watch.look(1.0) == 1, "it may have ended by itself"
    assert watch.look(5.0) == 2, "Flower calls it running for another minute"
    assert str(watch.folder) in watch.link.begun[1] and watch.link.begun[1].endswith("wanted=2 least=1")
    assert json.loads((watch.folder / submit.TICKET).read_text())["run_id"] == 102
    for _ in range(5):
        assert watch.look(20.0) == 2, "it has not begun yet"
    with alone(watch.folder):
        watch.look()
    assert watch.look(6.0) == 3


WORDS = [
    ("finished:failed", "No heartbeat received from the task"),
    ("finished:failed", "Task failed with unknown error."),
    ("finished:failed", "ServerApp failed with exception: [Errno 111] Connection refused"),
    ("finished:completed", ""),
]
"""What Flower may say of a run that was killed, or under which its SuperLink died."""


@pytest.mark.parametrize("said", WORDS)
def test_a_run_that_wrote_no_ending_is_started_again_whatever_flower_calls_its_end(watch, said):
    watch.link.said = said
    assert watch.look() == 1 and watch.look(6.0) == 2


@pytest.mark.parametrize("how", [FAILED, STOPPED])
def test_what_wrote_its_ending_is_left_alone_whatever_flower_says(watch, how):
    with alone(watch.folder):
        watch.look()
        RunEnding(how, "ValueError: no").write(watch.folder)
    assert watch.look(6.0) == 1 and watch.entries == []


def test_what_was_stopped_by_way_of_flower_is_left_alone(watch):
    with alone(watch.folder):
        watch.look()
    watch.link.said = ("finished:stopped", "")
    assert watch.look(6.0) == 1 and watch.entries == []


def finish(folder):
    (folder / "result.json").write_text("{}")


def lose(folder):
    (folder / submit.TICKET).unlink()


def forget(folder):
    """As a SuperLink with a new database does."""
    ticket = json.loads((folder / submit.TICKET).read_text())
    (folder / submit.TICKET).write_text(json.dumps({**ticket, "run_id": 7}))


@pytest.mark.parametrize("end", [finish, lose, forget])
def test_what_is_done_or_gone_is_forgotten(watch, end):
    end(watch.folder)
    watch.look()
    assert watch.look(99.0) == 1 and watch.entries == []


def test_nobody_is_asked_while_the_superlink_is_away(watch):
    with alone(watch.folder):
        watch.look()
    watch.link.there = False
    assert watch.look(60.0) == 1
    watch.link.there = True
    assert watch.look(1.0) == 2


def lives(watch, seconds, answers):
    """Lives of a run that is killed again and again: how long each is, and whether the server hears something in it."""
    with contextlib.closing(Journal(watch.folder)) as journal:
        for job in range(4 * MAX_FAILED_STARTS):
            before = len(watch.link.begun)
            with alone(watch.folder):
                watch.look()
                watch.now += seconds
                if answers:
                    journal.write("arrived", 0.0, job, b"x")
                watch.look()
            watch.look(6.0)
            watch.look(1.0)
            if len(watch.link.begun) == before:
                return


def test_a_run_that_dies_at_once_each_time_is_given_up_and_says_so(watch):
    lives(watch, 1.0, False)
    assert len(watch.link.begun) == 1 + MAX_FAILED_STARTS and watch.entries == []
    ended = watch.made.ended
    assert ended.how == GIVEN_UP and f"{MAX_FAILED_STARTS} times" in ended.why and "its last words" in ended.trace
    assert watch.made.restarted() is None
    told = watch.made.end_error()
    assert told.code == "E314" and not told.data["killed"] and f"{MAX_FAILED_STARTS} times" in told.detail


@pytest.mark.parametrize(("seconds", "answers"), [(1.0, True), (90.0, False)])
def test_a_run_that_gets_on_or_lives_for_a_while_is_never_given_up(watch, seconds, answers):
    lives(watch, seconds, answers)
    assert len(watch.link.begun) == 1 + 4 * MAX_FAILED_STARTS and len(watch.entries) == 1


def test_a_run_that_was_submitted_anew_starts_with_a_clean_slate(watch):
    lives(watch, 1.0, False)
    Submission.begin(watch.link, watch.folder, 2, 1)
    assert watch.made.ended is None and len(watch.entries) == 1
    before = len(watch.link.begun)
    with alone(watch.folder):
        watch.look()
    assert watch.look(6.0) == before + 1


def test_who_follows_goes_over_to_the_next_life(watch, monkeypatch):
    monkeypatch.setattr(submit, "RESTART_S", 0.0)
    assert watch.made.restarted() is None
    monkeypatch.setattr(submit, "RESTART_S", 60.0)
    monkeypatch.setattr(submit.time, "sleep", lambda _: Submission.begin(watch.link, watch.folder, 2, 1))
    assert watch.made.restarted().run_id == 102
    (watch.folder / "result.json").write_text("{}")
    assert watch.made.restarted().done


def test_a_process_that_flower_gave_up_is_followed_as_long_as_it_lives(watch, monkeypatch):
    monkeypatch.setattr(submit, "STATUS_INTERVAL_S", -1.0)
    monkeypatch.setattr(submit, "STOP_NOTICE_S", 0.01)
    monkeypatch.setattr(Submission, "log_end", lambda self: "")
    watch.link.said = ("finished:failed", "No heartbeat")
    lock, naps = contextlib.ExitStack(), []
    lock.enter_context(alone(watch.folder))

    def nap(_):
        naps.append(1)
        if len(naps) == 5:
            lock.close()

    with pytest.raises(EnrollError) as caught:
        watch.made.follow(lambda row: None, {}, nap)
    assert caught.value.data["killed"] and len(naps) == 5


def test_a_run_that_the_superlink_never_had_is_named(watch):
    with pytest.raises(EnrollError) as caught:
        Submission(watch.link, watch.folder, 7).status_now()
    assert caught.value.code == "E315"
