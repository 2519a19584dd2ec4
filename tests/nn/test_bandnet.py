"""Short-time spectra, networks of bands, and denoisers and filters by them."""

from dataclasses import replace

import pytest
import torch

from pyrosep import ContinuousFlow, GaussianPrior, Potential, load_priors, save_priors
from pyrosep.errors import ConfigurationError
from pyrosep.infer import noised
from pyrosep.infer.search.widened import LocalNormal
from pyrosep.mixing import linear_mix
from pyrosep.nn.bandnet import BandNet, BandSize, _band_edges
from pyrosep.nn.denoiser import BandDenoiser, Denoiser, DenoiserSize
from pyrosep.priors.stacked import StackedFlows
from pyrosep.signal.spectra import ShortTimeSpectrum

TINY = BandSize(window=16, bands=3, width=4, neck=4, layers=2, features=4)
RECURRENT = replace(TINY, recurrent=True, phases=True)
SIZES = pytest.mark.parametrize(
    "size", [TINY, RECURRENT, replace(RECURRENT, neck=0)], ids=["convolutions", "recurrent", "no neck"]
)
SPECTRUM = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.05, 0.02])


def shaken(network, seed=0):
    """A network whose layers all do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return network.requires_grad_(False)


# --- short-time spectra ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 7, 8, 50, 64])
def test_spectra_give_the_signal_back(double, time):
    transform, x = ShortTimeSpectrum(16).double(), torch.randn(2, 3, time)
    spectra = transform(x)
    assert spectra.shape == (2, 3, -(-time // 8) + 1, 9)
    torch.testing.assert_close(transform.inverse(spectra, time), x)


def test_the_inverse_is_the_adjoint(double):
    """So that a filter of the spectrum, gains in each bin, is its own transpose."""
    transform, gain = ShortTimeSpectrum(16).double(), torch.rand(8, 9)
    matrix = transform.inverse(gain * transform(torch.eye(50)), 50)
    torch.testing.assert_close(matrix, matrix.T)


def test_white_noise_has_power_one_in_every_bin(mean_agrees):
    power = ShortTimeSpectrum(16)(torch.randn(4000, 64)).abs().square()[:, 1:-1]
    mean_agrees(power.double(), torch.ones(power.shape[1:], dtype=torch.float64))


# --- the network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bins", "bands"), [(1025, 32), (9, 3), (9, 8), (513, 20)])
def test_bands_cover_all_bins_and_get_wider(bins, bands):
    edges = torch.tensor(_band_edges(bins, bands))
    widths = edges.diff()
    assert (edges[0], edges[-1], len(widths)) == (0, bins, bands)
    assert int(widths.min()) >= 1
    assert widths[-1] >= widths[0]


@SIZES
def test_frames_of_a_batch_do_not_meet(size):
    network, spectra = shaken(BandNet(2, 3, size)), torch.randn(3, 2, 5, 9, dtype=torch.complex64)
    other = spectra.clone()
    other[1] *= 2
    out, features = network(spectra)
    assert (out.shape, features.shape) == ((3, 3, 5, 9), (3, 5, 4))
    changed = (network(other)[0] != out).flatten(1).any(-1)
    assert changed.tolist() == [False, True, False]


@SIZES
def test_all_bins_are_seen_and_all_given(size):
    network = shaken(BandNet(1, 1, size))
    spectra = torch.randn(1, 1, 3, 9, dtype=torch.complex64)
    out, _ = network(spectra)
    for place in range(9):
        other = spectra.clone()
        other[..., 1, place] *= 3
        changed = (network(other)[0] != out)[0, 0]
        assert bool(changed.all()), "a bin tells of all bins of its window and the next ones"


def test_phases_are_read_where_the_size_says_so():
    spectra = torch.randn(1, 1, 3, 9, dtype=torch.complex64)
    for size, told in ((TINY, False), (replace(TINY, recurrent=True), False), (RECURRENT, True)):
        network = shaken(BandNet(1, 1, size))
        assert torch.allclose(network(1j * spectra)[0], network(spectra)[0], atol=1e-5) is not told


def test_recurrent_layers_see_the_whole_past_and_future():
    """Further than the kernels of two layers of convolutions reach, three windows."""
    spectra = torch.randn(1, 1, 21, 9, dtype=torch.complex64)
    other = spectra.clone()
    other[..., 10, :] *= 3
    for size, reach in ((TINY, 3), (RECURRENT, 10)):
        network = shaken(BandNet(1, 1, size).double())
        changed = (network(other.to(torch.complex128))[0] != network(spectra.to(torch.complex128))[0])[0, 0].any(-1)
        assert torch.nonzero(changed).flatten().tolist() == list(range(10 - reach, 11 + reach))


@pytest.mark.parametrize(
    "option", [{"bands": 0}, {"window": 15}, {"window": 4, "bands": 3}, {"layers": 0}, {"neck": 0}]
)
def test_sizes_out_of_range(option):
    with pytest.raises(ConfigurationError, match="network of bands needs"):
        BandSize(**option)


# --- the denoiser ------------------------------------------------------------------------------------------------


@SIZES
def test_untrained_it_is_a_wiener_filter(double, size):
    network, x = BandDenoiser(size, torch.full((9,), 0.5)).double(), torch.randn(3, 50)
    for sigma in (0.01, 0.7, 5.0):
        gain = 0.5 / (0.5 + sigma**2)
        torch.testing.assert_close(network.denoise(x, torch.tensor([sigma])), gain * x)


@SIZES
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0])
def test_it_is_the_filter_that_it_tells(double, sigma, size):
    """At low levels too, where F is a small difference."""
    network, x = shaken(BandDenoiser(size, SPECTRUM).double()), torch.randn(3, 50)
    clean, gain = network.filtered(x, torch.tensor([sigma]))
    assert 0 <= float(gain.min()) < float(gain.max()) <= 1
    torch.testing.assert_close(network.denoise(x, torch.tensor([sigma])), clean)
    torch.testing.assert_close(network.transform.inverse(gain * network.transform(x), 50), clean)


@SIZES
def test_levels_of_their_own(double, size):
    network, x = shaken(BandDenoiser(size, SPECTRUM).double()), torch.randn(3, 50)
    levels = torch.tensor([0.1, 1.0, 3.0])
    found = network.denoise(x, levels)
    for row, level in enumerate(levels):
        torch.testing.assert_close(found[row], network.denoise(x[row : row + 1], level.reshape(1))[0])


@SIZES
def test_it_is_written_and_loaded(tmp_path, size):
    prior = ContinuousFlow(shaken(BandDenoiser(size, SPECTRUM)), 50, sigma_min=0.1, sample_rate=8000)
    save_priors(tmp_path, {"bass": prior})
    again, x = load_priors(tmp_path)["bass"], torch.randn(2, 50)
    assert again.network.size == size
    torch.testing.assert_close(again.denoise(x), prior.denoise(x))
    torch.testing.assert_close(again.filtered(x)[1], prior.filtered(x)[1])


def test_several_are_stacked():
    priors = [ContinuousFlow(shaken(BandDenoiser(TINY, SPECTRUM), seed), 50, sigma_min=0.1) for seed in range(3)]
    x = torch.randn(2, 3, 50)
    one_by_one = torch.stack([prior.at(0.5).denoise(x[:, k]) for k, prior in enumerate(priors)], 1)
    torch.testing.assert_close(StackedFlows(priors).at(0.5).denoise(x), one_by_one, rtol=1e-4, atol=1e-5)


def test_recurrent_ones_are_not_stacked():
    priors = [ContinuousFlow(BandDenoiser(RECURRENT, SPECTRUM), 50, sigma_min=0.1) for _ in range(2)]
    with pytest.raises(ConfigurationError, match="recurrent networks can't be stacked"):
        StackedFlows(priors)


# --- the local coupling ------------------------------------------------------------------------------------------


def potential(priors, mix, sigma, coupling):
    model = linear_mix(priors, [1.0, 0.7], 0.2)
    return Potential(noised(model, sigma, coupling, density=False), (mix,), num_chains=4)


def test_of_white_sources_the_local_coupling_is_exact(double):
    """Their gains are the same in all bins; the gradient is that of the closed form, by the exact priors."""
    powers, mix = {"a": 0.5, "b": 2.0}, torch.randn(50)
    flows = {
        name: ContinuousFlow(BandDenoiser(TINY, torch.full((9,), power)).double(), 50, sigma_min=0.1)
        for name, power in powers.items()
    }
    exact = {name: GaussianPrior(torch.full((9,), power), 50, sigma_min=0.1) for name, power in powers.items()}
    z = {name: torch.randn(4, 50) for name in powers}
    for sigma in (0.1, 0.4, 2.0):
        found = potential(flows, mix, sigma, "local").value_and_grad(z)[1]
        expected = potential(exact, mix, sigma, "denoised").value_and_grad(z)[1]
        for name in powers:
            torch.testing.assert_close(found[name], expected[name])


def test_what_is_left_goes_to_the_source_that_sounds_there(double):
    """Two sources of equal mean spectra, one of which is heard: it gets what the mix has more."""
    priors = {name: ContinuousFlow(BandDenoiser(TINY, torch.ones(9)).double(), 64, sigma_min=0.01) for name in "ab"}

    class Louder(BandDenoiser):
        def _removed(self, spectra, ratio, level, heard):
            return super()._removed(spectra, ratio, level, heard) * 0.01

    priors["a"] = ContinuousFlow(Louder(TINY, torch.ones(9)).double(), 64, sigma_min=0.01)
    z = {name: torch.zeros(4, 64) for name in priors}
    gradient = potential(priors, torch.randn(64), 1.0, "local").value_and_grad(z)[1]
    assert gradient["a"].norm() > 1.5 * gradient["b"].norm()


def test_local_normal_is_white_noise_where_it_is(double):
    transform, loc, value = ShortTimeSpectrum(16).double(), torch.randn(3, 64), torch.randn(3, 64)
    found = LocalNormal(loc, torch.full((9, 9), 0.3), transform).log_prob(value)
    expected = torch.distributions.Normal(loc, 0.3**0.5).log_prob(value).sum(-1)
    # But for the constant, to which the windows at both ends, half of them outside, add a share.
    misfit = ((value - loc).square() / 0.6).sum(-1)
    torch.testing.assert_close(found - found[0], expected - expected[0])
    torch.testing.assert_close(found + misfit, (found + misfit)[:1].expand(3))


def test_priors_that_are_no_filters():
    size = DenoiserSize(hop=4, width=4, levels=0, layers=1, heads=0, features=2)
    prior = ContinuousFlow(Denoiser(size, SPECTRUM), 32, sigma_min=0.1)
    with pytest.raises(ConfigurationError, match="is no filter"):
        prior.filtered(torch.randn(32))
    assert prior.transform is None
    for other in (prior, GaussianPrior(SPECTRUM, 32, sigma_min=0.1)):
        assert other.transform is None
        model = linear_mix({"a": other, "b": other}, [1.0, 0.7], 0.2)
        with pytest.raises(ConfigurationError, match=r"is no filter|of short-time spectra"):
            Potential(noised(model, 0.5, "local"), (torch.randn(32),))
