"""Three enrolled clients with TLS on loopback: a stopped run with a frozen client, FedAvg, and FedCompass with a
revocation."""

import contextlib
import importlib.util
import json
import os
import signal
import sqlite3
from pathlib import Path

import pytest

from fedhet.deployment.notices import Reader
from fedhet.runs.event_log import read_rows

found = importlib.util.spec_from_file_location("living", Path(__file__).with_name("living.py"))
living = importlib.util.module_from_spec(found)
found.loader.exec_module(living)

SMALL = ["data=digits", "partition=iid", "model=mlp_small", "fleet.clients=3"]


def family(pid):
    """A process and its children."""
    pids = [pid]
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                pids.append(int(entry.name))
    return pids


def send(pids, number):
    for pid in pids:
        os.kill(pid, number)


def frozen_client(made):
    """Of three clients one is frozen: a run begins without it, says so, and takes it in when it thaws."""
    folder, pids = made.folder / "frozen", family(made.processes["client2"].pid)
    assert len(pids) == 2
    send(pids, signal.SIGSTOP)
    try:
        begun = made.fedhet("submit", "--detach", *SMALL, "stop.versions=100000", "--out", folder)
        assert begun["state"] == "running"
        told, events = Reader(folder), folder / "events.jsonl"

        def happened(event, client=None):
            rows = read_rows(events) if events.is_file() else []
            return [r for r in rows if r["event"] == event and client in (None, r.get("client"))]

        living.until(lambda: happened("combined"), 90, "the first version, without the frozen client")
        begins = "the run begins with 2 clients; no answer from client2; who answers later takes part from then on"
        assert begins in told()
        assert {c for r in happened("combined") for c in r["clients"]} == {0, 1}
    finally:
        send(pids, signal.SIGCONT)
    living.until(lambda: happened("arrived", 2), 90, "the thawed client's first update")
    assert made.fedhet("stop", folder)["state"] == "stopped"
    assert made.fedhet("stop", folder, code=85)["error"]["code"] == "E315"


def too_few_clients(made):
    """A round that needs more clients than can come is refused; one that needs more than there are says so."""
    wrong = made.fedhet("submit", *SMALL, "schedule.min_updates=10", "--out", made.folder / "never", code=83)
    assert wrong["error"]["code"] == "E313" and "room for 3" in wrong["error"]["detail"]
    assert not (made.folder / "never").exists()
    folder, heard = made.folder / "few", []
    few = [*SMALL[:-1], "schedule.min_updates=10", "fleet.clients=10", "stop.versions=2"]
    made.fedhet("submit", *few, "--detach", "--out", folder)
    told = Reader(folder)
    waits = "a round opens with 10 clients; 3 are online"
    living.until(lambda: heard.extend(told()) or waits in heard, 60, "a word about what is waited for")
    assert made.fedhet("stop", folder)["state"] == "stopped"


FOREIGN = """
import os
from pathlib import Path
from strategies.rules.mean import Mean

class Rule(Mean):
    def __init__(self):
        super().__init__()
        (Path(__file__).parent / Path(os.environ.get("FEDHET_STATE", "server")).name).touch()
"""


def foreign_code(made, site):
    """A configuration that names a package which is installed on the devices and which no owner allows there."""
    folder = made.folder / "foreign"
    (made.folder / "conf" / "rule").mkdir(parents=True)
    (made.folder / "conf" / "rule" / "foreign.yaml").write_text("_target_: foreign_code.rule.Rule")
    words = ["submit", *SMALL, "rule=foreign", "--config-dir", made.folder / "conf", "--out", folder]
    error = made.fedhet(*words, code=84)["error"]
    assert error["code"] == "E314" and "client0 refuses this run: E213: " in error["detail"], error
    assert "rule: foreign_code.rule.Rule is outside of what the device's owner allowed" in error["detail"]
    rows = read_rows(folder / "events.jsonl")
    assert {r["client"] for r in rows if r["event"] == "failed" and r["reason"].startswith("E213: ")} == {0, 1, 2}
    assert len([r for r in rows if r["event"] == "assign"]) == 3, "who refuses is not asked again"
    assert len([text for text in Reader(folder)() if "refuses this run: E213" in text]) == 3
    assert {path.name for path in site.iterdir()} <= {"server", "rule.py", "__init__.py", "__pycache__"}


