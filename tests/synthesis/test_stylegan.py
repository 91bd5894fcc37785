"""StyleGAN pickles, by a stand-in for the authors' repository that the test writes."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nvlabs_checkout
import pytest
import torch

from flgen import Digits
from flgen.errors import FlgenError, UsageError
from flgen.synthesis.stylegan import StyleGAN


@pytest.fixture(autouse=True)
def _own_checkout() -> Iterator[None]:
    nvlabs_checkout.forget_imports()
    yield
    nvlabs_checkout.forget_imports()


@pytest.fixture
def code(tmp_path: Path) -> Path:
    return nvlabs_checkout.write_checkout(tmp_path / "stylegan3")


@pytest.fixture
def file(tmp_path: Path, code: Path) -> Path:
    path = nvlabs_checkout.write_pickle(tmp_path / "network.pkl", code)
    nvlabs_checkout.forget_imports()
    return path


def loaded(file: Path, code: Path, **options: Any) -> StyleGAN:
    generator = StyleGAN(str(file), str(code), **{"trust": True, **options})
    generator.load("cpu")
    return generator


def test_sizes_come_from_the_pickle(file: Path, code: Path) -> None:
    generator = StyleGAN(str(file), str(code), trust=True)
    assert (generator.latent_dim, generator.image_shape, generator.prior) == (6, (3, 8, 8), "learned")


def test_a_latent_is_the_first_row_of_the_mapping_and_goes_to_every_layer(file: Path, code: Path) -> None:
    generator = loaded(file, code)
    (G,) = generator.networks()
    z = torch.randn(5, 4, generator=torch.Generator().manual_seed(3))
    ws = G.mapping(z, None)
    assert ws.shape == (5, 3, 6)
    w = generator.sample_latents(5, torch.Generator().manual_seed(3))
    assert torch.equal(w, ws[:, 0])
    sys.path.insert(0, str(code))
    try:
        x = G.synthesis(ws, noise_mode="const")
    finally:
        sys.path.remove(str(code))
    assert x.abs().max() > 1  # so that there is something to clip
    torch.testing.assert_close(generator.synthesize(w), ((x + 1) / 2).clamp(0, 1), rtol=0, atol=1e-6)


def test_truncation_moves_latents_towards_their_mean(file: Path, code: Path) -> None:
    w = loaded(file, code).sample_latents(4, torch.Generator().manual_seed(0))
    half = loaded(file, code, truncation=0.5).sample_latents(4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(half, 0.25 + 0.5 * (w - 0.25))
    none = loaded(file, code, truncation=0.0).sample_latents(4, torch.Generator().manual_seed(0))
    assert torch.equal(none, torch.full((4, 6), 0.25))


def test_classes_are_drawn_uniformly_with_the_latents(tmp_path: Path, code: Path) -> None:
    generator = loaded(nvlabs_checkout.write_pickle(tmp_path / "classes.pkl", code, c_dim=5), code)
    (G,) = generator.networks()
    w = generator.sample_latents(200, torch.Generator().manual_seed(3))
    draws = torch.Generator().manual_seed(3)
    z = torch.randn(200, 4, generator=draws)
    classes = torch.randint(5, (200,), generator=draws)
    assert classes.bincount(minlength=5).min() > 20
    for label in range(5):
        chosen = classes == label
        c = torch.zeros(int(chosen.sum()), 5)
        c[:, label] = 1
        torch.testing.assert_close(w[chosen], G.mapping(z[chosen], c)[:, 0])


@pytest.mark.parametrize(
    ("family", "fidelity", "offset"),
    [("stylegan3", "corrected", 0.0), ("stylegan3", "reference", 0.5 / 255), ("stylegan_xl", "reference", 0.0)],
)
def test_grey_is_one_half_except_where_the_published_code_has_it_half_a_level_brighter(
    file: Path, code: Path, family: Any, fidelity: Any, offset: float
) -> None:
    generator = StyleGAN(str(file), str(code), family=family, trust=True)
    generator.fidelity = fidelity
    generator.load("cpu")
    (G,) = generator.networks()
    for layer in G.synthesis.layers:
        layer.weight.zero_()
        layer.bias.zero_()
    grey = generator.synthesize(torch.ones(1, 6))
    torch.testing.assert_close(grey, torch.full((1, 3, 8, 8), 0.5 + offset), rtol=0, atol=1e-7)


def test_the_path_of_the_repository_is_left_as_it_was(file: Path, code: Path) -> None:
    before = list(sys.path)
    generator = loaded(file, code)
    generator.synthesize(generator.sample_latents(1, torch.Generator().manual_seed(0)))
    assert sys.path == before


def test_a_pickle_is_not_read_without_trust(tmp_path: Path, code: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
    generator = StyleGAN(str(tmp_path / "trap.pkl"), str(code))
    digest = hashlib.sha256((tmp_path / "trap.pkl").read_bytes()).hexdigest()
    expected = rf"runs code that its maker put in. .*SHA-256 {digest}.*give --method.generator.trust true"
    for attempt in (lambda: generator.check(Digits()), lambda: generator.load("cpu"), lambda: generator.latent_dim):
        with pytest.raises(UsageError, match=expected):
            attempt()
    wrong = StyleGAN(str(tmp_path / "trap.pkl"), str(code), trust=True, sha256="0" * 64)
    for attempt in (lambda: wrong.check(Digits()), lambda: wrong.load("cpu")):
        with pytest.raises(FlgenError, match=rf"network|trap.pkl: its SHA-256 is {digest}, not what --method.gen"):
            attempt()
    assert not (tmp_path / "sprung").exists()


def test_the_digest_is_checked_and_recorded(file: Path, code: Path) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    generator = loaded(file, code, sha256=digest.upper(), trained_on="ffhq", licence="NVIDIA Source Code License")
    facts = generator.provenance()
    assert facts == {
        "name": "stylegan3 network.pkl",
        "data": "ffhq",
        "licence": "NVIDIA Source Code License",
        "sha256": digest,
        "truncation": "1",
    }


def test_what_is_missing_is_named_before_anything_is_read(file: Path, code: Path, tmp_path: Path) -> None:
    for made, message in [
        (
            StyleGAN(str(tmp_path / "none.pkl"), str(code), trust=True),
            r"^--method.generator.pickle .*none.pkl: there is",
        ),
        (
            StyleGAN(str(file), str(tmp_path / "nowhere"), trust=True),
            r"^--method.generator.code .*no torch_utils/ and no",
        ),
        (StyleGAN(str(file), str(tmp_path), trust=True), r"clone the repository that the pickle belongs to"),
    ]:
        for attempt in (lambda made=made: made.check(Digits()), lambda made=made: made.load("cpu")):
            with pytest.raises(FlgenError, match=message) as it:
                attempt()
            assert "\n" not in str(it.value)


def test_a_file_that_holds_no_generator_is_one_line(file: Path, code: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pkl").write_bytes(file.read_bytes()[:-20])
    nvlabs_checkout.write_pickle(tmp_path / "other.pkl", code, key="G")
    (tmp_path / "number.pkl").write_bytes(pickle.dumps({"G_ema": 3}))
    for name, message in [
        ("broken.pkl", r"broken.pkl: cannot be read \(.+\); is --method.generator.code the repository"),
        ("other.pkl", r"other.pkl: holds no G_ema; give a StyleGAN pickle"),
        ("number.pkl", r"number.pkl: its G_ema is no StyleGAN, it lacks z_dim"),
    ]:
        with pytest.raises(FlgenError, match=message) as it:
            loaded(tmp_path / name, code)
        assert "\n" not in str(it.value)


def test_packages_of_the_same_names_from_elsewhere_are_refused(file: Path, code: Path, tmp_path: Path) -> None:
    loaded(file, code)
    other = nvlabs_checkout.write_checkout(tmp_path / "stylegan-xl")
    with pytest.raises(
        FlgenError, match=r"^--method.generator.code .*stylegan-xl: torch_utils is taken from .*stylegan3"
    ):
        loaded(file, other)


def test_the_clients_own_data_are_refused(file: Path, code: Path) -> None:
    generator = StyleGAN(str(file), str(code), trust=True, trained_on="digits")
    with pytest.raises(UsageError, match="was trained on digits, and the clients hold digits-private"):
        generator.check(Digits(part="private"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sha256": "abc"}, "--method.generator.sha256 abc: give the 64 hexadecimal digits"),
        ({"truncation": -1.0}, "--method.generator.truncation is -1.0"),
        ({"batch_size": 0}, "--method.generator.batch_size is 0: give 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}"):
        StyleGAN("network.pkl", "stylegan3", **options)
