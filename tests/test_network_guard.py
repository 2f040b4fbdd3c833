"""The network guard of the tests: loopback is open, everything else is blocked."""

import socket

import pytest


def test_loopback_is_reached():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"x")


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("198.51.100.7", 443)])
def test_another_machine_is_refused_before_anything_is_sent(address):
    with socket.socket() as sock, pytest.raises(RuntimeError, match="loopback only"):
        sock.connect(address)
    with socket.socket(type=socket.SOCK_DGRAM) as sock, pytest.raises(RuntimeError, match="loopback only"):
        sock.sendto(b"x", address)
