"""A small run of every method: what the laws and the integration tests train, in a second or two.

A new method adds its name to METHODS and says in `small_method` how a small one is made.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flgen.federation.training_options import LocalTraining

SERVER_METHODS = ["Prism", "FedAvg", "FedProx", "Scaffold", "FedOpt", "Ditto", "SubFedAvg"]
SERVER_METHODS += ["FedDF", "DSFL", "FedET", "FedGen", "DynaFed"]
SERVER_METHODS += ["FedGH", "FedGenHeads"]
SERVER_METHODS += ["FedProto", "FedTGP", "FedDistill"]
SERVER_METHODS += ["FML", "FedKD"]
SERVER_METHODS += ["LGFedAvg", "FedKTL"]
SERVER_METHODS += ["FedAvgGenerator", "DPFedAvgGAN"]
SERVER_METHODS += ["MDGAN", "UAGAN", "GSWGAN"]
PEER_METHODS = ["DisPFL", "My1", "My2", "DPSGD", "FedFOMO", "Local", "Isolated"]
METHODS = SERVER_METHODS + PEER_METHODS

TRAINING = LocalTraining(epochs=2, batch_size=64, learning_rate_decay=0.9, clip_norm=5.0)

# What the server of a method does by itself, in a few steps.
SMALL_OPTIONS: dict[str, dict[str, Any]] = {
    "FedDF": {"distillation_steps": 6, "distillation_batch_size": 32, "validate_every": 2, "patience": 4},
    "DSFL": {"public_samples": 40, "distillation_epochs": 2},
    "FedET": {"distillation_steps": 4, "distillation_batch_size": 16},
    "FedGen": {"hidden": 16, "noise": 8, "generated_batch_size": 8, "generator_steps": 3},
    "FedGenHeads": {"hidden": 16, "noise": 8, "generator_steps": 3},
    "FedKD": {"energy_rounds": 5},
    "FedTGP": {"server_epochs": 3},
    "DynaFed": {"trajectory_rounds": 2, "images_per_class": 1, "synthesis_steps": 2, "inner_steps": 2}
    | {"fine_tune_epochs": 2, "fine_tune_batch_size": 4},
}


def small_method(name: str, transport: str = "reduce", **options: Any) -> Any:
    """Return a method of a few local steps.

    Args:
        name: Its class.
        transport: How uploads travel on a star.
        options: Replace its options.
    """
    import flgen
    from flgen.masks.sparsity import Sparsity
    from flgen.methods.latent_alignment import AlignmentTraining
    from flgen.privacy.gradient_privacy import GradientPrivacy
    from flgen.privacy.update_privacy import UpdatePrivacy
    from flgen.topology import RandomGraph, Star

    made: dict[str, Any]
    if name in ("Prism", "FedAvgGenerator"):
        made = {"local_steps": 2, "batch_size": 8, "recalibration_batches": 2}
    elif name == "DPFedAvgGAN":
        made = {"local_steps": 2, "batch_size": 8, "generator_steps": 2, "recalibration_batches": 2}
        # Noise that does not depend on the number of rounds, of which some tests begin with fewer.
        made["privacy"] = UpdatePrivacy(epsilon=None, noise_multiplier=0.5, update_clip=0.05)
    elif name in ("MDGAN", "UAGAN"):
        made = {"local_steps": 2, "batch_size": 8, "recalibration_batches": 2}
        if name == "MDGAN":
            made["swap_epochs"] = 0.02  # in every round
    elif name == "GSWGAN":
        made = {"local_steps": 2, "batch_size": 4, "fake_batches": 2, "warm_up_steps": 1, "recalibration_batches": 2}
        made["privacy"] = GradientPrivacy(epsilon=None, noise_multiplier=0.1)
    elif name in ("DisPFL", "My1", "My2"):
        made = {"training": TRAINING, "sparsity": Sparsity(density=0.5, anneal_rounds=5)}
    elif name == "FedFOMO":
        made = {"training": TRAINING, "neighbours": 2}
    elif name == "Isolated":
        made = {"training": TRAINING, "participants": 4}
    elif name == "FedAvg":
        made = {"training": LocalTraining(batch_size=32)}
    elif name == "Scaffold":
        made = {"training": replace(TRAINING, clip_norm=None)}
    elif name in SMALL_OPTIONS:
        made = {"training": TRAINING, **SMALL_OPTIONS[name]}
    else:
        made = {"training": TRAINING}
    if name == "FedKTL":
        made["generator"] = flgen.RandomProjection(channels=1)
        made["alignment"] = AlignmentTraining(epochs=3)
    if name in ("FedDF", "DSFL", "FedET"):
        made["public_data"] = flgen.Digits()
    if name in SERVER_METHODS:
        made["topology"] = Star(transport=transport)  # type: ignore[arg-type]
    elif name not in ("Local", "Isolated", "FedFOMO"):
        made["topology"] = RandomGraph(degree=2)
    return getattr(flgen, name)(**{**made, **options})


def small_model(method: str) -> Any:
    """Return the module that a small run of a method trains; its weights are those of PyTorch's global seed."""
    from flgen import DenseGenerator, ImageGAN, KernelMMD, ResnetGenerator, SmallCNN

    if method == "Prism":
        return ResnetGenerator(image_size=8, latent=8, width=8, loss=KernelMMD(real_batch=8))
    if method == "FedAvgGenerator":
        return DenseGenerator(image_size=8, latent=8, width=8, loss=KernelMMD(real_batch=8))
    if method in ("DPFedAvgGAN", "MDGAN", "UAGAN", "GSWGAN"):
        return ImageGAN(image_size=8, latent=8, width=8, discriminator_width=4)
    return SmallCNN(image_size=8, width=4)
