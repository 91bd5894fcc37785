"""Measuring a job's state: what the server can measure by itself, and what only each client can."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError
from flgen.experiment.checkpoints import Checkpoint
from flgen.federation.clients import Client
from flgen.job import Job
from flgen.methods.base import PeerMethod, ServerMethod
from flgen.metrics.over_clients import over_clients
from flgen.topology.channel import Channel
from flgen.topology.star import SERVER_RANK
from flgen.wire.codecs import decode_payload, encode_payload

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def tests_clients(job: Job) -> bool:
    """Whether an evaluation tests each client's model: on its own data if wanted; between peers there is no other."""
    return job.evaluation.personal if job.method.personal else isinstance(job.method, PeerMethod)


def measure(
    job: Job, fabric: Fabric, t: int, channel: Channel | None = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Return the metrics of the current model and the images they were measured on (on the server).

    Args:
        job: With its method set up.
        fabric: This rank's.
        t: The round whose streams the samples are drawn from.
        channel: Joins the ranks, which must all call; None on one process.
    """
    channel = channel or Channel(0, 1, fabric.device, 1, 1)
    is_server = channel.rank == SERVER_RANK
    samples = job.method.samples(job.evaluation.images, t) if is_server else None
    metrics = job.method.evaluate(t) if is_server else {}
    seed = job.streams.seed_for("evaluation")
    metrics.update(job.evaluation.measure(samples, job.data, channel, fabric.device, seed))
    return metrics, samples or {}


def measure_clients(
    job: Job, state_of: Callable[[Client], dict[str, Tensor]], t: int, channel: Channel
) -> dict[int, dict[str, float]]:
    """Return what every client's model is worth on the client's own test data, by client id (on the server).

    Args:
        job: With its method set up.
        state_of: Returns a client's state.
        t: The round.
        channel: Joins the ranks, which must all call.
    """
    method, download = job.method, {}
    if isinstance(method, ServerMethod):
        # Outside the protocol: an evaluation is no traffic of the method.
        offered = encode_payload(method.download(t + 1)) if channel.rank == SERVER_RANK else None
        download = decode_payload(channel.broadcast(offered, SERVER_RANK), method.coding_contexts())
    measured = {}
    for client in job.federation.hosted_by(channel.rank):
        client.state = state_of(client)
        measured[client.id] = method.evaluate_client(client, download, t)
        client.state = {}
    return {client: metrics for said in channel.agree(measured) for client, metrics in said.items()}


def measure_checkpoint_clients(job: Job, checkpoint: Checkpoint, fabric: Fabric) -> dict[str, float]:
    """Return the metrics of a checkpoint's clients on their own test data, over all of them, on this one process."""
    states = checkpoint.client_states()

    def state_of_checkpoint(client: Client) -> dict[str, Tensor]:
        kept, initial = states.get(client.id, {}), job.method.initial_state(client)
        for name in initial.keys() & kept.keys():
            if (kept[name].shape, kept[name].dtype) != (initial[name].shape, initial[name].dtype):
                raise FlgenError(
                    f"checkpoint {checkpoint.path} has {name} of client {client.id} in another shape than this run: "
                    "use another one"
                )
        return {name: tensor.to(fabric.device) for name, tensor in kept.items()} or initial

    channel = Channel(0, 1, fabric.device, 1, 1)
    measured = measure_clients(job, state_of_checkpoint, checkpoint.round, channel)
    return over_clients(measured, job.federation.measured_samples)
