"""The parameter branch: LoRA factors of every site from a query's hidden state (the paper's parameter generator F)."""

import re
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

    W_d is [bottleneck, H]. W_u is stored transposed, [bottleneck, rank * width]. Each factor of each site has its own
    W_d and W_u: the faithful reading of F = {W_d^a, W_u^a, W_d^b, W_u^b}, which the paper gives as plain matrices
    without biases. All W_d are one product; W_u are one batched product per distinct width.

    W_u of the B factors starts at zero, so that Delta W = 0 at step 0. W_u of the A factors starts such that A has the
    variance 1 / (3 d_in) of a plain LoRA, given h of root mean square 1.
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


class LayerSharedDecoder(nn.Module):
    """One W_d and W_u per kind of module and factor, shared by all layers; an embedding e_l identifies each layer.

    theta_i of layer l is U W_u. U [rank, bottleneck] is ReLU(W_d (h_i + e_l)), reshaped. W_d is [rank * bottleneck, H]
    and W_u is [bottleneck, width]. W_d is applied to h_i and to e_l separately, so that its product is computed once
    per query, not once per query and layer.

    A kind is a module's place inside its layer, such as self_attn.q_proj, and its width, because layers may differ.
    Initial weights are as in `ParameterDecoder`; each entry of e_l has variance 1, like the entries of h.
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
        """As `ParameterDecoder`."""
        super().__init__()
        places = [_place(site) for site in sites]
        layers = sorted({layer for layer, _ in places})
        kinds: dict[tuple[str, bool, int], list[tuple[int, int]]] = {}
        for (layer, kind), site in zip(places, sites, strict=True):
            for start, width, is_b in ((site.a.start, site.d_in, False), (site.b.start, site.d_out, True)):
                kinds.setdefault((kind, is_b, width), []).append((start, layers.index(layer)))
        stream = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=stream).to(device, dtype)

        self.rank = rank
        self.layers = nn.Parameter(normal(len(layers), hidden_size))
        """e_l, [layers, H]."""
        # h + e has second moment 2.
        self.down = nn.Parameter(normal(len(kinds), rank * bottleneck, hidden_size) / sqrt(2 * hidden_size))
        """W_d of each kind and factor, [kinds, rank * bottleneck, H]."""
        self.up = nn.ParameterList()
        """W_u of each kind and factor, [bottleneck, width]."""
        for _, is_b, width in kinds:
            # ReLU halves the second moment of the units, hence the 2.
            self.up.append(normal(bottleneck, width) * (0.0 if is_b else sqrt(2 / (3 * bottleneck * width))))
        self.layers_of = [[layer for _, layer in members] for members in kinds.values()]
        starts = [start for members in kinds.values() for start, _ in members]
        self.order = sorted(range(len(starts)), key=starts.__getitem__)

    def forward(self, h: Tensor) -> Tensor:
        """Flat factors [queries, `PerQueryLoRA.flat_size`] from h [queries, H]."""
        down = self.down.flatten(0, 1).T
        of_queries, of_layers = (
            (x @ down).view(len(x), *self.down.shape[:2]) for x in (h.to(self.down.dtype), self.layers)
        )
        factors: list[Tensor] = []
        for kind, (up, layers) in enumerate(zip(self.up, self.layers_of, strict=True)):
            inner = torch.relu(of_queries[:, None, kind] + of_layers[layers, kind])
            theta = inner.view(len(h), len(layers), self.rank, len(up)) @ up
            factors += theta.flatten(2).unbind(1)
        return torch.cat([factors[index] for index in self.order], 1)


class StaticFactors(nn.Module):
    """One LoRA for all queries on the same sites, initialised like a plain LoRA: A drawn, B zero."""

    def __init__(
        self,
        sites: Sequence[Site],
        *,
        seed: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        stream = torch.Generator().manual_seed(seed)
        flat = torch.zeros(max(site.b.stop for site in sites))
        for site in sites:
            size = site.a.stop - site.a.start
            flat[site.a] = torch.randn(size, generator=stream) / sqrt(3 * site.d_in)
        self.flat = nn.Parameter(flat.to(device, dtype))
        """[`PerQueryLoRA.flat_size`]."""

    def forward(self, queries: int) -> Tensor:
        """The factors for this number of queries, [queries, `PerQueryLoRA.flat_size`], not copied."""
        return self.flat.expand(queries, -1)


def _place(site: Site) -> tuple[int, str]:
    """A site's layer, and its place inside the layer."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.(.+)$", site.name)
    if found is None:
        raise ValueError(f"{site.name} is not in a decoder layer")
    return int(found[1]), found[2]
