"""Continuous flows: an exact denoiser gives the exact density, score and draws; any one gives each frame its own."""

import math

import pytest
import torch

from pyrosep import ContinuousFlow, GaussianPrior, load_priors, save_priors
from pyrosep.errors import CheckpointError, ConfigurationError, ShapeError
from pyrosep.infer import Potential
from pyrosep.mixing import linear_mix
from pyrosep.nn.bandnet import BandSize
from pyrosep.nn.denoiser import DENOISERS, BandDenoiser, Denoiser, DenoiserSize
from pyrosep.priors import scores_suffice
from pyrosep.priors.stacked import StackedFlows

TIME, TOP = 24, 20.0
POWER = torch.tensor([4, 2, 3, 1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01], dtype=torch.float64)
TINY = DenoiserSize(hop=4, width=8, levels=1, layers=2, heads=2, features=4)


@pytest.fixture
def exact(double, wiener):
    """A continuous flow with an exact denoiser, and the Gaussian that it is to be."""
    flow = ContinuousFlow(wiener(TINY, POWER), TIME, sigma_min=0.01, sigma_max=TOP)
    return flow, GaussianPrior(POWER, TIME, sigma_min=0.01)


def shaken(size=TINY, spectrum=POWER, seed=0):
    """A network whose layers all do something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Denoiser(size, spectrum)
        for parameter in network.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return network.requires_grad_(False)


def random_flow(time=TIME, **arguments):
    flow = ContinuousFlow(shaken(), time, sigma_min=0.01, sigma_max=TOP, **arguments)
    flow.draw_steps = 4  # enough where nothing hangs on how exact a draw is
    return flow


# --- preconditioning ---------------------------------------------------------------------------------------------


def test_preconditioning_is_that_of_the_paper(double):
    """Karras et al. (2022), table 1, with sigma_data^2 = v."""
    network, x = shaken(), torch.randn(5, TIME)
    sigma, v = torch.tensor([0.01, 0.3, 1.0, 4.0, 15.0]), float(network.variance)
    level = sigma.unsqueeze(-1)
    inner = network(x / (v + level**2).sqrt(), sigma)
    expected = v / (v + level**2) * x + level * math.sqrt(v) / (v + level**2).sqrt() * inner
    torch.testing.assert_close(network.denoise(x, sigma), expected)
    assert float((inner - network(x, sigma)).abs().max()) > 1e-3  # that would tell an input that is not scaled


def test_untrained_it_is_the_denoiser_of_white_noise(double):
    network, x = Denoiser(TINY, POWER).requires_grad_(False), torch.randn(3, TIME)
    v = float(network.variance)
    torch.testing.assert_close(network.denoise(x, torch.tensor([0.7])), v / (v + 0.49) * x)


def test_without_noise_nothing_is_done(double):
    network, x = shaken(), torch.randn(3, TIME)
    torch.testing.assert_close(network.denoise(x, torch.zeros(1)), x)


def test_variance_is_the_mean_of_the_spectrum_over_the_band(double):
    # Of 24 bins all but the first and the last come twice.
    mean = (POWER[0] + POWER[-1] + 2 * POWER[1:-1].sum()) / 24
    torch.testing.assert_close(Denoiser(TINY, POWER).variance, mean)


# --- an exact denoiser -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.01, 0.3, 3.0])
def test_score_is_exact(exact, sigma):
    flow, gaussian = (prior.at(sigma) for prior in exact)
    x = gaussian.sample((4,))
    torch.testing.assert_close(flow.score(x), gaussian.score(x))
    torch.testing.assert_close(flow.denoise(x), gaussian.denoise(x))


@pytest.mark.parametrize("sigma", [0.05, 0.3, 3.0])
def test_density_comes_close_with_the_square_of_the_steps(exact, sigma):
    """Heun's method is of second order: four times the steps leave a sixteenth of the error."""
    flow, gaussian = (prior.at(sigma) for prior in exact)
    x = gaussian.sample((4,))
    errors = [(flow.log_density(x, steps=steps).value - gaussian.log_prob(x)).abs().max() for steps in (32, 128)]
    assert float(errors[1]) < 0.003  # nats, for 24 samples
    assert 1 / 20 < float(errors[1] / errors[0]) < 1 / 12


