"""Full, read-only or limited disks: every command reports it, revocations take effect, devices pause."""

import contextlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import threading
import time
import types
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedhet.cli import main
from fedhet.deployment.notices import Reader
from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import authentication
from fedhet.federation.server.control_socket import ControlSocket, ask
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.serve import Server
from fedhet.flower.client_state import CannotWrite, ClientStateStore
from fedhet.flower.execution import execute

found = importlib.util.spec_from_file_location(
    "live_members", Path(__file__).parents[0] / "server/test_live_members.py"
)
live_members = importlib.util.module_from_spec(found)
found.loader.exec_module(live_members)
crowd, run, FedBuff = live_members.crowd, live_members.run, live_members.FedBuff

FULL = EnrollError("E321").exit_code


class Disk:
    """A small file system of its own in memory."""

    def __init__(self, folder):
        self.folder = folder

    def mount(self, *words):
        return subprocess.run(["mount", *words, str(self.folder)], capture_output=True, text=True, check=False)

    def fill(self):
        with contextlib.suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
            for size in (1 << 16, 1 << 12, 1):  # to the last byte
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def empty(self):
        (self.folder / "filler").unlink()

    def read_only(self, on=True):
        done = self.mount("-o", "remount,ro" if on else "remount,rw")
        assert not done.returncode, done.stderr


@pytest.fixture
def disk(tmp_path):
    """A tmpfs of 2 MB; the test is skipped where this account may not mount one."""
    made = Disk(tmp_path / "disk")
    made.folder.mkdir(mode=0o700)
    if shutil.which("mount") is None:
        pytest.skip("there is no `mount`")
    done = made.mount("-t", "tmpfs", "-o", "size=2m,mode=700", "tmpfs")
    if done.returncode:
        pytest.skip(f"this account cannot mount a tmpfs: {done.stderr.strip()}")
    yield made
    subprocess.run(["umount", "-l", str(made.folder)], check=True)


def fedhet(home, *words, code):
    done = CliRunner().invoke(main.app, [*map(str, words), "--home", str(home), "--json"])
    assert done.exit_code == code, (words, done.output, done.exception)
    return json.loads(done.stdout)


WRITING = [
    ["enroll", "invite", "--name", "late"],
    ["enroll", "approve", "waits"],
    ["enroll", "reject", "waits", "--reason", "x"],
    ["clients", "suspend", "a"],
    ["clients", "weight", "a", "--examples", "7"],
    ["clients", "revoke", "a", "--reason", "stolen"],
    ["ca", "rotate"],
]


def outside(door, federation):
    """What a door of the same federation in another folder would answer the device `a` with."""
    line = door.device("a").identity.flower_public
    try:
        return authentication.fleet_key(federation, line).state
    except EnrollError as error:
        return error.code


@pytest.fixture
def home(door, disk):
    """A copy of the federation on the small disk: `a` is in, `waits` is not yet."""
    door.member("a")
    _, line = door.invite("waits")
    door.begin("waits", line)
    shutil.copytree(door.federation.folder, disk.folder / "op")
    (disk.folder / "op").chmod(0o700)
    return disk.folder / "op"


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_every_command_of_the_operators_says_that_nothing_can_be_written_and_changes_nothing(disk, home, how):
    with contextlib.closing(Federation(home)) as before:
        lines = before.audit.check().lines
    disk.fill() if how == "full" else disk.read_only()
    for words in WRITING:
        error = fedhet(home, *words, code=FULL)["error"]
        assert error["code"] == "E321" and "make room" in error["remedy"], words
    assert "a is not revoked" in error["detail"] or words[0] == "ca"
    disk.empty() if how == "full" else disk.read_only(False)
    with contextlib.closing(Federation(home)) as after:
        assert after.audit.check().lines == lines, "no line tells of what was not done"
        assert {c.name: c.state for c in after.registry.clients()} == {"a": "active", "waits": "pending"}
    assert fedhet(home, "clients", "suspend", "a", code=0)["state"] == "suspended", "and all is well again"


def test_a_revocation_that_cannot_be_written_holds_in_the_server_that_runs_and_is_written_later(door, disk, home):
    served = Federation(home, door.clock)
    server = Server(served)
    assert outside(door, served) == "active"
    with contextlib.closing(served), ControlSocket(home, server._handle):
        disk.fill()
        error = fedhet(home, "clients", "revoke", "a", "--reason", "stolen", code=FULL)["error"]
        assert error["data"]["shut_out"] and f"process {os.getpid()}" in error["detail"]
        assert outside(door, served) == "E202", "at its next message"
        assert fedhet(home, "clients", "revoke", "nobody", "--reason", "x", code=50)["error"]["code"] == "E210"
        assert not server._try(server._settle) and "E321" in server.failure, "and the server lives on"
        assert outside(door, served) == "E202"
        disk.empty()
        assert served.settle() == ["a"] and served.settle() == []
        assert served.registry.client("a").state == "revoked" and served.registry.client("a").reason == "stolen"
        assert [r["action"] for r in served.audit.rows()][-1] == "revoke" and served.shut_out == {}


