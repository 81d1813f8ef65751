"""The parameter branch: LoRA factors of every site from a query's hidden state (the paper's parameter generator F)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from math import pi, sqrt
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metatuner.lm import LM, Site
from metatuner.method.config import MetaTunerConfig


@dataclass(frozen=True)
class _Part:
    """One factor of one site."""

    start: int
    """Where it begins in a query's flat factors."""
    width: int
    """d_in for A, d_out for B."""
    is_b: bool


Rates = dict[str, tuple[list[nn.Parameter], float]]
"""Name of a group of parameters -> (parameters, peak learning rate)."""


class StateNorm(nn.Module):
    """Standardises the entries of h_i by their means and standard deviations over D1, which do not change later.

    Inner states of pretrained models have a few entries that are large and alike for all queries (Sun et al., Massive
    Activations in Large Language Models, arXiv 2402.17762). With SmolLM2-135M, h_i of two queries have a cosine of
    0.99: without their common part taken off, all queries would get nearly the same factors.
    """

    mean: Tensor
    """[H]"""
    deviation: Tensor
    """[H], above 0"""

    def __init__(self, hidden_size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"):
        super().__init__()
        self.register_buffer("mean", torch.zeros(hidden_size, dtype=dtype, device=device))
        self.register_buffer("deviation", torch.ones(hidden_size, dtype=dtype, device=device))

    @torch.no_grad()
    def fit(self, h: Tensor) -> None:
        """Take mean and deviation from h [queries, H]. With fewer than two queries, h stays as it is."""
        if len(h) < 2:
            return
        h = h.to(self.mean.dtype)
        spread = h.std(0)
        self.mean.copy_(h.mean(0))
        # An entry that hardly varies must not be blown up.
        self.deviation.copy_(spread.clamp_min(0.01 * spread.square().mean().sqrt().clamp_min(1e-6)))

    def forward(self, h: Tensor) -> Tensor:
        """h [queries, H], standardised, with root mean square 1."""
        h = (h.to(self.mean.dtype) - self.mean) / self.deviation
        return F.rms_norm(h, h.shape[-1:])


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
        self.widths = [part.width for part in parts if not part.is_b]

    def rates(self, factor_rate: float) -> Rates:
        """Peak learning rates under which a step of Adam moves the factors' entries by about `factor_rate`.

        Adam moves each weight by its rate. An entry of a factor is a sum over d_b units, and the gradients of its
        weights have one sign, that of the entry's own gradient, since units are not negative. So the entry moves by
        the rate times the sum of the units, whose mean is 1 / sqrt(2 pi). Likewise W_d moves a unit by its rate times
        the sum of |h|, H sqrt(2 / pi). Its rate moves units by the share of their size by which W_u moves A. That
        rates of Adam fall as the width of the input is the rule of Yang et al., Tensor Programs V, arXiv 2203.03466.
        """
        bottleneck, hidden = self.down.shape[1:]
        up, down = _rates(factor_rate, bottleneck, hidden, self.widths)
        return {"phi_q": (list(self.up.values()), up), "phi_q_down": ([self.down], down)}

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
        self.widths = [site.d_in for site in sites]

    def rates(self, factor_rate: float) -> Rates:
        """As `ParameterDecoder.rates`; e_l has the rate of W_d."""
        up, down = _rates(factor_rate, len(self.up[0]), self.down.shape[2], self.widths)
        return {"phi_q": (list(self.up), up), "phi_q_down": ([self.down, self.layers], down)}

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

    def rates(self, factor_rate: float) -> Rates:
        """The factors themselves are trained, at `factor_rate`."""
        return {"phi_q": ([self.flat], factor_rate)}

    def forward(self, queries: int) -> Tensor:
        """The factors for this number of queries, [queries, `PerQueryLoRA.flat_size`], not copied."""
        return self.flat.expand(queries, -1)


def parameter_branch(
    config: MetaTunerConfig, generator: LM, sites: Sequence[Site], seed: int
) -> tuple[ParameterDecoder | LayerSharedDecoder | StaticFactors | None, StateNorm | None]:
    """What makes the factors, and what scales h_i before it; None for what the configuration leaves out."""
    device = generator.device
    # Half precision would lose small steps; `lora.applied` casts the factors.
    dtype = torch.float64 if generator.model.dtype == torch.float64 else torch.float32
    if config.parameter_branch == "none":
        return None, None
    if config.parameter_branch == "static":
        return StaticFactors(sites, seed=seed, dtype=dtype, device=device), None
    hidden = cast(nn.Embedding, generator.model.get_input_embeddings()).embedding_dim
    kind = ParameterDecoder if config.decoder == "per_site" else LayerSharedDecoder
    norm = StateNorm(hidden, dtype=dtype, device=device) if config.state_scaling == "standard" else None
    return kind(hidden, sites, config.rank, config.bottleneck, seed=seed, dtype=dtype, device=device), norm


def _rates(factor_rate: float, bottleneck: int, hidden: int, widths: Sequence[int]) -> tuple[float, float]:
    """The rates of W_u and W_d; `widths` are d_in of the sites, whose A has the deviation 1 / sqrt(3 d_in)."""
    share = factor_rate * sqrt(3 * sum(widths) / len(widths))
    return factor_rate * sqrt(2 * pi) / bottleneck, share * sqrt(pi / 2) / hidden


def _place(site: Site) -> tuple[int, str]:
    """A site's layer, and its place inside the layer."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.(.+)$", site.name)
    if found is None:
        raise ValueError(f"{site.name} is not in a decoder layer")
    return int(found[1]), found[2]
