"""A Flower app of the legacy API: `server_fn` and strategies of `flwr.server`, `client_fn` and NumPyClient."""

import concurrent.futures

import numpy as np
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import Server, ServerApp, ServerAppComponents, ServerConfig, SimpleClientManager
from flwr.server.server import fit_client
from flwr.server.strategy import FedAdam, FedAvg, FedMedian, FedProx, Krum


class Puller(NumPyClient):
    """Pulls the model a third of the way to its own number, and draws."""

    def __init__(self, number):
        self.number = number

    def get_parameters(self, config):
        return [np.full(40, 7.0, np.float32)]

    def fit(self, parameters, config):
        moved = parameters[0] + np.float32(1 / 3) * (self.number - parameters[0])
        noise = np.random.rand(40).astype(np.float32)
        return [moved + noise], 10 + self.number, {"client": self.number}

    def evaluate(self, parameters, config):
        return float(np.abs(parameters[0] - self.number).mean()), 5, {"client": self.number}


class Broken(Puller):
    def fit(self, parameters, config):
        if self.number == 2:
            raise ValueError("no data here")
        return super().fit(parameters, config)


client = ClientApp(client_fn=lambda context: Puller(context.node_config["partition-id"]).to_client())
broken = ClientApp(client_fn=lambda context: Broken(context.node_config["partition-id"]).to_client())

history = []
"""What a run told: (kind, round or clients in the order of the results, numbers)."""


def _clients(kind):
    def aggregate(results):
        history.append((kind, [(n, m["client"]) for n, m in results]))
        return {"clients": len(results)}

    return aggregate


def _evaluate(number, parameters, config):
    history.append(("central", number, parameters[0].tobytes()))
    return float(parameters[0].mean()), {}


def components(strategy, *, start=True, timeout=None, server=None, **options):
    if start:
        options["initial_parameters"] = ndarrays_to_parameters([np.zeros(40, np.float32)])
    made = strategy(
        fit_metrics_aggregation_fn=_clients("fit"),
        evaluate_metrics_aggregation_fn=_clients("evaluate"),
        evaluate_fn=_evaluate,
        **options,
    )
    config = ServerConfig(num_rounds=2, round_timeout=timeout)
    if server is None:
        return ServerAppComponents(strategy=made, config=config)
    return ServerAppComponents(server=server(client_manager=SimpleClientManager(), strategy=made), config=config)


class Own(Server):
    """A server with a copy of Flower's threads in it, as many have; asks two clients at a time."""

    def fit_round(self, server_round, timeout):
        chosen = self.strategy.configure_fit(server_round, self.parameters, self._client_manager)
        with concurrent.futures.ThreadPoolExecutor(max_workers=2) as executor:
            futures = {executor.submit(fit_client, proxy, ins, timeout, server_round) for proxy, ins in chosen}
            done, _ = concurrent.futures.wait(futures, timeout=None)
        results = [future.result() for future in done if future.exception() is None]
        parameters, metrics = self.strategy.aggregate_fit(server_round, results, [])
        return parameters, metrics, (results, [])


def app(strategy, **options):
    return ServerApp(server_fn=lambda context: components(strategy, **options))


fedavg = app(FedAvg)
sampled = app(FedAvg, fraction_fit=0.5, min_fit_clients=1)
fedprox = app(FedProx, proximal_mu=0.1)
fedadam = ServerApp(
    server_fn=lambda context: components(
        FedAdam, start=False, initial_parameters=ndarrays_to_parameters([np.zeros(40, np.float32)])
    )
)
krum = app(Krum, num_malicious_clients=1)
median = app(FedMedian)
asking = app(FedAvg, start=False)
impatient = app(FedAvg, timeout=3.0)
own = app(FedAvg, server=Own)
greedy = app(FedAvg, min_available_clients=9)


def numbers():
    """The central models of the last run."""
    return [np.frombuffer(row[2], np.float32) for row in history if row[0] == "central"]
