"""Whether a guide is to be trusted, on guides whose faults are known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Normal

from pyrosep import EncoderGuide, GaussianPosterior, GaussianPrior
from pyrosep.diagnostics import fit_temperature, importance_k_hat, interval_coverage, mix_check
from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.guides import simulate
from pyrosep.mixing import mean_mix
from pyrosep.nn.refining import UNetSize

TIME, NOISE, POWERS = 16, 0.3, (4.0, 0.5)
TINY = UNetSize(hop=4, width=4, levels=0, layers=1)
GAINS = torch.full((2,), 0.5)


@pytest.fixture
def priors():
    return {name: GaussianPrior(torch.full((2,), p), TIME) for name, p in zip("ab", POWERS, strict=True)}


def posterior(priors, mix):
    return GaussianPosterior(priors, mix, gains=GAINS, noise=NOISE)


def guide_of(priors, spread):
    """The posterior of white sources, exact at each sample, its covariance times ``spread`` squared."""

    def guide(mix):
        exact = posterior(priors, mix)
        joint = dist.MultivariateNormal(exact.mean.mT, spread**2 * exact.spectral_covariance[0])
        mean, root = joint.mean, joint.scale_tril[..., 0, :, :]
        a = pyro.sample("a", dist.Normal(mean[..., 0], root[0, 0]).to_event(1))
        shift = root[1, 0] * (a - mean[..., 0]) / root[0, 0]
        pyro.sample("b", dist.Normal(mean[..., 1] + shift, root[1, 1]).to_event(1))

    return guide


def known(priors, mean_of, scales, project=False):
    """An encoder guide whose encoders are given."""
    guide = EncoderGuide(priors, size=TINY, project=project, noise=NOISE)

    def encoded(mix):
        mean = mean_of(mix)
        return mean, torch.as_tensor(scales).unsqueeze(-1).expand(mean.shape), mix, mix

    guide._encoded = encoded
    return guide


def test_k_hat_tells_a_good_guide_from_a_bad_one(priors):
    model = mean_mix(priors, NOISE)
    mix = model()
    assert importance_k_hat(model, guide_of(priors, 1.0), mix, 500) == -math.inf
    assert importance_k_hat(model, guide_of(priors, 1.1), mix, 1000) < 0.5  # too wide: weights are bounded
    assert importance_k_hat(model, guide_of(priors, 0.5), mix, 1000) > 0.7  # too narrow
    with pytest.raises(ConfigurationError, match="25 draws or more"):
        importance_k_hat(model, guide_of(priors, 1.0), mix, 10)


def test_coverage_is_that_of_the_deviations_given(priors):
    """Deviations of the exact posterior, scaled: a normal's mass within so many of its deviations."""
    mixes, values = simulate(mean_mix(priors, NOISE), 400)
    sources = torch.stack([values["a"], values["b"]], 1)
    right = posterior(priors, mixes[0]).stddev
    guide = known(priors, lambda mix: posterior(priors, mix).mean, right * torch.tensor([1.0, 0.5]))
    found = interval_coverage(guide, mixes, sources, levels=(0.5, 0.9))
    normal = Normal(0.0, 1.0)
    for name, factor in (("a", 1.0), ("b", 0.5)):
        for level, share in found[name].items():
            end = factor * normal.icdf(torch.tensor((1 + level) / 2))
            expected = float(2 * normal.cdf(end) - 1)
            # 6400 samples, independent in white sources: four standard errors.
            assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 6400))


@pytest.mark.parametrize("project", [False, True])
def test_temperatures_mend_the_coverage(priors, project):
    mixes, values = simulate(mean_mix(priors, NOISE), 400)
    sources = torch.stack([values["a"], values["b"]], 1)
    if project:  # too sure by a factor of three
        guide = known(priors, lambda mix: torch.zeros(*mix.shape[:-1], 2, TIME), torch.tensor(POWERS).sqrt() / 3, True)
    else:
        right = posterior(priors, mixes[0]).stddev
        guide = known(priors, lambda mix: posterior(priors, mix).mean, right * torch.tensor([0.5, 3.0]))
    found = fit_temperature(guide, mixes, sources, level=0.9)
    assert list(found) == ["a", "b"]
    if not project:
        # A quantile at 0.9 of 6400: its standard error is 1 % of it, here four of them.
        assert list(found.values()) == pytest.approx([2.0, 1 / 3], rel=0.05)
    mended = interval_coverage(guide, mixes, sources, levels=(0.9,))
    assert [own[0.9] for own in mended.values()] == pytest.approx([0.9, 0.9], abs=0.01)


def test_coverage_and_temperature_refuse_wrong_input(priors):
    guide = EncoderGuide(priors, size=TINY)
    with pytest.raises(ShapeError, match=r"expected sources of shape \(3, 2, 16\)"):
        interval_coverage(guide, torch.randn(3, TIME), torch.randn(3, TIME))
    with pytest.raises(ConfigurationError, match="between 0 and 1"):
        fit_temperature(guide, torch.randn(3, TIME), torch.randn(3, 2, TIME), level=1.0)
    mix = torch.randn(3, TIME)
    with torch.no_grad():
        exact = guide.moments(mix)[0]
    with pytest.raises(ConfigurationError, match="no temperature fits"):
        fit_temperature(guide, mix, exact)
    assert guide.temperature.tolist() == [1.0, 1.0]


def test_the_mix_is_explained_by_the_posterior_and_not_by_another(priors):
    """Under the exact posterior the p-value's mean over mixes is a half; a guide that misses the mix has none."""
    model = mean_mix(priors, NOISE)
    good = [mix_check(model, guide_of(priors, 1.0), model(), 50).p_value for _ in range(20)]
    assert 0.3 < sum(good) / 20 < 0.7
    mix = model()

    def far(mix):
        for name in priors:
            pyro.sample(name, dist.Normal(5 * torch.ones(TIME), 0.1).to_event(1))

    bad = mix_check(model, far, mix, 50)
    assert bad.p_value == 0.0
    assert bad.statistic > 10 * bad.expected
    # The statistic of a mix drawn anew is chi-square with a degree of freedom for each sample: four standard errors.
    assert bad.expected == pytest.approx(TIME, abs=4 * math.sqrt(2 * TIME / 50))
    draws = posterior(priors, mix).sample((50,))
    by_draws = mix_check(model, {"a": draws[:, 0], "b": draws[:, 1]}, mix)
    assert by_draws.p_value > 0.01
    with pytest.raises(ConfigurationError, match="one observed site"):
        mix_check(lambda mix: model(None), far, mix)


def test_temperatures_do_not_run_away(priors):
    """Mixes noisier than the guide takes them for: no temperature makes room for what the projection is sure of."""
    mixes, values = simulate(mean_mix(priors, 3 * NOISE), 100)
    sources = torch.stack([values["a"], values["b"]], 1)
    spread = torch.tensor(POWERS).sqrt() / 3
    guide = known(priors, lambda mix: torch.zeros(*mix.shape[:-1], 2, TIME), spread, True)
    with pytest.warns(UserWarning, match="no temperature gives the guide's intervals a share of 0.9"):
        found = fit_temperature(guide, mixes, sources, level=0.9)
    assert max(found.values()) < 100
