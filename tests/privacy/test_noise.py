"""Where noise comes from: named by a secret, which is read when it is needed and known again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flgen.errors import UsageError
from flgen.privacy.noise import NoiseSource


def test_the_same_release_gets_the_same_noise_and_any_other_one_of_its_own() -> None:
    exact = torch.arange(6.0)

    def released(secret: bytes = b"s" * 16, moved: float = 0.0, std: float = 1.0, **name: int) -> torch.Tensor:
        noisy = NoiseSource(secret).release(exact + moved, std, "sum", **{"round": 1, "client": 2, **name})
        return (noisy - exact - moved) / std

    first = released()
    assert first.dtype == torch.float64
    assert torch.equal(first, released())
    others = [released(b"t" * 16), released(moved=2**-20), released(std=2.0), released(round=2), released(client=1)]
    for other in others:
        assert not torch.isclose(first, other).any()


def test_a_file_is_read_at_the_first_release(tmp_path: Path) -> None:
    key = tmp_path / "noise.key"
    source = NoiseSource.of_run(0, str(key))
    assert not source.of_seed
    with pytest.raises(UsageError, match=r"--method.privacy.noise_key .*noise.key: cannot be read .*; make one with"):
        source.gaussian((1,), 1.0, "sum")
    key.write_bytes(b"short")
    with pytest.raises(UsageError, match="has 5 bytes, 16 are the least"):
        source.gaussian((1,), 1.0, "sum")
    key.write_bytes(bytes(32))
    noise = source.gaussian((4,), 1.0, "sum")
    assert torch.equal(noise, NoiseSource(bytes(32)).gaussian((4,), 1.0, "sum"))


def test_a_secret_is_known_again_by_its_fingerprint() -> None:
    one, two = NoiseSource(b"1" * 16), NoiseSource(b"2" * 16)
    assert one.fingerprint == NoiseSource(b"1" * 16).fingerprint != two.fingerprint
    one.go_on_from(one.fingerprint)
    one.check()
    two.go_on_from(one.fingerprint)
    with pytest.raises(UsageError, match=r"null: is not the secret that the run began with"):
        two.release(torch.zeros(1), 1.0, "sum")
