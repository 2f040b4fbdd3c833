"""Benchmark of simulated client tasks, against a hand-written torch loop and Flower's Ray simulation.

    python experiments/bench_simulation.py [--repeats 5] [--quick] [--no-ray] [--out experiments/results]

W1: perceptron 784-200-200-10, 100 clients of 100 samples, 10 per round, one epoch in batches of 10, SGD.
W2: the same with McMahan's convolutional network of 1.66 million parameters.
W3: softmax regression on 784 inputs, one step of one task, 100 sampled of N registered clients (1,000 and 100,000).
All systems do the same steps on the same data. They take turns; ratios are taken within a turn; medians are printed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fedhet.bench.simulation import W1, W3, hand, ours, overrides, peak  # noqa: E402  # the checkout is found first

W2 = {**W1, "model": "cnn_mcmahan", "rounds": 6}


def hand2(w: dict) -> dict:
    """The same loop in two processes: model and sums in shared memory, client numbers on a pipe."""
    import multiprocessing

    import torch

    from fedhet.config import composition, factory

    cfg = composition.resolved(composition.compose(overrides(w, 0)))
    world = factory.world(cfg, w["clients"])
    model = world.model().module
    torch.set_num_threads(1)
    fork = multiprocessing.get_context("fork")
    state = {k: v.clone().share_memory_() for k, v in model.state_dict().items()}
    sums = [{k: torch.zeros_like(v).share_memory_() for k, v in state.items()} for _ in range(2)]

    def work(total: dict, pipe) -> None:
        x_all, y_all = world.dataset.x_train, world.dataset.y_train
        generator = torch.Generator().manual_seed(0)
        while clients := pipe.recv():
            for v in total.values():
                v.zero_()
            for client in clients:
                index = torch.from_numpy(world.partition.indices(client).astype("int64"))
                x, y = x_all[index], y_all[index]
                model.load_state_dict(state)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
                for part in torch.randperm(len(x), generator=generator).split(w["batch"]):
                    optimizer.zero_grad()
                    torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                    optimizer.step()
                for k, v in model.state_dict().items():
                    total[k].add_(v, alpha=1 / w["per_round"])
            pipe.send(True)

    pipes = []
    for total in sums:
        ours, theirs = fork.Pipe()
        fork.Process(target=work, args=(total, theirs), daemon=True).start()
        pipes.append(ours)
    generator, done, began = torch.Generator().manual_seed(0), 0, 0.0
    for round_ in range(w["rounds"]):
        if round_ == 2:
            began, done = time.perf_counter(), 0
        chosen = torch.randperm(w["clients"], generator=generator)[: w["per_round"]].tolist()
        for n, pipe in enumerate(pipes):
            pipe.send(chosen[n::2])
        for pipe in pipes:
            pipe.recv()
        for k, v in state.items():
            torch.add(sums[0][k], sums[1][k], out=v)
        done += len(chosen)
    rate = done / (time.perf_counter() - began)
    for pipe in pipes:
        pipe.send([])
    return {"rate": rate, "rss": peak()}


def ray(w: dict) -> dict:
    """Flower's simulation of the same training function on Ray, one CPU per client."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    client, server, marks = ClientApp(), ServerApp(), []
    more = overrides(w, 0)
    held: dict = {}

    @client.train()
    def train(message, context):
        if not held:
            import sys as system

            system.path.insert(0, str(ROOT))
            from fedhet.config import composition, factory

            torch.set_num_threads(1)
            held["world"] = factory.world(composition.resolved(composition.compose(more)), w["clients"])
            held["model"] = held["world"].model().module
        world, model = held["world"], held["model"]
        index = torch.from_numpy(world.partition.indices(context.node_config["partition-id"]).astype("int64"))
        x, y = world.dataset.x_train[index], world.dataset.y_train[index]
        model.load_state_dict(message.content["arrays"].to_torch_state_dict())
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        for part in torch.randperm(len(x)).split(w["batch"]):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x[part]), y[part]).backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(x)})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @server.main()
    def main(grid, context):
        from fedhet.config import composition, factory

        model = factory.world(composition.resolved(composition.compose(more)), w["clients"]).model().module
        fraction = w["per_round"] / w["clients"]
        FedAvg(fraction_train=fraction, fraction_evaluate=0.0).start(
            grid,
            ArrayRecord(model.state_dict()),
            num_rounds=min(12, w["rounds"]),
            evaluate_fn=lambda r, a: marks.append(time.perf_counter()),
        )

    run_simulation(
        server, client, w["clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False},
        },
    )  # fmt: skip
    rounds = [b - a for a, b in pairwise(marks)][2:]
    return {"rate": w["per_round"] / statistics.median(rounds), "rss": peak()}


