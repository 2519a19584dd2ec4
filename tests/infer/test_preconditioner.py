"""Preconditioners: linear maps that are what they say."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyrosep import (
    MALA,
    GaussianPosterior,
    GaussianPrior,
    LangevinMCMC,
    OscillatorPrior,
    Potential,
    SpectralPreconditioner,
)
from pyrosep.errors import ConfigurationError, InitializationError, ShapeError
from pyrosep.infer import IdentityPreconditioner
from pyrosep.infer.preconditioner import make_preconditioner
from pyrosep.mixing import linear_mix, panned_mix, soft_clipped_mix, unknown_gains_mix


def at_start(potential, **options):
    return SpectralPreconditioner(potential, potential.unconstrain(potential.prior_draw), **options)


@pytest.mark.parametrize("time", [7, 8])
def test_square_is_the_posterior_covariance(linear_of, time):
    linear = linear_of(time)
    preconditioner = at_start(linear.potential(num_chains=3))
    root, transposed = linear.matrix(preconditioner.color), linear.matrix(preconditioner.whiten_gradient)
    # Closed forms in double precision: rounding.
    torch.testing.assert_close(root @ root.mT, linear.covariance, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(transposed, root.mT, rtol=1e-9, atol=1e-9)


def test_prior_curvature_alone(linear):
    root = linear.matrix(at_start(linear.potential(num_chains=3), curvature="prior").color)
    torch.testing.assert_close(root @ root.mT, linear.prior_covariance, rtol=1e-9, atol=1e-9)  # rounding


@pytest.mark.parametrize("chains", [None, 3])
def test_long_frame_in_single_precision(chains):
    """At every frequency the square is the exact covariance, up to single precision's rounding of the energies."""
    time, noise = 512, 0.05
    spectra = torch.logspace(1, -4, 33), torch.logspace(-3, 0, 33)
    priors = {name: GaussianPrior(spectrum, time) for name, spectrum in zip("ab", spectra, strict=True)}
    mix = torch.randn(time)
    potential = Potential(linear_mix(priors, noise=noise), (mix,), num_chains=chains)
    root = at_start(potential).root.to(torch.complex128)
    exact = GaussianPosterior(priors, mix.double(), noise=noise).spectral_covariance
    square = torch.einsum("ijf,kjf->fik", root, root.conj())
    # Single precision knows a curvature of 400 to some 1e-4, beside prior precisions from 0.1 on.
    scale = exact.diagonal(dim1=-2, dim2=-1).amax(-1)[:, None, None]
    assert float(((square - exact) / scale).abs().max()) < 1e-4


@pytest.mark.parametrize("make", [soft_clipped_mix, unknown_gains_mix, panned_mix])
def test_models_that_are_not_linear(double, make):
    """The map is positive definite, and MALA moves with it."""
    time = 8
    priors = {
        "a": GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), time, sigma_min=0.1),
        "b": GaussianPrior(torch.tensor([0.5, 1.0, 2.0]), time, sigma_min=0.1),
    }
    model = make(priors, noise=0.2)
    mix = model().detach()
    potential = Potential(model, (mix,), num_chains=4)
    preconditioner = at_start(potential)
    shapes = {name: value.shape[1:] for name, value in potential.prior_draw.items()}
    sizes = [shape.numel() for shape in shapes.values()]
    unit = torch.eye(sum(sizes)).split(sizes, -1)
    basis = {name: one.reshape(-1, *shapes[name]) for name, one in zip(shapes, unit, strict=True)}
    colored = preconditioner.color(basis)
    root = torch.cat([value.flatten(1) for value in colored.values()], -1)
    torch.testing.assert_close(root, root.mT)
    assert float(torch.linalg.eigvalsh(root).min()) > 0
    mcmc = LangevinMCMC(MALA(model), num_samples=20, warmup_steps=200, num_chains=4).run(mix)
    draws = mcmc.get_samples(group_by_chain=True)
    for name in shapes:
        assert bool((draws[name].flatten(2).std(1) > 0).all()), name
    # Dual averaging aims at 0.574; that every chain takes one step in five says that no direction blocks it.
    assert bool((mcmc.sample_stats()["acceptance_rate"].mean(1) > 0.2).all())


