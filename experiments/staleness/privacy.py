"""Privacy leakage of the server's reconstructions, with all coordinates, with few, and with noise.

    python experiments/staleness/privacy.py --data DIR [--seeds 0 1 2] [--round 50]

For clients of one class each the server's reconstruction is measured in three ways: labels, the share of its images
whose most likely label is one the client has; likeness, the mean over the client's images of the correlation with the
most similar reconstructed image, against the same for images of other clients (the chance level); classified, the share
of reconstructed images that a network trained on the test images assigns to a class of the client's. The errors of the
late update and of the estimate are given as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402  # after the number of threads
from torch import Tensor  # noqa: E402

from clients.models.build import build  # noqa: E402
from clients.models.vision import lenet  # noqa: E402
from experiments.staleness.run import LR, inversion  # noqa: E402
from experiments.staleness.world import CLASSES, Method, Rounds, World  # noqa: E402
from fedhet.model.flat_model import Model  # noqa: E402
from fedhet.numerics.tree import FlatTree  # noqa: E402
from strategies.privacy.noise import Noise  # noqa: E402
from strategies.staleness.inversion import Inversion  # noqa: E402
from strategies.staleness.inversion_unique import distance  # noqa: E402

STALE = 20
SETTINGS = {
    "all coordinates": (1.0, 0.0),
    "the largest 5 %": (0.05, 0.0),
    "noise of 1 rms": (1.0, 1.0),
    "noise of 3 rms": (1.0, 3.0),
}
"""Share of the coordinates that are matched, and noise that a client adds."""


def likeness(images: Tensor, found: Tensor) -> float:
    """Mean over `images` of the largest correlation with one of `found`."""
    a, b = ((t.flatten(1) - t.flatten(1).mean(1, keepdim=True)) for t in (images, found))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    return float((a @ b.T).max(1).values.mean())


def judge(world: World, epochs: int = 20, batch: int = 50) -> Model:
    """A classifier that has nothing to do with the federation: another start, trained on the test images."""
    model = build(lenet, tuple(world.x.shape[1:]), CLASSES, world.seed + 1000)
    for _ in range(epochs):
        for x, y in zip(torch.split(world.x_test, batch), torch.split(world.y_test, batch), strict=True):
            model.gradient(x, y)
            model.params.add_(model.grad, alpha=-LR)
    return model


def measure(run: Rounds, layer: Inversion, noise: Noise, client: int, other_eyes: Model) -> list[float]:
    """Labels, likeness, chance likeness, classified, error of the late update, error of the estimate."""
    world, view, t = run.world, run.view, run.view.version
    starts = [view.base(t - STALE), view.base(t)]
    assert all(isinstance(s, FlatTree) for s in starts)
    late, true = (world.train(client, s, v, 0) for s, v in zip(starts, (t - STALE, t), strict=True))  # type: ignore[arg-type]
    sent, memory = noise.send(late, {}), {}
    view.cohort = [sent.job]
    came = layer.arrive(sent, view, memory)
    found, z = memory[f"x/{client}"], memory[f"z/{client}"]
    own, other = world.shards[client], world.shards[(client + 1) % len(world.shards)]
    labels = set(world.y[own].tolist())
    right, seen = (sum(int(c) in labels for c in t.argmax(1)) / len(z) for t in (z, other_eyes.predict(found)))
    flat = [u.delta.flat for u in (late, true, came)]  # type: ignore[attr-defined]
    return [
        right, likeness(world.x[own], found), likeness(world.x[other], found), seen,
        distance(flat[0], flat[1]), distance(flat[2], flat[1]),
    ]  # fmt: skip


def main(arguments: Iterable[str] | None = None) -> None:
    """Print one row a setting, the mean over seeds and clients."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of MNIST's Parquet files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--round", type=int, default=50)
    parser.add_argument("--clients", type=int, default=2, help="slow clients of each seed")
    given = parser.parse_args(None if arguments is None else list(arguments))
    torch.set_num_threads(1)
    rows: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    for seed in given.seeds:
        world = World(given.data, seed, LR)
        run = Rounds(world, Method(fresh=True), STALE, every=given.round)
        run.run(given.round)
        eyes = judge(world)
        for client in world.slow[: given.clients]:
            for name, (share, rms) in SETTINGS.items():
                layer = replace(inversion(world), accept=1e9, share=share)
                rows[name].append(measure(run, layer, Noise(rms, seed), client, eyes))
    heads = ["what is matched", "labels", "likeness", "by chance", "classified", "error late", "error estimate"]
    print(f"| {' | '.join(heads)} |\n" + "|---" * len(heads) + "|")
    for name, values in rows.items():
        means = [sum(column) / len(values) for column in zip(*values, strict=True)]
        print(f"| {name} | " + " | ".join(f"{m:.3f}" for m in means) + " |")


if __name__ == "__main__":
    main()
