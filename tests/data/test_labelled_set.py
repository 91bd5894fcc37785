"""Labelled sets of samples of any kind."""

from __future__ import annotations

import pytest
import torch

from flgen.data.image_set import ImageSet
from flgen.data.labelled_set import LabelledSet
from flgen.errors import UsageError

TOKENS = torch.arange(12).reshape(4, 3)
LABELS = torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("inputs", [TOKENS, TOKENS.to(torch.int16), TOKENS.float(), TOKENS[:, 0]])
def test_inputs_are_of_any_type_and_shape(inputs):
    samples = LabelledSet(inputs, LABELS)
    assert len(samples) == 4
    assert torch.equal(samples.subset(torch.tensor([2])).inputs, inputs[2:3])


def test_a_subset_keeps_inputs_labels_and_attributes_together():
    part = LabelledSet(TOKENS, LABELS, {"speaker": LABELS + 10}).subset(torch.tensor([3, 0]))
    assert part.inputs.tolist() == [[9, 10, 11], [0, 1, 2]]
    assert part.labels.tolist() == [3, 0]
    assert part.attributes["speaker"].tolist() == [13, 10]


def test_a_set_behind_another_keeps_the_attributes_that_both_have():
    first = LabelledSet(TOKENS, LABELS, {"speaker": LABELS + 10, "room": LABELS})
    both = first.followed_by(LabelledSet(TOKENS[:1], LABELS[3:], {"speaker": LABELS[:1] + 90}))
    assert both.inputs.tolist() == [*TOKENS.tolist(), [0, 1, 2]]
    assert both.labels.tolist() == [0, 1, 2, 3, 3]
    assert {name: values.tolist() for name, values in both.attributes.items()} == {"speaker": [10, 11, 12, 13, 90]}
    assert len(first) == 4


@pytest.mark.parametrize("inputs", [TOKENS, TOKENS.float(), TOKENS[:, 0], TOKENS.T.contiguous().T, TOKENS > 4])
def test_equal_inputs_have_one_digest_and_others_have_others(inputs):
    samples, again = LabelledSet(inputs, LABELS), LabelledSet(inputs.clone(), LABELS.flip(0))
    assert samples.digests() == again.digests()
    assert len(samples.digests()) == len(inputs.unique(dim=0))
    first, last = (samples.subset(torch.tensor([row])).digests() for row in (0, 3))
    assert first < samples.digests()
    assert first.isdisjoint(last)


def test_a_subset_of_images_is_a_set_of_images():
    images = ImageSet(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), LABELS)
    assert isinstance(images.subset(torch.tensor([1])), ImageSet)
    assert isinstance(images.to("cpu"), ImageSet)


@pytest.mark.parametrize(
    ("labels", "attributes", "says"),
    [
        (LABELS[:3], {}, r"4 samples need labels as int64 \(N,\), not int64 \(3,\)"),
        (LABELS.float(), {}, "not float32"),
        (LABELS, {"speaker": LABELS.int()}, "4 samples need speaker"),
    ],
)
def test_labels_and_attributes_of_the_wrong_kind_are_refused(labels, attributes, says):
    with pytest.raises(UsageError, match=says):
        LabelledSet(TOKENS, labels, attributes)
