"""Soak test: kill processes of a live federation, and check that no update is lost or counted twice. See README.md.

python experiments/reliability/soak.py [--kills 30] [--seed 0] [--clients 3] [--out runs/reliability]
                                       [--table experiments/results/reliability.md]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from experiments.reliability import memory  # noqa: E402  # after the path and the number of threads
from experiments.reliability.audit import Ledger, audit  # noqa: E402
from experiments.reliability.federation import Target, until  # noqa: E402
from fedhet.runs.result import Result  # noqa: E402

COMMON = ["data=digits", "partition=iid", "model=mlp", "budget.epochs=null", "budget.steps=10"]
ALPHA = 0.05
"""Of FedDyn."""
METHODS = {
    "FedBuff": ["strategy=fedbuff", "schedule.size=2", "checkpoint.every_seconds=1e9"],
    "FedCompass": ["strategy=fedcompass", "schedule.q_min=5", "schedule.q_max=20", "checkpoint.every_seconds=3.0"],
    "FedDyn": ["strategy=feddyn", f"work.alpha={ALPHA}", "checkpoint.every_seconds=1e9"],
}
"""With and without checkpoints, which cut the journal's payloads short."""
RECOVERY_S = 900.0
"""Seconds within which an update must be accepted after a blow."""
CUT_S = 4.0


@dataclass
class Soak:
    """What happened. `blows` are (role, seconds until an update was accepted again); `memories` says of each client
    that was killed and keeps one whether its memory went on from its disk."""

    blows: list[tuple[str, float]] = field(default_factory=list)
    runs: list[tuple[str, Ledger]] = field(default_factory=list)
    memories: list[bool] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> int:
        return sum(ledger.lost for _, ledger in self.runs)

    @property
    def doubled(self) -> int:
        return sum(ledger.doubled for _, ledger in self.runs)


def plan(kills: int, cuts: int, rng: random.Random) -> list[str]:
    """The blows in random order, roles as even as they can be."""
    roles = [("server", "client", "superlink")[n % 3] for n in range(kills)] + ["network"] * cuts
    rng.shuffle(roles)
    return roles


def soak(
    folder: Path, blows: Sequence[str], *, clients: int = 3, seed: int = 0, tasks: int = 60, methods: Sequence[str] = ()
) -> Soak:
    """Hit a federation until all blows are dealt and the last run has ended. Raises Stuck if it does not recover.

    Methods take turns, each with its share of the blows. Every other run is detached, the first one too: nobody follows
    it, and the server alone sees to it that it goes on.
    """
    rng, done, left, began = random.Random(seed), Soak(), list(blows), time.monotonic()
    names = list(methods or METHODS)
    share = math.ceil(len(left) / len(names))
    with contextlib.ExitStack() as stack:
        target = Target(folder, clients, stack)
        while left or not done.runs:
            method = names[len(done.runs) % len(names)]
            run = f"run{len(done.runs)}"
            limits = [f"fleet.clients={clients}", f"stop.tasks={tasks}", "stop.versions=null", f"seed={seed}"]
            turn = left[:share]
            mine = list(turn)
            _one_run(target, run, [*METHODS[method], *COMMON, *limits], mine, rng, done, len(done.runs) % 2 == 0)
            del left[: len(turn) - len(mine)]
            done.runs.append((method, audit(target.folder / run)))
            print(f"{time.monotonic() - began:7.1f} s  {run} {method}: {done.runs[-1][1]}", flush=True)
        done.seconds = time.monotonic() - began
    return done