def test_coordinates_without_sources(double):
    """Sites that are no sources are scaled by their own curvature: a Gaussian's deviations, exactly."""
    scale = torch.tensor([0.1, 1.0, 10.0])

    def observed():
        x = pyro.sample("x", dist.Normal(torch.zeros(3), scale).to_event(1))
        pyro.sample("y", dist.Normal(x, scale).to_event(1), obs=torch.ones(3))

    potential = Potential(observed, num_chains=2)
    preconditioner = at_start(potential)
    color = preconditioner.color({"x": torch.ones(2, 3)})["x"]
    torch.testing.assert_close(color, (scale / np.sqrt(2)).expand(2, 3), rtol=1e-9, atol=1e-9)  # rounding


def test_by_name(linear):
    potential = linear.potential(num_chains=2)
    z = potential.unconstrain(potential.prior_draw)
    own = IdentityPreconditioner()
    assert isinstance(make_preconditioner(None, potential, z), IdentityPreconditioner)
    assert make_preconditioner(lambda potential, z: own, potential, z) is own
    whole, prior = (linear.matrix(make_preconditioner(kind, potential, z).color) for kind in ("spectral", "prior"))
    torch.testing.assert_close(whole @ whole.mT, linear.covariance)
    torch.testing.assert_close(prior @ prior.mT, linear.prior_covariance)
    for wrong in ("diagonal", 3):
        with pytest.raises(ConfigurationError, match="preconditioner must be"):
            make_preconditioner(wrong, potential, z)
    with pytest.raises(ConfigurationError, match="curvature must be"):
        SpectralPreconditioner(potential, z, curvature="none")


def test_sources_of_different_lengths():
    def model():
        for name, time in (("a", 8), ("b", 6)):
            pyro.sample(name, GaussianPrior(torch.ones(2), time))

    with pytest.raises(ShapeError, match="sources of one shape"):
        at_start(Potential(model, num_chains=2))


def test_sharp_observation_of_a_wide_spectrum_in_single_precision():
    """Where the observation is a million times sharper than the priors, rounding must not reach the other directions.

    With the exact preconditioner every step of size one is accepted, but for the rounding of energies of thousands of
    nats; with a curvature in single precision about half of them were.
    """
    slope = torch.linspace(0, 6, 65)
    priors = {"low": GaussianPrior(10**-slope, 2048), "high": GaussianPrior(10 ** (slope - 6), 2048)}
    model = linear_mix(priors, noise=1e-3)
    mix = model().detach()
    kernel = MALA(model, 1.0, adapt_step_size=False)
    stats = LangevinMCMC(kernel, 20, 20, num_chains=4).run(mix).sample_stats()
    assert float(stats["acceptance_rate"].mean()) > 0.95


def test_echoes_keep_their_fine_structure():
    """A delay of a fifth of the frame ripples over five bins, finer than any smoothing over frequency."""
    priors = {name: GaussianPrior(torch.tensor([1.0, 0.1, 0.01]), 512) for name in ("dry", "wet")}

    def model(mix=None):
        dry, wet = (pyro.sample(name, prior) for name, prior in priors.items())
        mean = dry + wet + 0.8 * wet.roll(100, -1)
        return pyro.sample("mix", dist.Normal(mean, 1e-2).to_event(1), obs=mix)

    mix = model().detach()
    kernel = MALA(model, 1.0, adapt_step_size=False)
    stats = LangevinMCMC(kernel, 20, 20, num_chains=4).run(mix).sample_stats()
    assert float(stats["acceptance_rate"].mean()) > 0.95


