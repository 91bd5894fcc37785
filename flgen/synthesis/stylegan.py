"""StyleGAN2, StyleGAN3 and StyleGAN-XL from their authors' pickles, by the authors' code, which the user has.

A pickle holds the networks together with their source; reading it runs that source, which imports `torch_utils` and
`dnnlib` from the authors' repository. `flgen` ships neither code nor weights of theirs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError
from flgen.experiment import option_ranges
from flgen.synthesis.latent_generator import OPTION, LatentGenerator, Prior
from flgen.synthesis.synthesizer import content_digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from flgen.data.labelled_data import LabelledData
else:
    torch = deferred_module("torch")

PACKAGES = ("torch_utils", "dnnlib")
ATTRIBUTES = ("z_dim", "c_dim", "w_dim", "num_ws", "img_channels", "img_resolution", "mapping", "synthesis")


class StyleGAN(LatentGenerator):
    """The moving average G_ema of a StyleGAN pickle; latents are in its W space (specification, sections 1.5 and 2.2).

    Reading a pickle runs code that its maker chose: `trust` must say that you want that. Classes of a class-conditional
    one are drawn uniformly with each latent. All layers are given the same latent.

    Args:
        pickle: The file, such as stylegan3-t-ffhqu-256x256.pkl.
        code: Folder of the authors' repository, with torch_utils/ and dnnlib/ in it.
        family: Which of the three; they differ in how the published FedKTL code scales pixels, in nothing else.
        trust: Whether the code inside the pickle may run.
        sha256: What the file must be, in hexadecimal; null takes it as it is. It is recorded in any case.
        truncation: psi of the truncation trick; 1 is none.
        trained_on: Name of the data set behind it, for the record; the clients' own is refused. Null: not known.
        licence: Its licence, for the record. NVIDIA's code and weights have terms of their own.
        batch_size: Images drawn at once; it limits memory alone.

    Raises:
        UsageError: An option is out of its range.
    """

    prior: ClassVar[Prior] = "learned"

    def __init__(
        self,
        pickle: str,
        code: str,
        family: Literal["stylegan2", "stylegan3", "stylegan_xl"] = "stylegan3",
        trust: bool = False,
        sha256: str | None = None,
        truncation: float = 1.0,
        trained_on: str | None = None,
        licence: str | None = None,
        batch_size: int = 4,
    ) -> None:
        option_ranges.at_least("method.generator", 1, batch_size=batch_size)
        if not 0 <= truncation < float("inf"):
            raise UsageError(f"{OPTION}.truncation is {truncation}: give a number from 0 on; 1 truncates nothing")
        if sha256 is not None and (len(sha256) != 64 or not set(sha256.lower()) <= set("0123456789abcdef")):
            raise UsageError(f"{OPTION}.sha256 {sha256}: give the 64 hexadecimal digits that sha256sum prints")
        self.pickle = pickle
        self.code = code
        self.family = family
        self.trust = trust
        self.sha256 = sha256
        self.truncation = truncation
        self.trained_on = trained_on
        self.licence = licence
        self.batch_size = batch_size

    @property
    def latent_dim(self) -> int:
        """Width of the W space; the pickle is read for it."""
        return int(self._network.w_dim)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width); the pickle is read for it."""
        return int(self._network.img_channels), int(self._network.img_resolution), int(self._network.img_resolution)

    def learned_from(self) -> str | None:
        """Return what `trained_on` says."""
        return self.trained_on

    def provenance(self) -> dict[str, str | None]:
        """Return name of the file, data, licence and the file's digest."""
        return {
            "name": f"{self.family} {self._path.name}",
            "data": self.trained_on,
            "licence": self.licence,
            "sha256": content_digest(self._path),
            "truncation": f"{self.truncation:g}",
        }

    def check(self, data: LabelledData) -> None:
        """Make sure that pickle and code are there, that the pickle is the right one and may be read.

        Raises:
            UsageError: `trust` is not given, or the generator has learned from these data.
            FlgenError: A file is missing, or another one.
        """
        self._check_code()
        self._check_pickle(content_digest(self._path))
        super().check(data)

    @property
    def _path(self) -> Path:
        path = Path(self.pickle).expanduser()
        if not path.is_file():
            raise FlgenError(f"{OPTION}.pickle {self.pickle}: there is no such file; download one from its authors")
        return path

    def _check_code(self) -> None:
        folder = Path(self.code).expanduser()
        missing = [name for name in PACKAGES if not (folder / name).is_dir()]
        if missing:
            raise FlgenError(
                f"{OPTION}.code {self.code}: has no {' and no '.join(f'{name}/' for name in missing)}; clone the "
                "repository that the pickle belongs to (NVlabs/stylegan3, autonomousvision/stylegan-xl) and give its "
                "folder"
            )

    def _check_pickle(self, sha256: str) -> None:
        if self.sha256 is not None and sha256 != self.sha256.lower():
            raise FlgenError(
                f"{OPTION}.pickle {self.pickle}: its SHA-256 is {sha256}, not what {OPTION}.sha256 says; download it "
                "again"
            )
        if not self.trust:
            raise UsageError(
                f"{OPTION}.pickle {self.pickle}: reading a pickle runs code that its maker put in. If you trust the "
                f"file (SHA-256 {sha256}), give {OPTION}.trust true"
            )

    @cached_property
    def _network(self) -> Any:
        """G_ema, on the CPU."""
        self._check_code()
        content = self._path.read_bytes()
        self._check_pickle(hashlib.sha256(content).hexdigest())  # of these bytes, not of what the file may be by now
        with self._importing():
            self._check_imports()
            try:
                loaded = pickle.load(io.BytesIO(content))
            except Exception as error:  # what the code in a pickle raises has no end
                reason = " ".join(str(error).split())[:200] or type(error).__name__
                raise FlgenError(
                    f"{OPTION}.pickle {self.pickle}: cannot be read ({reason}); is {OPTION}.code the repository that "
                    "it belongs to?"
                ) from error
        G = loaded.get("G_ema") if isinstance(loaded, dict) else None
        if G is None:
            raise FlgenError(f"{OPTION}.pickle {self.pickle}: holds no G_ema; give a StyleGAN pickle for PyTorch")
        if lacking := [name for name in ATTRIBUTES if not hasattr(G, name)]:
            raise FlgenError(f"{OPTION}.pickle {self.pickle}: its G_ema is no StyleGAN, it lacks {', '.join(lacking)}")
        return G

    @contextmanager
    def _importing(self) -> Iterator[None]:
        """Let the networks import from the authors' repository, and nobody else."""
        folder = str(Path(self.code).expanduser().resolve())
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(folder)

    def _check_imports(self) -> None:
        """Refuse packages of the same names from elsewhere: the wrong code would draw wrong images, or fail later."""
        folder = Path(self.code).expanduser().resolve()
        for name in PACKAGES:
            spec = importlib.util.find_spec(name)
            places = [Path(place).resolve() for place in (spec and spec.submodule_search_locations) or ()]
            if (folder / name).resolve() not in places:
                found = places[0] if places else "nowhere"
                raise FlgenError(f"{OPTION}.code {self.code}: {name} is taken from {found}; remove that one first")

    def networks(self) -> list[nn.Module]:
        """Return G_ema."""
        return [self._network]

    def sample_latents(self, n: int, rng: torch.Generator) -> Tensor:
        """Return w = mapping(z, c): z ~ N(0, I), c uniform, the first of the rows that it makes for the layers."""
        G = self._network
        z = torch.randn(n, G.z_dim, generator=rng).to(self.device)
        c = None
        if G.c_dim > 0:
            classes = torch.randint(G.c_dim, (n,), generator=rng)
            c = torch.nn.functional.one_hot(classes, G.c_dim).float().to(self.device)  # (n, c_dim)
        with torch.no_grad(), self._importing():
            ws = G.mapping(z, c, truncation_psi=self.truncation)  # (n, num_ws, w_dim)
        rows: Tensor = ws[:, 0].float()
        return rows

    def draw(self, w: Tensor) -> Tensor:
        """Return what synthesis makes of w in all layers, with the noise that is part of the weights."""
        ws = w.unsqueeze(1).repeat(1, self._network.num_ws, 1)
        with self._importing():
            x = self._network.synthesis(ws, noise_mode="const").float()
        if self.fidelity == "reference" and self.family == "stylegan3":
            return (x * 127.5 + 128.0) / 255.0  # defect 10: half a grey level too bright
        return (x + 1.0) / 2.0
