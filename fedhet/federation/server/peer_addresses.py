"""Who is at the other end of a connection, and for whom a proxy speaks. Addresses are texts as a socket tells them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from fedhet.federation.common.errors import EnrollError

Address = IPv4Address | IPv6Address
SUBSCRIBER = 64
"""Bits of an IPv6 address that its owner does not choose: one subscriber is a whole network of this prefix."""
MOST_HOPS = 16
"""Entries of a forwarding header that are read, from the right."""


def bucket(host: str) -> str:
    """What limits count an address as: IPv4 by itself, IPv6 by its /64 network, anything else as one stranger."""
    address = _address(host)
    if address is None:
        return "?"
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address.packed, SUBSCRIBER), strict=False))
    return str(address)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies whose `X-Forwarded-For` is believed; by default none."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Proxies:
        """Addresses and networks as an operator writes them. Raises EnrollError E319."""
        found = []
        for text in texts:
            try:
                found.append(ip_network(text.strip()))
            except ValueError as error:
                raise EnrollError("E319", f"--trusted-proxy {text}: {error}") from None
        return cls(tuple(found))

    def __contains__(self, host: str) -> bool:
        address = _address(host)
        return address is not None and any(address in network for network in self.networks)

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """The address to which a request belongs: of the hops that trusted proxies named, the last that is not theirs.

        `forwarded` holds the values of the header in order. What is no address ends the search: the hop that named it
        is the last one that can be believed.
        """
        believed = peer
        hops = [hop for value in forwarded for hop in value.split(",")]
        for hop in reversed(hops[-MOST_HOPS:]):
            address = _address(_without_port(hop.strip()))
            if believed not in self or address is None:
                break
            believed = str(address)
        return believed


def _address(text: str) -> Address | None:
    """An address without its zone; an IPv4 address in IPv6 clothes is the IPv4 address."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(hop: str) -> str:
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
