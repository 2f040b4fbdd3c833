"""Two operators at the same time, and a server whose supervising process fails."""

import importlib.util
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography import x509

from fedhet.federation.common.errors import EnrollError
from fedhet.federation.server import superlink
from fedhet.federation.server.serve import Server
from fedhet.federation.server.superlink import SuperLink

found = importlib.util.spec_from_file_location("living", Path(__file__).parents[1] / "living.py")
living = importlib.util.module_from_spec(found)
found.loader.exec_module(living)


def test_an_approval_does_not_undo_what_was_decided_meanwhile(door, monkeypatch, refused):
    door.begin("a", door.invite("a")[1])
    issue, federation = door.federation.authority.issue, door.federation

    def overtaken(*given):
        monkeypatch.undo()
        federation.approve("a")
        federation.suspend("a", "a second thought")
        return issue(*given)

    monkeypatch.setattr(type(federation.authority), "issue", lambda self, *given: overtaken(*given))
    assert "a is suspended, not pending" in str(refused("E211", federation.approve, "a"))
    client = federation.registry.client("a")
    assert client.state == "suspended" and len(client.serials) == 1


def test_a_device_that_was_let_in_is_not_rejected_and_one_that_works_is_not_resumed(door, refused):
    door.member("a")
    assert "a is active, not pending or invited" in str(refused("E211", door.federation.reject, "a", "no"))
    assert "a is active, not suspended" in str(refused("E211", door.federation.resume, "a"))
    assert door.federation.registry.client("a").state == "active"


class Hours:
    """A clock that goes on by twenty seconds whenever somebody looks."""

    def __init__(self, clock):
        self.clock, self.looks = clock, 0

    def __call__(self):
        self.looks += 1
        return self.clock() + 20.0 * self.looks


def test_a_server_goes_on_after_what_flower_refuses_and_ends_when_its_keeper_does(door, monkeypatch):
    told = []

    def reconcile(federation, link):
        told.append(1)
        raise EnrollError("E308", "a first refusal") if len(told) == 1 else RuntimeError("a fault of ours")

    monkeypatch.setattr(superlink, "reconcile", reconcile)
    monkeypatch.setattr(SuperLink, "programs", lambda self: [])
    monkeypatch.setattr(SuperLink, "listens", lambda self: True)
    door.federation.clock = Hours(door.clock)
    server = Server(door.federation, port=living.free_port())
    with pytest.raises(RuntimeError, match="a fault of ours"):
        server.run()
    assert "a first refusal" in server.failure and len(told) == 2


def test_a_server_shows_its_new_certificate_as_soon_as_the_issuing_key_is_replaced(door, monkeypatch):
    shown = []

    def reconcile(federation, link):
        pem = ssl.get_server_certificate(("127.0.0.1", server.port))
        shown.append(x509.load_pem_x509_certificate(pem.encode()))
        if len(shown) == 1:
            federation.authority.rotate(federation.clock())
        if shown[-1] != shown[0] or len(shown) == 20:
            raise RuntimeError("seen")
        return []

    monkeypatch.setattr(superlink, "reconcile", reconcile)
    monkeypatch.setattr(SuperLink, "programs", lambda self: [])
    monkeypatch.setattr(SuperLink, "listens", lambda self: True)
    server = Server(door.federation, port=living.free_port())
    with pytest.raises(RuntimeError, match="seen"):
        server.run()
    held = x509.load_pem_x509_certificate((door.federation.folder / "ca" / "server.pem").read_bytes())
    assert shown[-1] == held != shown[0]


def test_a_command_of_flowers_that_hangs_is_a_refusal_with_a_code(tmp_path, monkeypatch, refused):
    def hangs(command, **given):
        raise subprocess.TimeoutExpired(command, given["timeout"])

    monkeypatch.setattr(subprocess, "run", hangs)
    assert "flwr supernode list" in str(refused("E308", SuperLink(tmp_path).nodes))
