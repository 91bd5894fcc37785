"""The network interface by which the nodes of a job reach each other.

gloo listens where the name of its own host leads, which on many systems is the loopback interface: the other nodes
then wait for it in vain. What they all reach is the main node, so the way to it is the way between them.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import socket
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from flgen.errors import FlgenError

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
_GIVE_INTERFACE = f"set {GLOO_INTERFACE} to the network interface that leads to the other nodes"
_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16s4x4s16x")  # name, then a sockaddr_in: family, port, address


def choose_interface(main_address: str, wait_s: float) -> str:
    """Let gloo use the interface that leads to the main node, unless the user has named one; return its address.

    Args:
        main_address: MASTER_ADDR, a name or an address.
        wait_s: How long to wait for the name, which may appear only when its host is up, seconds.

    Raises:
        FlgenError: The main node cannot be found, or no interface has the address that leads to it.
    """
    if named := os.environ.get(GLOO_INTERFACE):
        first = named.split(",")[0]
        found = next((address for interface, address in addresses() if interface == first), None)
        if found is None:
            raise FlgenError(f"{GLOO_INTERFACE} is {named}: this host has no interface {first} with an address")
        return found
    address = address_towards(main_address, wait_s)
    if _is_loopback(address):
        if main_address != "localhost" and not _is_loopback(main_address):
            # The main node calls itself by a name that its /etc/hosts gives to the loopback interface.
            address = _only_outward_address(main_address)
        else:
            address = next((own for _, own in addresses() if _is_loopback(own)), address)
    interface = next((name for name, own in addresses() if own == address), None)
    if interface is None:
        raise FlgenError(f"MASTER_ADDR {main_address} is reached from {address}, no interface's: {_GIVE_INTERFACE}")
    os.environ[GLOO_INTERFACE] = interface
    return address


def address_towards(host: str, wait_s: float) -> str:
    """Return this machine's address on the way to a host; nothing is sent.

    Args:
        host: A name or an address.
        wait_s: How long to wait until it can be resolved and routed to, seconds.

    Raises:
        FlgenError: It could not.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _route_to(host)
        except OSError as error:
            if time.monotonic() >= deadline:
                reason = error.strerror or str(error)
                raise FlgenError(
                    f"MASTER_ADDR {host} cannot be reached ({reason}): give the main node's name or address"
                ) from error
        time.sleep(min(0.5, wait_s))


def addresses() -> Iterator[tuple[str, str]]:
    """Yield (interface, address) of every address of this machine, IPv4 before IPv6."""
    yield from _ipv4_addresses()
    table = Path("/proc/net/if_inet6")
    for line in table.read_text().splitlines() if table.exists() else ():
        digits, *_, name = line.split()
        yield name, str(ipaddress.IPv6Address(int(digits, 16)))


def _ipv4_addresses() -> Iterator[tuple[str, str]]:
    room = 4096 * _IFREQ.size
    buffer = array("B", bytes(room))
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFCONF, struct.pack("iL", room, buffer.buffer_info()[0]))
    used = struct.unpack("iL", answer)[0]
    for name, address in _IFREQ.iter_unpack(buffer.tobytes()[:used]):
        # A second address may bear a label of its own, eth0:1.
        yield name.partition(b"\0")[0].decode().partition(":")[0], socket.inet_ntoa(address)


def _route_to(host: str) -> str:
    refusal: OSError | None = None
    for family, kind, protocol, _, target in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
        with closing(socket.socket(family, kind, protocol)) as probe:
            try:
                probe.connect(target)  # of a datagram socket: only chooses the route
            except OSError as error:
                refusal = error
                continue
            return str(probe.getsockname()[0]).partition("%")[0]
    raise refusal or OSError("it has no address")


def _only_outward_address(main_address: str) -> str:
    outward = [(name, own) for name, own in _ipv4_addresses() if not _is_loopback(own)]
    if len({name for name, _ in outward}) != 1:
        named = ", ".join(sorted({name for name, _ in outward})) or "none"
        raise FlgenError(
            f"MASTER_ADDR {main_address} is this host's own loopback address, and which interface leads to the other "
            f"nodes cannot be told ({named}): {_GIVE_INTERFACE}"
        )
    return outward[0][1]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
