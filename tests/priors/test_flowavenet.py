"""FloWaveNet: an exact density at every level, one network, a site like any other."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.infer.reparam import TransformReparam

from pyrosep import load_priors, save_priors
from pyrosep.errors import ConfigurationError
from pyrosep.priors import FloWaveNet, FloWaveNetwork, FlowSize
from pyrosep.priors.flowavenet import SIZES

pytestmark = pytest.mark.usefixtures("double")

# Double precision through a few dozen layers.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
SMALLEST = FlowSize(squeeze=(2,), flows=(2,), layers=(1,), width=(4,), features=4)


def flow(frame=32, size=SIZES["tiny"], scale=0.3, **arguments):
    """A flow that nobody trained, with random weights everywhere."""
    network = FloWaveNetwork(size, torch.linspace(2, 0.1, 9))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return FloWaveNet(network, frame, **arguments)


def flow_at(prior, sigma):
    """The same network at one level, without a batch."""
    return FloWaveNet(prior.network, prior.time, sigma)


def test_log_density_against_the_jacobian():
    """Change of variables: the density of the noise and the determinant, by autograd, of frame to noise."""
    prior = flow(16).at(0.4)
    (transform,) = prior.transforms
    x = prior.sample()
    z = transform.inv(x)
    jacobian = torch.autograd.functional.jacobian(transform.inv, x)
    expected = -0.5 * (z.square().sum() + 16 * math.log(2 * math.pi)) + torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(prior.log_prob(x), expected, **ROUNDING)


@pytest.mark.parametrize("sigma", [0.05, 0.4, 3.0])
def test_density_of_two_samples_integrates_to_one(sigma):
    prior = flow(2, SMALLEST).at(sigma)
    draws = prior.sample((20_000,))
    (low, high), steps = (float(draws.min()), float(draws.max())), 400
    middle, half = (low + high) / 2, (high - low)
    line = middle + half * ((torch.arange(steps) + 0.5) / steps * 2 - 1)  # twice the range of the draws
    density = prior.log_prob(torch.cartesian_prod(line, line)).exp().reshape(steps, steps)
    # The midpoint rule is exact to rounding for a smooth density that vanishes at the edges; what is beyond them is
    # less than one draw in the number that was taken to find them.
    assert float(density.sum()) * (2 * half / steps) ** 2 == pytest.approx(1, abs=1e-4)


def test_an_affine_instance_is_the_normal_distribution_it_should_be():
    """Couplings whose networks ignore their input leave an affine map: a Gaussian, whose density has a closed form."""
    prior = flow(16)
    for name, parameter in prior.network.named_parameters():
        if name.endswith("wavenet.last.weight"):
            parameter.data.zero_()
    prior = prior.at(0.7)
    (transform,) = prior.transforms
    mean = transform(torch.zeros(16))
    columns = torch.stack([transform(unit) - mean for unit in torch.eye(16)], -1)
    gaussian = torch.distributions.MultivariateNormal(mean, columns @ columns.mT)
    x = gaussian.sample((5,))
    torch.testing.assert_close(prior.log_prob(x), gaussian.log_prob(x), **ROUNDING)
    # Its Gaussian posterior mean, by Tweedie's formula and by inverting the covariance.
    score = -torch.linalg.solve(gaussian.covariance_matrix, (x - mean).mT).mT
    torch.testing.assert_close(prior.denoise(x), x + 0.7**2 * score, **ROUNDING)


def test_fresh_it_is_white_noise_of_the_sources_power():
    prior = FloWaveNet(FloWaveNetwork(SIZES["tiny"], torch.full((9,), 0.3)), 32)
    x = prior.at(0.5).sample((4,))
    expected = torch.distributions.Normal(0.0, math.sqrt(0.3 + 0.25)).log_prob(x).sum(-1)
    torch.testing.assert_close(prior.at(0.5).log_prob(x), expected, **ROUNDING)


def test_gradient_is_finite_at_every_level():
    """From the lowest level to the top of a ladder, rms * sqrt(T), in single precision, for a source and for noise."""
    prior = flow(2048, SIZES["small"], scale=0.02)
    prior.network.float()
    top = math.sqrt(float(prior.network.variance) * 2048)
    levels = torch.logspace(math.log10(prior.sigma_min), math.log10(top), 7, dtype=torch.float32)
    source = torch.sin(torch.arange(2048) / 9).float()
    noise = torch.randn(7, 2048, dtype=torch.float32)
    for x in (source + levels.unsqueeze(-1) * noise, levels.unsqueeze(-1) * noise, torch.zeros(7, 2048).float()):
        x.requires_grad_()
        log_prob = prior.at(levels).log_prob(x)
        (gradient,) = torch.autograd.grad(log_prob.sum(), x)
        assert bool(torch.isfinite(log_prob).all())
        assert bool(torch.isfinite(gradient).all())


def test_no_frame_of_a_batch_reaches_another():
    prior = flow().at(torch.tensor([0.1, 1.0, 3.0]))
    x = prior.sample().requires_grad_()
    (gradient,) = torch.autograd.grad(prior._log_prob(x)[1], x)
    assert float(gradient[1].abs().max()) > 0
    assert float(gradient[[0, 2]].abs().max()) == 0
    frames = x.detach()
    torch.testing.assert_close(prior.log_prob(frames)[1], flow_at(prior, 1.0).log_prob(frames[1]), **ROUNDING)


def test_score_of_a_batch_of_levels_is_the_gradient():
    prior = flow().at(torch.tensor([0.1, 1.0]))
    x = prior.sample((3,)).requires_grad_()
    (gradient,) = torch.autograd.grad(prior._log_prob(x).sum(), x)
    torch.testing.assert_close(prior.score(x.detach()), gradient, **ROUNDING)
    torch.testing.assert_close(prior.denoise(x.detach()), x + prior.sigma.square().unsqueeze(-1) * gradient, **ROUNDING)


def test_derivatives_by_finite_differences():
    prior = flow(8, SMALLEST).at(torch.tensor([0.5, 1.5]))
    x = prior.sample().requires_grad_()
    assert torch.autograd.gradcheck(prior.log_prob, (x,))
    assert torch.autograd.gradgradcheck(prior.log_prob, (x,))


def test_draws_have_the_density(mean_agrees):
    """Stein's identities, E[score] = 0 and E[x . score] = -T, with random weights, at two levels."""
    for sigma in (0.1, 2.0):
        prior = flow(scale=0.1).at(sigma)
        x = prior.sample((4000,))
        score = prior.score(x)
        mean_agrees(score, 0.0)
        mean_agrees((x * score).sum(-1), -32.0)


