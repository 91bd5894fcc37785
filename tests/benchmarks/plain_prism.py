"""One local step of PRISM as the specification's pseudo-code reads, in the most straightforward PyTorch.

Every layer draws its mask by `torch.bernoulli`, autograd finds the straight-through gradient, images are doubled and
then convolved, VGG features are concatenated, and two more Adams move the averages of moments (sections 0 to 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import vgg19_bn

DrawMask = Callable[[Tensor], Tensor]
"""theta -> m, zeros and ones of its shape."""

RELUS = (2, 5, 9, 12, 16, 19, 22, 25, 29, 32, 35, 38, 42, 45, 48, 51)


class PlainGenerator(nn.Module):
    """The residual generator at 32x32 (section 2) with frozen weights w and scores s, layer by layer.

    Args:
        weights: Frozen weights of the 11 layers: first; conv1, conv2, bypass of each block; last.
        scores: Their initial scores.
    """

    def __init__(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        super().__init__()
        self.w = list(weights)
        self.s = nn.ParameterList([nn.Parameter(score.clone()) for score in scores])
        self.norms = nn.ModuleList(
            nn.BatchNorm2d(channels, affine=False) for channels in (512, 256, 256, 128, 128, 64, 64)
        )

    def forward(self, z: Tensor, draw_mask: DrawMask = torch.bernoulli) -> Tensor:
        """Map noise (B, 128, 1, 1) to images (B, nc, 32, 32) with fresh masks."""
        layers = iter(range(len(self.w)))

        def masked() -> Tensor:
            layer = next(layers)
            theta = torch.sigmoid(self.s[layer])
            m = draw_mask(theta.detach()) - theta.detach() + theta  # straight-through, identity
            return self.w[layer] * m

        h = F.conv_transpose2d(z, masked())
        for block in range(3):
            x = F.relu(self.norms[2 * block](h))
            x = F.conv2d(F.interpolate(x, scale_factor=2), masked(), padding=1)
            x = F.relu(self.norms[2 * block + 1](x))
            x = F.conv2d(x, masked(), padding=1)
            h = x + F.interpolate(F.conv2d(h, masked()), scale_factor=2)
        return torch.tanh(F.conv2d(F.relu(self.norms[6](h)), masked(), padding=1))


class PlainFeatures(nn.Module):
    """torchvision's VGG19-BN up to its last ReLU, frozen; all 16 ReLUs, flattened and concatenated (section 3.1).

    Args:
        state: Its `features.*` weights.
        mode: "eval" or "train" batch normalisation.
    """

    def __init__(self, state: dict[str, Tensor], mode: str) -> None:
        super().__init__()
        network = vgg19_bn(weights=None)
        network.load_state_dict(state, strict=False)
        self.layers = network.features[: RELUS[-1] + 1].requires_grad_(False)
        self.layers.train(mode == "train")

    def forward(self, x: Tensor) -> Tensor:
        """Map grey images (B, 1, 32, 32) to features (B, D)."""
        x = x.repeat(1, 3, 1, 1)
        features = []
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index in RELUS:
                features.append(x.flatten(1))
        return torch.cat(features, dim=1)


class PlainStep:
    """A client's local step with the moving average of moment differences (section 3.3).

    Args:
        network: The generator.
        features: phi.
        mu: Mean of the real features (D,).
        var: Their variance (D,).
    """

    def __init__(self, network: PlainGenerator, features: PlainFeatures, mu: Tensor, var: Tensor) -> None:
        self.network, self.features, self.mu, self.var = network, features, mu, var
        self.v_mu, self.v_var = nn.Parameter(torch.zeros_like(mu)), nn.Parameter(torch.zeros_like(var))
        betas = (0.5, 0.999)
        self.adam_mu = torch.optim.Adam([self.v_mu], lr=1e-5, betas=betas)
        self.adam_var = torch.optim.Adam([self.v_var], lr=1e-5, betas=betas)
        self.adam_s = torch.optim.Adam(network.s.parameters(), lr=0.1, betas=betas)

    def __call__(self, z: Tensor, draw_mask: DrawMask = torch.bernoulli) -> float:
        """Take one step and return L_G."""
        phi = self.features(self.network(z, draw_mask))
        d_mu, d_var = self.mu - phi.mean(0), self.var - phi.var(0)
        for v, adam, difference in ((self.v_mu, self.adam_mu, d_mu), (self.v_var, self.adam_var, d_var)):
            adam.zero_grad()
            F.mse_loss(v, difference.detach()).backward()
            adam.step()
        loss = self.v_mu.detach() @ d_mu + self.v_var.detach() @ d_var
        self.adam_s.zero_grad()
        loss.backward()
        self.adam_s.step()
        return loss.item()