def _one_run(
    target: Target, run: str, texts: Sequence[str], left: list[str], rng: random.Random, done: Soak, detach: bool
) -> None:  # fmt: skip
    """Submit a run and deal blows until it ends. An operator whose command fails gives it again."""
    process, result = target.submit(run, texts, detach=detach), target.folder / run / "result.json"

    def alive(mark: int) -> bool:
        nonlocal process
        ended = process.poll()
        if ended is not None and not (detach and ended == 0) and not result.is_file():
            process = target.submit(run, texts, detach=detach)
        return result.is_file() or target.accepted(run) > mark

    until(lambda: alive(1), RECOVERY_S, f"the first updates of {run}")
    while left and not result.is_file():
        time.sleep(rng.uniform(0.0, 1.5))
        mark, struck, client = _strike(target, left[0], run, rng)
        if not struck:
            continue
        role, at = left.pop(0), time.monotonic()
        if client is not None and "strategy=feddyn" in texts:
            name = target.name(run)
            before = memory.kept(client, name)
            after = memory.next_after(before, client, name, result.is_file, RECOVERY_S) if before.job else None
            if after is not None:
                done.memories.append(memory.grew(before, after, ALPHA))
        until(lambda mark=mark: alive(mark), RECOVERY_S, f"recovery of {run} from the loss of {role}")
        ended = target.accepted(run) <= mark  # the blow came too late to be overcome: the run was over
        done.blows.append((role, float("nan") if ended else time.monotonic() - at))
        print(f"  {role:9} {done.blows[-1][1]:6.1f} s", flush=True)
    until(lambda: alive(10**9), RECOVERY_S, f"the end of {run}")
    process.wait(RECOVERY_S)


def _strike(target: Target, role: str, run: str, rng: random.Random) -> tuple[int, bool, Path | None]:
    """One blow; the number of updates accepted before it, whether there was anything to hit, and the client hit."""
    if role == "network":
        mark = target.accepted(run)
        target.relay.cut(CUT_S)
        return mark, True, None
    pids = target.processes(role)
    mark = target.accepted(run)
    if not pids:
        return mark, False, None
    pid = rng.choice(pids)
    client = target.state(pid) if role == "client" else None
    os.kill(pid, signal.SIGKILL)
    return mark, True, client


def table(done: Soak, command: str) -> str:
    """The result as Markdown."""
    lines = ["# Killing a live federation", "", f"    {command}", ""]
    lines += [f"{len(done.blows)} blows in {done.seconds / 60:.0f} minutes on real processes, "
              f"{sum(ledger.accepted for _, ledger in done.runs)} updates accepted: "
              f"**{done.lost} lost, {done.doubled} counted twice**.", ""]  # fmt: skip
    lines += ["| `kill -9` of (network: cut for 4 s) | times | seconds to the next accepted update: median | most |"]
    lines += ["|---|---|---|---|"]
    for role in ("server", "superlink", "client", "network"):
        took = [seconds for name, seconds in done.blows if name == role]
        timed = [seconds for seconds in took if seconds == seconds]
        if timed:
            lines.append(f"| {role} | {len(took)} | {statistics.median(timed):.1f} | {max(timed):.1f} |")
    if done.memories:
        lines += ["", f"Killed clients of FedDyn whose memory went on from their own disk: {sum(done.memories)} of "
                  f"{len(done.memories)}."]  # fmt: skip
    lines += ["", "| run | accepted | combined | dropped | waiting at the end | failed jobs | lost | twice | "
              "model from the journal alone |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for number, (method, one) in enumerate(done.runs):
        again = {True: "the same bits", False: "DIFFERENT", None: "payloads cut by checkpoints"}[one.again]
        figures = (one.accepted, one.combined, one.dropped, one.buffered, one.failed, one.lost, one.doubled)
        lines.append(f"| {number} {method} | " + " | ".join(map(str, figures)) + f" | {again} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--cuts", type=int, default=3, help="cuts of the network")
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=60, help="client tasks after which a run ends")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/reliability"))
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    blows = plan(given.kills, given.cuts, random.Random(given.seed))
    done = soak(given.out, blows, clients=given.clients, seed=given.seed, tasks=given.tasks)
    numbers = f"--kills {given.kills} --cuts {given.cuts} --seed {given.seed} --tasks {given.tasks}"
    command = f"python experiments/reliability/soak.py {numbers}"
    text = table(done, command)
    packages = Result.read(given.out / "run0").row["packages"]
    text += "\nVersions: " + ", ".join(f"{name} {number}" for name, number in sorted(packages.items())) + ".\n"
    print(text)
    if given.table:
        given.table.write_text(text)
    wrong = done.lost or done.doubled or any(one.again is False for _, one in done.runs) or not all(done.memories)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
