"""A stand-in for the StyleGAN authors' repository and one of their pickles, written by the test.

As the real ones do, the pickle carries the source of its networks and is put together by `torch_utils` of the
repository, which wants `dnnlib`; none of it can be imported without the repository.
"""

from __future__ import annotations

import io
import pickle
import sys
from pathlib import Path
from typing import Any

PERSISTENCE = '''
import types

import dnnlib


def reconstruct(meta):
    """Run the source that the pickle brings, and make an instance of its class without calling its constructor."""
    meta = dnnlib.EasyDict(meta)
    module = types.ModuleType("source_of_a_pickle")
    exec(meta.module_src, module.__dict__)
    kind = module.__dict__[meta.class_name]
    made = kind.__new__(kind)
    made.__dict__.update(meta.state)
    return made
'''

DNNLIB = """
class EasyDict(dict):
    __getattr__ = dict.__getitem__
"""

MISC = """
def assert_shape(tensor, shape):
    assert list(tensor.shape) == shape, (tensor.shape, shape)
"""

NETWORKS = """
import torch

from torch_utils import misc


class Mapping(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, num_ws):
        super().__init__()
        self.z_dim, self.c_dim, self.num_ws = z_dim, c_dim, num_ws
        self.fc = torch.nn.Linear(z_dim + c_dim, w_dim)
        self.register_buffer("w_avg", torch.full((w_dim,), 0.25))

    def forward(self, z, c, truncation_psi=1):
        assert (c is None) == (self.c_dim == 0)
        if c is not None:
            misc.assert_shape(c, [len(z), self.c_dim])
            assert c.sum(dim=1).eq(1).all() and c.max() == 1
        x = torch.tanh(self.fc(z if c is None else torch.cat([z, c], dim=1)))
        x = x.unsqueeze(1).repeat(1, self.num_ws, 1)
        return self.w_avg.lerp(x, truncation_psi)


class Synthesis(torch.nn.Module):
    def __init__(self, w_dim, num_ws, channels, resolution):
        super().__init__()
        self.shape = (channels, resolution, resolution)
        rows = channels * resolution * resolution
        self.layers = torch.nn.ModuleList(torch.nn.Linear(w_dim, rows) for _ in range(num_ws))
        self.noise_strength = torch.nn.Parameter(torch.ones(1))

    def forward(self, ws, noise_mode="random"):
        from torch_utils import late  # as custom kernels are: first looked for when they are used

        x = late.total(layer(row) for layer, row in zip(self.layers, ws.unbind(dim=1), strict=True))
        if noise_mode == "random":
            x = x + self.noise_strength * torch.randn_like(x)
        return x.unflatten(1, self.shape)  # partly beyond [-1, 1]


class Generator(torch.nn.Module):
    def __init__(self, z_dim, c_dim, w_dim, num_ws, img_channels, img_resolution):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.img_channels, self.img_resolution = img_channels, img_resolution
        self.mapping = Mapping(z_dim, c_dim, w_dim, num_ws)
        self.synthesis = Synthesis(w_dim, num_ws, img_channels, img_resolution)
"""


def write_checkout(folder: Path) -> Path:
    """Write what the code of a pickle needs from its repository."""
    for name, source in {
        "torch_utils/__init__.py": "",
        "torch_utils/persistence.py": PERSISTENCE,
        "torch_utils/misc.py": MISC,
        "torch_utils/late.py": "total = sum\n",
        "dnnlib/__init__.py": DNNLIB,
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


def write_pickle(path: Path, checkout: Path, key: str = "G_ema", c_dim: int = 0) -> Path:
    """Write a generator of random weights, H = 6, 3 layers, 8x8 pixels in colour, as the authors' code would.

    Args:
        path: The file.
        checkout: What `write_checkout` wrote.
        key: What the generator is called in it.
        c_dim: Number of classes; 0 is unconditional.
    """
    import torch

    sys.path.insert(0, str(checkout))
    try:
        from torch_utils import persistence  # type: ignore[import-not-found]

        namespace: dict[str, Any] = {"__name__": "networks"}
        exec(NETWORKS, namespace)
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            G = namespace["Generator"](4, c_dim, 6, 3, 3, 8).train()
        buffer = io.BytesIO()
        _Pickler(buffer, persistence.reconstruct, namespace).dump({key: G, "training_set_kwargs": None})
        path.write_bytes(buffer.getvalue())
    finally:
        sys.path.remove(str(checkout))
    return path


class _Pickler(pickle.Pickler):
    """Stores instances of the networks' classes as their source and their state."""

    def __init__(self, buffer: io.BytesIO, reconstruct: Any, namespace: dict[str, Any]) -> None:
        super().__init__(buffer)
        self._reconstruct = reconstruct
        self._own = {kind for kind in namespace.values() if isinstance(kind, type)}

    def reducer_override(self, value: Any) -> Any:
        if type(value) in self._own:
            meta = {"module_src": NETWORKS, "class_name": type(value).__name__, "state": value.__dict__}
            return self._reconstruct, (meta,)
        return NotImplemented


def forget_imports() -> None:
    """Forget what was imported from a checkout, so that another may be used."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("torch_utils", "dnnlib")]:
        del sys.modules[name]
