"""The audit of searches: energies against a density that is known, and the tables, with tiny models."""

import math

import pytest
import torch

from pyrosep import GaussianPrior, audio, save_priors
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.audit import audit, denoising_energy

RATE, FRAME = 8000, 2048
SPECTRA = {"low": [4.0, 0.01, 0.01], "high": [0.01, 0.01, 4.0]}


def test_energies_of_an_exact_denoiser_are_negative_log_densities(double):
    """In the mean over the noise, up to a constant: of a Gaussian's two frames they differ by what log_prob does."""
    prior = GaussianPrior(torch.tensor([4.0, 2.0, 0.5]), 32, sigma_min=0.0)
    frames = torch.stack([torch.randn(32), 3 * torch.randn(32)])
    levels = torch.logspace(-3, 3, 600).tolist()
    noise = torch.randn(600, 1, 32).expand(-1, 2, -1)
    # Noise of both signs: what is odd in it has no mean.
    energy = sum(denoising_energy(prior, frames, sign * noise, levels) for sign in (1, -1)) / 2
    expected = -prior.at(0.0).log_prob(frames)
    assert float(energy[1] - energy[0]) == pytest.approx(float(expected[1] - expected[0]), rel=0.01)


@pytest.fixture(scope="module")
def songs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("songs")
    torch.manual_seed(0)
    for song in ("one", "two"):
        (folder / song).mkdir()
        for name, own in SPECTRA.items():
            prior = GaussianPrior(1e-3 * torch.tensor(own), 3 * FRAME)
            audio.write(folder / song / f"{name}.wav", prior.sample((1,)), RATE)
    return folder


def test_it_tells_of_levels_and_of_draws(songs, tmp_path, filtering_flows):
    spectra = {name: 1e-3 * torch.tensor(own) for name, own in SPECTRA.items()}
    save_priors(tmp_path / "model", filtering_flows(spectra, FRAME, RATE, sigma_min=1e-3))
    tables = audit(
        tmp_path / "out",
        str(songs),
        model=str(tmp_path / "model"),
        searches=["shared"],
        levels=[4, 8],
        windows=4,
        chains=4,
        workers=1,
    )
    levels, draws = tables["levels"].set_index("levels"), tables["draws"].set_index("draws")
    assert list(levels.index) == [4, 8]
    assert list(levels["calls"]) == [4, 8]
    assert list(draws.index) == [1, 2, 4]
    # The priors are all but exact: a draw is a good deal worse than the mean of four, by about what the law says.
    assert draws.loc[4, "mean"] > draws.loc[2, "mean"] > draws.loc[1, "mean"]
    assert draws.loc[4, "mean"] - draws.loc[1, "mean"] == pytest.approx(10 * math.log10(2 / 1.25), abs=0.5)
    assert draws.loc[4, "law"] == pytest.approx(draws.loc[4, "mean"])
    for name in SPECTRA:
        assert draws.loc[4, f"{name} in 90 %"] == pytest.approx(0.9, abs=0.05)
    for name in ("levels.csv", "draws.csv", "audit.md", "audit.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_bad_settings_are_refused(songs, tmp_path):
    with pytest.raises(ConfigurationError, match="searches must be among"):
        audit(tmp_path, str(songs), searches=["sweeps"])
    with pytest.raises(ConfigurationError, match="at least 2 chains"):
        audit(tmp_path, str(songs), chains=1)
