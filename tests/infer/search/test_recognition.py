"""Energies of sources from denoising errors, and the searches that judge sources by them."""

import math

import pytest
import torch

from pyrosep import AnnealedSearch, ContinuousFlow, GaussianPrior, Potential
from pyrosep.infer import SweepMoves
from pyrosep.infer.search.recognition import DenoisingEnergy
from pyrosep.mixing import linear_mix
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser

SPECTRA = {"low": [9.0, 3.0, 0.1, 0.1, 0.1], "high": [0.1, 0.1, 0.1, 3.0, 9.0]}


def gaussians():
    return {name: GaussianPrior(torch.tensor(own), 64, sigma_min=0.05) for name, own in SPECTRA.items()}


def test_differences_of_energies_are_those_of_the_log_density(double):
    """Of a Gaussian, with levels from its own to where nothing of the source is left."""
    prior = gaussians()["low"]
    levels = torch.logspace(math.log10(0.05), 3, 60).tolist()
    energy = DenoisingEnergy([prior], levels)
    assert energy.calls == 60
    frames = torch.cat([prior.sample((3,)), torch.randn(3, 64)])
    found, exact = [], prior.log_prob(frames)
    for seed in range(200):  # the noise that the energies share is drawn once for each
        torch.manual_seed(seed)
        found.append(DenoisingEnergy([prior], levels)(0, frames))
    found = torch.stack(found)
    differences = found[:, 1:] - found[:, :1]
    z = (differences.mean(0) + (exact[1:] - exact[0])) / (differences.std(0) / len(found) ** 0.5)
    # What the trapezoidal rule and the ends leave out of energies of up to hundreds is below a standard error.
    assert float(z.abs().max()) < 4


def test_a_frame_of_another_source_has_a_larger_energy():
    priors = list(gaussians().values())
    energy = DenoisingEnergy(priors)
    assert len(energy.levels) == 4
    assert energy.levels[0] == pytest.approx(0.15)
    frames = [prior.sample((20,)) for prior in priors]
    for k in range(2):
        own, other = energy(k, frames[k]), energy(k, frames[1 - k])
        assert float(own.max()) < float(other.min())
        assert float(energy.usual(k)) < float(other.min())


SIZE = BandSize(window=16, bands=2, width=4, neck=4, layers=1, features=4)


class Counted(ContinuousFlow):
    """A Gaussian by its denoiser, without a density, that counts the frames that it denoises."""

    frames = 0

    def denoise(self, value):
        Counted.frames += value.reshape(-1, self.time).shape[0]
        return super().denoise(value)


def flows():
    # An untrained denoiser is that of a Gaussian with this mean spectrum.
    return {
        name: Counted(BandDenoiser(SIZE, torch.tensor(own).repeat_interleave(2)[:9]), 64, sigma_min=0.05)
        for name, own in SPECTRA.items()
    }


def test_only_sources_that_changed_are_denoised_again():
    priors = flows()
    potential = Potential(linear_mix(priors, [1.0, 1.0], 0.1), (torch.randn(64),), num_chains=3)
    z = {name: torch.randn(3, 64) for name in priors}
    chains = SweepMoves().on(potential, z, (1.0, 0.1))
    first, calls = chains.energy(), chains.calls.clone()
    assert torch.equal(chains.energy(), first)
    assert torch.equal(chains.calls, calls)
    before = dict(chains.z)
    chains.z["low"] = chains.z["low"] * torch.tensor([2.0, 1.0, 1.0]).unsqueeze(-1)
    second = chains.energy()
    assert (second != first).tolist() == [True, False, False]
    assert (chains.calls - calls).tolist() == [4, 0, 0]
    chains.z = before  # as a move that is taken back
    assert torch.equal(chains.energy(), first)
    assert (chains.calls - calls).tolist() == [4, 0, 0]


def test_a_chain_whose_sources_are_strange_is_not_settled():
    """Two sources that hold each other's part of the mix leave no residual, and are wrong."""
    torch.manual_seed(0)
    priors, exact = flows(), gaussians()
    sources = {name: prior.sample() for name, prior in exact.items()}
    mix = sum(sources.values())
    potential = Potential(linear_mix(priors, [1.0, 1.0], 0.1), (mix,), num_chains=2)
    z = {name: torch.stack([sources[name], sources[other]]) for name, other in (("low", "high"), ("high", "low"))}
    chains = SweepMoves().on(potential, z, (1.0, 0.1))
    assert chains.unsettled().tolist() == [1]
    first = torch.stack([chains.order(torch.tensor([0, 1])) for _ in range(50)])
    assert first.sort(-1).values.unique(dim=0).shape == (1, 2, 2)


def test_a_search_ends_where_sources_are_their_own():
    torch.manual_seed(0)
    priors, exact = flows(), gaussians()
    sources = {name: prior.sample() for name, prior in exact.items()}
    found = AnnealedSearch(6, SweepMoves(), redraws=4).run(
        linear_mix(priors, [1.0, 1.0], 0.1), sum(sources.values()), num_chains=3, seed=1
    )
    for name, value in found.values().items():
        error = (value - sources[name]).square().mean() / sources[name].square().mean()
        assert float(error) < 0.5
