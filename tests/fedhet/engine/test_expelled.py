"""Clients that lose their membership: all at once, and at the end of the run."""

from dataclasses import dataclass, field

from clients.work.sgd import Sgd
from fedhet.engine.method import Method
from fedhet.engine.server import Server
from fedhet.engine.stopping import Limits
from fedhet.testing.quadratic import QuadraticWorld, equal_clients
from fedhet.types import Assign, Ending, Started
from strategies.budgets.fixed import Fixed
from strategies.rules.mean import Mean
from strategies.spaces.full import Full


@dataclass
class Listening:
    """Gives everybody one job and remembers what it is told."""

    heard: list = field(default_factory=list)

    def react(self, event, view):
        self.heard.append(event)
        return [Assign(client) for client in view.roster] if isinstance(event, Started) else []


def test_a_schedule_hears_nothing_after_the_end_although_more_clients_are_expelled():
    schedule, world = Listening(), QuadraticWorld([1.0] * 3, [1.0, 2.0, 3.0])
    method = Method(schedule, Full(), Mean(), Sgd(lr=0.1), Fixed(steps=1))
    rows = []
    emit = lambda t, name, fields: rows.append(name)  # noqa: E731
    server = Server(method, Full().begin(world.model()), equal_clients(world), Limits(tasks=1), 0, emit)
    server.start()
    assert len(server.settle(0.0)) == 3
    for client in range(3):
        server.expel(client, "revoked", 1.0)
    assert server.over == "1 client tasks" and not server.inflight and rows.count("stopped") == 1
    assert isinstance(schedule.heard[-1], Ending)
