"""The compared rules, attacks and settings as overrides of the command line, and the order of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

ROUNDS, STEPS = 20, 5
RATES = (0.2, 0.8)
TUNING_SEED, TUNING_F = 100, 2
ASYNC_RATE = 0.2
MIXES = ("iid", "dirichlet")

MIXINGS = (".before.arc.f={f}", ".before.nnm.f={f}")

RULES: Mapping[str, tuple[str, ...]] = {
    "mean": ("=mean", ".uniform=true"),
    "mean of unit vectors": ("=unit_mean",),
    "Flag, paper": ("=flag", ".out=paper"),
    "Flag, authors": ("=flag", ".out=authors", ".iterations=1"),
    "Flag, unit": ("=flag",),
    "Multi-Krum": ("=multi_krum", ".f={f}"),
    "Bulyan": ("=bulyan", ".f={f}"),
    "trimmed mean": ("=trimmed_mean", ".f={f}"),
    "geometric median": ("=geometric_median",),
    "centred clipping": ("=centred_clipping",),
    "NNM + trimmed mean": ("=nnm", ".before.nnm.f={f}", ".rule.f={f}"),
    "NNM + geometric median": ("=nnm", "@.rule=geometric_median", ".before.nnm.f={f}"),
    "ARC + NNM + trimmed mean": ("=robust", "@.rule=trimmed_mean", *MIXINGS, ".rule.f={f}"),
    "ARC + NNM + geometric median": ("=robust", "@.rule=geometric_median", *MIXINGS),
}  # fmt: skip
"""Words relative to where the rule stands: `=` chooses it, `@.x=` chooses a part of it, `.x=` sets a value.
Other words stand as they are."""

ATTACKS: Mapping[str, tuple[str, ...]] = {
    "none": (),
    "label flip": ("attack=label_flip",),
    "sign flip x10": ("attack=sign_flip", "attack.strength=10.0"),
    "Gaussian": ("attack=gaussian",),
    "ALIE, z = 1.5": ("alie", "z=1.5"),
    "Min-Max": ("min_max",),
    "mimic": ("mimic",),
    "optimised ALIE": ("alie", "optimise=true"),
}
"""From ALIE on they see the honest updates, and the optimised one the rule; the others are clients like any other."""

OPTIMISED = ("optimised ALIE",)
PLAIN = tuple(a for a in ATTACKS if a not in OPTIMISED)

TUNING = ("label flip", "ALIE, z = 1.5")
FEWER_ATTACKS = ("label flip", "sign flip x10", "ALIE, z = 1.5")
FEWER_RULES = (
    "mean", "mean of unit vectors", "Multi-Krum", "trimmed mean", "geometric median", "ARC + NNM + trimmed mean",
    "ARC + NNM + geometric median",
)  # fmt: skip
LARGE_RULES = (
    "mean", "mean of unit vectors", "Multi-Krum", "trimmed mean", "ARC + NNM + trimmed mean",
    "ARC + NNM + geometric median",
)  # fmt: skip
OPTIMISED_RULES = (*LARGE_RULES, "geometric median", "NNM + geometric median")
LARGE_ATTACKS = ("none", "label flip", "sign flip x10", "ALIE, z = 1.5")
ASYNC_ATTACKS = ("none", "label flip", "sign flip x10", "ALIE, z = 1.5")
SCHEDULES: Mapping[str, tuple[str, ...]] = {
    "FedBuff, K = 10": ("strategy=fedbuff", "schedule.size=10"),
    "FedCompass": ("strategy=fedcompass", "schedule.q_min=3", "schedule.q_max=15", "schedule.latency_factor=2.0"),
}
ASYNC_RULES: Mapping[str, tuple[str, ...]] = {
    "the method's own mean": (),
    "robust": ("=robust",),
    "robust, clipped at the gate": ("=robust", "gate.clip=2.0"),
}


@dataclass(frozen=True)
class Cell:
    """One run. `rate` is the clients' step size, None until it is tuned."""

    part: str
    rule: str
    attack: str
    mix: str
    clients: int
    f: int
    seed: int
    rate: float
    schedule: str = ""

    @property
    def name(self) -> str:
        """The run's folder."""
        words = (self.part, self.schedule, self.rule, self.attack, self.mix, self.clients, self.f, self.rate, self.seed)
        return "-".join("".join(c if c.isalnum() or c == "." else "_" for c in str(w)) for w in words if w != "")

    def words(self) -> list[str]:
        """Everything but the seed that tells this run from the defaults."""
        collude = ATTACKS[self.attack] if not self.attack_is_local else ()
        place = "rule.rule" if collude else "rule"
        rules = ASYNC_RULES if self.schedule else RULES
        chosen = [_at(place, word).format(f=self.f) for word in rules[self.rule]]
        if collude and not chosen:  # the method's own, behind the attackers
            chosen = [f"rule@rule.rule={'mean_count' if 'FedBuff' in self.schedule else 'mean_population'}"]
        attack = list(ATTACKS[self.attack])
        where = "attack"
        if collude:
            attack = ["rule=colluding", f"attack@rule.attack={collude[0]}", *(f"rule.attack.{w}" for w in collude[1:])]
            where = "rule.attack"
        if attack:
            attack.append(f"{where}.fraction={self.f / self.clients}")
        fleet = ["fleet=exponential", "stop.versions=null", f"stop.tasks={ROUNDS * self.clients}"]
        sync = ["fleet=homogeneous", f"schedule.per_round={self.clients}", f"stop.versions={ROUNDS}"]
        mix = {"iid": ["partition=iid"], "dirichlet": ["partition=dirichlet_client", "partition.alpha=0.1"]}
        return [
            *(SCHEDULES[self.schedule] if self.schedule else ()), *attack, *chosen, *mix[self.mix],
            *(fleet if self.schedule else sync), f"fleet.clients={self.clients}", "workers=0",
            "data=mnist", "model=softmax", f"budget.steps={STEPS}", "budget.epochs=null", "evaluate.every_versions=5",
            f"work.lr={self.rate}", "work.batch=32",
        ]  # fmt: skip

    @property
    def attack_is_local(self) -> bool:
        return not ATTACKS[self.attack] or ATTACKS[self.attack][0].startswith("attack=")


