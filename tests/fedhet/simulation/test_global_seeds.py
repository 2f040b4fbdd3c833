"""One seed determines all random numbers of a simulated Flower app: Python's, NumPy's and PyTorch's."""

import random

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.population.profile import Profile
from fedhet.population.roster import Clients
from fedhet.simulation.flower_app import simulate

client = ClientApp()


def draws():
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


@client.train()
def train(message, context):
    torch.randn(int(message.content["config"]["more"]))  # how much one draws is nobody else's affair
    return Message(RecordDict({"drawn": MetricRecord({"all": draws()})}), reply_to=message)


def run(rounds, *, seed=0, workers=0, more=0):
    """What the server drew before and after each round, and what each client drew, for the clients of each round."""
    server, own, theirs = ServerApp(), [], {}

    @server.main()
    def main(grid, context):
        own.append(draws())
        for number, nodes in enumerate(rounds):
            content = RecordDict({"config": ConfigRecord({"more": more})})
            replies = grid.send_and_receive([Message(content, 2 + node, "train") for node in nodes])
            for reply in replies:
                theirs[number, reply.metadata.src_node_id - 2] = reply.content["drawn"]["all"]
            own.append(draws())

    fleet = Clients.from_profiles([Profile(sec_per_step=0.1) for _ in range(4)])
    simulate(server, client, fleet, seed=seed, workers=workers)
    return own, theirs


def test_both_sides_draw_the_same_for_any_number_of_workers():
    rounds = [[0, 1, 2, 3], [2, 0], [1, 1, 3]]
    alone = run(rounds)
    assert run(rounds, workers=1) == alone == run(rounds, workers=2)
    other, drawn = run(rounds, seed=1)
    assert other != alone[0] and not any(drawn[key] == alone[1][key] for key in drawn)


def test_the_server_draws_what_its_generators_give_whatever_the_clients_draw():
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = [draws(), draws()]
    assert run([[0, 1]], seed=5)[0] == run([[3]], seed=5, more=100)[0] == expected


def test_a_client_draws_by_its_turn_whoever_else_is_asked():
    _, few = run([[0], [0]])
    _, many = run([[0, 1, 2, 3], [1, 0]])
    assert few[0, 0] == many[0, 0] and few[1, 0] == many[1, 0]
    assert len({tuple(drawn) for drawn in many.values()}) == len(many), "no two messages draw the same"


def test_the_callers_generators_are_put_back():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    run([[0]], seed=9)
    assert draws() == expected
