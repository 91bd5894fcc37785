from __future__ import annotations

import logging
import multiprocessing
from types import SimpleNamespace

import filelock
import pytest
import torch

from flgen.errors import FlgenError, UsageError
from flgen.metrics import trained
from flgen.metrics.extractors import load_extractor
from flgen.metrics.features import extract_features
from flgen.metrics.fidelity import fidelity


@pytest.fixture
def short_training(monkeypatch):
    monkeypatch.setattr(trained, "MOST_STEPS", 3)


def striped(size: int, channels: int, *, seed: int = 0, count: int = 40) -> SimpleNamespace:
    """Two classes of noisy images, bright above or bright below."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (count,), generator=draws)
    images = torch.randint(0, 100, (count, channels, size, size), generator=draws)
    images[labels == 0, :, : size // 2] += 100
    images[labels == 1, :, size // 2 :] += 100
    split = SimpleNamespace(images=images.to(torch.uint8), labels=labels)
    return SimpleNamespace(name="stripes", classes=2, train=split, test=split)


def test_held_out_digits_are_recognised(digits_extractor, digits):
    assert digits_extractor.accuracy >= 0.97
    predicted = digits_extractor.network.class_scores(digits.test.images).argmax(dim=1)
    assert float((predicted == digits.test.labels).double().mean()) == pytest.approx(digits_extractor.accuracy)


def test_features_tell_real_digits_from_noise(digits_extractor, digits):
    noise = torch.randint(0, 256, (360, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    real, other, fake = (
        extract_features(digits_extractor, images, device="cpu")
        for images in (digits.test.images, digits.train.images[:360], noise)
    )
    good, bad = fidelity(real, other), fidelity(real, fake)
    assert real.shape == (360, 64)
    assert 10 * good["fid"] < bad["fid"]
    assert 10 * good["kid"] < bad["kid"]
    assert good["precision"] > 0.7 > 0.3 > bad["precision"]
    assert good["coverage"] > 0.7 > 0.3 > bad["coverage"]


def test_features_have_unit_mean_square_over_the_training_set(digits_extractor, digits):
    features = extract_features(digits_extractor, digits.train.images, device="cpu")
    assert float(features.double().square().mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("size", [8, 12, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_from_8_to_64_and_both_channel_counts(size, channels, tmp_path):
    data = striped(size, channels)
    extractor = load_extractor("stripes", data=data, cache_dir=tmp_path)
    features = extractor(data.train.images)
    assert features.shape == (40, 64)
    assert torch.isfinite(features).all()
    assert features.std(dim=0).max() > 0


@pytest.mark.usefixtures("short_training")
def test_images_of_another_size_are_resized_and_grey_becomes_rgb(tmp_path):
    extractor = load_extractor("stripes", data=striped(8, 3), cache_dir=tmp_path)
    grey = striped(16, 1).train.images
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))
    grey_extractor = load_extractor("stripes", data=striped(8, 1), cache_dir=tmp_path)
    with pytest.raises(UsageError, match=r"images of 1 channel\(s\) and these have 3"):
        grey_extractor(striped(8, 3).train.images)


def test_floats_are_seen_as_the_bytes_they_stand_for_and_have_gradients(digits_extractor, digits):
    network, images = digits_extractor.network, digits.test.images[:4]
    exact = images.float().requires_grad_()
    assert torch.equal(network(exact), network(images))
    network(exact).sum().backward()
    assert exact.grad.flatten(1).norm(dim=1).min() > 0


@pytest.mark.usefixtures("short_training")
def test_training_is_repeatable_and_leaves_the_global_generator_alone(tmp_path):
    data = striped(8, 1)
    state = torch.get_rng_state()
    first = load_extractor("stripes", data=data, cache_dir=tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        torch.manual_seed(1234)
        second = load_extractor("stripes", data=data, cache_dir=tmp_path / "b")
    assert torch.equal(first(data.train.images), second(data.train.images))


@pytest.mark.usefixtures("short_training")
def test_the_second_use_reads_the_cache(tmp_path, monkeypatch, caplog):
    data = striped(8, 1)
    first = load_extractor("stripes", data=data, cache_dir=tmp_path)
    monkeypatch.setattr(trained, "_train", lambda data: pytest.fail("trained again"))
    with caplog.at_level(logging.INFO, logger="flgen"):
        second = load_extractor("stripes", data=data, cache_dir=tmp_path)
    assert torch.equal(first(data.train.images), second(data.train.images))
    assert second.accuracy == first.accuracy
    assert f"held-out accuracy {first.accuracy:.4f}" in caplog.text


@pytest.mark.usefixtures("short_training")
def test_the_cache_is_keyed_by_images_labels_classes_and_recipe(tmp_path, monkeypatch):
    data = striped(8, 1)

    def files_after_loading(data) -> int:
        load_extractor("stripes", data=data, cache_dir=tmp_path)
        return len(list(tmp_path.glob("stripes-*.pt")))

    assert files_after_loading(data) == 1
    assert files_after_loading(striped(8, 1)) == 1
    assert files_after_loading(striped(8, 1, seed=1)) == 2
    other_labels = SimpleNamespace(images=data.train.images, labels=1 - data.train.labels)
    assert files_after_loading(SimpleNamespace(name="stripes", classes=2, train=other_labels, test=data.test)) == 3
    assert files_after_loading(SimpleNamespace(name="stripes", classes=3, train=data.train, test=data.test)) == 4
    monkeypatch.setattr(trained, "RECIPE", trained.RECIPE + 1)
    assert files_after_loading(data) == 5


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("damage", ["truncated", "one byte", "not an archive", "another network"])
def test_a_damaged_file_is_trained_again_with_a_warning(tmp_path, caplog, damage):
    data = striped(8, 1)
    expected = load_extractor("stripes", data=data, cache_dir=tmp_path)(data.train.images)
    (path,) = tmp_path.glob("*.pt")
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "not an archive":
        path.write_text("hello")
    else:
        torch.save({"accuracy": 1.0, "state": {"weight": torch.zeros(3)}}, path)
    with caplog.at_level(logging.WARNING, logger="flgen"):
        again = load_extractor("stripes", data=data, cache_dir=tmp_path)
    assert [record.message for record in caplog.records if "is damaged" in record.message] == [caplog.messages[0]]
    assert str(path) in caplog.text
    assert torch.equal(again(data.train.images), expected)
    caplog.clear()
    load_extractor("stripes", data=data, cache_dir=tmp_path)
    assert caplog.messages == []


@pytest.mark.usefixtures("short_training")
def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("FLGEN_CACHE", str(tmp_path))
    load_extractor("stripes", data=striped(8, 1))
    assert len(list((tmp_path / "extractors").glob("stripes-*.pt"))) == 1
    monkeypatch.delenv("FLGEN_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    load_extractor("stripes", data=striped(8, 1))
    assert len(list((tmp_path / "home" / ".cache" / "flgen" / "extractors").glob("stripes-*.pt"))) == 1


@pytest.mark.usefixtures("short_training")
def test_an_unwritable_cache_costs_a_warning_not_the_run(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    extractor = load_extractor("stripes", data=striped(8, 1), cache_dir=tmp_path / "file" / "cache")
    assert extractor(striped(8, 1).test.images).shape == (40, 64)
    assert "is trained but not kept" in caplog.text


def test_waiting_for_another_process_has_an_end(tmp_path, monkeypatch):
    data = striped(8, 1)
    monkeypatch.setattr(trained, "LOCK_TIMEOUT_S", 0.05)
    with (
        filelock.FileLock(tmp_path / f"{trained._file_name(data)}.lock"),
        pytest.raises(FlgenError, match="another process has been training the extractor 'stripes'"),
    ):
        load_extractor("stripes", data=data, cache_dir=tmp_path)


def _load_in_a_process(cache_dir, started, results) -> None:
    torch.set_num_threads(1)
    train = trained._train
    trained._train = lambda data: (results.put("trained"), train(data))[1]
    started.wait()
    trained.trained_extractor(striped(8, 1), cache_dir)
    results.put("loaded")


@pytest.mark.usefixtures("short_training")
def test_of_several_processes_one_trains(tmp_path):
    context = multiprocessing.get_context("fork")
    started, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=_load_in_a_process, args=(tmp_path, started, results)) for _ in range(3)]
    for process in processes:
        process.start()
    reports = sorted(results.get(timeout=60) for _ in range(4))
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert reports == ["loaded", "loaded", "loaded", "trained"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 1}, "fewer than two classes"),
        ({"train": SimpleNamespace(images=torch.zeros(0, 1, 8, 8), labels=torch.zeros(0))}, "train split has 0 images"),
        (
            {"test": SimpleNamespace(images=torch.zeros(4, 1, 8, 8), labels=torch.tensor([0, 1, 2, 0]))},
            r"test labels are not all in 0\.\.1",
        ),
    ],
)
def test_a_data_set_that_cannot_be_classified_is_refused(tmp_path, change, message):
    data = SimpleNamespace(**{**vars(striped(8, 1)), **change})
    with pytest.raises(UsageError, match=rf"{message}.*--evaluation\.extractors"):
        load_extractor("stripes", data=data, cache_dir=tmp_path)
