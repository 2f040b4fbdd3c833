# ruff: noqa: E402  # threads are fixed and the checkout is found before anything is imported
"""Benchmark of one iteration of gradient inversion: explicit derivatives against double automatic differentiation.

    python experiments/bench_inversion.py [--images 24 60 128] [--repeats 15] [--table FILE]

LeNet with 21,840 parameters and a perceptron of 784-64-10 on 28 x 28, five full-batch steps, the L1 loss on all
coordinates: the gradient by images and label logits. "plain" is the usual loop: unrolled steps with create_graph=True,
one backward pass. "by steps" runs the adjoint with automatic second derivatives, "written out" has explicit ones. One
thread, in turns, minimum and median of processor time. The time of "written out" is broken down: its matrix products
alone, with the same memory layout as in a path, and its calls alone, which is the time for one image.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

KEEP = {"MALLOC_MMAP_THRESHOLD_": str(1 << 33), "MALLOC_TRIM_THRESHOLD_": str(1 << 40), "OMP_NUM_THREADS": "1"}
if not KEEP.items() <= os.environ.items():  # read by the C library when a process starts
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clients.models.vision import lenet, mlp
from fedhet.model.flat_model import Model
from fedhet.numerics.tree import FlatTree
from strategies.staleness.inversion_chain import Chain
from strategies.staleness.inversion_local import Path as Steps
from strategies.staleness.inversion_local import soft_cross_entropy
from strategies.staleness.inversion_unroll import Autograd, Objective

STEPS, LR, CLASSES, SHAPE = 5, 0.05, 10, (1, 28, 28)
MODELS: dict[str, Callable[..., nn.Module]] = {"LeNet": lenet, "784-64-10": partial(mlp, hidden=[64])}
Task = tuple[Tensor, Tensor]


def plain(model: Model, start: Tensor, target: Tensor) -> Callable[[Tensor, Tensor], Task]:
    """The double-backward loop."""

    def iteration(x: Tensor, z: Tensor) -> Task:
        x, z = x.detach().requires_grad_(), z.detach().requires_grad_()
        shares, w = z.softmax(-1), dict(FlatTree(model.schema, start.clone().requires_grad_()))
        first = dict(w)
        for _ in range(STEPS):
            loss = soft_cross_entropy(functional_call(model.module, w, (x,)), shares)
            grads = torch.autograd.grad(loss, list(w.values()), create_graph=True)
            w = {k: p - LR * g for (k, p), g in zip(w.items(), grads, strict=True)}
        wanted = FlatTree(model.schema, target)
        missed = sum(((w[k] - first[k]) - wanted[k]).abs().sum() for k in w)
        assert isinstance(missed, Tensor)
        by_x, by_z = torch.autograd.grad(missed / target.abs().sum(), [x, z])
        return by_x, by_z

    return iteration


def products(images: int) -> Callable[[], None]:
    """The matrix products of one iteration on LeNet and nothing else, in memory that is there already.

    Of the 3.7 million multiplications of a step and an image they leave out only those of the last two layers.
    """
    wide, deep = 576 * images, 64 * images
    first, back = torch.randn(26, wide), torch.randn(25, wide)
    w1, w2, g1, g2 = torch.randn(10, 26), torch.randn(5, 20, 51), torch.randn(10, 25), torch.randn(5, 20, 50)
    path = [(torch.randn(51, 96 * images), torch.randn(10, wide), torch.randn(20, deep)) for _ in range(STEPS)]
    moved, spread, out = torch.randn(51, 96 * images), torch.randn(50, 96 * images), torch.randn(20, deep)

    def shifted(columns: Tensor) -> Tensor:
        return columns.as_strided((5, len(columns), deep), (8 * images, 96 * images, 1))

    def weigh(d: Tensor, columns: Tensor) -> None:
        g2.baddbmm_(d.expand(5, -1, -1), shifted(columns)[:, :50].transpose(1, 2))

    def put_back(d: Tensor) -> None:
        for matrix, part in zip(w2[:, :, :50].transpose(1, 2).unbind(), shifted(spread).unbind(), strict=True):
            part.addmm_(matrix, d)

    def all_of_them() -> None:
        for columns, d1, d2 in path:
            torch.mm(w1, first, out=d1)
            torch.addbmm(out, w2, shifted(columns), beta=0, out=out)
            weigh(d2, columns)
            put_back(d2)
            g1.addmm_(d1, first[:25].t())
        for k, (columns, d1, d2) in reversed(list(enumerate(path))):
            torch.mm(w1, first, out=d1)
            for factor in (columns, moved):
                torch.addbmm(out, w2, shifted(factor), beta=0, out=out)
                put_back(d2)
                back.addmm_(w1[:, :25].t(), d1)
                if k:
                    weigh(d2, factor)
            if k:
                g1.addmm_(d1, first[:25].t())

    return all_of_them


def measure(name: str, images: int, repeats: int) -> dict[str, tuple[float, float]]:
    """Least and median milliseconds of processor time by name."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Model(MODELS[name](input_shape=SHAPE, classes=CLASSES), soft_cross_entropy)
    start = model.flat.clone()
    x, z = torch.randn(images, *SHAPE, generator=generator), torch.randn(images, CLASSES, generator=generator)
    target = 0.01 * torch.randn(start.shape, generator=generator)
    chain = Chain.of(model.module)
    assert chain is not None
    path, single = Steps(STEPS, LR, (slice(0, images),)), Steps(STEPS, LR, (slice(0, 1),))
    one, two = plain(model, start, target), Objective(Autograd(model), start, target, path)
    three, four = Objective(chain, start, target, path), Objective(chain, start, target, single)
    for a, b in zip(one(x, z), three(x, z)[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    runs: dict[str, Callable[[], object]] = {
        "plain": lambda: one(x, z),
        "by steps": lambda: two(x, z),
        "written out": lambda: three(x, z),
        "its calls alone": lambda: four(x[:1], z[:1]),
    }
    if name == "LeNet":
        runs["its products alone"] = products(images)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            began = time.process_time()
            run()
            times[name].append(1e3 * (time.process_time() - began))
    return {name: (min(t), median(t)) for name, t in times.items()}


def main() -> None:
    """Print the table, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[24, 60, 128])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# One iteration of a gradient inversion",
        "",
        "    python experiments/bench_inversion.py",
        "",
        "Five full-batch steps on 28 x 28, L1 on all coordinates; milliseconds of processor time on one thread, least",
        "and median; how many times faster than the plain loop, by the least.",
        "",
        "| model | images | way | least | median | times |",
        "|---|---|---|---|---|---|",
    ]
    for name in MODELS:
        for images in given.images:
            found = measure(name, images, given.repeats)
            for way, (least, middle) in found.items():
                times = f"{found['plain'][0] / least:.2f}"
                lines.append(f"| {name} | {images} | {way} | {least:.1f} | {middle:.1f} | {times} |")
    load = os.getloadavg()[0]
    lines += [
        "",
        f"torch {torch.__version__}, {platform.processor() or platform.machine()}, load average {load:.1f}.",
        "",
    ]
    print("\n".join(lines))
    if given.table is not None:
        given.table.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
