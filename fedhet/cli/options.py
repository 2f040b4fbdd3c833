"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedhet.cli.client import at_home

Home = Annotated[
    Path,
    typer.Option("--home", envvar="FEDHET_HOME", help="The federation's folder.", callback=at_home("FEDHET_HOME")),
]
Name = Annotated[str, typer.Argument(help="A client's name or node id.")]
Reason = Annotated[
    str, typer.Option("--reason", help="Stored in the registry and the audit log, and sent to the device.")
]
PassphraseFile = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="FEDHET_PASSPHRASE_FILE",
        show_default=False,
        help="The passphrase of the federation's keys (default: FEDHET_PASSPHRASE, else a prompt).",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")]


HOME = Path("~/.fedhet/federation")

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="An axis: rule=krum. A value: rule.f=2, seed=3.", show_default=False),
]
ConfigDir = Annotated[Path | None, typer.Option("--config-dir", help="A folder with more options for the axes.")]
Out = Annotated[Path | None, typer.Option("--out", help="The folder to write (default: a new one under out=runs).")]
