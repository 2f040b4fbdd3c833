"""The form of client names: no name can be mistaken for another client's, for a command option or for a node id."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server.schema import LIVING, ClientRow

NAME_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NODE_FORM = re.compile(r"[0-9a-f]{12,32}")
"""A node id, or its first digits as tables print them."""
LOOK_ALIKE = (("I", "l"), ("1", "l"), ("0", "o"), ("rn", "m"))
"""ASCII characters that look alike (Unicode's confusables.txt), replaced in this order; case is folded after the
first."""


def check_name(name: str) -> None:
    """Raises EnrollError E117 unless `name` is a valid client name."""
    if not NAME_FORM.fullmatch(name):
        raise EnrollError("E117", repr(name[:70]))
    if NODE_FORM.fullmatch(name):
        raise EnrollError("E117", f"{name} reads as a node id")


def check_distinct(session: Session, name: str) -> None:
    """Raises EnrollError E104 if a client that is not revoked or left has a different name that looks like this one."""
    query = select(ClientRow.name).where(ClientRow.state.in_(LIVING), ClientRow.name != name)
    other = session.scalars(query.where(_skeleton(ClientRow.name) == _skeleton(name)).limit(1)).first()
    if other is not None:
        raise EnrollError("E104", f"{name} looks like {other}")


def _skeleton(name: Any) -> ColumnElement[str]:
    """SQL expression that maps look-alike names to the same text, so that the database compares all rows at once."""
    seen: ColumnElement[str] = func.lower(func.replace(name, *LOOK_ALIKE[0]))
    for old, new in LOOK_ALIKE[1:]:
        seen = func.replace(seen, old, new)
    return seen
