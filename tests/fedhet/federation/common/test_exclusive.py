"""One `fedhet serve` per home and one `fedhet client run` per state folder; intervals use the monotonic clock."""

import os
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.exclusive import alone
from fedhet.federation.device.agent import LOCK, Agent
from fedhet.federation.server import serve as serving
from fedhet.federation.server.operator import Federation
from fedhet.federation.server.serve import ClockWatch, Server

HOLDER = """
import sys, time
from pathlib import Path
from fedhet.federation.common.exclusive import alone
with alone(Path(sys.argv[1]), "serves it"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds a lock; killed at the end if it still lives."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "x.lock")], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_who_comes_second_is_told_who_was_first_and_since_when(tmp_path, holder):
    told, second = rf"E320.*process {holder.pid} serves it since 20\d\d-.* UTC", tmp_path / "x.lock"
    with pytest.raises(EnrollError, match=told) as caught, alone(second, "serves it too", 0.1):
        pytest.fail("both hold it")
    assert caught.value.data == {"pid": holder.pid}


def test_a_killed_process_leaves_no_lock_behind(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert str(holder.pid) in (tmp_path / "x.lock").read_text(), "its file is still there"
    with alone(tmp_path / "x.lock", "serves it"):
        assert str(os.getpid()) in (tmp_path / "x.lock").read_text()
    with alone(tmp_path / "x.lock", "serves it"):  # and neither does one that ends by itself
        pass


def test_a_second_server_of_a_home_is_refused_before_it_touches_anything(tmp_path):
    home = tmp_path / "op"
    Federation.create(home, "test", "127.0.0.1:1").close()
    with alone(home / serving.LOCK, "serves it"):
        before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
        words = ["serve", "--home", home, "--host", "127.0.0.1", "--port", 0, "--json"]
        command = [sys.executable, "-m", "fedhet", *map(str, words)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == EnrollError("E320").exit_code, second.stdout + second.stderr
        assert f"process {os.getpid()} serves it since" in second.stdout
        assert {p: p.stat().st_mtime_ns for p in home.rglob("*") if not p.name.startswith("registry.db")} == {
            p: at for p, at in before.items() if not p.name.startswith("registry.db")
        }


def test_two_agents_do_not_work_for_one_client_and_commands_go_on(door):
    device = door.member("a")
    with alone(device.folder / LOCK, "works for this client"):
        with pytest.raises(EnrollError, match=r"E320.*works for this client since"):
            Agent(device).run()
        assert device.rotate().node == device.identity.node_id
        assert device.renew().node == device.identity.node_id


def test_keys_are_changed_by_one_process_at_a_time(door, monkeypatch):
    device = door.member("a")
    monkeypatch.setattr("fedhet.federation.device.state.LOCK_WAIT_S", 0.1)
    before = device.leaf().serial
    with alone(device.folder / "keys.lock", "changes its keys"):
        for change in (device.rotate, device.renew, device.finish_rotation):
            with pytest.raises(EnrollError, match="E320"):
                change()
    assert device.leaf().serial == before
    device.finish_rotation()
    assert device.leaf().serial == before, "there was none to finish"


class Hand:
    """A time of day that somebody sets."""

    ahead = 0.0

    def __call__(self):
        return time.time() + self.ahead


def test_a_server_goes_on_registering_whatever_the_time_of_day_is_set_to(tmp_path, monkeypatch):
    """The server's own loop, without the programs of Flower's that it would start."""
    hand, looked, renewed = Hand(), threading.Semaphore(0), threading.Event()
    federation = Federation.create(tmp_path / "op", "test", "127.0.0.1:1", clock=hand)
    server = Server(federation, port=1)
    monkeypatch.setattr(serving, "Runs", lambda link: types.SimpleNamespace(step=lambda: None))
    monkeypatch.setattr(server, "_reconcile", looked.release)
    monkeypatch.setattr(server, "_flower_listens", lambda: True)
    monkeypatch.setattr(server, "_renew", lambda now, door: renewed.set())
    door = types.SimpleNamespace(should_exit=False)
    keeper = threading.Thread(target=server._maintain, args=(door, None))
    keeper.start()
    try:
        assert looked.acquire(timeout=5)
        for by in (-3600.0, 90 * 86_400.0):
            hand.ahead += by
            assert renewed.wait(5), "a certificate may be of the future, or over, by the new time"
            renewed.clear()
            assert looked.acquire(timeout=5) and looked.acquire(timeout=5), f"set by {by} seconds"
    finally:
        server._stop.set()
        keeper.join()
        federation.close()


def test_a_clock_that_is_set_differs_from_one_that_runs():
    at = [1000.0, 50.0]
    dial = ClockWatch(lambda: at[0], lambda: at[1])
    at[:] = [1060.0, 110.0]
    assert dial.jump() == 0.0
    at[:] = [1061.0 - 3600, 111.0]
    assert dial.jump() == -3600 and dial.jump() == 0.0


def test_a_server_certificate_made_while_the_clock_was_ahead_is_replaced(tmp_path):
    """Devices, whose clocks are right, would refuse it until that day."""
    federation = Federation.create(tmp_path / "op", "test", "127.0.0.1:1")
    path, now = tmp_path / "op" / "ca" / "server.pem", time.time()
    first = path.read_bytes()
    federation.authority.renew_server(now)
    assert path.read_bytes() == first
    federation.authority.renew_server(now + 40 * 86_400)
    ahead = path.read_bytes()
    federation.authority.renew_server(now)
    assert path.read_bytes() not in (first, ahead)
    federation.close()


def test_devices_come_back_by_themselves_after_the_servers_clock_was_ahead(door, refused):
    """Meanwhile they are told that clocks differ, which ends nobody; not that their time is over, which would."""
    device = door.member("a")
    device = type(device)(device.folder)  # its own clock stays right
    door.clock.ahead = 40 * 86_400
    refused("E203", device.ask, "whoami")
    refused("E203", device.renew)
    door.clock.ahead = 0
    assert device.ask("whoami")["state"] == "active"


def test_waiting_for_approval_ends_after_its_seconds_whatever_the_clock_says(door, refused):
    from fedhet.federation.device import join

    _, line = door.invite("a")
    door.begin("a", line)
    device, waited = door.device("a"), [0.0]

    def nap(seconds):
        waited[0] += seconds
        door.clock.ahead = -30.0 if door.clock.ahead else 0.0

    door.clock.ahead = -20.0
    refused("E105", join.wait, device, 12.0, nap, lambda: waited[0])
    assert waited[0] == 10.0
