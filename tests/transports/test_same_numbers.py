"""One method, three transports: virtual time, Flower's simulation on Ray, and a SuperLink with real processes."""

import os
import signal
import subprocess
import sys
import time

import pytest
from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import ServerApp

from fedhet.config import composition
from fedhet.deployment import clientapp, local_superlink
from fedhet.deployment.strategy import MethodStrategy
from fedhet.numerics.wire_format import digest, encode
from fedhet.population.profile import Timing
from fedhet.provenance import source_tree
from fedhet.runs.event_log import read_rows
from fedhet.runs.experiment import Experiment
from fedhet.simulation.flower_app import simulate
from fedhet.simulation.virtual_grid import VirtualGrid
from fedhet.simulation.worker_pool import Pool
from fedhet.system.threads import one_thread

SMALL = [
    "fleet=homogeneous", "fleet.clients=2", "fleet.sec_per_step=0.001", "partition=iid", "budget.epochs=null",
    "budget.steps=3", "stop.versions=2", "workers=1",
]  # fmt: skip


def experiment(*more):
    return Experiment.of(composition.resolved(composition.compose([*SMALL, *more])))


@pytest.fixture(scope="module")
def virtual(tmp_path_factory):
    return experiment().run(tmp_path_factory.mktemp("virtual") / "run").row


@pytest.mark.transport
def test_ray_gives_the_bits_of_virtual_time(tmp_path, virtual):
    row = experiment("transport=ray").run(tmp_path / "run").row
    assert row["weights_sha256"] == virtual["weights_sha256"]
    assert row["bytes_up"] == virtual["bytes_up"] and row["updates"] == virtual["updates"]


@pytest.mark.transport
def test_a_superlink_gives_the_bits_of_virtual_time_and_leaves_nothing_running(tmp_path, virtual):
    row = experiment("transport=superlink").run(tmp_path / "run").row
    assert row["weights_sha256"] == virtual["weights_sha256"]
    assert row["updates"] == virtual["updates"]
    assert [r["event"] for r in read_rows(tmp_path / "run" / "events.jsonl")].count("combined") == 2
    assert not processes(str(tmp_path))


@pytest.mark.transport
def test_a_terminated_superlink_run_cleans_up(tmp_path):
    given = [*SMALL, "transport=superlink"]
    code = (
        "from fedhet.config import composition as config; from fedhet.runs.experiment import Experiment;"
        f"Experiment.of(config.resolved(config.compose({given!r}))).run({str(tmp_path / 'run')!r})"
    )
    environment = {**os.environ, "PYTHONPATH": str(source_tree.root()), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=tmp_path)
    end = time.monotonic() + 60
    while len(processes(str(tmp_path))) < 3 and time.monotonic() < end:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not processes(str(tmp_path))


@pytest.fixture
def interruptible():
    """Interrupts are heard; a program begun in the background ignores them, and what is ignored stays so."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("sign", "end"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_what_is_started_at_the_moment_of_the_end_is_ended_too(tmp_path, monkeypatch, interruptible, sign, end):
    started, popen = [], subprocess.Popen

    def ended_within(*arguments, **more):
        started.append(popen(*arguments, **more))
        os.kill(os.getpid(), sign)
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", ended_within)
    monkeypatch.setattr(
        local_superlink.socket_files, "command", lambda *words: list(words)
    )  # `sleep` is none of Flower's
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(end), local_superlink._processes(tmp_path) as start:
        start("sleep", "60")
    assert started[0].poll() == -signal.SIGTERM
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers


def processes(marker):
    """Flower processes whose environment or command line mentions a folder."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                command = file.read().replace(b"\0", b" ").decode(errors="replace")
            with open(f"/proc/{pid}/environ", "rb") as file:
                environment = file.read().decode(errors="replace")
        except OSError:
            continue
        if ("flower-" in command or "flwr-" in command) and marker in environment:
            found.append(command)
    return found


def test_a_method_is_a_flower_strategy_in_another_server_app(tmp_path, virtual):
    """On the virtual grid, whose nodes run our client app: the same bits as the experiment's own run."""
    e = experiment()
    model = e.world.model()
    initial = ArrayRecord(model.module.state_dict())
    out, evaluated = [], []
    server = ServerApp()

    @server.main()
    def main(grid, context):
        strategy = MethodStrategy(e, clock=grid)
        out.append(strategy.start(grid, initial, num_rounds=2, evaluate_fn=lambda v, arrays: evaluated.append(v)))

    with one_thread(), Pool(clientapp.client, 0) as pool:
        grid = VirtualGrid(
            pool,
            range(2, 4),
            lambda message, at: Timing(at, at, at + 10**9, at + 10**9),
            config=lambda n: {"partition-id": n - 2},
        )
        server(grid=grid, context=Context(1, 1, {}, RecordDict(), {}))
    model.module.load_state_dict(out[0].arrays.to_torch_state_dict())
    assert digest(encode(model.tree())) == virtual["weights_sha256"]
    assert evaluated == [0, 1, 2]


def test_a_method_in_a_simulated_flower_app_runs_in_virtual_time():
    e = experiment("schedule=fedbuff", "schedule.size=1", "strategy=fedavg")
    app_of_ours, seen = ServerApp(), []

    @app_of_ours.main()
    def main(grid, context):
        model = e.world.model().module
        result = MethodStrategy(e).start(grid, ArrayRecord(model.state_dict()), num_rounds=4)
        model.load_state_dict(result.arrays.to_torch_state_dict())
        seen.append(digest(encode(dict(model.state_dict()))))

    runs = [simulate(app_of_ours, clientapp.client, e.clients, workers=workers, steps=1000) for workers in (0, 1)]
    assert runs[0] == runs[1] and seen[0] == seen[1]
    assert runs[0].virtual_seconds > 2 * 1000 * 0.001, "the server's clock is the grid's"
