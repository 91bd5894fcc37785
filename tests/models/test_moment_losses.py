"""Moments of deep features as an objective: the published loss, a small network's, and one that keeps a secret."""

import logging
from types import SimpleNamespace

import pytest
import torch
from client_images import Images, fakes, generator, pixels
from torch import Tensor

from flgen.data import Digits
from flgen.errors import FlgenError, UsageError
from flgen.metrics.trained import TrainedExtractor
from flgen.models.moment_losses import ClassifierMoments, MomentMatching, VggMoments
from flgen.models.vgg import VggFeatures, feature_count, load_state, vgg_input
from flgen.privacy.noise import NoiseSource
from flgen.privacy.statistics_release import StatisticsRelease


@pytest.fixture(scope="module")
def vgg_state() -> dict[str, Tensor]:
    return load_state("random")


@pytest.fixture(autouse=True)
def shared_weights(monkeypatch, vgg_state):
    """Draw the trial weights once, not in every test."""
    monkeypatch.setattr("flgen.models.vgg.load_state", lambda weights: vgg_state)


@pytest.fixture
def untrained(monkeypatch):
    """A classifier of digits whose weights are drawn, in place of a trained one."""

    def extractor(data, cache_dir=None, option=""):
        network = TrainedExtractor((data.channels, data.image_size, data.image_size), data.classes, generator(1))
        network.mean.fill_(0.3)
        network.std.fill_(0.2)
        return network.requires_grad_(False).eval()

    monkeypatch.setattr("flgen.metrics.trained.trained_extractor", extractor)
    return extractor


def plain_moments(state: dict[str, Tensor], images: Tensor, mode: str = "eval") -> Tensor:
    with torch.no_grad():
        flat = torch.cat([maps.flatten(1) for maps in VggFeatures(state, mode)(images)], dim=1).double()
    return torch.stack([flat.mean(0), flat.var(0)]).float()


def release(noise_multiplier: float = 1e-9, **options) -> StatisticsRelease:
    return StatisticsRelease(noise_multiplier, **{"source": NoiseSource(b"s" * 16), "min_records": 1} | options)


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
        monkeypatch.setattr(VggMoments, "features", lambda self, images, real=False: [images])
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

    def test_it_has_seen_no_data_set_of_flgen(self):
        assert VggMoments().public_data() is None

    @pytest.mark.parametrize("matching", ["instant", "ama"])
    def test_half_precision_does_not_reach_the_statistics(self, matching):
        loss, fake = VggMoments("random", matching=matching), fakes(6)
        state = loss.prepare(Images(pixels(8)), generator())
        exact = loss(fake, {name: value.clone() for name, value in state.items()}).item()
        half = fake.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(half, state)
        value.backward()
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact, rel=0.02)
        assert half.grad.isfinite().all()
        assert half.grad.abs().sum() > 0