def test_density_in_a_batch_of_levels(exact):
    levels = torch.tensor([0.05, 1.0, 5.0])
    flow, gaussian = (prior.at(levels) for prior in exact)
    x = gaussian.sample((2,))
    found = flow.log_density(x, steps=128)
    assert found.value.shape == found.standard_error.shape == (2, 3)
    torch.testing.assert_close(found.value, gaussian.log_prob(x), rtol=0, atol=0.003)
    assert float(found.standard_error.abs().max()) == 0  # all directions are exact


def test_density_above_the_highest_level_is_gaussian(exact):
    flow, gaussian = (prior.at(1.5 * TOP) for prior in exact)
    x = gaussian.sample((4,))
    torch.testing.assert_close(flow.log_density(x, steps=2).value, gaussian.log_prob(x))


def test_draws_have_the_sources_spectrum(exact, mean_agrees):
    """Periodograms of 4000 draws, at a level and at none; 64 steps are off by 2 in a thousand at most, a tenth of that
    which 4000 draws can tell."""
    flow, gaussian = exact
    flow.draw_steps = 64
    for sigma in (0.0, 0.5):
        draws = flow.at(sigma).sample((4000,))
        power = torch.fft.rfft(draws).abs().square() / TIME
        mean_agrees(power, gaussian.spectrum + sigma**2)


def test_draws_at_levels_of_their_own(exact, mean_agrees):
    flow, gaussian = exact
    flow.draw_steps = 64
    levels = torch.tensor([0.0, 0.3, 2.0, 1.5 * TOP])
    draws = flow.at(levels).sample((4000,))
    power = torch.fft.rfft(draws).abs().square() / TIME
    mean_agrees(power, gaussian.spectrum + levels.square().unsqueeze(-1))


def test_the_way_up_leads_back_down(exact):
    """The same frames, to the error of 64 steps of second order."""
    flow, gaussian = exact
    x = gaussian.at(0.1).sample((3,))
    levels = flow.equation.levels(torch.full((3,), 0.1), 64)
    up, _ = flow.equation.carry(x, levels)
    down, _ = flow.equation.carry(up, levels.flip(0))
    assert float((up - x).abs().max()) > 0.1
    torch.testing.assert_close(down, x, rtol=0, atol=1e-4)


def test_stochastic_draws_are_the_sources(exact, mean_agrees):
    """A reverse diffusion from the highest level, whose spread is too small by less than 4000 draws can tell."""
    flow, gaussian = exact
    flow.reverse_steps = 512
    start = gaussian.at(TOP).sample((4000,))
    clean = flow.at(TOP).draw_clean(start)
    mean_agrees(torch.fft.rfft(clean).abs().square()[:, :6] / TIME, gaussian.spectrum[:6])


# --- the trace ---------------------------------------------------------------------------------------------------


def test_random_directions_estimate_the_trace(double, agree):
    """Within their standard errors of all directions, and these are as large as the estimates' spread."""
    flow = random_flow().at(0.4)
    x = flow.sample((3,))
    whole = flow.log_density(x, steps=4, probes=0)
    found = flow.log_density(x, steps=4, probes=400)
    agree(found.value, whole.value, found.standard_error)
    assert float(found.standard_error.min()) > 0
    few = flow.log_density(x.expand(100, -1, -1), steps=4, probes=4).value
    # The mean of 4 is off by ten times as much as that of 400; 100 estimates give a deviation to 7 per cent.
    torch.testing.assert_close(few.std(0), 10 * found.standard_error, rtol=0.35, atol=0)


def test_the_error_of_one_direction_is_not_known(double):
    flow = random_flow().at(0.4)
    assert bool(flow.log_density(flow.sample((2,)), steps=2, probes=1).standard_error.isnan().all())


def test_long_frames_are_not_traced_exactly():
    flow = random_flow(300).at(0.4)
    assert float(flow.log_density(flow.sample(), steps=1).standard_error) > 0
    short = random_flow(40).at(0.4)
    assert float(short.log_density(short.sample(), steps=1).standard_error) == 0