def test_a_server_notes_who_was_shut_out_although_flower_is_not_there(door, monkeypatch):
    door.member("a")
    server = Server(door.federation)
    monkeypatch.setattr(server, "_flower_listens", lambda: False)
    keeper = threading.Thread(target=server._maintain, args=(types.SimpleNamespace(should_exit=False), None))
    keeper.start()
    try:
        assert server._handle({"shut": "a", "reason": "stolen"}) == {"name": "a", "pid": os.getpid()}
        end = time.monotonic() + 10
        while door.federation.shut_out:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        server._stop.set()
        keeper.join()
    assert door.federation.registry.client("a").state == "revoked"


def test_the_desk_hears_its_own_account_and_what_it_understands(tmp_path, monkeypatch):
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    with pytest.raises(EnrollError, match="E312"):
        ask(deep, {"shut": "a", "reason": ""})
    with ControlSocket(deep, lambda request: {"heard": request}):
        assert ask(deep, {"a": 1}) == {"heard": {"a": 1}}
        assert (deep / "serve.sock").stat().st_mode & 0o777 == 0o600
        monkeypatch.setattr("fedhet.federation.server.control_socket._user", lambda peer: os.getuid() + 1)
        with pytest.raises(EnrollError, match="E312"):
            ask(deep, {"a": 1})
    assert not (deep / "serve.sock").exists()


def test_a_limit_of_file_sizes_is_a_full_disk_too(tmp_path):
    home = tmp_path / "op"
    Federation.create(home, "test", "127.0.0.1:1").close()
    before, (soft, hard) = (home / "audit.jsonl").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        error = fedhet(home, "enroll", "invite", "--name", "b", code=FULL)["error"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error["code"] == "E321" and (home / "audit.jsonl").read_bytes() == before


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_a_device_without_room_knows_it_before_it_trains(disk, how):
    keep = ClientStateStore(disk.folder / "work" / "runs")
    keep.check("run1")
    disk.fill() if how == "full" else disk.read_only()
    with pytest.raises(CannotWrite) as caught:
        keep.check("run1")
    assert str(disk.folder) not in str(caught.value), "where a device keeps things is told to nobody"


def test_a_device_that_cannot_write_is_reported_to_the_operator_and_pauses(door, crowd, monkeypatch, tmp_path):
    monkeypatch.setattr("fedhet.deployment.membership_monitor.WATCH_INTERVAL_S", 0.0)
    monkeypatch.setattr("fedhet.deployment.membership_monitor.FIRST_PAUSE_S", 0.05)
    check, trained = ClientStateStore.check, []

    def on_a_full_disk(self, name):
        if self.folder.parent.name == "12" and len(trained) < 2:
            trained.append(name)
            raise CannotWrite(28, "No space left on device")
        check(self, name)

    def call(self, message, context):  # an error is answered, as by a device
        return execute(lambda *given: answer(self, *given), message, context).reply

    answer = live_members.Signing.__call__
    monkeypatch.setattr(ClientStateStore, "check", on_a_full_disk)
    monkeypatch.setattr(live_members.Signing, "__call__", call)
    row, rows = run(door, monkeypatch, crowd, tmp_path, FedBuff(size=2, pause_seconds=0.01), versions=25)
    failed = [n for n, r in enumerate(rows) if r["event"] == "failed" and r["client"] == 2]
    assert len(failed) == 2 and row["updates"]["failed"] == {"client error": 2}
    assert rows[failed[0] + 1]["event"] == "left" and rows[failed[0] + 1]["client"] == 2
    back = next(r for r in rows[failed[0] :] if r["event"] == "joined" and r["client"] == 2)
    assert back["t"] - rows[failed[0]]["t"] >= 0.05
    told = [t for t in Reader(tmp_path / "run")() if t.startswith("c2")]
    why = "c2 cannot write to its disk ([Errno 28] No space left on device)"
    assert told == [f"{why}; it is asked again in {seconds} s" for seconds in (0.05, 0.1)]
    assert [r for r in rows[failed[1] :] if r["event"] == "arrived" and r["client"] == 2], "there is room again"


def test_an_agent_works_on_although_nothing_can_be_written(door, disk, monkeypatch):
    """Nor is its certificate lost: it is asked for again when there is room."""
    agents = importlib.util.spec_from_file_location("agents", Path(__file__).parents[0] / "device/test_agent.py")
    module = importlib.util.module_from_spec(agents)
    agents.loader.exec_module(module)
    device = door.member("a")
    shutil.move(door.folder / "a", disk.folder / "a")
    device = type(device)(disk.folder / "a", door.clock)
    first, seen = device.leaf().serial, []

    def later(change):
        def turn(agent):
            change()
            seen.append(device.leaf().serial)
            assert agent.supervisor.pid("supernode")

        return turn

    def six_days_on():  # of seven: past every certificate's time, which its serial number moves by some hours
        disk.fill()
        door.clock.ahead = 6 * 86_400

    def room_again():
        disk.empty()
        door.clock.ahead += 1000

    def a_while():
        door.clock.ahead += 1000

    naps = [later(six_days_on), later(a_while), later(room_again), later(a_while)]
    module.working(device, monkeypatch, disk.folder, naps=naps).run()
    assert seen[:3] == [first] * 3 and seen[-1] != first