@pytest.mark.usefixtures("untrained")
class TestClassifierMoments:
    def test_it_looks_through_all_relus_or_the_last(self):
        features = ClassifierMoments(Digits(image_size=16)).features(fakes(3))
        assert [tuple(feature.shape[1:]) for feature in features] == [(32, 16, 16), (64, 8, 8), (64, 4, 4), (64,)]
        (last,) = ClassifierMoments(Digits(image_size=16), layers="last").features(fakes(3))
        assert torch.equal(last, features[-1])

    def test_reals_and_fakes_are_seen_alike(self):
        loss = ClassifierMoments(Digits(image_size=16), matching="instant", batch_size=5)
        state = loss.prepare(Images(pixels(12)), generator())
        target = state["target"]
        flat = torch.cat([feature.flatten(1) for feature in loss.features(fakes(12, seed=0))], dim=1).double()
        torch.testing.assert_close(target, torch.stack([flat.mean(0), flat.var(0)]).float(), rtol=1e-4, atol=1e-5)
        assert loss(fakes(12, seed=0), state).item() == pytest.approx(0, abs=1e-5)

    def test_gradients_reach_the_pixels(self):
        loss = ClassifierMoments(Digits(), matching="instant")  # 8x8: images are resized
        state = loss.prepare(Images(pixels(8, size=16)), generator())
        fake = fakes(4, size=16).requires_grad_()
        loss(fake, state).backward()
        assert fake.grad.flatten(1).norm(dim=1).min() > 0

    def test_descent_brings_fakes_to_reals(self):
        loss = ClassifierMoments(Digits(), matching="ama", v_lr=0.05)
        state = loss.prepare(Images(pixels(64, size=8) // 4), generator())
        fake = fakes(64, size=8).requires_grad_()
        optimiser = torch.optim.Adam([fake], lr=0.05)
        distances = []
        for _ in range(40):
            optimiser.zero_grad()
            loss(fake, state).backward()
            optimiser.step()
            distances.append(state["distance"].item())
        assert distances[-1] < 0.2 * distances[0]

    def test_its_data_set_can_be_looked_at_before_anything_is_trained(self, monkeypatch):
        monkeypatch.setattr("flgen.metrics.trained.trained_extractor", None)
        assert ClassifierMoments().public_data().name == "digits"
        public = ClassifierMoments(Digits(part="public")).public_data()
        assert (public.name, len(public.train)) == ("digits-public", 719)

    def test_the_log_says_that_its_data_must_be_public(self, caplog):
        with caplog.at_level(logging.INFO, logger="flgen"):
            loss = ClassifierMoments()
            loss.load()
            loss.load()
        assert [record.message for record in caplog.records if "must be public" in record.message] == [
            "--model.loss sees images through a classifier of 'digits': if the run is to be private, that data set "
            "must be public"
        ]

    def test_loading_leaves_the_global_generator_alone(self):
        state = torch.get_rng_state()
        ClassifierMoments().load()
        assert torch.equal(torch.get_rng_state(), state)

    def test_presets_are_those_of_the_vgg_without_its_own(self):
        loss = ClassifierMoments()
        loss.adopt("reference")
        assert (loss.matching, loss.v_init) == ("ama", "random")
        assert set(ClassifierMoments.presets) == set(VggMoments.presets)

    def test_images_of_other_channels_are_refused(self):
        with pytest.raises(UsageError, match=r"of 1 channel\(s\), at images of 3: choose another --model.loss.data"):
            ClassifierMoments().prepare(Images(pixels(4, channels=3)), generator())


def test_a_data_set_that_cannot_be_classified_is_named_by_its_option():
    data = SimpleNamespace(name="one", classes=1, prepare_data=lambda: None, setup=lambda: None)
    with pytest.raises(UsageError, match=r"fewer than two classes: choose another --model\.loss\.data"):
        ClassifierMoments(data).load()


def test_missing_files_of_the_public_data_are_named_by_their_option():
    def setup() -> None:
        raise FlgenError("no files; give --data.root")

    data = SimpleNamespace(name="lost", prepare_data=lambda: None, setup=setup)
    for look in (ClassifierMoments(data).load, ClassifierMoments(data).public_data):
        with pytest.raises(FlgenError, match=r"no files; give --model\.loss\.data\.root"):
            look()


class Shown(MomentMatching):
    """Sees pixels as they are, from 0 to 2, and counts how often it looks at real ones."""

    def __init__(self, matching="instant", cache_dir=None, mode="eval", batch_size=4, weights=0.0):
        super().__init__(matching, "random", 1e-3, batch_size, cache_dir)
        self.mode, self.weights, self.looks = mode, weights, 0

    def features(self, images, *, real=False):
        self.looks += real
        return [images[:, :, :1] + 1, images[:, :, 1:] + 1 + self.weights]

    def feature_recipe(self):
        return {"weights": self.weights, "mode": self.mode}


def bounded(images: Tensor, squared: bool) -> Tensor:
    vectors = (images.double() / 127.5).flatten(1)
    vectors = vectors.square() if squared else vectors
    return vectors / vectors.norm(dim=1, keepdim=True)


class TestWithARelease:
    def test_the_target_is_the_means_of_bounded_features(self):
        loss, real = Shown(), pixels(10, size=4)
        loss.release = release()
        state = loss.prepare(Images(real), generator(), client=3)
        expected = torch.stack([bounded(real, False).mean(0), bounded(real, True).mean(0)]).float()
        torch.testing.assert_close(state["target"], expected, rtol=0, atol=1e-6)
        assert set(state) == {"target", "distance"}

    def test_the_noise_is_that_of_the_release(self):
        targets = {}
        for z, client in [(1e-9, 3), (2.0, 3), (2.0, 4)]:
            loss = Shown()
            loss.release = release(z)
            targets[z, client] = loss.prepare(Images(pixels(100, size=32)), generator(), client=client)["target"]
        noise = {client: (targets[2.0, client] - targets[1e-9, 3]).double() for client in (3, 4)}
        std = 2.0 * 2 / 100
        for drawn in noise.values():
            assert drawn.std().item() == pytest.approx(std, rel=4 / (2 * 2048) ** 0.5)
            assert abs(drawn.mean().item()) < 4 * std / 2048**0.5
        assert abs(torch.corrcoef(torch.stack([n.flatten() for n in noise.values()]))[0, 1].item()) < 4 / 2048**0.5

    def test_nothing_of_the_images_but_the_release_is_kept(self):
        """The same release gives the same state, whatever the images were."""
        states, losses = [], []
        for seed in (0, 1):
            loss = Shown(matching="ama")
            loss.release = release()
            object.__setattr__(loss.release, "release", lambda *given, **named: torch.ones(2, 16))
            states.append(loss.prepare(Images(pixels(10, size=4, seed=seed)), generator()))
            losses.append(loss)
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        ours, theirs = (vars(loss) for loss in losses)
        assert {
            name for name in ours if not isinstance(ours[name], StatisticsRelease) and ours[name] != theirs[name]
        } == set()

    def test_fakes_are_matched_by_the_same_bounded_means(self):
        loss, fake = Shown(), fakes(6, size=4)
        loss.release = release()
        state = loss.prepare(Images(pixels(10, size=4)), generator())
        ours = torch.stack([(bounded((fake + 1) * 127.5, squared)).mean(0) for squared in (False, True)])
        distance = (state["target"] - ours).square().sum().item()
        assert loss(fake, state).item() == pytest.approx(distance, rel=1e-4)
        assert state["distance"].item() == pytest.approx(distance, rel=1e-4)

    @pytest.mark.parametrize("matching", ["ama", "instant", "two_batch"])
    def test_fakes_like_the_reals_are_at_no_distance(self, matching):
        loss = Shown(matching)
        loss.release = release()
        state = loss.prepare(Images(pixels(8, size=4)), generator())
        fake = torch.cat([fakes(8, size=4, seed=0)] * 2).requires_grad_()
        loss(fake, state).backward()
        assert state["distance"].item() == pytest.approx(0, abs=1e-9)
        assert fake.grad.isfinite().all()

    @pytest.mark.parametrize(("matching", "least"), [("ama", 1), ("instant", 1), ("two_batch", 2)])
    def test_means_need_fewer_fakes_than_variances(self, matching, least):
        loss = Shown(matching)
        loss.release = release()
        state = loss.prepare(Images(pixels(8, size=4)), generator())
        assert loss(fakes(least, size=4), state).isfinite()
        with pytest.raises(UsageError, match=f"at least {least} images, not {least - 1}"):
            loss(fakes(least, size=4)[1:], state)

    def test_layers_that_are_bounded_one_by_one_cost_more_noise(self):
        asked = []
        loss = Shown()
        loss.release = release(per_layer=True)
        object.__setattr__(loss.release, "release", lambda means, n, client, layers: asked.append((n, client, layers)))
        with pytest.raises(AttributeError):
            loss.prepare(Images(pixels(8, size=4)), generator(), client=5)
        assert asked == [(8, 5, 2)]

    def test_a_client_with_too_few_images_is_named_before_they_are_looked_at(self):
        loss = Shown()
        loss.release = release(min_records=100)
        with pytest.raises(FlgenError, match=r"client 7 has 12 records.*--method\.privacy\.min_records"):
            loss.prepare(Images(pixels(12, size=4)), generator(), client=7)
        assert loss.looks == 0

    def test_negative_features_are_refused(self):
        loss = Shown(weights=-1.0)
        loss.release = release()
        with pytest.raises(FlgenError, match="needs finite ones that are not negative"):
            loss.prepare(Images(pixels(12, size=4)), generator())

    def test_a_network_that_looks_at_whole_batches_is_refused(self):
        loss = VggMoments("random", mode="train")
        loss.release = release()
        with pytest.raises(UsageError, match=r"--model\.loss\.mode train: one image changes"):
            loss.prepare(Images(pixels(4)), generator())
        for loss in (VggMoments("random", mode="eval"), ClassifierMoments(), Shown()):
            loss.check_private()

    def test_no_statistics_are_cached(self, tmp_path):
        loss = Shown(cache_dir=str(tmp_path))
        loss.prepare(Images(pixels(8, size=4)), generator())
        (kept,) = tmp_path.iterdir()
        kept.unlink()
        loss.release = release()
        loss.prepare(Images(pixels(8, size=4)), generator())
        assert list(tmp_path.iterdir()) == []
        assert loss.looks == 4

    def test_a_vgg_sees_reals_and_fakes_alike(self):
        loss = VggMoments("random", matching="instant", batch_size=8)
        loss.release = release()
        state = loss.prepare(Images(pixels(6, channels=3)), generator())
        assert all(0.5 < norm < 1 for norm in state["target"].norm(dim=1))  # of means of vectors of norm 1
        assert loss(fakes(6, channels=3, seed=0), state).item() == pytest.approx(0, abs=1e-9)


class TestCache:
    def prepared(self, folder, images=None, seed=0, **options):
        loss = Shown("ama", cache_dir=str(folder), **options)
        state = loss.prepare(Images(pixels(10, size=4) if images is None else images), generator(seed))
        return loss, state

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_a_second_run_gives_the_same_bits_without_looking(self, tmp_path, mode):
        first, state = self.prepared(tmp_path, mode=mode)
        second, again = self.prepared(tmp_path, mode=mode)
        assert (first.looks, second.looks) == (3, 0)
        uncached = Shown("ama", mode=mode).prepare(Images(pixels(10, size=4)), generator())
        for name, value in state.items():
            assert torch.equal(value, again[name])
            assert torch.equal(value, uncached[name])

    def test_every_ingredient_counts(self, tmp_path, monkeypatch):
        self.prepared(tmp_path)
        other = pixels(10, size=4)
        other[7, 0, 2, 2] ^= 1
        assert self.prepared(tmp_path, other)[0].looks > 0
        assert self.prepared(tmp_path, pixels(10, size=4)[:9])[0].looks > 0
        assert self.prepared(tmp_path, pixels(10, size=4).view(10, 1, 2, 8))[0].looks > 0
        assert self.prepared(tmp_path, weights=0.5)[0].looks > 0
        assert self.prepared(tmp_path, mode="train")[0].looks > 0
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert self.prepared(tmp_path)[0].looks > 0
        monkeypatch.setattr("flgen.models.statistics_cache.RECIPE", 0)
        assert self.prepared(tmp_path)[0].looks > 0

    def test_order_and_batches_count_only_where_images_see_each_other(self, tmp_path):
        for mode, again in [("eval", False), ("train", True)]:
            self.prepared(tmp_path, mode=mode)
            assert (self.prepared(tmp_path, mode=mode, seed=1)[0].looks > 0) is again
            assert (self.prepared(tmp_path, mode=mode, batch_size=5)[0].looks > 0) is again
            assert (self.prepared(tmp_path, pixels(10, size=4).flip(0), mode=mode)[0].looks > 0) is again

    def test_a_damaged_file_is_computed_again(self, tmp_path, caplog):
        _, state = self.prepared(tmp_path)
        (path,) = tmp_path.iterdir()
        whole = path.read_bytes()
        for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:100], b""):
            path.write_bytes(damaged)
            caplog.clear()
            loss, again = self.prepared(tmp_path)
            assert loss.looks > 0
            assert torch.equal(state["target"], again["target"])
            assert f"the file {path} is damaged" in caplog.text
            assert path.read_bytes() == whole

    def test_a_folder_that_cannot_be_written_stops_nothing(self, tmp_path, caplog):
        (tmp_path / "file").touch()
        self.prepared(tmp_path / "file")
        assert "the statistics are not kept in --model.loss.cache_dir" in caplog.text

    def test_nothing_is_kept_unless_asked_for(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        Shown().prepare(Images(pixels(4, size=4)), generator())
        assert VggMoments().cache_dir is ClassifierMoments().cache_dir is None
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.usefixtures("untrained")
    def test_the_networks_say_what_their_features_depend_on(self, vgg_state, monkeypatch):
        def recipe(**options):
            return VggMoments("random", **options).feature_recipe()

        before = recipe()
        assert before == recipe()
        assert before != recipe(mode="train")
        assert before != recipe(real_range="symmetric")
        other = {name: value * 1.5 if name == "features.0.bias" else value for name, value in vgg_state.items()}
        other["features.1.running_mean"] = vgg_state["features.1.running_mean"] + 1
        monkeypatch.setattr("flgen.models.vgg.load_state", lambda weights: other)
        assert recipe() != before
        small = ClassifierMoments(Digits(image_size=16))
        assert small.feature_recipe() == ClassifierMoments(Digits(image_size=16)).feature_recipe()
        assert small.feature_recipe() != ClassifierMoments(Digits(image_size=16), layers="last").feature_recipe()
        assert small.feature_recipe() != ClassifierMoments(Digits(image_size=8)).feature_recipe()