def test_directions_do_not_need_one_call(double, monkeypatch):
    flow = random_flow().at(0.4)
    x = flow.sample((3,))
    whole = flow.log_density(x, steps=2).value
    monkeypatch.setattr("pyrosep.priors.probability_flow._ROWS", 5)
    torch.testing.assert_close(flow.log_density(x, steps=2).value, whole)


# --- what is a density, and what has only its gradient -----------------------------------------------------------


def test_log_prob_is_no_density_unless_asked_for(double):
    flow = random_flow().at(0.4)
    x = flow.sample((3,)).requires_grad_()
    assert not flow.has_density
    with pytest.raises(ConfigurationError, match="a score, but no density"):
        flow.log_prob(x)
    with scores_suffice():
        log_prob = flow.log_prob(x)
    assert torch.equal(log_prob, torch.zeros(3))
    (gradient,) = torch.autograd.grad(log_prob.sum(), x)
    torch.testing.assert_close(gradient, flow.score(x))
    asked = flow.with_density(steps=8)
    assert asked.has_density
    assert not flow.has_density
    with torch.no_grad():
        torch.testing.assert_close(asked.log_prob(x), flow.log_density(x, steps=8).value)
    assert asked.at(0.7).frame(16).has_density


def test_an_estimate_of_a_density_is_none():
    with pytest.raises(ConfigurationError, match="16 random probes is no density"):
        random_flow().with_density(probes=16)
    with pytest.raises(ConfigurationError, match=r"frames of 300 samples .* with_density\(probes=0\)"):
        random_flow().frame(300).with_density()
    longer = random_flow().with_density(steps=2).frame(300)
    with pytest.raises(ConfigurationError, match="frames of 300 samples"):
        longer.log_prob(torch.zeros(300))
    assert random_flow().frame(300).with_density(probes=0).has_density


def test_an_energy_takes_one_pass_for_each_source():
    priors = {name: random_flow() for name in "ab"}
    passes = []
    for name, prior in priors.items():
        prior.network.register_forward_hook(lambda module, inputs, output, name=name: passes.append(name))
    potential = Potential(linear_mix(priors, noise=0.1), (torch.randn(TIME),), num_chains=3)
    z = potential.unconstrain(potential.prior_draw)
    passes.clear()
    potential.value_and_grad(z)
    assert sorted(passes) == ["a", "b"]
    passes.clear()
    potential(z)
    assert passes == []
    assert not potential.has_density


def test_score_is_differentiable(double):
    flow = random_flow(10).at(0.4)
    x = flow.sample((2,)).requires_grad_()
    assert torch.autograd.gradcheck(flow.score, (x,))


