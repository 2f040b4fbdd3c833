"""`fedhet simulate`: an unchanged Flower app on a simulated fleet in virtual time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedhet.config import composition, factory
from fedhet.display import shown
from fedhet.numerics.rng import seeded
from fedhet.simulation import flower_app as simulation
from fedhet.simulation import flower_project


def simulate(
    server: str,
    client: str,
    texts: Sequence[str],
    nodes: int | None,
    fleet: str | None,
    run_config: Sequence[str],
    steps: int,
    batch: int,
    events: Path | None,
    as_json: bool,
) -> None:
    """`fedhet simulate`: load both apps, simulate, and print the summary."""
    more = [f"fleet={fleet}"] if fleet is not None else []
    more += [f"fleet.clients={nodes}"] if nodes is not None else []
    cfg = composition.resolved(composition.compose([*more, *texts]))
    overrides = flower_project.parse_run_config(run_config)
    with seeded(int(cfg["seed"])):  # an app may initialise its weights at import
        app, project = flower_project.load(server, ServerApp)
        other = flower_project.load_app(client, ClientApp)
    summary = simulation.simulate(
        app,
        other,
        factory.fleet(cfg),
        run_config=flower_project.run_config(project, overrides),
        workers=int(cfg["workers"]),
        steps=steps,
        batch=batch,
        seed=int(cfg["seed"]),
        events=events,
    )
    row = dataclasses.asdict(summary)
    if as_json:
        print(json.dumps(row, indent=1))
        return
    for name, value in row.items():
        print(f"{name:16} {value:.3f}" if isinstance(value, float) else f"{name:16} {shown(value)}")
