"""The device agent: restarts, renewals, and when it gives up. Real processes, with small ones in place of Flower's."""

import contextlib
import json
import os
import signal
import stat
import sys
import time

import pytest
import tomli

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.common.process_supervisor import Program, Supervisor
from fedhet.federation.device import benchmark
from fedhet.federation.device.agent import Agent
from fedhet.federation.device.join import Data
from fedhet.federation.device.node_settings import node_config
from fedhet.federation.pki.certificates import DAY
from fedhet.federation.server.http_api import service
from fedhet.federation.server.superlink import SuperLink


def program(tmp_path, name, code, delay=5.0):
    return Program(name, [sys.executable, "-c", code], tmp_path / f"{name}.log", dict(os.environ), delay)


def until(condition, what):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class TaskExecutor:
    """A clock that is moved by hand."""

    now = 100.0

    def __call__(self):
        return self.now


def test_a_program_that_ended_starts_again_after_its_delay(tmp_path):
    clock = TaskExecutor()
    supervisor = Supervisor([program(tmp_path, "short", "raise SystemExit(7)")], clock)
    ended = []

    def step():
        ended.extend(supervisor.step())
        return ended

    until(step, "the program to end")
    assert (supervisor.codes, supervisor.starts) == ({"short": 7}, {"short": 1})
    clock.now += 4.9
    supervisor.step()
    assert supervisor.starts == {"short": 1}
    clock.now += 0.2
    supervisor.step()
    assert supervisor.starts == {"short": 2}
    supervisor.stop()


def test_stopping_ends_the_programs_and_what_they_started(tmp_path):
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pids")!r}, "w").write(str(child.pid))
time.sleep(600)
"""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    supervisor = Supervisor([program(tmp_path, "family", code), program(tmp_path, "stubborn", stubborn)])
    supervisor.step()
    until(lambda: (tmp_path / "pids").exists() and (tmp_path / "pids").read_text(), "the grandchild")
    until(lambda: "deaf" in (tmp_path / "stubborn.log").read_text(), "the stubborn program")
    pids = [supervisor.pid("family"), supervisor.pid("stubborn"), int((tmp_path / "pids").read_text())]
    supervisor.stop(timeout_s=0.5)
    until(lambda: not any(_alive(pid) for pid in pids), "all to be gone")


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_supervisor_that_is_killed_takes_its_programs_with_it(tmp_path):
    code = f"""
