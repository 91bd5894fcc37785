"""Clients' state: the same bits wherever it is kept, changed only by whole rounds, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flgen.errors import FlgenError
from flgen.federation.state_store import ClientStateStore

CPU = torch.device("cpu")
CLIENTS = 4
STATE_MB = 4 * (1000 + 500) / 2**20
BUDGETS = {"device": 2.2 * CLIENTS * STATE_MB, "host": 0.55 * CLIENTS * STATE_MB, "disk": 0.4 * CLIENTS * STATE_MB}
TIERS = tuple(BUDGETS)


def state(seed: int) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    moments = torch.randn(1000, generator=draws)
    return {"moments": moments, "mask": torch.randint(2, (500,), generator=draws, dtype=torch.int32)}


def store_in(tier: str, folder: Path) -> ClientStateStore:
    return ClientStateStore(CPU, CLIENTS, BUDGETS[tier], folder / "states")


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same(a: Any, b: Any) -> None:
    assert a.keys() == b.keys()
    for key in a:
        if isinstance(a[key], Tensor):
            assert a[key].dtype == b[key].dtype
            assert torch.equal(a[key], b[key])
        else:
            assert_same(a[key], b[key])


@pytest.mark.parametrize("tier", TIERS)
def test_the_budget_chooses_the_tier(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    assert store.tier is None
    store.stage(0, state(0))
    assert store.tier == tier
    assert len(files(tmp_path)) == (1 if tier == "disk" else 0)


def sized(thousands: int) -> dict[str, Tensor]:
    return {"weights": torch.full((1000 * thousands,), float(thousands))}


@pytest.mark.parametrize(
    ("budget", "tiers"),  # in thousands of float32 numbers; four clients, each state twice
    [
        (2 * 10, ["device", "device", "device", "device"]),  # all that is kept in the end, 1 + 2 + 3 + 4 thousand twice
        (2 * 9, ["device", "device", "device", "host"]),
        (2 * 5, ["device", "host", "host", "host"]),
        (2 * 2, ["host", "host", "host", "disk"]),
        (2 * 1.5, ["host", "host", "disk", "disk"]),
    ],
)
def test_later_states_that_are_larger_move_all_to_a_lower_tier(budget: float, tiers: list[str], tmp_path: Path) -> None:
    # Networks of different sizes: the first client's may be the smallest.
    store = ClientStateStore(CPU, 4, budget * 4000 / 2**20, tmp_path / "states")
    seen = []
    for client in range(4):
        store.stage(client, sized(client + 1))
        seen.append(store.tier)
        if client == 1:
            store.commit()
        assert len(files(tmp_path)) == (client + 1 if store.tier == "disk" else 0)
    assert seen == tiers
    store.commit()
    assert_same(store.state_dict(), {client: sized(client + 1) for client in range(4)})
    for client in range(4):  # smaller ones bring nothing back
        store.stage(client, sized(1))
    assert store.tier == tiers[-1]


def test_the_expectation_counts_a_client_once(tmp_path: Path) -> None:
    store = ClientStateStore(CPU, 2, 8 * 4000 / 2**20, tmp_path / "states")
    for _ in range(5):
        store.stage(0, sized(1))
        store.commit()
    store.stage(1, sized(3))  # 1 + 3 thousand, twice
    assert store.tier == "device"


def test_every_tier_gives_the_same_bits(tmp_path: Path) -> None:
    kept = []
    for tier in TIERS:
        store = store_in(tier, tmp_path / tier)
        for t in range(3):
            for client in range(CLIENTS):
                mine = store.load(client) or state(client)
                mine["moments"] *= 1.1
                mine["moments"] += client - t
                mine[f"seen in round {t}"] = torch.tensor([t], dtype=torch.int64)
                store.stage(client, mine)
            store.commit()
        kept.append({client: {k: v.clone() for k, v in mine.items()} for client, mine in store.state_dict().items()})
    assert_same(kept[0], kept[1])
    assert_same(kept[0], kept[2])
    assert list(kept[0]) == [0, 1, 2, 3]
    assert set(kept[0][0]) == {"moments", "mask", "seen in round 0", "seen in round 1", "seen in round 2"}


@pytest.mark.parametrize("tier", TIERS)
def test_changes_take_effect_together_at_the_end_of_the_round(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    assert store.load(0) == {}
    store.stage(0, state(0))
    assert store.load(0) == {}
    assert store.state_dict() == {}
    store.stage(1, state(1))
    store.commit()
    assert_same(store.state_dict(), {0: state(0), 1: state(1)})


@pytest.mark.parametrize("tier", TIERS)
def test_a_round_that_is_rolled_back_leaves_no_trace(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    store.stage(0, state(0))
    store.commit()
    before = files(tmp_path)
    store.stage(0, state(7))
    store.stage(1, state(8))
    store.rollback()
    store.commit()
    assert_same(store.state_dict(), {0: state(0)})
    assert files(tmp_path) == before


@pytest.mark.parametrize("tier", TIERS)
def test_a_working_copy_and_the_kept_state_share_no_memory(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    resident = torch.zeros(2000)  # one buffer that every client computes in
    for client in range(CLIENTS):
        resident.fill_(client)
        store.stage(client, {"weights": resident[:1500]})
    store.commit()
    resident.fill_(-1)
    store.load(2)["weights"].fill_(-1)
    assert_same(store.state_dict(), {client: {"weights": torch.full((1500,), float(client))} for client in range(4)})


@pytest.mark.parametrize("tier", TIERS)
def test_only_what_a_client_keeps_is_stored(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    resident = torch.zeros(10**6, requires_grad=True)
    store.stage(0, {"weights": resident[:1500]})
    store.commit()
    kept = store.state_dict()[0]["weights"]
    assert kept.untyped_storage().nbytes() < 10_000
    assert not kept.requires_grad
    assert sum(path.stat().st_size for path in files(tmp_path)) < 10_000


def test_one_file_per_client_and_none_after_closing(tmp_path: Path) -> None:
    store = store_in("disk", tmp_path)
    for _ in range(3):
        for client in range(CLIENTS):
            store.stage(client, state(client))
            store.stage(client, state(client))  # the later one counts
        assert len(files(tmp_path)) in (CLIENTS, 2 * CLIENTS)
        store.commit()
        assert len(files(tmp_path)) == CLIENTS
    store.close()
    assert not (tmp_path / "states").exists()
    assert tmp_path.exists()


@pytest.mark.parametrize("tier", ["device", "host"])
def test_memory_needs_no_folder(tier: str, tmp_path: Path) -> None:
    store = store_in(tier, tmp_path)
    store.stage(0, state(0))
    store.commit()
    store.close()
    assert not (tmp_path / "states").exists()


def test_a_client_without_state_costs_nothing(tmp_path: Path) -> None:
    store = store_in("disk", tmp_path)
    store.stage(0, {})
    store.commit()
    assert store.tier is None
    assert store.state_dict() == {}
    assert files(tmp_path) == []


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("other", TIERS)
def test_states_move_between_stores(tier: str, other: str, tmp_path: Path) -> None:
    source, target = store_in(tier, tmp_path / "a"), store_in(other, tmp_path / "b")
    for client in range(CLIENTS):
        source.stage(client, state(client))
        target.stage(client, state(100 + client))
    source.commit()
    target.commit()
    target.stage(0, state(200))
    target.load_state_dict({client: kept for client, kept in source.state_dict().items() if client != 3})
    source.close()
    assert_same(target.state_dict(), {client: state(client) for client in range(3)})
    assert len(files(tmp_path / "b")) == (3 if other == "disk" else 0)


def test_a_checkpoint_may_be_removed_after_it_was_loaded(tmp_path: Path) -> None:
    torch.save({0: state(0)}, tmp_path / "checkpoint.pt")
    store = store_in("device", tmp_path)
    store.load_state_dict(torch.load(tmp_path / "checkpoint.pt", mmap=True, weights_only=True))
    (tmp_path / "checkpoint.pt").write_bytes(b"")  # a mapped page of it would now end the process
    assert_same(store.state_dict(), {0: state(0)})


def test_a_full_disk_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "states").write_text("a file where the folder should be")
    store = store_in("disk", tmp_path)
    with pytest.raises(FlgenError, match=r"state of client 2 cannot be written.*--trainer.client_state_mb") as failure:
        store.stage(2, state(2))
    assert "\n" not in str(failure.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("tier", TIERS)
def test_clients_get_their_state_on_the_gpu(tier: str, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    store = ClientStateStore(device, CLIENTS, BUDGETS[tier], tmp_path / "states")
    store.stage(0, {name: tensor.to(device) for name, tensor in state(0).items()})
    store.commit()
    kept, loaded = store.state_dict()[0], store.load(0)
    assert {tensor.device.type for tensor in kept.values()} == {"cuda" if tier == "device" else "cpu"}
    assert all(tensor.is_pinned() for tensor in kept.values()) == (tier == "host")
    assert {tensor.device for tensor in loaded.values()} == {device}
    assert_same({name: tensor.cpu() for name, tensor in loaded.items()}, state(0))