def test_no_chain_sticks_where_it_started():
    """From draws of the prior, 26 million nats above the posterior, where single precision can't tell what to accept.

    Without the greedy steps at the start of warm-up 7 of these 32 chains stayed there. A chain that arrived has the
    residual of the noise, 1e-3 beside a mix of about 0.5, or 2e-3; ten times that is far from any posterior draw.
    """
    slope = torch.linspace(0, 6, 65)
    priors = {"low": GaussianPrior(10**-slope, 2048), "high": GaussianPrior(10 ** (slope - 6), 2048)}
    model = linear_mix(priors, noise=1e-3)
    mix = model().detach()
    mcmc = LangevinMCMC(MALA(model), num_samples=5, warmup_steps=50, num_chains=32, init="prior").run(mix)
    assert float(mcmc.sample_stats()["residual"].max()) < 0.02
    assert mcmc.kernel.step_sizes.shape == (32,)


# --- measured curvature ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [7, 8])
def test_measured_curvature_of_gaussian_sources_is_the_posteriors(linear_of, time):
    linear = linear_of(time)
    root = linear.matrix(at_start(linear.potential(num_chains=3), curvature="measured").color)
    torch.testing.assert_close(root @ root.mT, linear.covariance, rtol=1e-9, atol=1e-9)  # rounding
    potential = linear.potential(num_chains=3)
    z = potential.unconstrain(potential.prior_draw)
    named = linear.matrix(make_preconditioner("measured", potential, z).color)
    torch.testing.assert_close(named, root, rtol=1e-9, atol=1e-9)


def oscillators(frame=32, sigma=0.05):
    """Of amplitudes so nearly fixed that about one waveform the density is white noise of the level sigma alone."""
    return {
        wave: OscillatorPrior(wave, frame, periods=(5, 7, 9), sigma_min=sigma, amplitude=(0.9, 0.9 + 1e-6))
        for wave in ("saw", "square")
    }


def test_measured_curvature_within_one_mode_is_that_of_the_noise(double):
    """diag(1 / sigma^2) + a a' / noise^2 at every frequency, where the spectra say something else entirely."""
    priors, gains = oscillators(), torch.tensor([1.0, 0.7])
    mix = torch.randn(32)
    potential = Potential(linear_mix(priors, gains, 0.1), (mix,), num_chains=3)
    z = {name: prior.sample((3,)) for name, prior in priors.items()}
    root = SpectralPreconditioner(potential, z, curvature="measured").root
    covariance = torch.linalg.inv(torch.eye(2) / 0.05**2 + torch.outer(gains, gains) / 0.1**2)
    square = torch.einsum("ijf,kjf->fik", root, root.conj())
    # The amplitude's own spread adds 1e-12 / 12 * |w|^2 / sigma^4 to one direction, beside 1 / sigma^2: 1e-9; the prior
    # keeps its level in the default precision, which is double here.
    torch.testing.assert_close(square, covariance.expand_as(square) + 0j, rtol=1e-6, atol=1e-9)
    by_spectrum = SpectralPreconditioner(potential, z).root
    assert float((by_spectrum - root).abs().max()) > 0.1 * float(root.abs().max())


def test_measured_curvature_makes_long_steps_within_a_mode(double):
    """Every step of size one is accepted there; with the spectra's curvature hardly any."""
    priors = oscillators()
    sources = {name: prior.sample() for name, prior in priors.items()}
    mix = sum(sources.values()) + 0.1 * torch.randn(32)
    rates = {}
    for kind in ("measured", "spectral"):
        kernel = MALA(linear_mix(priors, noise=0.1), 1.0, adapt_step_size=False, preconditioner=kind)
        mcmc = LangevinMCMC(kernel, 1, 0, thinning=20, num_chains=8, init=sources, seed=0).run(mix)
        rates[kind] = float(mcmc.kernel.mean_accept_prob)
    assert rates["measured"] > 0.99
    assert rates["spectral"] < 0.5