import os, sys, time, pathlib
sys.path.insert(0, {os.getcwd()!r})
from fedhet.federation.common.process_supervisor import Program, Supervisor
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
s = Supervisor([Program("child", sleep, pathlib.Path({str(tmp_path)!r}) / "c.log", dict(os.environ))])
s.step()
print(s.pid("child"), flush=True)
time.sleep(600)
"""
    outer = Supervisor([program(tmp_path, "outer", code)])
    outer.step()
    until(lambda: (tmp_path / "outer.log").exists() and (tmp_path / "outer.log").read_text().strip(), "the child")
    child = int((tmp_path / "outer.log").read_text())
    os.kill(outer.pid("outer"), signal.SIGKILL)
    until(lambda: not _alive(child), "the child to be gone")
    outer.stop()


def working(device, monkeypatch, tmp_path, code="import time; time.sleep(600)", naps=None, flower=False):
    """An agent whose SuperNode is a small program, and which is stepped by `naps`, one per second of its life."""
    agent = Agent(device, flower, delay_s=65.0, ticks=device.clock)
    monkeypatch.setattr(Agent, "programs", lambda self: [program(tmp_path, "supernode", code)])
    steps = iter(naps or [])

    def nap(event, seconds):
        step = next(steps, None)
        if step is None:
            agent.stop.set()
        else:
            step(agent)
        return event.is_set()

    agent.nap = nap
    return agent


def test_an_agent_stops_for_good_when_its_client_is_revoked(door, monkeypatch, tmp_path):
    device = door.member("a")

    def revoke(agent):
        door.federation.revoke("a", "stolen")
        os.kill(agent.supervisor.pid("supernode"), signal.SIGKILL)
        until(lambda: not _alive(agent.supervisor.pid("supernode")), "the SuperNode's end")

    with pytest.raises(EnrollError, match="E202"):
        working(device, monkeypatch, tmp_path, naps=[revoke]).run()
    assert device.about["refused"] == "E202"


def test_an_agent_waits_while_its_client_is_suspended(door, monkeypatch, tmp_path):
    device = door.member("a")
    door.federation.suspend("a")
    states = []
    naps = [lambda agent: states.append(dict(agent.supervisor.starts)), lambda agent: door.federation.resume("a"),
            lambda agent: states.append(dict(agent.supervisor.starts))]  # fmt: skip
    working(device, monkeypatch, tmp_path, naps=naps).run()
    assert states == [{}, {"supernode": 1}]


def test_an_agent_renews_at_two_thirds_of_the_certificates_life(door, monkeypatch, tmp_path):
    device = door.member("a")
    first, seen = device.leaf().serial, []

    def later(days):
        def turn(agent):
            door.clock.ahead = days * DAY
            seen.append(device.leaf().serial)

        return turn

    working(device, monkeypatch, tmp_path, naps=[later(3), later(5.5), later(5.6), later(5.7)]).run()
    assert seen[:2] == [first, first] and seen[-1] != first
    assert len(set(seen)) == 2


def test_a_device_at_work_hears_of_a_stolen_issuing_key_renews_and_starts_its_node_again(
    door, monkeypatch, tmp_path, listening
):
    device, stack = door.member("a"), contextlib.ExitStack()
    first, seen = device.leaf().serial, []

    def stolen(agent):
        door.federation.authority.rotate(door.clock(), compromised=True)
        present = door.federation.folder / "ca" / "server.pem"
        port = stack.enter_context(listening(service(door.federation), present))
        device.note(endpoint=f"127.0.0.1:{port}")
        door.clock.ahead = 700
        seen.append(agent.supervisor.pid("supernode"))

    def ended(agent):
        until(lambda: not _alive(seen[0]), "the node's end")
        assert len(device.trust.revoked()) == 1 and device.leaf().serial != first
        assert agent.supervisor.starts == {"supernode": 1}

    with stack:
        working(device, monkeypatch, tmp_path, naps=[stolen, ended]).run()
    assert len(seen) == 1


def test_an_agent_that_was_off_beyond_expiry_renews_in_the_grace_time_or_gives_up(door, monkeypatch, tmp_path):
    device = door.member("a")
    door.clock.ahead = 9 * DAY
    working(device, monkeypatch, tmp_path).run()
    assert device.ask("whoami")["state"] == "active"
    door.clock.ahead = 40 * DAY
    with pytest.raises(EnrollError, match="E209"):
        working(device, monkeypatch, tmp_path).run()


def test_after_a_crash_an_agent_waits_until_its_node_is_forgotten(door, monkeypatch, tmp_path):
    device = door.member("a")
    waited = []
    agent = working(device, monkeypatch, tmp_path, flower=True)
    (device.folder / "work").mkdir(mode=0o700)
    (device.folder / "work" / "alive").write_text(str(int(door.clock()) - 5))
    real = agent.nap
    agent.nap = lambda event, seconds: (waited.append(seconds), real(event, seconds))[1]
    agent.run()
    assert 58 <= waited[0] <= 61
    assert not (device.folder / "work" / "alive").exists()


def test_the_nodes_configuration_is_toml_of_what_was_declared_and_measured(door):
    path = 'C:\\data "ü" 😀\n'
    device = door.member("a", Data(path, 120, 2, 3))
    read = tomli.loads(node_config(device))
    assert (read["partition-id"], read["num-partitions"], read["client"], read["num_examples"]) == (2, 3, 0, 120)
    assert (read["data"], read["sec_per_step"], read["client-name"]) == (path, 0.0009, "a")
    plain = tomli.loads(node_config(door.member("b")))
    assert plain["partition-id"] == plain["client"] == 1 and "num-partitions" not in plain


def test_no_secret_is_on_a_command_line(door, tmp_path):
    device = door.member("a")
    agent = Agent(device, flower=True)
    agent.work.mkdir(mode=0o700)
    superlink = SuperLink(tmp_path / "flower")
    superlink.prepare(door.clock())
    secrets = [(device.folder / "work" / "superexec.secret"), (superlink.folder / "superexec.secret")]
    lines = [" ".join(p.command) for p in [*agent.programs(), *superlink.programs()]]
    for path in secrets:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert path.read_text() not in "".join(lines)
    assert all("--isolation process" in lines[n] for n in (0, 2))
    assert "--enable-supernode-auth" in lines[2] and "--host 127.0.0.1" in lines[2]


def test_a_spread_of_more_than_a_fifth_of_the_median_is_noisy():
    assert benchmark.summary([1.0] * 9) == {
        "step_us": 1_000_000,
        "step_iqr_us": 0,
        "repeats": 9,
        "batch": 32,
        "noisy": 0,
    }
    assert benchmark.summary([0.9, 0.9, 1.0, 1.1, 1.1])["noisy"] == 0
    assert benchmark.summary([0.8, 0.8, 1.0, 1.1, 1.1])["noisy"] == 1
    with pytest.raises(ValueError, match="at least 5"):
        benchmark.summary([1.0] * 4)


def test_repetitions_go_on_until_time_and_number_are_reached():
    now = iter(range(10_000))
    taken = benchmark.measure(lambda: None, seconds=21.0, clock=lambda: next(now))
    assert taken == [1] * 9  # two looks each for the five that must be, then three
    now = iter(range(10_000))
    assert len(benchmark.measure(lambda: None, seconds=0.0, clock=lambda: next(now))) == 5


def test_a_real_measurement_has_positive_figures():
    found = benchmark.run(0.0)
    assert found["repeats"] == 5 and found["step_us"] > 0
    assert json.dumps({**found, **benchmark.hardware()})
