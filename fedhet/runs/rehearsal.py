"""A trial of every part before a run begins, which writes nothing: faults are reported here and not in round one.

A model is built and evaluated on a few samples; clients with the smallest and the largest budget run a job of one step,
whose answer must pass the gate; the server combines as many of these answers as the schedule would. All objects are
built for the trial and discarded, and random streams are keyed by name, so no bit of the run depends on it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from fedhet.engine.aggregator import Demanding, KnownGroupSize, Repeating
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Misfit
from fedhet.engine.server import Server
from fedhet.engine.stopping import Diverged, Limits
from fedhet.engine.update_validation import Gate, Rejected
from fedhet.errors import InputError
from fedhet.flower import messages as records
from fedhet.model.flat_model import Model
from fedhet.numerics import wire_format
from fedhet.types import Budget, ClientId, Job, Update

if TYPE_CHECKING:
    from fedhet.runs.experiment import Experiment

MAX_CLIENTS_CHECKED = 10_000
"""Clients of a larger fleet whose budgets are checked."""
MAX_PARAMETERS_REPEATED = 1 << 20
"""Size of a model (parameters) up to which a job is run twice, to detect state that the first one leaves."""
MAX_GROUP_SIZES = 256
"""Numbers of updates up to which each one is checked against the rule's needs."""
MAX_ELEMENTS_COMBINED = 1 << 22
"""Size of all updates together (elements) up to which a combination is tried."""


@runtime_checkable
class Checked(Protocol):
    """A world that can check whether a model fits its data."""

    def check(self, model: Model) -> None:
        """Raises ValueError if shapes, classes or labels do not fit, naming them."""
        ...


def rehearse(experiment: Experiment) -> None:
    """Raises Misfit (or the part's own InputError) for a run that would fail in its first round."""
    from fedhet.system.threads import one_thread

    experiment.transport.check(experiment)
    named = _model_named(experiment)
    with one_thread():
        with _as_misfit(named):
            model = experiment.world.model()
            _fits_memory(experiment, model)
            if isinstance(experiment.world, Checked):
                experiment.world.check(model)
            experiment.world.flops()
        with _as_misfit(f"space={_name(experiment.method.space)} and {named}"):
            state = experiment.method.space.begin(model)
            limits = Limits(versions=1)
            server = Server(experiment.method, state, experiment.clients, limits, experiment.seed, _silent)
        budgets = _budgets(experiment, server)
        for budget in budgets:
            with _as_misfit(f"budget={_name(experiment.method.budget)} with space={_name(experiment.method.space)}"):
                server.space.expects(state, Job(0, 0, 0, 0, budget, 0.0))
        chosen = dict.fromkeys((min(budgets, key=_size), max(budgets, key=_size)))  # one if all are equal
        device = Device(experiment.method, model, experiment.world, experiment.seed)
        for budget in chosen:
            answers = _jobs(experiment, device, server, [(c, budget) for c in budgets[budget]])
        _combine(experiment, server, answers)


def _size(budget: Budget) -> tuple[float, int]:
    return budget.width, budget.rank


def _budgets(experiment: Experiment, server: Server) -> dict[Budget, list[ClientId]]:
    """Every rank and width that clients get, each with up to two honest clients that have data: those with the most
    samples among the first thousand clients."""
    attack, counts = getattr(experiment.method.work, "attack", ()), experiment.world.examples()
    found: dict[Budget, list[ClientId]] = {}
    with _as_misfit(f"budget={_name(experiment.method.budget)}"):
        for client in range(min(len(experiment.clients), MAX_CLIENTS_CHECKED)):
            if not counts[client]:
                continue
            given = experiment.method.budget(client, server)
            who = found.setdefault(replace(given, steps=1), [])
            if client not in attack and client < 1000:
                who.append(client)
    if not found:
        raise Misfit("no client has any data")
    return {b: sorted(who, key=lambda c: (-counts[c], c))[:2] for b, who in found.items()}


