"""gloo is told the interface that leads to the main node, unless the user has said another."""

from __future__ import annotations

import os

import pytest

from flgen.errors import FlgenError
from flgen.federation import interfaces
from flgen.federation.interfaces import GLOO_INTERFACE, address_towards, addresses, choose_interface


@pytest.fixture(autouse=True)
def _nothing_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GLOO_INTERFACE, "to be put back")
    monkeypatch.delenv(GLOO_INTERFACE)


def of_a_machine(monkeypatch: pytest.MonkeyPatch, towards: str, *own: tuple[str, str]) -> None:
    """Let this be a machine with such addresses, from one of which it reaches the main node."""
    monkeypatch.setattr(interfaces, "_route_to", lambda host: towards)
    monkeypatch.setattr(interfaces, "_ipv4_addresses", lambda: iter((("lo", "127.0.0.1"), *own)))


def test_the_loopback_interface_is_among_this_machines() -> None:
    found = list(addresses())
    assert ("lo", "127.0.0.1") in found
    assert all(name and address for name, address in found)


@pytest.mark.parametrize("main", ["127.0.0.1", "localhost"])
def test_nodes_that_are_one_machine_meet_on_the_loopback_interface(main: str) -> None:
    assert choose_interface(main, 1) in ("127.0.0.1", "::1")
    assert os.environ[GLOO_INTERFACE] == "lo"


def test_the_interface_is_that_of_the_way_to_the_main_node(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_machine(monkeypatch, "10.1.2.3", ("eth0", "192.168.7.7"), ("ib0", "10.1.2.3"))
    assert choose_interface("main", 1) == "10.1.2.3"
    assert os.environ[GLOO_INTERFACE] == "ib0"


def test_a_main_node_that_knows_itself_as_loopback_takes_its_only_other_interface(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    of_a_machine(monkeypatch, "127.0.1.1", ("eth0", "192.168.7.7"))
    assert choose_interface("main", 1) == "192.168.7.7"
    assert os.environ[GLOO_INTERFACE] == "eth0"


def test_among_several_it_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_machine(monkeypatch, "127.0.1.1", ("eth0", "192.168.7.7"), ("ib0", "10.1.2.3"))
    with pytest.raises(FlgenError, match=r"^MASTER_ADDR main is .*\(eth0, ib0\): set GLOO_SOCKET_IFNAME"):
        choose_interface("main", 1)
    assert GLOO_INTERFACE not in os.environ


def test_what_the_user_has_said_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    of_a_machine(monkeypatch, "10.1.2.3", ("eth0", "192.168.7.7"), ("ib0", "10.1.2.3"))
    monkeypatch.setenv(GLOO_INTERFACE, "eth0,ib0")
    assert choose_interface("main", 1) == "192.168.7.7"
    assert os.environ[GLOO_INTERFACE] == "eth0,ib0"
    monkeypatch.setenv(GLOO_INTERFACE, "eth9")
    with pytest.raises(FlgenError, match=r"^GLOO_SOCKET_IFNAME is eth9: this host has no interface eth9"):
        choose_interface("main", 1)


def test_a_name_that_nobody_knows_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FlgenError, match=r"^MASTER_ADDR nobody\.invalid cannot be reached \(.+\): give the main") as no:
        choose_interface("nobody.invalid", 0)
    assert "\n" not in str(no.value)


def test_a_name_may_appear_a_moment_later(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((OSError("not yet"), "10.1.2.3"))

    def route(host: str) -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(interfaces, "_route_to", route)
    assert address_towards("main", 5) == "10.1.2.3"