def test_the_default_draw_clean_is_right_for_white_noise(agree):
    """Where it has a closed form: N(c x, c sigma^2), c = v / (v + sigma^2).

    The mean is exact; the variance is too small by a share that falls with the number of steps: by its own recursion,
    which is done beside it.
    """
    variance, sigma, bottom, steps = 0.3, 0.5, 0.02, 128
    prior = FloWaveNet(FloWaveNetwork(SMALLEST, torch.full((9,), variance)), 8, sigma_min=bottom).at(sigma)
    prior.reverse_steps = steps
    ratio = (bottom / sigma) ** (1 / steps)
    slope, spread = 1.0, 0.0
    for i in range(steps):
        shrink = variance / (variance + (sigma * ratio**i) ** 2)
        factor = shrink + ratio**2 * (1 - shrink)
        slope, spread = slope * factor, spread * factor**2 + (sigma * ratio ** (i + 1)) ** 2 * (1 - ratio**2)
    last = variance / (variance + bottom**2)
    slope, spread = slope * last, spread * last**2
    assert slope == pytest.approx(variance / (variance + sigma**2))
    assert spread == pytest.approx(sigma**2 * variance / (variance + sigma**2), rel=0.05)
    x = prior.sample()
    draws = prior.draw_clean(x.expand(4000, -1))
    agree(draws.mean(0), slope * x, torch.full((8,), math.sqrt(spread / 4000)))
    agree(draws.var(0), torch.full((8,), spread), torch.full((8,), spread * math.sqrt(2 / 4000)))


# --- a site, and its weights ---------------------------------------------------------------------------------------


def model(prior):
    def of(mix=None):
        source = pyro.sample("source", prior)
        pyro.sample("mix", dist.Normal(source, 0.5).to_event(1), obs=mix)

    return of


def test_transform_reparam():
    """The same joint density, seen from the noise: what the determinant makes up for."""
    prior = flow(8).at(0.5)
    mix = torch.randn(8)
    moved = pyro.poutine.reparam(model(prior), {"source": TransformReparam()})
    trace = pyro.poutine.trace(moved).get_trace(mix)
    x, z = trace.nodes["source"]["value"], trace.nodes["source_base"]["value"]
    torch.testing.assert_close(prior.transforms[0](z), x, **ROUNDING)
    plain = pyro.poutine.trace(pyro.poutine.condition(model(prior), {"source": x})).get_trace(mix)
    determinant = prior.transforms[0].log_abs_det_jacobian(z, x)
    torch.testing.assert_close(trace.log_prob_sum() - determinant, plain.log_prob_sum(), **ROUNDING)