@pytest.mark.transport
@pytest.mark.slow
def test_enrolled_clients_run_methods_and_the_revoked_one_is_out_at_once(tmp_path, monkeypatch):
    site = tmp_path / "site" / "foreign_code"
    site.mkdir(parents=True)
    (site / "__init__.py").touch()
    (site / "rule.py").write_text(FOREIGN)
    monkeypatch.syspath_prepend(str(site.parent))
    monkeypatch.setenv("PYTHONPATH", str(site.parent), prepend=os.pathsep)
    with living.federation(tmp_path, 3) as made:
        wrong = made.fedhet("submit", "--wait-for", 4, code=83)
        assert wrong["error"]["code"] == "E313"
        wrong = made.fedhet("submit", "strategy=fedavg", "stop.version=3", code=2)["error"]
        assert wrong["code"] == "E319" and "nearest: stop.versions" in wrong["detail"]

        frozen_client(made)
        too_few_clients(made)
        foreign_code(made, site)

        out = tmp_path / "fedavg"
        row = made.fedhet("submit", "strategy=fedavg", "stop.versions=2", *SMALL, "--out", out)
        assert (row["strategy"], row["versions"], row["clients"], row["transport"]) == ("fedavg", 2, 3, "flower")
        assert row["updates"]["accepted"] == row["client_tasks"] == 6 and row["updates"]["rejected"] == {}
        assert row["accuracy"] > 0.2 and Path(row["folder"]) == out
        files = {"config.yaml", "events.jsonl", "metrics.jsonl", "model.safetensors", "result.json", "report.html"}
        assert files <= {path.name for path in out.iterdir()}
        assert made.fedhet("follow", out)["weights_sha256"] == row["weights_sha256"]
        with sqlite3.connect(out / "journal.db") as db:
            assert db.execute("SELECT count(*) FROM rows WHERE kind = 'arrived'").fetchone() == (6,)
        kept = list((tmp_path / "client0" / "work" / "runs").iterdir())
        assert len(kept) == 2, "a client keeps what it did on its own disk, of this run and of the one before"

        folder = tmp_path / "fedcompass"
        going = made.start("compass", "submit", "strategy=fedcompass", "stop.versions=20", "schedule.q_min=2",
                           "schedule.q_max=10", *SMALL, "--out", folder, "--json")  # fmt: skip
        events = folder / "events.jsonl"

        def happened(event, client):
            rows = read_rows(events) if events.is_file() else []
            return [r for r in rows if r["event"] == event and r.get("client") == client]

        living.until(lambda: happened("arrived", 2) or going.poll() is not None, 400, "the third client's update")
        made.federation.revoke("client2", "stolen")
        living.until(lambda: happened("left", 2) or going.poll() is not None, 100, "the revocation to be noticed")
        assert going.wait(400) == 0, made.log("compass")
        rows = read_rows(events)
        left = next(n for n, r in enumerate(rows) if r["event"] == "left" and r["client"] == 2)
        after = [r for r in rows[left:] if r["event"] in ("assign", "arrived", "joined") and r["client"] == 2]
        combined = [c for r in rows[left:] if r["event"] == "combined" for c in r["clients"]]
        assert not after and 2 not in combined, "neither work nor a say, from the next moment on"
        assert {0, 1} <= set(combined)
        result = json.loads((folder / "result.json").read_text())
        refused = result["updates"]["rejected"]  # an answer that came between the revocation and the server's look
        assert result["versions"] == 20 and refused in ({}, {"member": 1})
        assert not [r for r in happened("rejected", 0) + happened("rejected", 1)]

        groups = [r for r in rows if r["event"] == "note" and r["kind"] == "group"]
        assert groups, "FedCompass times its groups by what it observed"
        listed = {c["name"]: c for c in made.fedhet("clients", "list")}
        for name in ("client0", "client1"):
            client = listed[name]
            assert client["declared"]["partition"] == int(name[-1]) and client["measured"]["step_us"] == 900
            assert client["observed"]["sec_per_step"] > 0 and client["observed"]["finished"] > 0
        assert listed["client2"]["state"] == "revoked"
