"""Errors of a federation, each with a stable code, a cause and a remedy: E1xx joining, E2xx certificates and requests,
E3xx set-up.

Codes are never reused. A command that is refused exits with `exit_code`: 10, 40 or 70 plus the code's last digits.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Mapping
from typing import Any

from fedhet.display import shown

CATALOGUE: Mapping[str, tuple[int, str, str]] = {
    # code: (HTTP status, what it is, what to do)
    "E101": (403, "the token has expired", "ask the operator for a new invitation"),
    "E102": (403, "the token was used already", "ask for a new invitation, and tell the operator if it was not you"),
    "E103": (403, "the server's root certificate is not the token's", "stop: the connection may be intercepted"),
    "E104": (409, "the name is taken", "choose another name, or revoke the client that has it"),
    "E105": (202, "waiting for the operator's approval", "wait: the device asks again by itself"),
    "E106": (403, "the token is not known or its secret is wrong", "copy the whole token again"),
    "E107": (403, "the token is locked after five wrong tries", "ask the operator for a new invitation"),
    "E108": (400, "this is not a token", "paste the whole line that begins with fh1."),
    "E109": (403, "the operator rejected this device", "ask the operator for the reason"),
    "E110": (400, "the certificate request is refused", "join again with keys made by this version"),
    "E111": (403, "the enrolment's signature is wrong", "join again; the device's key files may be damaged"),
    "E112": (429, "too many requests", "wait, then try again"),
    "E113": (413, "the request is too large", "send a smaller request"),
    "E114": (409, "these keys are enrolled already", "use a new state folder for a new client"),
    "E115": (400, "the request is malformed", "use the same version of fedhet on both sides"),
    "E116": (409, "the partition is taken", "declare another partition, or none"),
    "E117": (
        400,
        "this cannot be a client's name",
        "use 1 to 63 ASCII letters, digits, - _ or ., with a letter or digit first",
    ),
    "E119": (409, "the invitation is for another name", "join without --name, or ask the operator to invite that name"),
    "E118": (409, "the owner has as many clients as one may have", "revoke one of them, or see most_per_owner"),
    "E120": (404, "there is nothing at this path", "use the same version of fedhet on both sides"),
    "E121": (405, "this path does not take this method", "use the same version of fedhet on both sides"),
    "E201": (401, "the certificate has expired", "renew it: fedhet client renew"),
    "E202": (403, "the client is revoked", "ask the operator; a revoked device joins anew with new keys"),
    "E203": (401, "the clocks differ too much", "set this machine's clock, best by NTP"),
    "E204": (409, "the request was seen before", "send a fresh request"),
    "E205": (401, "the request's signature is wrong", "check that nothing rewrites requests on the way"),
    "E206": (403, "the client is suspended", "ask the operator to resume it"),
    "E207": (401, "the certificate is not valid yet", "set this machine's clock, best by NTP"),
    "E208": (401, "the certificate was not issued by this federation", "join with a token of this federation"),
    "E209": (401, "the certificate has expired for too long to be renewed", "ask the operator for a new invitation"),
    "E210": (404, "no such client", "see the names: fedhet clients list"),
    "E211": (409, "the client's state does not allow this", "see its state: fedhet clients show"),
    "E212": (403, "the client has left the federation", "join again with a new invitation"),
    "E213": (403, "the device does not build this configuration", "allow it on the device: fedhet client run --allow"),
    "E214": (403, "the device does not read this place", "name it on the device: fedhet client run --data or --hub"),
    "E215": (403, "the operator did not order this configuration", "start the run with: fedhet submit"),
    "E216": (403, "the operator's order has expired", "sign it again: fedhet submit --resume RUN_DIR"),
    "E217": (409, "the run's configuration is not the one that was signed", "submit it as a new run"),
    "E219": (
        403,
        "the server's certificate is of an issuing key that was revoked",
        "stop: the key was stolen, and somebody may be using it; tell the operator",
    ),
    "E301": (426, "the version is too old", "upgrade: pip install -U fedhet"),
    "E302": (403, "the profile is below the minimum of its class", "use a larger machine or another class"),
    "E303": (400, "the profile is refused", "make it again: fedhet client profile"),
    "E304": (400, "--insecure is for loopback only", "use TLS, or an address such as 127.0.0.1"),
    "E305": (400, "a private file can be read by others", "chmod 600 the file, 700 the folder"),
    "E306": (400, "a folder is not what the command needs", "check --home on the server, --state on a device"),
    "E307": (503, "the server cannot be reached", "check the address, the network and that the server runs"),
    "E308": (502, "Flower's processes failed", "read the log named in the message"),
    "E309": (400, "the signer command failed", "run the command by hand with the same input"),
    "E310": (409, "the audit log has been altered", "keep a copy of the file and find out who changed it"),
    "E311": (502, "the server's answer cannot be understood", "check that the address is a fedhet server"),
    "E312": (503, "the federation is not being served", "start it in another terminal: fedhet serve"),
    "E313": (409, "too few clients are online", "see who is there: fedhet clients list; start them: fedhet client run"),
    "E314": (502, "the run failed on the server", "read the end of its log above, then: fedhet submit --resume"),
    "E315": (409, "the run does not go on any more", "unless it is finished: fedhet submit --resume RUN_DIR"),
    "E317": (400, "a file cannot be read or written", "check its path and whose it is"),
    "E318": (409, "a port is taken", "end what listens there, or choose another: --port"),
    "E319": (400, "an option or its value cannot be used", "see the message, or the command with --help"),
    "E320": (409, "another process works in this folder", "end that process, or let it do the work"),
    "E321": (507, "the disk is full or cannot be written", "make room or mount it for writing, then try again"),
    "E322": (
        503,
        "the federation's keys are encrypted and nobody gave the passphrase",
        "type it at a terminal, or give --passphrase-file or FEDHET_PASSPHRASE",
    ),
    "E323": (403, "this passphrase does not do", "try again; it is the one of fedhet ca init or fedhet ca passphrase"),
    "E324": (500, "a file of this folder is damaged", "put it back from a copy; a device may also join anew"),
    "E325": (409, "nothing is done: it was not confirmed", "say --yes if it is meant"),
    "E340": (
        409,
        "the registry does not say what the audit log says",
        "find out who changed it; put back what the log says, or reject and revoke by command",
    ),
    "E316": (404, "this device is not a client yet", "join with a token: fedhet join; or name its folder: --state"),
}


class EnrollError(Exception):
    """An error with its code. `detail` is the particular case, as text; `data` has values for programs."""

    def __init__(self, code: str, detail: str = "", **data: Any) -> None:
        if code not in CATALOGUE:
            raise KeyError(f"no such error code: {code}")
        self.code, self.detail, self.data = code, detail, data
        super().__init__(self.line)

    @property
    def status(self) -> int:
        """The HTTP status of an answer with this error."""
        return CATALOGUE[self.code][0]

    @property
    def exit_code(self) -> int:
        """The exit code of a command that fails with this error."""
        return {"1": 10, "2": 40, "3": 70}[self.code[1]] + int(self.code[2:])

    @property
    def line(self) -> str:
        """One line of text: code, cause, detail, remedy."""
        _, cause, remedy = CATALOGUE[self.code]
        return f"{self.code}: {cause}{': ' + shown(self.detail) if self.detail else ''} → {remedy}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, on the network and with `--json`."""
        _, cause, remedy = CATALOGUE[self.code]
        return {"code": self.code, "cause": cause, "detail": self.detail, "remedy": remedy, "data": self.data}

    @classmethod
    def from_dict(cls, given: Any) -> EnrollError:
        """Parse an error that a server sent; E311 if it is not one of the catalogue."""
        if not isinstance(given, Mapping) or str(given.get("code")) not in CATALOGUE:
            return cls("E311", str(given)[:120])
        made, data = cls(str(given["code"]), str(given.get("detail", ""))[:500]), given.get("data")
        made.data = dict(data) if isinstance(data, Mapping) else {}
        return made


DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO})
"""The errno values of a disk that is full, over quota, read-only or failing, and of a file size limit."""
DISK_SQLITE_ERRORS = ("SQLITE_FULL", "SQLITE_READONLY", "SQLITE_IOERR", "SQLITE_CANTOPEN")
"""Prefixes of SQLite's names for these errors."""


def unwritable(error: BaseException) -> EnrollError | None:
    """EnrollError E321 for an error of a disk that is full or cannot be written; None for any other."""
    if isinstance(error, OSError) and error.errno in DISK_ERRNOS:
        return EnrollError("E321", ": ".join(str(part) for part in (error.filename, error.strerror) if part))
    cause = getattr(error, "orig", error)  # SQLAlchemy's errors hold SQLite's
    if isinstance(cause, sqlite3.Error) and str(getattr(cause, "sqlite_errorname", "")).startswith(DISK_SQLITE_ERRORS):
        return EnrollError("E321", f"the registry: {cause}")
    return None
