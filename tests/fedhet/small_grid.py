"""A grid of four nodes in this process, for tests of live runs."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context, RecordDict

from clients.work.scaffold import Scaffold
from clients.work.sgd import Sgd
from fedhet.deployment.clientapp import signer
from fedhet.engine.client_runner import Device
from fedhet.engine.method import Method
from fedhet.engine.stopping import Limits
from fedhet.flower import messages as records
from fedhet.flower.client_handlers import client_app
from fedhet.flower.compat import set_message_id
from fedhet.runs.experiment import Experiment
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.spaces.control import ControlVariates
from strategies.spaces.full import Full
from strategies.staleness.discount import Polynomial

WORLD = QuadraticWorld([1.0, 2.0, 0.5, 1.5], np.arange(8.0).reshape(4, 2), [10, 20, 30, 40])


class Killed(BaseException):
    """What SIGKILL would be, at a place of our choosing."""


@dataclass
class SmallGrid:
    """A grid of four nodes that answer at once, each with its context; dies when its count of calls runs out."""

    app: object
    contexts: dict
    left: int = 10**9
    waiting: dict = field(default_factory=dict)
    pushed: int = 0
    before_pull: object = lambda: None

    def _tick(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        self._tick()
        ids = []
        for message in messages:
            self.pushed += 1
            set_message_id(message, f"m{self.pushed}")
            self.waiting[f"m{self.pushed}"] = message
            ids.append(f"m{self.pushed}")
        self._tick()
        return ids

    def pull_messages(self, ids):
        self._tick()
        self.before_pull()
        ready = [self.waiting.pop(i) for i in sorted(set(ids) & set(self.waiting), key=lambda i: int(i[1:]))[:2]]
        self._tick()
        return [self.app(message, self.contexts[message.metadata.dst_node_id]) for message in ready]


def experiment(schedule, versions=6, control=False, **more):
    """Of plain SGD, or of control variates, which live on the clients from job to job."""
    if control:
        space, rule, work, staleness = ControlVariates(4), Mean(uniform=True), Scaffold(lr=0.1), []
    else:
        space, rule, work, staleness = Full(), Mean(), Sgd(lr=0.1), [Polynomial(0.5)]
    method = Method(schedule, space, rule, work, Fixed(steps=2), name="t", staleness=staleness)
    config = defaultdict(str)  # devices are made here, not from a configuration
    return Experiment(method, equal_clients(WORLD), WORLD, Limits(versions=versions), config=config, **more)


def contexts(folder):
    return {
        node: Context(1, node, {"partition-id": node - 10, "state": str(folder / str(node))}, RecordDict(), {})
        for node in range(10, 14)
    }


def counting_app(e, trained):
    device = Device(e.method, WORLD.model(), WORLD, 0)

    def device_of(message):
        trained.append(records.read_job(message.content)[0].id)
        return device

    return client_app(device_of, seal=True, signer=signer)
