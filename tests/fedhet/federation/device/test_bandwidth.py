"""A device's bandwidth, measured against the enrolment service."""

import pytest

from fedhet.federation.device import bandwidth, join
from fedhet.federation.device.state import Device
from fedhet.federation.server import client_profiles
from fedhet.federation.server.http_api import BLOCK


class Slow:
    """A clock on which every look costs what the link of the test would take."""

    def __init__(self, device, up, down, delay):
        self.now, self.rates, self.delay, self.paths = 0.0, (up, down), delay, []
        real = type(device.link()).fetch

        def fetch(link, path, body, headers, size):
            real(link, path, body, headers, size)
            self.paths.append((len(body), size))
            self.now += delay + len(body) / up + size / down

        self.fetch = fetch

    def __call__(self):
        return self.now


@pytest.mark.parametrize(("up", "down", "delay"), [(50_000, 400_000, 0.05), (1_000_000, 250_000, 0.0)])
def test_a_slow_link_is_measured_as_it_is(door, monkeypatch, up, down, delay):
    device = door.member("a")
    slow = Slow(device, up, down, delay)
    real = Device.link
    monkeypatch.setattr(Device, "link", lambda self: _patched(real(self), slow))
    found = bandwidth.measure(device, slow)
    assert found["uplink_bytes_per_s"] == pytest.approx(up, rel=1e-6)
    assert found["downlink_bytes_per_s"] == pytest.approx(down, rel=1e-6)
    assert found["latency_us"] == round(delay * 1e6)
    assert sum(a + b for a, b in slow.paths) < 11e6


def _patched(link, slow):
    link.fetch = lambda *given: slow.fetch(link, *given)
    return link


def test_what_was_measured_reaches_the_schedule(door):
    device = door.member("a")
    before = join.measured(device)
    found = {"uplink_bytes_per_s": 125_000, "downlink_bytes_per_s": 1_250_000, "latency_us": 20_000}
    join.update_profile(device, found)
    client = door.federation.registry.client("a")
    assert client.measured == {**before, **found}
    believed = client_profiles.believed(client)
    assert (believed.uplink_bytes_per_s, believed.downlink_bytes_per_s, believed.latency_s) == (125e3, 1.25e6, 0.02)


def test_only_clients_may_measure_and_only_so_much(door, refused):
    device = door.member("a")
    with device.link() as link:
        path = f"/v1/enroll/speed/{BLOCK + 1}"
        refused("E113", link.fetch, path, b"", device.sealed("POST", path, b""), 0)
        path = "/v1/enroll/speed/9"
        refused("E115", link.fetch, path, b"", {}, 9)
        refused("E205", link.fetch, path, b"another body", device.sealed("POST", path, b"a body"), 9)
        refused("E113", link.fetch, path, bytes(BLOCK + 1), device.sealed("POST", path, bytes(BLOCK + 1)), 9)
    door.federation.suspend("a")
    refused("E206", bandwidth.measure, device)
