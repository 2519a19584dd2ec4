"""The flows that ship: they tell the waves apart, and their likelihood falls smoothly with noise."""

import pyro
import pytest
import torch

from pyrosep import AnnealedSearch, load_priors
from pyrosep.data import ToyMixes, ToySource
from pyrosep.data.toy import WAVES
from pyrosep.metrics import si_sdr
from pyrosep.mixing import mean_mix

MODEL, FRAME = "toy-flowavenet", 2048


@pytest.fixture(scope="module")
def flows():
    return load_priors(MODEL)


@pytest.fixture(scope="module")
def exact():
    return load_priors("toy", frame=FRAME)


def held_out(wave, count):
    clean = torch.stack([ToySource(wave, FRAME, count, seed=2**33)[index] for index in range(count)])
    return clean, torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("sigma", [0.03, 0.36])
def test_they_name_the_wave(flows, sigma):
    right = 0
    for number, wave in enumerate(WAVES):
        clean, noise = held_out(wave, 16)
        with torch.no_grad():
            nats = torch.stack([flows[name].at(sigma).log_prob(clean + sigma * noise) for name in WAVES])
        right += int((nats.argmax(0) == number).sum())
    # At a true rate of 95 % fewer than 54 of 64 are a matter of one in ten thousand.
    assert right >= 54


@pytest.mark.parametrize("wave", WAVES)
@pytest.mark.parametrize("sigma", [0.03, 0.36])
def test_likelihood_falls_with_noise_as_the_exact_one_does(flows, exact, wave, sigma):
    clean, noise = held_out(wave, 4)
    levels = [0.0, *(sigma * 2 ** (step / 2) for step in range(-3, 7))]

    def along(prior):
        with torch.no_grad():
            return torch.stack([prior.at(sigma).log_prob(clean + level * noise).mean() for level in levels])

    falls, true = -along(flows[wave]).diff(), -along(exact[wave]).diff()
    assert bool((falls > 0).all())
    near = [level <= 2 * sigma for level in levels[1:]]
    ratio = (falls / true)[near]
    assert 0.5 < float(ratio.min()) <= float(ratio.max()) < 1.5


@pytest.mark.parametrize("wave", WAVES)
def test_they_are_below_the_exact_density_by_little(flows, exact, wave):
    clean, noise = held_out(wave, 16)
    for sigma, most in ((0.1, 0.2), (1.0, 0.06)):  # nats a sample
        x = clean + sigma * noise
        with torch.no_grad():
            gap = (exact[wave].at(sigma).log_prob(x) - flows[wave].at(sigma).log_prob(x)).mean() / FRAME
        assert 0 < float(gap) < most


# --- toy-continuous ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def continuous():
    return load_priors("toy-continuous")


def snr(clean, found):
    return float(10 * torch.log10(clean.square().sum() / (found - clean).square().sum()))


@pytest.mark.parametrize("wave", WAVES)
def test_denoisers_find_waves_in_noise_much_louder_than_they_are(continuous, exact, wave):
    clean, noise = held_out(wave, 32)
    for sigma, least in ((0.1, 28.0), (0.36, 20.0), (1.0, 13.0), (3.0, 5.0)):  # dB; their card says what they reach
        x = clean + sigma * noise
        with torch.no_grad():
            found, best = (snr(clean, prior[wave].at(sigma).denoise(x)) for prior in (continuous, exact))
        assert least < found < best


@pytest.mark.parametrize("wave", WAVES)
def test_mixed_precision_costs_little(continuous, wave):
    clean, noise = held_out(wave, 32)
    for sigma, growth in ((0.01, 0.12), (0.03, 0.12), (0.1, 0.03), (0.36, 0.03), (1.0, 0.03), (3.0, 0.03)):
        x = clean + sigma * noise
        with torch.no_grad():
            full, half = (prior.at(sigma).denoise(x) for prior in (continuous[wave], continuous[wave].with_autocast()))
        assert float((half - full).norm()) > 0
        assert float((half - clean).norm()) < (1 + growth) * float((full - clean).norm())


@pytest.mark.slow
def test_chains_separate_two_waves(continuous):
    """A start of nothing, and nothing but what each wave is: most sources of most mixes."""
    waves, chains = ("saw", "square"), 2
    data = ToyMixes(waves, FRAME, seed=7)
    mix, truth = (
        torch.stack(parts).repeat_interleave(chains, 0) for parts in zip(*(data[i] for i in range(3)), strict=True)
    )
    pyro.set_rng_seed(0)
    model = mean_mix({wave: continuous[wave] for wave in waves})
    values = AnnealedSearch().run(model, mix, num_chains=len(mix)).values()
    found = torch.stack([values[wave] for wave in waves], 1)
    scores = si_sdr(found.reshape(-1, 1, FRAME), truth.reshape(-1, 1, FRAME)).reshape(-1, chains, len(waves))
    left = (mix - found.mean(1)).square().mean(-1).reshape(-1, chains)
    best = scores[torch.arange(len(scores)), left.argmin(1)]
    assert int((best > 10).sum()) >= 5, best