def test_transform_reparam_inside_a_plate():
    prior = flow(8).at(0.5)

    @pyro.poutine.reparam(config={"source": TransformReparam()})
    def of():
        with pyro.plate("songs", 3):
            return pyro.sample("source", prior)

    trace = pyro.poutine.trace(of).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["source_base"]["value"].shape == (3, 8)
    assert trace.nodes["source_base"]["log_prob"].shape == (3,)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_sampling_in_the_latent_space():
    moved = pyro.poutine.reparam(model(flow(8).at(0.5)), {"source": TransformReparam()})
    mcmc = MCMC(NUTS(moved, max_tree_depth=2), num_samples=2, warmup_steps=2, disable_progbar=True)
    mcmc.run(torch.randn(8))
    assert mcmc.get_samples()["source_base"].shape == (2, 8)


def test_as_a_transformed_distribution():
    prior = flow(16).at(torch.tensor([0.2, 2.0]))
    same = torch.distributions.TransformedDistribution(prior.base_dist, prior.transforms)
    x = prior.sample((3,))
    assert same.batch_shape == prior.batch_shape
    torch.testing.assert_close(same.log_prob(x), prior.log_prob(x), **ROUNDING)
    assert prior.rsample().shape == (2, 16)
    assert prior.expand((4, 2)).base_dist.batch_shape == (4, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path, dtype):
    priors = {name: flow(16, sigma_min=0.02, sample_rate=8000) for name in ("low", "high")}
    for prior in priors.values():
        prior.network.to(dtype)
    save_priors(tmp_path, priors)
    loaded = load_priors(tmp_path)
    for name, prior in priors.items():
        x = prior.sample((3,)).to(dtype)
        again = loaded[name]
        assert (again.time, again.sigma_min, again.sample_rate) == (16, 0.02, 8000)
        assert all(
            torch.equal(a, b) for a, b in zip(again.network.parameters(), prior.network.parameters(), strict=True)
        )
        for level in (0.02, 1.0):
            assert torch.equal(again.at(level).log_prob(x), prior.at(level).log_prob(x))
            assert torch.equal(again.at(level).denoise(x), prior.at(level).denoise(x))
        assert torch.equal(again.spectrum, prior.spectrum)
        assert not again.network.training
        assert not any(parameter.requires_grad for parameter in again.network.parameters())
    assert load_priors(tmp_path, frame=64)["low"].sample().shape == (64,)


def test_a_trainable_network_gets_its_gradient():
    prior = flow(16)
    x = prior.sample((2,)).requires_grad_()
    frozen = prior.log_prob(x).detach()
    prior.network.requires_grad_(True)
    log_prob = prior.log_prob(x)
    torch.testing.assert_close(log_prob, frozen, **ROUNDING)
    log_prob.sum().backward()
    assert all(parameter.grad is not None for parameter in prior.network.parameters())
    assert x.grad is not None


def test_frames_that_the_stride_does_not_divide():
    with pytest.raises(ConfigurationError, match="multiple of this flow's stride, 8 samples; got 12"):
        flow(12)
    with pytest.raises(ConfigurationError, match="stride, 8 samples; got 9"):
        flow(16).frame(9)


def test_the_seeds_size():
    """4 blocks of 6 flows, WaveNets of 10 layers and width 32 (`FloWaveNet` of the talk)."""
    size = SIZES["talk"]
    assert (len(size.squeeze), size.flows, size.layers, size.width) == (4, (6,) * 4, (10,) * 4, (32,) * 4)
    assert 16_384 % size.stride == 0
    assert sum(parameter.numel() for parameter in FloWaveNetwork(size, torch.ones(9)).parameters()) > 1_000_000


@pytest.mark.gpu
def test_on_a_gpu():
    here = flow().at(0.5)
    x = here.sample((3,))
    there = here.to("cuda")
    # The same sums in another order, in double precision.
    torch.testing.assert_close(there.log_prob(x.cuda()).cpu(), here.log_prob(x), rtol=1e-8, atol=1e-8)
    assert there.sample((2,)).device.type == "cuda"
    assert here.sample().device.type == "cpu"
