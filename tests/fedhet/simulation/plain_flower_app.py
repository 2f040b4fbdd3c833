"""A Flower app that uses Flower alone: each client moves the model half way to its own number."""

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAdam, FedAvg, FedProx, Krum

client = ClientApp()


@client.train()
def train(message, context):
    w, number = message.content["arrays"]["w"].numpy(), context.node_config["partition-id"]
    if number == 99:
        raise RuntimeError("this client never works")
    calls = int(context.state["calls"]["n"]) + 1 if "calls" in context.state else 1
    context.state["calls"] = MetricRecord({"n": calls})
    metrics = MetricRecord({"num-examples": 10 + number, "calls": float(calls)})
    arrays = ArrayRecord({"w": Array((w + 0.5 * (number - w)).astype(np.float32))})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@client.evaluate()
def evaluate(message, context):
    w = float(message.content["arrays"]["w"].numpy().mean())
    return Message(RecordDict({"m": MetricRecord({"num-examples": 5, "gap": abs(w - 2)})}), reply_to=message)


results = {}


def server(strategy, **options):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        start = ArrayRecord({"w": Array(np.zeros(30_000, np.float32))})
        rounds = int(context.run_config.get("rounds", 3))
        done = strategy(**options).start(grid, start, num_rounds=rounds, timeout=1e6)
        results[strategy.__name__] = (
            done.arrays["w"].numpy(), {k: dict(v) for k, v in done.train_metrics_clientapp.items()}
        )  # fmt: skip

    return app


fedavg = server(FedAvg, fraction_train=1.0)
fedprox = server(FedProx, proximal_mu=0.1)
fedadam = server(FedAdam)
krum = server(Krum, num_malicious_nodes=1)
sampled = server(FedAvg, fraction_train=0.5)
