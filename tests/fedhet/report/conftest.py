"""A small deterministic federation that writes run folders in the engine's format, without training anything."""

import hashlib
import heapq
import json
import math
import random

import pytest

CONFIG = """# @package _global_
seed: {seed}
strategy: {strategy}
schedule:
  _target_: strategies.schedules.{strategy}.Schedule
  size: {size}
rule:
  _target_: strategies.rules.mean.WeightedMean
fleet:
  _target_: clients.fleet.lognormal.Lognormal
  clients: {clients}
target: {target}
"""


class Fake:
    """One fake run: `strategy` is fedavg (rounds with a deadline), fedbuff, or fedcompass (notes of arrival groups)."""

    def __init__(
        self,
        strategy="fedavg",
        *,
        seed=0,
        clients=12,
        seconds=60.0,
        pace=0.1,
        size=4,
        target=0.85,
        speed=6.0,
        tail=True,
    ):
        self.strategy, self.seed, self.limit, self.size, self.target, self.speed = (
            strategy,
            seed,
            seconds,
            size,
            target,
            speed,
        )
        self.rng = random.Random(f"{strategy}/{seed}")
        self.pace = [pace * self.rng.lognormvariate(0, 0.55) for _ in range(clients)]
        self.weight = [self.rng.randint(40, 400) for _ in range(clients)]
        self.events, self.metrics, self.heap, self.buffer = [], [], [], {}
        self.now, self.version, self.jobs, self.landed, self.good = 0.0, 0, 0, 0, 0.0
        self.turns = [0] * clients
        self.accounts = {"dispatched": 0, "accepted": 0, "late": {}, "rejected": {}, "failed": {}}
        self.out, self.groups, self.round = {}, {}, 0
        self.tail = tail

    def emit(self, event, **fields):
        self.events.append({"t": self.now, "event": event, **fields})

    def count(self, account, reason):
        self.accounts[account][reason] = self.accounts[account].get(reason, 0) + 1

    def assign(self, client, steps=20):
        job = self.jobs
        self.jobs += 1
        self.accounts["dispatched"] += 1
        self.emit(
            "assign",
            job=job,
            client=client,
            version=self.version,
            turn=self.turns[client],
            steps=steps,
            rank=0,
            width=1.0,
        )
        self.turns[client] += 1
        link = 2.0 * self.pace[client] * self.rng.uniform(0.8, 1.6)
        down = self.now + link
        trained = down + steps * self.pace[client] * self.rng.gauss(1, 0.05)
        lost = "dropout" if self.tail and self.rng.random() < 0.04 else None
        arrives = trained + (link * 2.5 if lost is None else 0.0)
        self.emit("client_timing", job=job, client=client, downloaded=down, trained=trained, arrives=arrives, lost=lost)
        self.out[job] = (client, self.version, self.now, steps, lost)
        heapq.heappush(self.heap, (arrives, job))

    def combine(self, jobs):
        jobs = sorted(jobs, key=lambda j: (self.buffer[j][0], j))
        stale = [self.version - self.buffer[j][1] for j in jobs]
        scales = [(1 + s) ** -0.5 if self.strategy != "fedavg" else 1.0 for s in stale]
        clients = [self.buffer[j][0] for j in jobs]
        self.version += 1
        self.emit("combined", version=self.version, jobs=jobs, clients=clients, staleness=stale, scales=scales)
        self.good += sum(scales) / len(self.pace)
        self.accounts["accepted"] += len(jobs)
        for job in jobs:
            del self.buffer[job]
        self.evaluate()

    def evaluate(self):
        done = 1 - math.exp(-self.good / self.speed)
        accuracy = 0.1 + 0.82 * done + self.rng.gauss(0, 0.008)
        self.metrics.append(
            {
                "t": self.now,
                "version": self.version,
                "accuracy": accuracy,
                "loss": 2.3 * math.exp(-self.good / self.speed) + 0.2 + self.rng.gauss(0, 0.01),
                "worst_decile_accuracy": max(0.0, accuracy - 0.22 + 0.12 * done + self.rng.gauss(0, 0.012)),
                "bytes_up": 2_328_104 * self.landed,
                "bytes_down": 2_328_104 * self.accounts["dispatched"],
                "client_tasks": self.landed,
            }
        )

    def run(self):
        self.emit("started", clients=len(self.pace), method=self.strategy)
        self.evaluate()
        self.begin(range(len(self.pace)))
        while self.heap and self.heap[0][0] < self.limit:
            self.now, job = heapq.heappop(self.heap)
            if job < 0:
                self.emit("woke")
                self.close()
                continue
            client, version, sent, _, lost = self.out.pop(job)
            self.landed += 1
            if lost:
                self.emit("failed", job=job, client=client, reason=lost)
                self.count("failed", lost)
            elif self.tail and self.rng.random() < 0.02:
                self.emit("rejected", client=client, job=job, code="non_finite", detail="the delta holds NaN")
                self.count("rejected", "non_finite")
            else:
                metrics = {"loss": self.rng.random()}
                weight = float(self.weight[client])
                seconds = self.now - sent
                self.emit(
                    "arrived", job=job, client=client, version=version, seconds=seconds, weight=weight, metrics=metrics
                )
                self.buffer[job] = (client, version)
            self.landing(client)
        self.now = self.limit
        self.emit("stopped", reason=f"{self.limit:g} seconds", unfinished=len(self.out), buffered=len(self.buffer))
        return self

    def begin(self, clients):
        for client in clients:
            self.assign(client)
        if self.strategy == "fedavg":
            self.deadline = self.now + 2.2 * 28 * sorted(self.pace)[len(self.pace) // 2]
            self.emit("wake", at=self.deadline)
            heapq.heappush(self.heap, (self.deadline, -1))

    def landing(self, client):
        if self.strategy == "fedbuff":
            if len(self.buffer) >= self.size:
                self.combine(list(self.buffer))
            self.assign(client)
        elif self.strategy == "fedcompass":
            group = self.groups.get(self.member(client))
            if group:
                group["members"].discard(client)
            if group is None or not group["members"]:
                back = [] if group is None else group["back"]
                if self.buffer:
                    self.combine(list(self.buffer))
                if group:
                    del self.groups[group["id"]]
                for member in [*back, client]:
                    self.place(member)
            else:
                group["back"].append(client)
        elif not self.out:
            self.close()

    def member(self, client):
        return next((g["id"] for g in self.groups.values() if client in g["members"]), None)

    def place(self, client):
        pace = self.pace[client] * 1.35
        fits = [(g, int((g["expected"] - self.now) / pace)) for g in self.groups.values()]
        fits = [(g, q) for g, q in fits if 8 <= q <= 40]
        if fits:
            group, steps = max(fits, key=lambda pair: pair[1])
        else:
            steps, self.round = 40, self.round + 1
            expected = self.now + steps * pace
            group = {"id": self.round, "expected": expected, "members": set(), "back": []}
            group["latest"] = self.now + 1.2 * steps * pace
            self.groups[self.round] = group
        group["members"].add(client)
        times = {"expected": group["expected"], "latest": group["latest"]}
        self.emit("note", kind="group", group=group["id"], **times, client=client, steps=steps)
        self.assign(client, steps)

    def close(self):
        """The end of a round: what is back is combined, and what comes after the deadline is late."""
        self.heap = [entry for entry in self.heap if entry[1] >= 0]
        heapq.heapify(self.heap)
        young = [j for j, (_, version) in self.buffer.items() if version == self.version]
        old = [j for j in self.buffer if j not in young]
        if old:
            self.emit("dropped", jobs=old, reason="late")
            for job in old:
                del self.buffer[job]
                self.count("late", "late")
        if young:
            self.combine(young)
        busy = {entry[0] for entry in self.out.values()}
        self.begin([c for c in range(len(self.pace)) if c not in busy])

    def result(self):
        last = self.metrics[-1]
        reached = next((m["t"] for m in self.metrics if m["accuracy"] >= self.target), None)
        updates = {**self.accounts, "buffered": len(self.buffer), "unfinished": len(self.out)}
        names = ("accuracy", "loss", "worst_decile_accuracy", "bytes_up", "bytes_down", "client_tasks")
        many = len(self.pace)
        return {
            "schema": 1, "strategy": self.strategy, "seed": self.seed, "transport": "virtual", "clients": many,
            "versions": self.version, "virtual_seconds": self.limit, "wall_seconds": self.limit / 31.7,
            **{name: last[name] for name in names}, "target": self.target, "time_to_target": reached,
            "updates": updates, "stopped": f"{self.limit:g} seconds", "peak_rss_bytes": 412_000_000,
            "weights_sha256": hashlib.sha256(repr(self.good).encode()).hexdigest(),
            "events_sha256": hashlib.sha256(repr(self.events[-1]).encode()).hexdigest(),
            "packages": {"python": "3.11.9", "flwr": "1.41.0", "torch": "2.13.0", "numpy": "2.2.1"},
        }  # fmt: skip

    def write(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in (("events", self.events), ("metrics", self.metrics)):
            text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)
            (folder / f"{name}.jsonl").write_text(text)
        (folder / "result.json").write_text(json.dumps(self.result(), indent=1))
        numbers = {"seed": self.seed, "strategy": self.strategy, "size": self.size}
        (folder / "config.yaml").write_text(CONFIG.format(**numbers, clients=len(self.pace), target=self.target))
        return folder


@pytest.fixture
def fake_run(tmp_path):
    """fake_run(name, strategy, **options): the folder of a finished fake run."""

    def write(name="run", strategy="fedavg", **options):
        return Fake(strategy, **options).run().write(tmp_path / name)

    return write
