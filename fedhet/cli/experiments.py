"""Commands that run, write or measure something: run, compare, demo, simulate, new, bench. Signatures only."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli.client import Json
from fedhet.cli.options import ConfigDir, Out, Overrides


def run(
    overrides: Overrides = None,
    multirun: Annotated[
        bool, typer.Option("--multirun", "-m", help="Sweep: seed=1,2,3, with Hydra's launcher.")
    ] = False,
    cfg: Annotated[str | None, typer.Option("--cfg", metavar="job", help="Print the configuration instead.")] = None,
    resolve: Annotated[bool, typer.Option("--resolve", help="With --cfg: fill in interpolations.")] = False,
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the run in this folder.")] = None,
    out: Out = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Run one experiment; the last line printed is its folder."""
    from fedhet.cli import run as cli_run

    cli_run.run(overrides or [], multirun, cfg, resolve, resume, out, config_dir, json)


def compare(
    overrides: Overrides = None,
    out: Out = None,
    resume: Annotated[Path | None, typer.Option("--resume", help="Continue the comparison in this folder.")] = None,
    config_dir: ConfigDir = None,
    json: Json = False,
) -> None:
    """Run every combination of comma lists (strategy=fedavg,fedbuff seed=1,2) and print one table.

    Every run does equally many client tasks (stop.tasks=720) unless the overrides say where to stop. Run again with the
    same --out, finished runs are kept and unfinished ones continued.
    """
    from fedhet.cli import compare as cli_compare

    cli_compare.compare(overrides or [], out, resume, config_dir, json)


def demo(overrides: Overrides = None, out: Out = None, json: Json = False) -> None:
    """Compare FedAvg and asynchronous training on twelve different clients with real data, in under a minute."""
    from fedhet.cli import compare as cli_compare

    cli_compare.demo(overrides or [], out, json)


def simulate(
    server: Annotated[str, typer.Argument(metavar="SERVERAPP", help="package.module:attribute or file.py:attribute")],
    client: Annotated[str, typer.Argument(metavar="CLIENTAPP", help="package.module:attribute or file.py:attribute")],
    overrides: Overrides = None,
    nodes: Annotated[int | None, typer.Option("--nodes", help="Number of clients.")] = None,
    fleet: Annotated[str | None, typer.Option("--fleet", help="The fleet they come from, as in fleet=.")] = None,
    run_config: Annotated[
        list[str] | None, typer.Option("--run-config", help="key=value ... or a TOML file, as for `flwr run`.")
    ] = None,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps charged per train message.", min=1)] = 10,
    batch: Annotated[int, typer.Option("--batch", help="Samples per step.", min=1)] = 32,
    events: Annotated[Path | None, typer.Option("--events", help="Write one JSON line per message here.")] = None,
    json: Json = False,
) -> None:
    """Run an unchanged Flower app in virtual time on a fleet of different clients."""
    from fedhet.cli import simulate as cli_simulate

    cli_simulate.simulate(server, client, overrides or [], nodes, fleet, run_config or [], steps, batch, events, json)


def new(
    kind: Annotated[
        str, typer.Argument(metavar="KIND", help="rule, schedule, space, transform, work, model, data or transport.")
    ],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name on the command line: rule=NAME.")],
    into: Annotated[Path, typer.Option("--into", help="The folder to write into.", show_default=False)] = Path(),
) -> None:
    """Write a plug-in to begin with into your own folder: NAME.py, conf/AXIS/NAME.yaml and test_NAME.py, which run.

    A KIND is a rule, schedule, space, transform (an option of codec), work, model, data or transport.

    The test holds it to all that fedhet's own parts are held to (fedhet.testing.conformance).
    """
    from fedhet.cli import new as cli_new

    cli_new.new(kind, name, into)


def bench(
    only: Annotated[
        list[str] | None, typer.Option("--only", help="A section: simulation, aggregation, decode, rules.")
    ] = None,
    json: Json = False,
) -> None:
    """Measure this machine: simulated tasks, combining updates, opening payloads, rules; in under two minutes."""
    from fedhet.cli import bench as cli_bench

    cli_bench.bench(only or [], json)
