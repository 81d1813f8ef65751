"""The parameter decoder's learning rates for every width, and the scaling of h_i."""

import math

import pytest
import torch
import torch.nn.functional as F

from metatuner.lm import Site
from metatuner.method.parameter_decoder import LayerSharedDecoder, ParameterDecoder, StateNorm, StaticFactors


def sites(width: int, rank: int, layers: int = 2) -> list[Site]:
    found, start = [], 0
    for layer in range(layers):
        for name in ("q_proj", "v_proj"):
            middle = start + rank * width
            end = middle + rank * width
            place = f"model.layers.{layer}.self_attn.{name}"
            found.append(Site(place, width, width, slice(start, middle), slice(middle, end)))
            start = end
    return found


def step_of_adam(decoder: torch.nn.Module, h: torch.Tensor, rate: float) -> torch.Tensor:
    """How far one step moves each factor entry, towards lower values of a loss with random slopes."""
    groups = decoder.rates(rate).values()
    optimizer = torch.optim.Adam([{"params": parameters, "lr": peak} for parameters, peak in groups])
    before = decoder(h)
    slopes = torch.randn(before.shape[1], generator=torch.Generator().manual_seed(1))
    (before @ slopes).sum().backward()
    optimizer.step()
    with torch.no_grad():
        return (decoder(h) - before).abs()


@pytest.mark.parametrize(("hidden", "width"), [(32, 64), (128, 32), (576, 576), (3584, 512)])
@pytest.mark.parametrize("bottleneck", [16, 64, 256])
def test_a_step_moves_factors_by_the_factor_rate_at_every_width(hidden: int, width: int, bottleneck: int) -> None:
    rank, rate = 4, 1e-3
    decoder = ParameterDecoder(hidden, sites(width, rank), rank, bottleneck, seed=0)
    h = F.rms_norm(torch.randn(1, hidden, generator=torch.Generator().manual_seed(2)), (hidden,))
    moved = step_of_adam(decoder, h, rate)
    of_b = torch.cat([moved[:, site.b] for site in sites(width, rank)], 1)
    assert of_b.median().item() == pytest.approx(rate, rel=0.5)
    of_a = torch.cat([moved[:, site.a] for site in sites(width, rank)], 1)
    assert rate / 2 < of_a.median().item() < 3 * rate


def test_a_step_of_the_decoder_shared_by_layers_moves_factors_by_the_factor_rate() -> None:
    # One bottleneck of units for each of the rank's rows, whose gradients may differ in sign.
    decoder = LayerSharedDecoder(256, sites(128, 1, layers=1), 1, 64, seed=0)
    h = F.rms_norm(torch.randn(1, 256, generator=torch.Generator().manual_seed(2)), (256,))
    moved = step_of_adam(decoder, h, 1e-3)
    of_b = torch.cat([moved[:, site.b] for site in sites(128, 1, layers=1)], 1)
    assert of_b.median().item() == pytest.approx(1e-3, rel=0.4)


def test_a_step_moves_static_factors_by_the_factor_rate() -> None:
    decoder = StaticFactors(sites(64, 2), seed=0)
    (parameters, rate), *others = decoder.rates(1e-3).values()
    assert others == []
    assert [parameter.shape for parameter in parameters] == [decoder.flat.shape]
    assert rate == 1e-3


def test_states_are_standardised_by_the_rows_they_were_fitted_to() -> None:
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3 + 2
    norm = StateNorm(5, dtype=torch.float64)
    norm.fit(rows)
    columns = [[row[entry].item() for row in rows] for entry in range(5)]
    for place in range(7):
        expected = []
        for column in columns:
            mean = sum(column) / 7
            deviation = math.sqrt(sum((value - mean) ** 2 for value in column) / 6)
            expected.append((column[place] - mean) / deviation)
        scale = math.sqrt(sum(value**2 for value in expected) / 5)
        assert norm(rows)[place].tolist() == pytest.approx([value / scale for value in expected])


def test_entries_alike_for_all_queries_do_not_hide_what_differs() -> None:
    stream = torch.Generator().manual_seed(0)
    own = torch.randn(40, 64, generator=stream)
    common = torch.zeros(64)
    common[:3] = torch.tensor([400.0, -300.0, 200.0])
    plain = F.rms_norm(own + common, (64,))
    assert F.cosine_similarity(plain[0], plain[1:]).min().item() > 0.99
    norm = StateNorm(64)
    norm.fit(own + common)
    scaled = norm(own + common)
    assert F.cosine_similarity(scaled, own).min().item() > 0.9
    assert F.cosine_similarity(scaled[0], scaled[1:]).abs().mean().item() < 0.2


def test_an_entry_that_never_varies_stays_finite_and_small() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    rows[:, 2] = 5.0
    norm = StateNorm(4)
    norm.fit(rows)
    assert norm(rows)[:, 2].abs().max().item() == 0.0
    rows[0, 2] = 5.0 + 1e-4
    assert norm(rows)[0, 2].abs().item() < 0.05


def test_one_query_alone_leaves_states_as_they_are() -> None:
    rows = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))
    norm = StateNorm(4)
    norm.fit(rows)
    assert torch.equal(norm(rows), F.rms_norm(rows, (4,)))
