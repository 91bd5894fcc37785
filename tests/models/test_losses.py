"""What a client minimises: its state, its value, its gradient, its refusals."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from flgen.errors import UsageError
from flgen.models.losses import KernelMMD, VggMoments
from flgen.models.vgg import VggFeatures, feature_count, load_state, vgg_input


class Images:
    """A client's images in memory."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    @property
    def samples(self) -> int:
        return len(self.images)

    def batches(
        self, batch_size: int, generator: torch.Generator, *, steps: int | None = None, epochs: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        assert steps is None
        for _ in range(epochs or 0):
            for rows in torch.randperm(self.samples, generator=generator).split(batch_size):
                yield self.images[rows], torch.zeros(len(rows), dtype=torch.int64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(count: int, channels: int = 1, size: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=generator(seed), dtype=torch.uint8)


def fakes(count: int, channels: int = 1, size: int = 16, seed: int = 9) -> Tensor:
    return pixels(count, channels, size, seed).float() / 127.5 - 1


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, Tensor]:
    return load_state("random")


@pytest.fixture(autouse=True)
def shared_weights(monkeypatch, vgg_state):
    """Draw the trial weights once, not in every test."""
    monkeypatch.setattr("flgen.models.vgg.load_state", lambda weights: vgg_state)


def plain_moments(state: dict[str, Tensor], images: Tensor, mode: str = "eval") -> Tensor:
    with torch.no_grad():
        flat = torch.cat([maps.flatten(1) for maps in VggFeatures(state, mode)(images)], dim=1).double()
    return torch.stack([flat.mean(0), flat.var(0)]).float()


class TestKernelMMD:
    def test_bandwidths_are_multiples_of_the_clients_median_distance(self):
        # three images at distances 2, 2 and 4 in [-1, 1]: one pixel differs
        images = torch.zeros(3, 1, 1, 4, dtype=torch.uint8)
        images[1, ..., 0] = images[2, ..., 1] = 255
        expected = 2.0  # the median of 2, 2, sqrt(8)
        state = KernelMMD(bandwidths=[0.5, 1.0]).prepare(Images(images), generator())
        assert state["bandwidths"].tolist() == pytest.approx([0.5 * expected, expected])

    def test_value_against_the_written_out_sum(self):
        loss = KernelMMD(bandwidths=[1.0], unbiased=False)
        real = pixels(4, size=8)
        state = loss.prepare(Images(real), generator())
        fake = fakes(3, size=8)
        a, b = fake.flatten(1), real.flatten(1).float() / 127.5 - 1

        def kernel(x: Tensor, y: Tensor) -> Tensor:
            return torch.exp(-torch.cdist(x, y).square() / (2 * state["bandwidths"][0] ** 2)).mean()

        expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
        value = loss(fake, state, real)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        assert state["distance"].item() == value.item()

    def test_descent_brings_fakes_to_reals(self):
        loss = KernelMMD()
        real = pixels(64, size=4)
        state = loss.prepare(Images(real), generator())
        fake = torch.zeros(64, 1, 4, 4).add_(0.1 * torch.randn(64, 1, 4, 4, generator=generator())).requires_grad_()
        optimiser = torch.optim.Adam([fake], lr=0.05)
        values = []
        for _ in range(60):
            optimiser.zero_grad()
            value = loss(fake, state, real)
            value.backward()
            optimiser.step()
            values.append(value.item())
        assert values[-1] < 0.1 * values[0]

    def test_identical_images_leave_a_usable_bandwidth(self):
        loss = KernelMMD()
        real = torch.full((3, 1, 4, 4), 7, dtype=torch.uint8)
        state = loss.prepare(Images(real), generator())
        assert (state["bandwidths"] > 0).all()
        assert loss(fakes(3, size=4), state, real).isfinite()

    def test_it_asks_for_real_images(self):
        loss = KernelMMD(real_batch=17)
        assert loss.real_batch == 17
        state = loss.prepare(Images(pixels(4, size=4)), generator())
        with pytest.raises(ValueError, match="real_batch"):
            loss(fakes(3, size=4), state)

    @pytest.mark.parametrize("options", [{"bandwidths": []}, {"bandwidths": [1.0, 0.0]}, {"real_batch": 0}])
    def test_impossible_settings_are_refused(self, options):
        with pytest.raises(UsageError, match=f"--model.loss.{next(iter(options))}"):
            KernelMMD(**options)

    def test_a_client_with_one_image_is_refused(self):
        with pytest.raises(UsageError, match="at least two images"):
            KernelMMD().prepare(Images(pixels(1)), generator())


class TestVggMoments:
    def test_presets_fill_what_is_left_open(self):
        loss = VggMoments(matching="two_batch")
        loss.adopt("reference")
        assert (loss.mode, loss.real_range, loss.matching, loss.v_init) == ("train", "symmetric", "two_batch", "random")
        loss = VggMoments()
        loss.adopt("fixed")
        assert (loss.mode, loss.real_range, loss.matching, loss.v_init) == ("eval", "imagenet", "ama", "zero")
        assert set(VggMoments.presets) == {"reference", "paper", "fixed"}

    def test_an_unknown_preset_names_the_known_ones(self):
        with pytest.raises(UsageError, match="reference, paper, fixed"):
            VggMoments().adopt("published")

    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_target_is_the_moments_of_all_images(self, vgg_state, channels):
        real = pixels(10, channels)
        state = VggMoments("random", batch_size=4).prepare(Images(real), generator())
        shown = vgg_input(real.float() / 127.5 - 1, "imagenet")
        assert state["target"].shape == (2, feature_count(16))
        torch.testing.assert_close(state["target"], plain_moments(vgg_state, shown), rtol=1e-4, atol=1e-5)

    def test_the_symmetric_range_shows_reals_as_they_are(self, vgg_state):
        real = pixels(10, 3)
        loss = VggMoments("random", mode="eval", real_range="symmetric", batch_size=4)
        target = loss.prepare(Images(real), generator())["target"]
        torch.testing.assert_close(target, plain_moments(vgg_state, real.float() / 127.5 - 1), rtol=1e-4, atol=1e-5)

    def test_train_mode_normalises_each_batch(self, vgg_state):
        real = pixels(6)
        target = VggMoments("random", mode="train", batch_size=6).prepare(Images(real), generator())["target"]
        expected = plain_moments(vgg_state, vgg_input(real.float() / 127.5 - 1, "symmetric"), "train")
        torch.testing.assert_close(target, expected, rtol=1e-3, atol=1e-3)

    def test_the_moving_average_starts_as_asked(self):
        zero = VggMoments("random", v_init="zero").prepare(Images(pixels(3)), generator())
        assert zero["v"].abs().sum() == 0
        random = VggMoments("random", v_init="random").prepare(Images(pixels(3)), generator())
        bound = feature_count(16) ** -0.5
        assert random["v"].abs().max() <= bound
        assert random["v"].std().item() == pytest.approx(bound / 3**0.5, rel=0.01)
        again = VggMoments("random", v_init="random").prepare(Images(pixels(3)), generator())
        assert torch.equal(random["v"], again["v"])

    def test_the_loss_and_its_gradient_follow_the_formula(self, vgg_state):
        loss = VggMoments("random", v_lr=1e-3)
        state = loss.prepare(Images(pixels(8)), generator())
        fake = fakes(4).requires_grad_()
        moments = plain_moments(vgg_state, vgg_input(fake.detach(), "imagenet"))

        shadow = torch.zeros_like(state["v"]).requires_grad_()
        adam = torch.optim.Adam([shadow], lr=1e-3, betas=(0.5, 0.999), eps=1e-8)
        (shadow - (state["target"] - moments)).square().mean(dim=1).sum().backward()
        adam.step()

        value = loss(fake, state)
        # Where the difference is a rounding error, so is the sign of Adam's step: compare as wholes.
        assert (state["v"] - shadow).norm() / shadow.norm() < 1e-2
        expected = (state["v"] * (state["target"] - moments)).sum()
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        distance = (state["target"] - moments).square().sum()
        assert state["distance"].item() == pytest.approx(distance.item(), rel=1e-4)

        plain = fakes(4).requires_grad_()
        flat = torch.cat([m.flatten(1) for m in VggFeatures(vgg_state, "eval")(vgg_input(plain, "imagenet"))], dim=1)
        by_autograd = (state["v"] * (state["target"] - torch.stack([flat.mean(0), flat.var(0)]))).sum()
        gradient, reference = torch.autograd.grad(value, fake)[0], torch.autograd.grad(by_autograd, plain)[0]
        assert (gradient - reference).norm() / reference.norm() < 1e-4

    def test_the_moving_average_is_the_clients_and_persists(self):
        loss = VggMoments("random")
        one = loss.prepare(Images(pixels(4)), generator())
        other = {name: value.clone() for name, value in one.items()}
        tensors = {name: value.data_ptr() for name, value in one.items()}
        for _ in range(3):
            loss(fakes(4), one)
        assert one["v_step"].item() == 3
        assert other["v_step"].item() == 0
        assert tensors == {name: value.data_ptr() for name, value in one.items()}  # in place: a flat store sees it
        assert 2e-5 < one["v"].abs().max() <= 3.1e-5  # at most about v_lr per step
        assert torch.equal(one["target"], other["target"])

    def test_a_state_taken_up_again_continues_exactly(self):
        loss = VggMoments("random")
        state = loss.prepare(Images(pixels(4)), generator())
        loss(fakes(4, seed=1), state)
        saved = {name: value.clone() for name, value in state.items()}
        expected = loss(fakes(4, seed=2), state)
        assert torch.equal(VggMoments("random")(fakes(4, seed=2), saved), expected)
        assert torch.equal(saved["v"], state["v"])

    def test_instant_matching_is_the_distance_with_half_its_gradient(self):
        loss = VggMoments("random", matching="instant")
        state = loss.prepare(Images(pixels(8)), generator())
        assert set(state) == {"target", "distance"}
        fake = fakes(4).requires_grad_()
        value = loss(fake, state)
        assert value.item() == pytest.approx(state["distance"].item(), rel=1e-5)

    def test_two_batch_matching_is_the_product_of_the_halves(self, vgg_state):
        loss = VggMoments("random", matching="two_batch")
        state = loss.prepare(Images(pixels(8)), generator())
        fake = fakes(6).requires_grad_()
        halves = [plain_moments(vgg_state, vgg_input(half, "imagenet")) for half in fake.detach().split(3)]
        expected = ((state["target"] - halves[0]) * (state["target"] - halves[1])).sum()
        value = loss(fake, state)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        value.backward()
        assert fake.grad.flatten(1).norm(dim=1).min() > 0  # both halves learn

    def test_two_batch_matching_does_not_shrink_a_matched_sample(self, monkeypatch):
        """At equal distributions the instantaneous square pulls images to their mean; two batches do not."""
        monkeypatch.setattr(VggMoments, "_network", lambda self, images: lambda shown: [shown[:, :1]])
        target = torch.stack([torch.zeros(256), torch.ones(256)])  # of standard normal pixels
        pulls = {}
        for matching in ("instant", "two_batch"):
            loss = VggMoments("random", matching=matching)
            values = []
            for seed in range(50):
                fake = torch.randn(8, 1, 16, 16, generator=generator(seed)).requires_grad_()
                loss(fake, {"target": target, "distance": torch.zeros(())}).backward()
                values.append((fake.grad * fake.detach()).sum())  # positive: descent shrinks the images
            pulls[matching] = torch.stack(values)
        error = {matching: values.std() / 50**0.5 for matching, values in pulls.items()}
        assert pulls["instant"].mean() > 10 * error["instant"]
        assert pulls["two_batch"].mean().abs() < 4 * error["two_batch"]

    @pytest.mark.parametrize(("matching", "count", "least"), [("ama", 1, 2), ("instant", 1, 2), ("two_batch", 3, 4)])
    def test_a_batch_without_a_variance_is_refused(self, matching, count, least):
        loss = VggMoments("random", matching=matching)
        state = loss.prepare(Images(pixels(4)), generator())
        with pytest.raises(UsageError, match=f"at least {least} images, not {count}"):
            loss(fakes(count), state)

    @pytest.mark.parametrize(("channels", "size"), [(1, 8), (2, 16)])
    def test_images_that_a_vgg_cannot_see_are_refused(self, channels, size):
        with pytest.raises(UsageError, match=f"{channels}-channel images of {size}x{size}"):
            VggMoments("random").prepare(Images(pixels(4, channels, size)), generator())

    def test_impossible_settings_are_refused(self):
        with pytest.raises(UsageError, match=r"--model\.loss\.batch_size 1"):
            VggMoments(batch_size=1)
        with pytest.raises(UsageError, match="at least two images"):
            VggMoments("random").prepare(Images(pixels(1)), generator())

    def test_it_needs_no_real_images_after_the_start(self):
        assert VggMoments().real_batch == 0


@pytest.mark.parametrize("loss", [KernelMMD(), VggMoments("random", matching="instant")], ids=["mmd", "vgg"])
def test_half_precision_does_not_reach_the_statistics(loss):
    real, fake = pixels(8), fakes(6)
    state = loss.prepare(Images(real), generator())
    exact = loss(fake, state, real).item()
    half = fake.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(half, state, real)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact, rel=0.02)
    assert half.grad.isfinite().all()
    assert half.grad.abs().sum() > 0