SYSTEMS = {
    "hand": hand,
    "hand, 2 processes": hand2,
    "fedhet 1 worker": lambda w: ours(w, 1),
    "fedhet 2 workers": lambda w: ours(w, 2),
    "flower/ray": ray,
}


def measure(system: str, w: dict) -> dict:
    """One measurement in a process of its own, so that nothing is warm that should not be."""
    command = [sys.executable, __file__, "--one", system, json.dumps(w)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{system}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(title: str, rows: dict[str, list[dict]], base: str) -> list[str]:
    lines = [f"\n### {title}\n", f"| system | tasks/s | x {base} | peak RSS MB (main process) |", "|---|--:|--:|--:|"]
    for name, runs in rows.items():
        ratios = [r["rate"] / b["rate"] for r, b in zip(runs, rows[base], strict=False)]
        rates = [r["rate"] for r in runs]
        lines.append(
            f"| {name} | {statistics.median(rates):.0f} ({min(rates):.0f}-{max(rates):.0f}) | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | "
            f"{statistics.median(r['rss'] for r in runs) / 1e6:.0f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat, few rounds")
    parser.add_argument("--no-ray", action="store_true", help="leave Flower's Ray simulation out")
    parser.add_argument("--out", type=Path, help="write bench_simulation.md into this folder")
    parser.add_argument("--one", nargs=2, metavar=("SYSTEM", "JSON"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(SYSTEMS[given.one[0]](json.loads(given.one[1]))))
        return
    repeats = 1 if given.quick else given.repeats
    # so many that a turn of the fastest takes a second or more on any machine met so far
    w1, w3 = {**W1, "rounds": 10 if given.quick else 200}, {**W3, "rounds": 10 if given.quick else 100}
    names = [n for n in SYSTEMS if not (given.no_ray and n == "flower/ray")]
    first: dict[str, list[dict]] = {n: [] for n in names}
    second: dict[str, list[dict]] = {n: [] for n in ("hand, 2 processes", "fedhet 2 workers")}
    small: dict[str, list[dict]] = {n: [] for n in ("hand", "fedhet 2 workers", "flower/ray") if n in names}
    third: dict[str, list[dict]] = {n: [] for n in ("1,000 clients", "100,000 clients", "1,000,000 clients")}
    for turn in range(repeats):
        for name in names:
            if name != "flower/ray" or turn < 3:
                first[name].append(measure(name, w1))
        for name in second:
            second[name].append(measure(name, {**W2, "rounds": 4} if given.quick else W2))
        for name in small:
            if name != "flower/ray":
                small[name].append(measure(name, w3))
            elif turn == 0:  # minutes, however few its rounds
                small[name].append(measure(name, {**w3, "rounds": 5}))
        for label in third:
            third[label].append(measure("fedhet 2 workers", {**w3, "clients": int(label.split()[0].replace(",", ""))}))
        print(f"turn {turn + 1} of {repeats} done", file=sys.stderr)
    from importlib.metadata import version

    lines = ["# Simulation speed", "", f"`python experiments/bench_simulation.py {' '.join(sys.argv[1:])}`", ""]
    lines += [__doc__.split("\n\n", 2)[2].strip(), "", f"Medians (least-most) of {repeats} interleaved turns on "]
    lines += [
        f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, torch {version('torch')}, "
    ]
    lines += [
        f"flwr {version('flwr')}, one torch thread per process, load average {os.getloadavg()[0]:.1f} at the end."
    ]
    lines += table("W1", first, "hand") + table("W2", second, "hand, 2 processes")
    lines += table("W3, 1,000 clients", small, "hand")
    lines += table("W3, fedhet with 2 workers", third, "1,000 clients")
    text = "\n".join(lines) + "\n"
    print(text)
    if given.out:
        (given.out / "bench_simulation.md").write_text(text)


if __name__ == "__main__":
    main()
