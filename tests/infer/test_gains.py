"""Gains from a mix's spectrum: known ones are found, and thin evidence leaves them near the common level."""

import math

import pytest
import torch

from pyrosep.errors import ShapeError
from pyrosep.infer import fit_gains

BINS = 65


@pytest.fixture
def spectra():
    """Three sources: one falls with frequency, one rises, one has a hill."""
    f = torch.linspace(0, 1, BINS)
    return torch.stack([torch.exp(-8 * f), 0.01 + f**2, 0.02 + torch.exp(-((f - 0.3) ** 2) / 0.01)])


def test_known_gains_are_found(spectra):
    gains = torch.tensor([0.5, 2.0, 0.1])
    found = fit_gains(spectra, gains.square() @ spectra, bands=1e9)
    # With 1e9 observations the prior moves the answer by far less than float32 shows.
    torch.testing.assert_close(found, gains, rtol=1e-3, atol=0)


def test_it_is_the_most_probable_value(spectra, double):
    spectra, power, bands, spread_db = spectra.double(), spectra.double().mean(0) * torch.rand(BINS), 12.0, 4.0
    gains = fit_gains(spectra, power, bands=bands, spread_db=spread_db)
    weights = 1 / torch.arange(1, BINS)
    weights = bands * weights / weights.sum()
    common = 0.5 * (power[1:].sum() / spectra[:, 1:].sum()).log()

    def negative_log_posterior(log_gains):
        total = (2 * log_gains).exp() @ spectra[:, 1:]
        misfit = (weights * (total.log() + power[1:] / total)).sum()
        return 0.5 * misfit + 0.5 * ((log_gains - common) / (spread_db / 20 * math.log(10))).square().sum()

    gradient = torch.autograd.functional.jacobian(negative_log_posterior, gains.log())
    # The optimizer stops where a step changes it by less than 1e-9; at a curvature of 1 / spread**2 = 4.7 or more, a
    # gradient of 1e-4 is worth that much, and is an error of 2e-5 in the gain.
    torch.testing.assert_close(gradient, torch.zeros(3), rtol=0, atol=1e-4)


def test_a_louder_mix_has_larger_gains_by_as_much(spectra):
    power = spectra.sum(0) * torch.rand(BINS)
    torch.testing.assert_close(fit_gains(spectra, 100 * power), 10 * fit_gains(spectra, power), rtol=1e-4, atol=0)


def test_few_observations_leave_the_common_level(spectra):
    power = 4.0 * spectra[0]
    common = (power[1:].sum() / spectra[:, 1:].sum()).sqrt()
    distance = [
        (fit_gains(spectra, power, bands=bands) / common).log().abs().max().item() for bands in (1e-6, 1.0, 20.0, 1e3)
    ]
    assert distance == sorted(distance)
    # The data's gradient is at most bands * max |1 - Q / V|, against the prior's curvature of 1 / spread**2; and the
    # gains are rounded to single precision.
    misfit = (1 - power / (common**2 * spectra.sum(0)))[1:].abs().max().item()
    spread = 6 / 20 * math.log(10)
    assert distance[0] < 1e-6 * misfit * spread**2 + 2 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("bands", [20.0, 1e6])
def test_no_gain_is_zero(spectra, bands):
    """A source that is not there, or a mix that is a single tone, gives small gains but positive ones."""
    tone = torch.full((BINS,), 1e-8)
    tone[10] = 1.0
    for power in (4.0 * spectra[0], tone, torch.ones(BINS)):
        gains = fit_gains(spectra, power, bands=bands)
        assert bool((gains > 0).all())
        assert bool(gains.isfinite().all())


def test_the_bin_at_0_hz_does_not_count(spectra):
    power = spectra.sum(0)
    shifted = power.clone()
    shifted[0] = 1e6
    assert torch.equal(fit_gains(spectra, power), fit_gains(spectra, shifted))


def test_equal_spectra_share_the_level():
    spectra = torch.ones(4, BINS)
    # Each source has the same say: the sum of the squared gains is the mix's power.
    torch.testing.assert_close(fit_gains(spectra, torch.ones(BINS)), torch.full((4,), 0.5), rtol=1e-5, atol=0)


def test_under_no_grad(spectra):
    with torch.no_grad():
        assert not fit_gains(spectra, spectra.sum(0)).requires_grad


@pytest.mark.parametrize(("spectra", "power"), [((3, 9), (8,)), ((9,), (9,)), ((3, 9), (1, 9)), ((2, 3, 9), (9,))])
def test_shapes(spectra, power):
    with pytest.raises(ShapeError, match=r"\(source, bins\) and power \(bins,\)"):
        fit_gains(torch.ones(spectra), torch.ones(power))


def test_a_single_bin_gives_all_sources_the_level_of_the_mix():
    """Of a frame of one sample, which has the bin at 0 Hz alone."""
    gains = fit_gains(torch.tensor([[3.0], [1.0]]), torch.tensor([16.0]), bands=1e6)
    assert float((gains.square() * torch.tensor([3.0, 1.0])).sum()) == pytest.approx(16.0, rel=1e-4)