# --- frames of any length, in any batch --------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 7, 8, 9, 40, 41])
def test_frames_of_any_length(time):
    flow = random_flow().frame(time).at(torch.tensor([0.1, 1.0]))
    x = torch.randn(3, 2, time)
    for value in (flow.denoise(x), flow.score(x), flow.sample((3,))):
        assert value.shape == (3, 2, time)
        assert bool(value.isfinite().all())
    assert flow.log_density(x, steps=1).value.shape == (3, 2)
    assert flow.spectrum.shape == (time // 2 + 1,)


@pytest.mark.parametrize("time", [TIME, 21])
def test_a_frame_does_not_see_the_others_of_its_batch(double, time):
    flow = random_flow(time)
    x = torch.randn(4, time)
    levels = torch.tensor([0.01, 0.3, 1.0, 8.0])
    alone = torch.stack([flow.at(level).denoise(one) for level, one in zip(levels, x, strict=True)])
    torch.testing.assert_close(flow.at(levels).denoise(x), alone)
    loud = torch.cat([x[:1], 1e3 * x[1:]])
    torch.testing.assert_close(flow.at(levels).denoise(loud)[0], alone[0])


def test_half_precision_is_close_to_single():
    """Autocast to bfloat16: its eight bits are off by a part in 256; through a dozen layers, by a few per cent."""
    flow, x = random_flow(64), torch.randn(8, 64)
    for sigma in (0.03, 0.3, 3.0):
        at = flow.at(sigma)
        single = at.denoise(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = at.denoise(x)
        assert half.dtype == torch.float32
        network = single - flow.network.variance / (flow.network.variance + sigma**2) * x
        assert float((half - single).norm()) < 0.05 * float(network.norm())


# --- mistakes ----------------------------------------------------------------------------------------------------


def test_mistakes():
    network = Denoiser(TINY, POWER)
    with pytest.raises(ConfigurationError, match="sigma_min must be above 0 and below sigma_max; got 2 and 1"):
        ContinuousFlow(network, 16, sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ConfigurationError, match="steps must be a whole number, at least 1; got 0"):
        random_flow().with_density(steps=0)
    with pytest.raises(ConfigurationError, match="probes must be a whole number, at least 0; got -1"):
        random_flow().log_density(torch.zeros(TIME), probes=-1)
    with pytest.raises(ShapeError, match="expected frames of 24 samples"):
        random_flow().log_density(torch.zeros(23))
    with pytest.raises(ConfigurationError, match="hop, width, layers and features of at least 1"):
        DenoiserSize(width=0)
    with pytest.raises(ConfigurationError, match="heads that divide its channels; got 3 and 8"):
        Denoiser(DenoiserSize(width=8, heads=3), POWER)


# --- on disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "off"), [(None, 0.0), (torch.float16, 2e-3)])
def test_round_trip(tmp_path, dtype, off):
    """In full precision bit for bit; weights in half are off by 2**-11, and what comes of them by little more."""
    flow = random_flow(sample_rate=8000)
    save_priors(tmp_path, {"saw": flow}, dtype=dtype)
    found = load_priors(tmp_path)["saw"]
    assert (type(found), found.time, found.sample_rate) == (ContinuousFlow, TIME, 8000)
    assert (found.sigma_min, found.sigma_max) == (0.01, TOP)
    assert torch.equal(found.spectrum, flow.spectrum)
    assert {value.dtype for value in found.network.state_dict().values()} == {torch.float32}
    x = torch.randn(4, TIME)
    error = (found.at(0.5).denoise(x) - flow.at(0.5).denoise(x)).norm() / x.norm()
    assert float(error) <= off
    assert (float(error) > 0) == (dtype is not None)


def test_half_precision_takes_half_of_the_disk(tmp_path):
    flow = ContinuousFlow(Denoiser(DenoiserSize(width=32, layers=2), POWER), 64)
    save_priors(tmp_path / "single", {"saw": flow})
    save_priors(tmp_path / "half", {"saw": flow}, dtype=torch.float16)
    single, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("single", "half"))
    assert half < 0.55 * single


def test_weights_of_another_size(tmp_path):
    save_priors(tmp_path, {"saw": random_flow()})
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(CheckpointError, match="not those of the size"):
        load_priors(tmp_path)


def test_named_sizes():
    assert DENOISERS["small"].stride == 64
    parameters = sum(value.numel() for value in Denoiser(DENOISERS["small"], POWER).parameters())
    assert 1.5e6 < parameters < 2.5e6


# --- several at once ---------------------------------------------------------------------------------------------


def test_stacked_is_one_by_one(double):
    spectra = (POWER, 0.2 * POWER, 3.0 * POWER.flip(0))
    flows = [
        ContinuousFlow(shaken(spectrum=one, seed=seed), TIME, sigma_min=0.02 + 0.01 * seed, sigma_max=TOP)
        for seed, one in enumerate(spectra)
    ]
    stacked = StackedFlows(flows)
    x = torch.randn(2, 5, 3, TIME)
    for sigma in (0.4, torch.tensor([0.1, 1.0, 3.0]), torch.rand(2, 5, 3) + 0.1):
        levels = torch.as_tensor(sigma).expand(2, 5, 3)
        for method in ("denoise", "score"):
            found = getattr(stacked.at(sigma), method)(x)
            one = [getattr(flow.at(levels[..., i]), method)(x[..., i, :]) for i, flow in enumerate(flows)]
            torch.testing.assert_close(found, torch.stack(one, -2))
    own = torch.stack([flow.denoise(x[..., i, :]) for i, flow in enumerate(flows)], -2)
    torch.testing.assert_close(stacked.denoise(x), own)


def test_stacked_is_differentiable(double):
    stacked = StackedFlows([random_flow(10), random_flow(10)]).at(0.5)
    assert torch.autograd.gradcheck(stacked.denoise, (torch.randn(2, 2, 10, requires_grad=True),))


def test_what_cannot_be_stacked():
    other = ContinuousFlow(Denoiser(DENOISERS["tiny"], POWER), TIME)
    with pytest.raises(ConfigurationError, match="must share size, frame and precision"):
        StackedFlows([random_flow(), other])
    with pytest.raises(ConfigurationError, match="must share size, frame and precision"):
        StackedFlows([])
    with pytest.raises(ConfigurationError, match="expected ContinuousFlow priors"):
        StackedFlows([GaussianPrior(POWER, TIME)])
    with pytest.raises(ConfigurationError, match="spectra of one length"):
        StackedFlows([random_flow(), ContinuousFlow(Denoiser(TINY, POWER[:5]), TIME)])
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 2 sources, 24 samples\); got \(3, 24\)"):
        StackedFlows([random_flow(), random_flow()]).denoise(torch.zeros(3, TIME))