def test_measured_curvature_between_modes_is_positive(double):
    """Half-way between two waveforms the density curves the other way: no step there is longer than the prior's."""
    prior = oscillators()["square"]
    sources = prior.sample((2,))
    while torch.allclose(sources[0].sign(), sources[1].sign()):
        sources = prior.sample((2,))
    at = prior.at(1.0)
    potential = Potential(linear_mix({"square": at}, noise=10.0), (torch.zeros(32),), num_chains=1)
    z = {"square": sources.mean(0, keepdim=True)}
    root = SpectralPreconditioner(potential, z, curvature="measured").root
    assert bool(torch.isfinite(root.abs()).all())
    eigenvalues = torch.linalg.eigvalsh(root.permute(2, 0, 1))
    assert float(eigenvalues.min()) > 0
    largest = float((at.spectrum + 1.0).max()) ** 0.5
    assert float(eigenvalues.max()) <= largest * (1 + 1e-9)


# --- any model ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [False, True])
def test_sources_of_one_site_are_coupled(double, event):
    """The same precision as of sites of their own: a plate's members explain one mix together."""
    prior = GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), 8, sigma_min=0.1)
    gains, mix = torch.tensor([1.0, 0.7]), torch.randn(8)

    def together(mix):
        if event:
            s = pyro.sample("s", prior.expand([2]).to_event(1))
        else:
            with pyro.plate("k", 2):
                s = pyro.sample("s", prior)
        pyro.sample("mix", dist.Normal((gains[:, None] * s).sum(-2), 0.1).to_event(1), obs=mix)

    found = []
    for model in (together, linear_mix({"a": prior, "b": prior}, gains, 0.1)):
        potential = Potential(model, (mix,), num_chains=3)
        z = potential.unconstrain(potential.prior_draw)
        found.append(SpectralPreconditioner(potential, z))
    torch.testing.assert_close(found[0].root, found[1].root)
    white = torch.randn(3, 2, 8)
    one, two = found[0].color({"s": white})["s"], found[1].color({"a": white[:, 0], "b": white[:, 1]})
    torch.testing.assert_close(one, torch.stack([two["a"], two["b"]], 1))


def prior_only(prior):
    def model():
        pyro.sample("a", prior)
        pyro.sample("gain", dist.LogNormal(0.0, 1.0))

    return model


def masked(prior):
    def model():
        a = pyro.sample("a", prior)
        kept = torch.zeros(8, dtype=torch.bool)
        pyro.sample("mix", dist.Normal(a, 0.5).mask(kept).to_event(1), obs=torch.ones(8))

    return model


def masked_by_handler(prior):
    def model():
        a = pyro.sample("a", prior)
        with poutine.mask(mask=False):
            pyro.sample("mix", dist.Normal(a, 0.5).to_event(1), obs=torch.ones(8))

    return model


@pytest.mark.parametrize("make", [prior_only, masked, masked_by_handler])
@pytest.mark.parametrize("curvature", ["posterior", "measured", "prior"])
def test_a_model_without_data(double, make, curvature):
    """The priors are all the curvature that there is."""
    prior = GaussianPrior(torch.tensor([2.0, 1.0, 0.5]), 8, sigma_min=0.1)
    potential = Potential(make(prior), num_chains=3)
    z = potential.unconstrain(potential.prior_draw)
    found = SpectralPreconditioner(potential, z, curvature=curvature)
    torch.testing.assert_close(found.root[0, 0], prior.variance(torch.zeros(())).sqrt() + 0j)
    LangevinMCMC(MALA(make(prior)), 4, 4, num_chains=3, seed=0).run()


def test_curvature_that_is_not_finite_is_named():
    prior = GaussianPrior(torch.ones(2), 8)

    def model(mix):
        a = pyro.sample("a", prior)
        pyro.sample("mix", dist.Normal(a.abs().pow(1.5), 0.5).to_event(1), obs=mix)

    with pytest.raises(InitializationError, match="curvature of the model in 'a' is not finite"):
        LangevinMCMC(MALA(model), 4, num_chains=2, init="mix", seed=0).run(torch.zeros(8))
