"""The parameter branch: LoRA factors of every site from a query's hidden state (the paper's parameter generator F)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import sqrt

import torch
from torch import Tensor, nn

from metatuner.lm import Site


@dataclass(frozen=True)
class _Part:
    """One factor of one site."""

    start: int
    """Where it begins in a query's flat factors."""
    width: int
    """d_in for A, d_out for B."""
    is_b: bool


class ParameterDecoder(nn.Module):
    """For each LoRA site and each of its factors, theta_i = W_u ReLU(W_d h_i), reshaped to [rank, width].

    W_d is [bottleneck, H] and W_u, stored transposed, [bottleneck, rank * width], both of the site's factor alone: the
    faithful reading of F = {W_d^a, W_u^a, W_d^b, W_u^b}, which the paper gives as plain matrices without biases. All
    W_d are one product; W_u are one batched product for each distinct width.

    W_u of the B factors starts at zero, so that Delta W = 0 at step 0; W_u of the A factors so that A has the variance
    1 / (3 d_in) of a plain LoRA's, given h of root mean square 1.
    """

    def __init__(
        self,
        hidden_size: int,
        sites: Sequence[Site],
        rank: int,
        bottleneck: int,
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            hidden_size: H, the width of h.
            sites: where the factors go (`PerQueryLoRA.sites`).
            rank: r of every site.
            bottleneck: d_b.
            seed: draws the initial weights, the same on every device.
        """
        super().__init__()
        parts = [_Part(site.a.start, site.d_in, False) for site in sites]
        parts += [_Part(site.b.start, site.d_out, True) for site in sites]
        parts.sort(key=lambda part: (part.width, part.is_b, part.start))
        stream = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=stream).to(device, dtype)

        self.down = nn.Parameter(normal(len(parts), bottleneck, hidden_size) / sqrt(hidden_size))
        """W_d of all factors, [factors, bottleneck, H]."""
        self.up = nn.ParameterDict()
        """W_u of the factors of each width, [factors, bottleneck, rank * width]."""
        for width, group in groupby(parts, key=lambda part: part.width):
            # ReLU halves the second moment of the d_b inner units, hence the 2.
            scales = [0.0 if part.is_b else sqrt(2 / (3 * bottleneck * width)) for part in group]
            weights = [normal(bottleneck, rank * width) * scale for scale in scales]
            self.up[str(width)] = nn.Parameter(torch.stack(weights))
        self.order = sorted(range(len(parts)), key=lambda index: parts[index].start)

    def forward(self, h: Tensor) -> Tensor:
        """Flat factors [queries, `PerQueryLoRA.flat_size`] from h [queries, H]."""
        h = h.to(self.down.dtype)
        inner = torch.relu(h @ self.down.flatten(0, 1).T).view(len(h), *self.down.shape[:2]).transpose(0, 1)
        factors: list[Tensor] = []
        for part, up in zip(inner.split([len(up) for up in self.up.values()]), self.up.values(), strict=True):
            factors += torch.bmm(part, up).unbind()
        return torch.cat([factors[index] for index in self.order], 1)
