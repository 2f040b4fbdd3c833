"""What a client may be called: nothing that reads as another's name, as an option of a command, or as a node id."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.schema import LIVING, ClientRow

FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NODE = re.compile(r"[0-9a-f]{12,32}")
"""Of a node id, or of as much of it as lists show."""
LOOK = (("I", "l"), ("1", "l"), ("0", "o"), ("rn", "m"))
"""What looks the same in ASCII (Unicode's confusables.txt), replaced in this order; case is folded after the first."""


def check_name(name: str) -> None:
    """Raises EnrollError E117 unless this can be a client's name."""
    if not FORM.fullmatch(name):
        raise EnrollError("E117", repr(name[:70]))
    if NODE.fullmatch(name):
        raise EnrollError("E117", f"{name} reads as a node id")


def check_unlike(session: Session, name: str) -> None:
    """Raises EnrollError E104 if a living client has another name that looks like this one."""
    query = select(ClientRow.name).where(ClientRow.state.in_(LIVING), ClientRow.name != name)
    other = session.scalars(query.where(_look(ClientRow.name) == _look(name)).limit(1)).first()
    if other is not None:
        raise EnrollError("E104", f"{name} looks like {other}")


def _look(name: Any) -> ColumnElement[str]:
    """What a name looks like, as the database works it out for all of them at once."""
    seen: ColumnElement[str] = func.lower(func.replace(name, *LOOK[0]))
    for old, new in LOOK[1:]:
        seen = func.replace(seen, old, new)
    return seen
