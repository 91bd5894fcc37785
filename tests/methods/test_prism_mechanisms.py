"""What a private run of PRISM refuses before anything is trained or released (prism.md, section 6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flgen import (
    CentralGaussian,
    ClassifierMoments,
    Digits,
    KernelMMD,
    Prism,
    ReferenceBug,
    ResnetGenerator,
    StatisticsGaussian,
    ThetaGaussian,
    VggMoments,
)
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet
from flgen.errors import UsageError
from flgen.federation.clients import Client, Federation
from flgen.federation.streams import RandomStreams
from flgen.methods.prism_privacy import PrismPrivacy

PRIVATE = [StatisticsGaussian, ThetaGaussian, CentralGaussian]
UNPROTECTED = [PrismPrivacy, ReferenceBug]


class Copied(ImageData):
    """Images of another data set, under a name of their own."""

    def __init__(self, images: ImageSet) -> None:
        super().__init__()
        self._images = images

    def layout(self) -> ImageLayout:
        return ImageLayout("copied", tuple("0123456789"), channels=1, image_size=8)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._images, self._images


def loaded(data: Any) -> Any:
    data.setup()
    return data


def federation(*samples: int) -> Federation:
    def open_data(device: Any) -> Any:
        raise AssertionError("a check looks at no image")

    streams = RandomStreams(0)
    return Federation([Client(k, n, streams, key=k, open_data=open_data) for k, n in enumerate(samples)], streams)


@pytest.mark.parametrize("mechanism", PRIVATE)
@pytest.mark.parametrize(
    ("seen", "own"),
    [
        (Digits(), Digits()),
        (Digits(part="public"), Digits()),
        (Digits(test_fraction=0.25), Digits(test_fraction=0.3)),
        (Digits(test_fraction=0.3, part="public"), Digits(part="private")),
        (Digits(image_size=16), Digits()),
    ],
    ids=["the same", "a half", "another test fraction", "halves of others", "another size"],
)
def test_a_network_that_was_trained_on_the_run_s_images_is_refused(mechanism: Any, seen: Any, own: Any) -> None:
    with pytest.raises(UsageError, match=r"^--model.loss.data \(digits.*\) shares images with .*--method.privacy"):
        mechanism().check_loss(ClassifierMoments(data=seen), loaded(own))


@pytest.mark.parametrize("mechanism", PRIVATE)
def test_copies_of_the_run_s_images_are_known_under_any_name(mechanism: Any) -> None:
    own = loaded(Digits(part="private"))
    with pytest.raises(UsageError, match=r"\(copied\) shares images with the run's data set \(digits-private\)"):
        mechanism().check_loss(ClassifierMoments(data=Copied(own.train)), own)


@pytest.mark.parametrize("mechanism", PRIVATE)
def test_a_network_of_other_images_is_welcome(mechanism: Any) -> None:
    private = loaded(Digits(part="private"))
    public = Digits(part="public")
    for loss in (ClassifierMoments(data=public), ClassifierMoments(data=Digits(image_size=16, part="public"))):
        mechanism().check_loss(loss, private)
    mechanism().check_loss(ClassifierMoments(data=Copied(loaded(public).train)), private)
    mechanism().check_loss(VggMoments(mode="eval"), private)


@pytest.mark.parametrize("mechanism", PRIVATE)
def test_it_is_refused_before_the_network_is_trained(mechanism: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def extractor(*_: Any, **__: Any) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr("flgen.metrics.trained.trained_extractor", extractor)
    model = ResnetGenerator(image_size=8, latent=8, width=8, loss=ClassifierMoments())
    with pytest.raises(UsageError, match="shares images with"):
        Prism(privacy=mechanism()).prepare(model, loaded(Digits()))


@pytest.mark.parametrize("mechanism", PRIVATE)
def test_no_private_run_keeps_statistics_on_the_disk(mechanism: Any, tmp_path: Path) -> None:
    private = loaded(Digits(part="private"))
    for kind in (VggMoments, ClassifierMoments):
        loss = kind(cache_dir=str(tmp_path / "moments"))
        loss.adopt("fixed")
        with pytest.raises(UsageError, match=r"^--model.loss.cache_dir .*moments keeps statistics .* leave it out"):
            mechanism().check_loss(loss, private)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mechanism", UNPROTECTED)
def test_where_nothing_is_promised_nothing_is_refused(mechanism: Any, tmp_path: Path) -> None:
    mechanism().check_loss(ClassifierMoments(cache_dir=str(tmp_path)), loaded(Digits()))
    mechanism().check_loss(KernelMMD(), loaded(Digits()))


def test_only_mechanism_a_refuses_a_loss_that_looks_at_images_in_every_step() -> None:
    private = loaded(Digits(part="private"))
    with pytest.raises(UsageError, match="KernelMMD looks at real images in every step"):
        StatisticsGaussian().check_loss(KernelMMD(), private)
    ThetaGaussian().check_loss(KernelMMD(), private)


def test_a_client_with_too_few_records_is_named_before_the_run_begins() -> None:
    with pytest.raises(UsageError, match=r"^client 1 has 49 records.*lower --method\.privacy\.min_records$"):
        Prism(privacy=StatisticsGaussian(min_records=50)).check(federation(120, 49, 50))
    Prism(privacy=StatisticsGaussian(min_records=50)).check(federation(120, 50, 50))
    Prism(privacy=ThetaGaussian()).check(federation(1, 1))
