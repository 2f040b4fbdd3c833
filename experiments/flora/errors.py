"""The error of the server's step relative to the exact mean of the clients' updates, by method and local steps.

    python experiments/flora/errors.py [--out runs/flora] [--rounds 2]

Relative Frobenius error over all adapted layers, || server's change - sum_i p_i (end_i - start_i) || / || sum ||, where
start_i and end_i are a client's effective weights, its adapter included. Shifted digits, label skew, the equal and the
unequal ranks of the study; in the first round, when all adapters are new, and in the last of a few. Every round trains
8 clients from the state before it; measurements that are in errors.json already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the path and the number of threads
from torch import Tensor  # noqa: E402

from experiments.flora.run import CONF, SETTINGS, Setting, base, cells  # noqa: E402
from fedhet.config import composition  # noqa: E402
from fedhet.model.flat_model import Model  # noqa: E402
from fedhet.numerics.tree import scale, weighted_sum  # noqa: E402
from fedhet.protocols import Space  # noqa: E402
from fedhet.runs.event_log import write_atomic  # noqa: E402
from fedhet.runs.experiment import Experiment  # noqa: E402
from fedhet.types import Budget, Job, Tree  # noqa: E402
from strategies.spaces.lora.host import LoraHost  # noqa: E402

STEPS = (2, 10, 50)


def effective(model: Model) -> dict[str, Tensor]:
    """The adapted layers' weights with their adapters, float64."""
    host = model.module
    assert isinstance(host, LoraHost) and host.panel is not None
    name = host.panel.kind.name
    return {
        layer: (part.get_base_layer().weight.double() + part.get_delta_weight(name).double()).detach()
        for layer, part in host.inner_layers()
    }


def measure(out: Path, setting: Setting, texts: list[str], steps: int, rounds: int) -> list[float]:
    """The error of every round."""
    model = ["model=checkpoint", f"model.path={base(out, setting, None)}", *setting.model]
    everything = [*texts, *setting.space, "fleet=ranked", *setting.overrides(None, False), *model, "work.lr=0.01"]
    experiment = Experiment.of(composition.resolved(composition.compose([*everything, "budget.epochs=null"], CONF)))
    space, work, world = experiment.method.space, experiment.method.work, experiment.world
    device, looked, examples = world.model(), world.model(), world.examples()
    shares = (examples / examples.sum()).tolist()
    state, found = space.begin(world.model()), []
    for version in range(rounds):
        deltas, moves = [], []
        for client, rank in enumerate(map(int, setting.ranks.split(","))):
            job = Job(0, client, version, version, Budget(steps, rank), 0.0)
            payload = space.offer(state, job)
            device.extras.clear()
            space.install(device, payload, job)
            before = effective(device)
            work.run(device, world.shard(client, version), job, {})
            deltas.append(space.decode_delta(state, job, space.extract(device, payload)))
            after = effective(device)  # when the job is over: rows that were dropped add nothing any more
            moves.append({name: after[name] - before[name] for name in after})
        after_state = space.merge(state, space.combine(deltas, shares))
        exact = weighted_sum(moves, shares)
        served = [weights(space, looked, s, list(exact)) for s in (state, after_state)]
        gained = weighted_sum(served[::-1], [1.0, -1.0])
        found.append(length(weighted_sum([gained, scale(exact, -1.0)], [1.0, 1.0])) / length(exact))
        state = after_state
    return found


def weights(space: Space, model: Model, state: Tree, layers: list[str]) -> dict[str, Tensor]:
    """The server's model: its adapted layers."""
    space.restore(model, state)
    return {layer: dict(model.module.named_parameters())[f"{layer}.weight"].detach().double() for layer in layers}


def length(tree: Tree) -> float:
    return sum(float(leaf.square().sum()) for leaf in tree.values()) ** 0.5


def main() -> None:
    """Measure every method that has adapters and is a mean, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "flora")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(1)
    path = given.out / "errors.json"
    rows: dict[str, list[float]] = json.loads(path.read_text()) if path.is_file() else {}
    for setting in SETTINGS[:2]:
        for name, method in cells(setting):
            if not method.adapters or method.rule != "mean":
                continue
            for steps in STEPS:
                if f"{setting.name}|{name}|{steps}" in rows:
                    continue
                errors = measure(given.out, setting, method.overrides, steps, given.rounds)
                rows[f"{setting.name}|{name}|{steps}"] = errors
                print(setting.name, name, steps, [f"{e:.2e}" for e in errors], flush=True)
                write_atomic(path, json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