def _at(place: str, word: str) -> str:
    """A word of `RULES` for a rule that stands at `place` in the configuration."""
    if not word.startswith(("=", ".", "@")):
        return word  # not the rule's
    if word.startswith("="):
        return f"rule{word}" if place == "rule" else f"rule@{place}{word}"
    return f"rule@{place}{word[1:]}" if word.startswith("@") else f"{place}{word}"


def tuning() -> Iterator[Cell]:
    """The search of a step size per rule and mix, on a seed that is not used again."""
    for rate in RATES:
        for mix in MIXES:
            for rule in RULES:
                for attack in TUNING:
                    yield Cell("tuning", rule, attack, mix, 15, TUNING_F, TUNING_SEED, rate)


def chosen(scores: Mapping[str, float]) -> dict[tuple[str, str], float]:
    """The rate of every (rule, mix) from the final accuracies of `tuning`: best worst case, the smaller if equal."""

    def worst(rule: str, mix: str, rate: float) -> float:
        of = (Cell("tuning", rule, attack, mix, 15, TUNING_F, TUNING_SEED, rate) for attack in TUNING)
        return min(scores[cell.name] for cell in of)

    return {(rule, mix): max(RATES, key=lambda r: worst(rule, mix, r)) for rule, mix in product(RULES, MIXES)}


def cells(seeds: Iterable[int], rates: Mapping[tuple[str, str], float], parts: Iterable[str]) -> Iterator[Cell]:
    """All runs, in an order such that a cut leaves whole tables: a part and a seed after the other."""
    for part in parts:
        for seed in seeds:
            yield from _part(part, seed, rates)


def _part(part: str, seed: int, rates: Mapping[tuple[str, str], float]) -> Iterator[Cell]:
    if part == "small":
        yield from _table("small", RULES, PLAIN, 15, 3, seed, rates)
    if part == "optimised":
        yield from _table("small", OPTIMISED_RULES, OPTIMISED, 15, 3, seed, rates)
    if part == "large":
        yield from _table("large", LARGE_RULES, LARGE_ATTACKS, 60, 12, seed, rates)
    if part == "fewer":
        for f in (1, 2):
            yield from _table("small", FEWER_RULES, FEWER_ATTACKS, 15, f, seed, rates)
    if part == "async":
        for schedule, mix, attack, rule in product(SCHEDULES, MIXES, ASYNC_ATTACKS, ASYNC_RULES):
            yield Cell("async", rule, attack, mix, 15, 3, seed, ASYNC_RATE, schedule)


def _table(
    part: str, rules: Iterable[str], attacks: Iterable[str], clients: int, f: int, seed: int,
    rates: Mapping[tuple[str, str], float],
) -> Iterator[Cell]:  # fmt: skip
    for mix, attack, rule in product(MIXES, attacks, rules):
        yield Cell(part, rule, attack, mix, clients, f, seed, rates[rule, mix])
