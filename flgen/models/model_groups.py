"""The mixed federations of FedKTL and of the papers around it, by their published names (fedktl.md, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from flgen.errors import UsageError
from flgen.federation.model_group import ModelGroup
from flgen.models.pooled_classifier import Architecture, HeadActivation, PooledClassifier


@dataclass(frozen=True)
class Member:
    """One network of a group.

    Args:
        architecture: The network before its head.
        head_width: Elements between the two linear layers of the head; None is a head of one linear layer.
        head_activation: What stands between the two layers of the head.
    """

    architecture: Architecture
    head_width: int | None = None
    head_activation: HeadActivation = "relu"


class PublishedGroup(ModelGroup):
    """A group of `PooledClassifier`s with features of one width; a subclass lists its `members` in published order.

    Args:
        image_size: Height and width of the images in pixels. Null takes the data set's (from Python: 32).
        channels: Channels of the images, 1 or 3; grey ones are shown to the networks three times. Null takes the data
            set's (from Python: 3).
        classes: Number of classes. Null takes the data set's (from Python: 10).
        feature_width: Elements of the features z of every network.
        learning_rate: Learning rate of SGD.
        weight_decay: Factor of the weights that SGD adds to their gradient.
        momentum: Momentum of SGD; 0 is plain SGD, which keeps no state.
        assignment: Client i has network i mod X of X ("cyclic"), or clients are cut into X runs of equal length, give
            or take one ("blocks"), or the list says each client's network, counted from 0.

    Raises:
        UsageError: A size does not suit one of the networks, a number is negative, or the list names a network that
            does not exist.

    Source: fedktl.md, section 3.
    """

    members: ClassVar[tuple[Member, ...]] = ()

    def __init__(
        self,
        image_size: int | None = None,
        channels: int | None = None,
        classes: int | None = None,
        feature_width: int = 512,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        assignment: Literal["cyclic", "blocks"] | list[int] = "cyclic",
    ) -> None:
        if not self.members:
            raise UsageError("--model PublishedGroup has no networks of its own: name one of its groups, such as HtFE8")
        networks = [
            PooledClassifier(
                member.architecture,
                image_size,
                channels,
                classes,
                feature_width,
                member.head_width,
                member.head_activation,
                learning_rate,
                weight_decay,
                momentum,
            )
            for member in self.members
        ]
        super().__init__(list(networks), assignment)
        first = networks[0]
        self.image_size, self.channels, self.classes = first.image_size, first.channels, first.classes
        self.feature_width = feature_width
        self.learning_rate, self.weight_decay, self.momentum = learning_rate, weight_decay, momentum


_EIGHT: tuple[Architecture, ...] = (
    "cnn4",
    "googlenet",
    "mobilenet_v2",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
)
_HEADS = (None, 512, 256, 128)


class HtFE1(PublishedGroup):
    """ResNet4 for every client."""

    members = (Member("resnet4"),)


class HtFE2(PublishedGroup):
    """The 4-layer CNN and ResNet18."""

    members = (Member("cnn4"), Member("resnet18"))


class HtFE3(PublishedGroup):
    """ResNet10, 18 and 34."""

    members = (Member("resnet10"), Member("resnet18"), Member("resnet34"))


class HtFE4(PublishedGroup):
    """The 4-layer CNN, GoogLeNet, MobileNetV2 and ResNet18."""

    members = (Member("cnn4"), Member("googlenet"), Member("mobilenet_v2"), Member("resnet18"))


class HtFE8(PublishedGroup):
    """The 4-layer CNN, GoogLeNet, MobileNetV2, and ResNet18, 34, 50, 101 and 152."""

    members = tuple(Member(architecture) for architecture in _EIGHT)


class HtFE9(PublishedGroup):
    """ResNet4, 6, 8, 10, 18, 34, 50, 101 and 152."""

    members = (
        Member("resnet4"),
        Member("resnet6"),
        Member("resnet8"),
        Member("resnet10"),
        Member("resnet18"),
        Member("resnet34"),
        Member("resnet50"),
        Member("resnet101"),
        Member("resnet152"),
    )


class HtFE8HtC4(PublishedGroup):
    """HtFE8 with four heads: one linear layer, or two with 512, 256 or 128 elements and a ReLU between them.

    Network j has head j mod 4, so that client i has head i mod 4 if it has network i mod 8. The reference code ends
    these heads in a ReLU, which is left out: it would hold logits and projections at zero and above.
    """

    members = tuple(Member(architecture, _HEADS[j % len(_HEADS)]) for j, architecture in enumerate(_EIGHT))


class HtM10(PublishedGroup):
    """HtFE8, ViT-B/16 and ViT-B/32, for images of a multiple of 32 pixels a side.

    The ViTs have a head of two linear layers, with 768 elements and a tanh between them.
    """

    members = (*HtFE8.members, Member("vit_b_16", 768, "tanh"), Member("vit_b_32", 768, "tanh"))
