"""The Fabric strategies: ranks in one process group that train one model together, or each its own clients.

Processes, devices and launchers are Fabric's. For a federation two things differ from its DDP: modules stay
unwrapped, so no gradient crosses a rank, and loaders stay whole, since each rank has clients of its own.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from lightning.fabric.strategies import DDPStrategy
from torch.nn import Module


class RankStrategy(DDPStrategy):
    """One process per device in one process group of ours; gradients are averaged over the ranks, as DDP does.

    Args:
        timeout_s: Limit of every collective, seconds.
        start_method: "fork" on CPU (one import for all ranks), "popen" on GPU.
        lost_after_s: How long another node may be silent, seconds.
    """

    def __init__(self, timeout_s: float, start_method: Any, lost_after_s: float = 30) -> None:
        super().__init__(timeout=timedelta(seconds=timeout_s), start_method=start_method)
        self.timeout_s = timeout_s
        self.lost_after_s = lost_after_s

    @property
    def forked(self) -> bool:
        """Whether the ranks are forked children of the process that launches them."""
        return self._start_method == "fork"

    def _configure_launcher(self) -> None:
        assert self.cluster_environment is not None
        if self.cluster_environment.creates_processes_externally:
            self._start_method = "popen"  # torchrun or SLURM has started the ranks: there is nothing left to fork
        super()._configure_launcher()


class ClientParallelStrategy(RankStrategy):
    """One process per device, no gradient synchronisation: every rank trains clients of its own.

    Args:
        timeout_s: Limit of every collective, seconds.
        start_method: "fork" on CPU, "popen" on GPU.
        lost_after_s: How long another node may be silent, seconds.
    """

    def __init__(self, timeout_s: float, start_method: Any, lost_after_s: float = 30) -> None:
        super().__init__(timeout_s, start_method, lost_after_s)
        self._backward_sync_control = None

    def setup_module(self, module: Module) -> Module:  # type: ignore[override]
        """Return the module as it is."""
        return module

    @property
    def distributed_sampler_kwargs(self) -> None:  # type: ignore[override]
        """None: every rank iterates over the whole of its own clients' data."""
        return None
