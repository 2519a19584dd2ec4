"""Denoisers trained together, inside the descent: against the Wiener filter, the best for Gaussian sources."""

import pytest
import torch

from pyrosep import ContinuousFlow, GaussianPosterior, GaussianPrior
from pyrosep.errors import ConfigurationError
from pyrosep.infer.response import LinearMix
from pyrosep.infer.search.descent import Descent, descent_ladder
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import BandDenoiser
from pyrosep.training.frames import Frames
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.together import train_together
from pyrosep.training.trainer import Trainer

BANDS = BandSize(window=32, bands=4, width=8, neck=8, layers=1, features=8)
FRAME = 256
SPECTRA = {"low": torch.linspace(1, 0, 17) ** 2 + 0.01, "high": torch.linspace(0, 1, 17) ** 2 + 0.01}


def gaussians():
    return {
        name: GaussianPrior(spectrum, FRAME, sigma_min=1e-3, sample_rate=8000) for name, spectrum in SPECTRA.items()
    }


def flows(interference=True, frame=FRAME):
    torch.manual_seed(0)
    return {
        name: ContinuousFlow(
            BandDenoiser(BANDS, spectrum, interference=interference),
            frame,
            sigma_min=0.01,
            sigma_max=3.0,
            sample_rate=8000,
        )
        for name, spectrum in SPECTRA.items()
    }


def frames(frame=FRAME):
    priors = {name: prior.frame(frame) for name, prior in gaussians().items()}
    return {
        name: Frames(lambda count, prior=prior: prior.sample((count,)), prior.sample((16,)), 8000)
        for name, prior in priors.items()
    }


def settings(**changes):
    return TrainingSettings(
        **{"steps": 80, "batch": 8, "learning_rate": 0.02, "optimizer": "muon", "ema": 0.9, "warmup": 5} | changes
    )


def snr(clean, found):
    return (10 * (clean.square().sum((0, 2)) / (found - clean).square().sum((0, 2))).log10()).tolist()


@pytest.fixture
def clean():
    return torch.stack([prior.sample((32,)) for prior in gaussians().values()], 1)


def separated(priors, clean):
    descent = Descent(list(priors.values()), spread=0.0)
    mix = LinearMix(clean.sum(1, keepdim=True), torch.ones(len(clean), 2, 1), torch.full((len(clean), 1), 1e-3))
    with torch.no_grad():
        return descent.down(descent.start(mix), mix, descent_ladder(priors, 4))


def test_the_search_comes_near_to_the_wiener_filter(clean):
    """Untrained denoisers take the others for as loud as the source itself, at every frequency."""
    priors = flows()
    before = snr(clean, separated(priors, clean))
    trained, report = train_together(priors, frames(), Trainer(settings(), quiet=True), presence=1.0, agreement=0.0)
    after = snr(clean, separated(trained, clean))
    best = snr(clean, GaussianPosterior(gaussians(), clean.sum(1), noise=1e-3).mean)
    for k in range(2):
        assert before[k] < best[k] - 1
        assert best[k] - 0.5 < after[k] < best[k] + 0.3
    assert set(report) >= {"SNR of low", "SNR of high", "steps", "seconds"}
    assert not any(parameter.requires_grad for prior in trained.values() for parameter in prior.network.parameters())


def test_what_the_denoisers_are_without_interference_is_kept(clean):
    """Gaussian sources' denoisers are right as they come: trained together they stay so, told of no interference."""
    noised = clean + 0.3 * torch.randn_like(clean)

    def alone(priors):
        pairs = zip(priors.values(), noised.unbind(1), strict=True)
        return snr(clean, torch.stack([prior.at(0.3).denoise(x) for prior, x in pairs], 1))

    kept = alone(train_together(flows(), frames(), Trainer(settings(), quiet=True), agreement=0.0)[0])
    assert kept == pytest.approx(alone(flows()), abs=0.25)


def test_a_training_that_was_stopped_ends_where_one_that_was_not_does(tmp_path):
    def trained(**how):
        own = settings(steps=4, save_every=2)
        return train_together(flows(frame=1024), frames(frame=1300), Trainer(own, quiet=True, **how), agreement=0.5)[0]

    whole = trained()
    trained(folder=tmp_path, until=2)
    again = trained(folder=tmp_path, resume=True)
    for name, prior in whole.items():
        for key, value in prior.network.state_dict().items():
            torch.testing.assert_close(again[name].network.state_dict()[key], value, rtol=0, atol=0)


def test_a_source_that_is_silent_in_all_that_is_held_out_has_no_figure():
    """A ratio of nothing is no number, and files of JSON have no infinity."""
    own = frames()
    own["low"] = Frames(own["low"].draw, torch.zeros(16, FRAME), 8000)
    _, report = train_together(flows(), own, Trainer(settings(steps=1), quiet=True), agreement=0.0)
    assert "SNR of high" in report
    assert "SNR of low" not in report


def test_what_it_is_not_for_is_refused():
    with pytest.raises(ConfigurationError, match="low, high know nothing of interference"):
        train_together(flows(interference=False), frames(), Trainer(settings(), quiet=True))
    with pytest.raises(ConfigurationError, match=r"frames of the sources \['low', 'high'\]; got those of \[\]"):
        train_together(flows(), {}, Trainer(settings(), quiet=True))
    with pytest.raises(ConfigurationError, match="expected presence in"):
        train_together(flows(), frames(), Trainer(settings(), quiet=True), presence=0.0)
    with pytest.raises(ConfigurationError, match="frames of at least 512 samples; those of low, high are shorter"):
        train_together(flows(frame=512), frames(), Trainer(settings(), quiet=True))