def _jobs(
    experiment: Experiment, device: Device, server: Server, asked: Sequence[tuple[ClientId, Budget]]
) -> list[Update]:
    """The updates of these clients, after the gate."""
    gate, answers = Gate(max_weight=experiment.max_weight, **experiment.gate), []
    first: bytes | memoryview = b""
    again = asked[:1] if device.model.flat.numel() <= MAX_PARAMETERS_REPEATED else []
    alone = device.model.batch_statistics and experiment.method.work.batch == 1
    hint = "; its batch statistics need batches of two samples or more: raise work.batch" if alone else ""
    for at, (client, budget) in enumerate([*asked, *again]):
        job = Job(at, client, 0, 0, budget, 0.0)
        with _as_misfit(f"a job of client {client} fails ({_parts(experiment)}{hint})"):
            update = device.answer(job, server.space.offer(server.state, job), {})
            payload = wire_format.encode(update.delta)
            expects = server.expects(job)
        if at == len(asked):
            if bytes(payload) != first:
                raise Misfit(
                    f"{_model_named(experiment)}, work={_name(experiment.method.work)}: the same job gives another "
                    "result after one of another client. State would leak from one client to the next: store what "
                    "changes in forward in registered buffers or plain attributes, and draw random numbers from "
                    "torch's, numpy's or Python's global stream"
                )
            break
        first = first or bytes(payload)
        answer = records.read_answer(records.answer(update, code="", seal=False))
        with _as_misfit(f"a first update of client {client} ({_parts(experiment)})"):
            verdict = gate.check(answer, client, {job.id: job}, expects, experiment.clients, {}, server.rank_of(job))
        if isinstance(verdict, Rejected) and verdict.code != "clone":
            large = " after a single step: is work.lr too large?" if verdict.code == "non_finite" else ""
            raise Misfit(f"a first update of client {client} is rejected: {verdict.code}: {verdict.detail}{large}")
        if isinstance(verdict, Update):
            answers.append(verdict)
    return answers


def _combine(experiment: Experiment, server: Server, answers: Sequence[Update]) -> None:
    """Combine as many answers as the schedule does at a time if it knows that number, else as few as the rule needs."""
    schedule, clients = experiment.method.schedule, len(experiment.clients)
    many = _at_a_time(experiment)
    if not answers or many * sum(leaf.numel() for leaf in answers[0].delta.values()) > MAX_ELEMENTS_COMBINED:
        return
    if many == 1 and not isinstance(schedule, KnownGroupSize):
        return
    updates = [
        replace(one, job=replace(one.job, id=at, client=at % clients))
        for at, one in ((at, answers[at % len(answers)]) for at in range(many))
    ]
    rule = f"rule={_name(experiment.method.rule)} with schedule={_name(schedule)} of {many} updates at a time"
    with _as_misfit(rule):
        server.step_of(updates)


def _at_a_time(experiment: Experiment) -> int:
    """Number of updates that are combined at a time: the schedule's, else the fewest that the rule can combine.

    Raises Misfit for a rule that needs more than the schedule can ever combine at a time, naming the option.
    """
    schedule, rule, clients = experiment.method.schedule, experiment.method.rule, len(experiment.clients)
    fixed = schedule.at_a_time(clients) if isinstance(schedule, KnownGroupSize) else None
    most = schedule.at_most(clients) if isinstance(schedule, Repeating) else clients
    if not isinstance(rule, Demanding):
        return fixed or 1
    largest = fixed or most or clients
    for many in [largest] if fixed else [*range(1, min(largest, MAX_GROUP_SIZES) + 1), largest]:
        if rule.lacks([at % clients for at in range(many)]) is None:
            return many
    lack = rule.lacks([at % clients for at in range(largest)])
    if lack is None or (fixed is None and most is None):  # then clients may have several updates each
        return 1
    at_once = f"{fixed} at a time" if fixed else f"at most {most} at a time, one of each client"
    raise Misfit(f"rule.{lack.key}={lack.value}: {lack.why} (schedule={_name(schedule)} combines {at_once})")


def _fits_memory(experiment: Experiment, model: Model) -> None:
    """Raises Misfit if the model does not fit this machine's or any client's memory; activations are not counted."""
    one = sum(t.nbytes for t in (*model.module.parameters(), *model.module.buffers()))
    here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    processes = max(1, experiment.workers)
    need = one * (2 * processes + 4)  # with its gradient in each; the server's model, the evaluated one, sum and update
    if need > here:
        raise Misfit(
            f"the model takes {one:,} bytes, this run at least {need:,} with {processes} processes, this machine has "
            f"{here:,}: lower workers, or take a smaller model"
        )
    most = float(np.max(experiment.clients.columns.get("memory_bytes", np.inf)))
    if one > most:
        raise Misfit(f"the model takes {one} bytes, but no client has a memory_bytes above {most:g}")


@contextlib.contextmanager
def _as_misfit(what: str) -> Iterator[None]:
    """Raise any error of a part as a Misfit of one sentence that begins with `what`."""
    try:
        yield
    except (InputError, Misfit):
        raise
    except (Exception, Diverged) as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        text = " ".join(str(error).split())
        raise Misfit(f"{what}: {kind}{text[:600]}") from error


def _parts(experiment: Experiment) -> str:
    method = experiment.method
    return f"{_model_named(experiment)}, work={_name(method.work)}, space={_name(method.space)}"


def _model_named(experiment: Experiment) -> str:
    given = experiment.config.get("model")
    return f"model={given['_target_']}" if isinstance(given, dict) and "_target_" in given else "the model"


def _name(part: object) -> str:
    return type(part).__name__


def _silent(t: float, name: str, fields: object) -> None: ...