# --- mixed precision and compilation -----------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.02, 0.5, 5.0])
def test_in_mixed_precision_it_is_nearly_the_same(sigma):
    flow, x = random_flow().at(sigma), torch.randn(6, TIME)
    half = flow.with_autocast()
    for name in ("denoise", "score"):
        full, mixed = getattr(flow, name)(x), getattr(half, name)(x)
        assert mixed.dtype == full.dtype
        scale = (full - x).abs().max() if name == "denoise" else full.abs().max()
        assert 0 < float((mixed - full).abs().max()) < 0.03 * float(scale)  # of 8 bits, over a few layers
    torch.testing.assert_close(half.with_autocast(None).denoise(x), flow.denoise(x), rtol=0, atol=0)
    assert flow.autocast is None, "it is another prior"


def test_densities_and_draws_are_in_full_precision():
    flow, x = random_flow().at(0.5), torch.randn(2, TIME)
    half = flow.with_autocast()
    torch.testing.assert_close(half.log_density(x).value, flow.log_density(x).value, rtol=0, atol=0)


def test_copies_stay_in_mixed_precision():
    half = random_flow().with_autocast().at(0.3).frame(40)
    assert half.autocast is torch.bfloat16


@pytest.mark.parametrize("kind", ["waveform", "bands"])
def test_compiled_it_is_the_same(kind):
    if kind == "waveform":
        flow, names = random_flow(), ("denoise", "score")
    else:
        size = BandSize(window=8, bands=2, width=4, neck=4, layers=1, features=4)
        network = BandDenoiser(size, POWER).requires_grad_(False)
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        flow, names = ContinuousFlow(network, TIME, sigma_min=0.01, sigma_max=TOP), ("denoise", "score", "filtered")
    x, before, seen = torch.randn(3, TIME), flow.network.net, []

    def backend(module, inputs):
        seen.append(module)
        return module.forward

    fast = flow.compiled(backend=backend)
    for sigma in (0.1, 2.0):
        for name in names:
            torch.testing.assert_close(getattr(fast.at(sigma), name)(x), getattr(flow.at(sigma), name)(x))
    assert seen, "the compiler was asked"
    assert flow.network.net is before, "the prior itself is as it was"
    assert "forward" not in vars(before)
    assert fast.sample((2,)).shape == (2, TIME)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"mode": "reduce-overhead"}], ids=["compiled", "graphs"])
def test_compiled_on_a_gpu(options):
    flow, x = random_flow(), torch.randn(3, TIME)
    device = ContinuousFlow(shaken().cuda(), TIME, sigma_min=0.01, sigma_max=TOP)
    fast = device.compiled(**options)
    for sigma in (0.1, 2.0):
        expected = flow.at(sigma).denoise(x)
        for _ in range(3):  # graphs are recorded on the way
            torch.testing.assert_close(fast.at(sigma).denoise(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3)
    assert bool(fast.sample((2,)).isfinite().all())
