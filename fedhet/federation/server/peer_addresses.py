"""The peer of a connection, and the client behind a trusted proxy. Addresses are strings, as sockets report them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from fedhet.federation.common.errors import EnrollError

Address = IPv4Address | IPv6Address
IPV6_SUBSCRIBER_BITS = 64
"""Prefix length of an IPv6 network that counts as one subscriber, who chooses the remaining bits."""
MAX_HOPS = 16
"""Entries of X-Forwarded-For that are read, from the right."""


def bucket(host: str) -> str:
    """The key under which limits count an address: IPv4 itself, IPv6 by its /64 network, anything else "?"."""
    address = _address(host)
    if address is None:
        return "?"
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address.packed, IPV6_SUBSCRIBER_BITS), strict=False))
    return str(address)


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies whose `X-Forwarded-For` is trusted; none by default."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Proxies:
        """Parse addresses and networks in CIDR notation. Raises EnrollError E319."""
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
        """The address that a request comes from: the rightmost hop that is not a trusted proxy.

        `forwarded` are the values of the header in order. An entry that is not an address ends the search: the hop that
        added it is the answer.
        """
        address_so_far = peer
        hops = [hop for value in forwarded for hop in value.split(",")]
        for hop in reversed(hops[-MAX_HOPS:]):
            address = _address(_without_port(hop.strip()))
            if address_so_far not in self or address is None:
                break
            address_so_far = str(address)
        return address_so_far


def _address(text: str) -> Address | None:
    """Parse an address without its zone; an IPv4-mapped IPv6 address becomes the IPv4 address. None if it is
    malformed."""
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
