"""Training a guide: it learns by either objective, never from a pair, and resumes to the same bits."""

import pyro
import pytest
import torch
from pyro.infer import CSIS

from pyrosep import EncoderGuide, GaussianPrior, fit_guide
from pyrosep.data import ToyMixes
from pyrosep.errors import CheckpointError, ConfigurationError, LeakError, ShapeError
from pyrosep.guides import simulate
from pyrosep.mixing import mean_mix, panned_mix, unknown_gains_mix
from pyrosep.nn.refining import UNetSize
from pyrosep.training.guides import _Run, log_q
from pyrosep.training.objectives import GuideObjective
from pyrosep.training.settings import TrainingSettings
from pyrosep.training.trainer import Trainer

# Lightning asks for worker processes and the like; a person at the command line sees it, a test does not care.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

TIME, NOISE = 64, 0.1
TINY = UNetSize(hop=4, width=8, levels=1, layers=2)


@pytest.fixture
def priors():
    """One source of low and one of high frequencies."""
    return {
        "low": GaussianPrior(torch.tensor([4.0, 0.01, 0.01]), TIME),
        "high": GaussianPrior(torch.tensor([0.01, 0.01, 4.0]), TIME),
    }


def guide(priors, **options):
    torch.manual_seed(0)
    return EncoderGuide(priors, size=TINY, **options)


def settings(steps, **options):
    return TrainingSettings(
        **(
            {"steps": steps, "batch": 8, "learning_rate": 5e-3, "warmup": 5, "validate_every": steps, "ema": 0.9}
            | options
        )
    )


def weights(guide):
    return torch.cat([parameter.detach().flatten() for parameter in guide.parameters()])


def test_by_simulation_it_learns_to_tell_the_sources(priors):
    model, own = mean_mix(priors, NOISE), guide(priors)
    mix, values = simulate(model, 64)
    before = float(log_q(own, mix, values)) / 64
    result = fit_guide(model, own, trainer=Trainer(settings(120), quiet=True))
    assert result.network is own
    assert result.step == 120
    after = float(log_q(own, mix, values)) / 64
    # Another 64 mixes are validated on; their figure has a standard error of a nat or two.
    assert result.history[-1]["log_q"] == pytest.approx(after, abs=10)
    assert after > before + 20
    assert all(parameter.requires_grad for parameter in own.parameters())


@pytest.mark.parametrize("project", [False, True])
def test_by_the_elbo_it_learns_from_mixes_alone(priors, project):
    model, own = mean_mix(priors, NOISE), guide(priors, project=project, noise=NOISE)
    mixes, _ = simulate(model, 200)
    held_out, _ = simulate(model, 32)
    result = fit_guide(
        model,
        own,
        mixes,
        objective="elbo",
        trainer=Trainer(settings(120, validate_every=20), quiet=True),
        held_out=held_out,
        num_samples=4,
    )
    first, last = result.history[0], result.history[-1]
    assert set(last) == {"step", "elbo", "iwae"}
    assert last["elbo"] > first["elbo"] + 20
    assert last["iwae"] > last["elbo"]


def test_both_in_turn(priors):
    """The noise level falls over the second half, from the top to the priors' own."""
    objective = GuideObjective("both", sigma_max=2.0, annealing=0.5)
    run = _Run(mean_mix(priors), guide(priors), torch.randn(9, TIME), objective, settings(100))
    assert (run.simulated, run.annealed) == (50, 25)
    assert [run.level(0), run.level(25), run.level(49)] == pytest.approx([2.0, 1e-3, 1e-3])
    assert run.level(5) > run.level(6)
    run.counted.steps.fill_(49)
    assert set(run.draw(3)[1]) == {"low", "high"}
    run.counted.steps.fill_(50)
    assert run.draw(3)[1] == {}


def test_its_simulated_objective_is_that_of_csis(priors):
    model, own = mean_mix(priors, NOISE), guide(priors)
    csis = CSIS(lambda observations: model(**observations), lambda observations: own(**observations), None)
    joint = [csis._sample_from_joint(observations={"mix": torch.zeros(TIME)}) for _ in range(4)]
    expected = sum(csis._differentiable_loss_particle(csis._get_matched_trace(trace)) for trace in joint)
    mix, low, high = (torch.stack([trace.nodes[name]["value"] for trace in joint]) for name in ("mix", "low", "high"))
    run = _Run(model, own, None, GuideObjective(), settings(10))
    loss = run.loss(own, (mix, {"low": low, "high": high}))
    # Sums of 512 terms in single precision.
    torch.testing.assert_close(loss, expected / (4 * 2 * TIME), rtol=1e-4, atol=1e-4)


class Pairs:
    """Mixes with sources beside them, true ones or not."""

    def __init__(self, mixes, sources):
        self.mixes, self.sources = mixes, sources

    def __len__(self):
        return len(self.mixes)

    def __getitem__(self, index):
        return self.mixes[index], self.sources[index]


@pytest.mark.parametrize("objective", ["simulated", "elbo", "both"])
def test_sources_that_come_with_the_mixes_change_nothing(priors, objective):
    model = mean_mix(priors, NOISE)
    mixes, values = simulate(model, 20)
    true = torch.stack([values["low"], values["high"]], 1)
    found = []
    for sources in (true, torch.full_like(true, float("nan"))):
        own = guide(priors)
        fit_guide(model, own, Pairs(mixes, sources), objective=objective, trainer=Trainer(settings(6), quiet=True))
        found.append(weights(own))
    assert torch.equal(*found)
    assert not torch.equal(found[0], weights(guide(priors)))


def test_on_unpaired_stems(priors):
    """Stems of another level than the priors': the guide follows them."""
    stems = {name: lambda count: 0.1 * torch.randn(count, TIME) for name in priors}
    drawn, given = guide(priors), guide(priors)
    fit_guide(mean_mix(priors, NOISE), drawn, trainer=Trainer(settings(10), quiet=True))
    result = fit_guide(mean_mix(priors, NOISE), given, stems=stems, trainer=Trainer(settings(10), quiet=True))
    assert not torch.equal(weights(drawn), weights(given))
    assert result.history[-1]["log_q"] > 0  # small sources have large densities


@pytest.mark.parametrize("make", [mean_mix, panned_mix], ids=lambda make: make.__name__)
def test_pieces_of_simulated_mixes_are_mixes_of_the_pieces(priors, make):
    model = make(priors, noise=1e-6)
    own = EncoderGuide.for_model(model, simulate(model, 1)[0][0], size=TINY)
    run = _Run(model, own, None, GuideObjective(cuts=(24, 10)), settings(2))
    seen = set()
    for seed in range(20):
        torch.manual_seed(seed)
        mix, values = run.draw(3)
        length = mix.shape[-1]
        seen.add((length, len(mix)))
        again = pyro.condition(pyro.plate("pieces", len(mix))(model), values)()
        assert (again - mix).abs().max() < 1e-4
    assert seen == {(64, 3), (24, 6), (10, 18)}


def test_trained_on_pieces_it_is_not_what_whole_frames_make_of_it(priors):
    whole, cut = guide(priors), guide(priors)
    fit_guide(mean_mix(priors, NOISE), whole, trainer=Trainer(settings(6), quiet=True))
    result = fit_guide(mean_mix(priors, NOISE), cut, cuts=[16], trainer=Trainer(settings(6), quiet=True))
    assert result.skipped == 0
    assert not torch.equal(weights(whole), weights(cut))


def test_resumed_it_ends_at_the_same_bits(priors, tmp_path):
    model = mean_mix(priors, NOISE)
    mixes, _ = simulate(model, 20)
    own = settings(8, save_every=3)
    whole = guide(priors)
    fit_guide(model, whole, mixes, objective="both", trainer=Trainer(own, quiet=True))
    parts = guide(priors)
    fit_guide(model, parts, mixes, objective="both", trainer=Trainer(own, folder=tmp_path, until=5, quiet=True))
    again = EncoderGuide(priors, size=TINY)  # whose own weights have no part in it
    fit_guide(model, again, mixes, objective="both", trainer=Trainer(own, folder=tmp_path, resume=True, quiet=True))
    assert torch.equal(weights(again), weights(whole))


@pytest.mark.parametrize("make", [unknown_gains_mix, panned_mix], ids=lambda make: make.__name__)
@pytest.mark.parametrize("objective", ["simulated", "elbo"])
def test_with_other_sites(priors, make, objective):
    model = make(priors, noise=NOISE)
    mixes, _ = simulate(model, 6)
    own = EncoderGuide.for_model(model, mixes[0], size=TINY)
    result = fit_guide(model, own, mixes, objective=objective, trainer=Trainer(settings(2), quiet=True), held_out=mixes)
    assert result.skipped == 0
    assert "elbo" in result.history[-1]


def test_figures_on_toy_mixes():
    from pyrosep import load_priors

    priors = load_priors("toy", frame=128, sources=["sine", "saw"])
    held_out = ToyMixes(("sine", "saw"), frame=128, size=4)
    own = guide(priors, shared=True, project=True)
    result = fit_guide(
        mean_mix(priors), own, trainer=Trainer(settings(2), quiet=True), held_out=held_out, num_samples=2
    )
    figures = result.history[-1]
    assert set(figures) == {"step", "elbo", "iwae", "log_q", "si_sdr sine", "si_sdr saw"}


def test_figures_without_bounds_and_of_silent_sources(priors):
    """No density is asked for; SI-SDR is the mean over mixes in which the source sounds."""
    model, own = mean_mix(priors, NOISE), guide(priors)
    mixes, values = simulate(model, 8)
    sources = torch.stack([values["low"], values["high"]], 1)
    sources[:3, 0] = 0
    sources[:, 1] = 0
    result = fit_guide(
        model, own, trainer=Trainer(settings(2), quiet=True), held_out=Pairs(mixes, sources), num_samples=0
    )
    figures = result.history[-1]
    assert set(figures) == {"step", "log_q", "si_sdr low"}
    mean = own.moments(mixes)[0][3:, 0].double()
    expected = 10 * (1 / (1 / torch.cosine_similarity(mean, sources[3:, 0].double()).square() - 1)).log10()
    assert figures["si_sdr low"] == pytest.approx(float(expected.mean()), abs=1e-2)


def test_resumed_with_another_objective(priors, tmp_path):
    model = mean_mix(priors, NOISE)

    def trainer(data, **how):
        return Trainer(settings(4), folder=tmp_path, about={"data": data}, quiet=True, **how)

    mixes, _ = simulate(model, 4)
    fit_guide(model, guide(priors), trainer=trainer("mine", until=2))
    with pytest.raises(CheckpointError, match="objective simulated, not elbo"):
        fit_guide(model, guide(priors), mixes, objective="elbo", trainer=trainer("mine", resume=True))
    with pytest.raises(CheckpointError, match="data mine, not theirs"):
        fit_guide(model, guide(priors), trainer=trainer("theirs", resume=True))
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["about"]  # as earlier versions wrote it
    torch.save(state, tmp_path / "checkpoint.pt")
    assert fit_guide(model, guide(priors), trainer=trainer("theirs", resume=True)).step == 4


def test_in_mixed_precision_draws_meet_the_mix(priors):
    """To the observation noise, far below what half precision tells apart."""
    own = guide(priors, project=True, noise=1e-4)
    model = mean_mix(priors, 1e-4)
    result = fit_guide(model, own, trainer=Trainer(settings(2, precision="bf16-mixed"), quiet=True))
    assert result.skipped == 0
    mix = simulate(model, 3)[0]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        values = own(mix)
    left = mix - (values["low"] + values["high"]) / 2
    assert values["low"].dtype == torch.float32
    assert float(left.abs().max()) < 6e-4  # six deviations


def test_leaves_pyros_parameters_alone(priors):
    pyro.param("mine", torch.ones(2))
    fit_guide(mean_mix(priors), guide(priors), trainer=Trainer(settings(2), quiet=True))
    assert list(pyro.get_param_store().keys()) == ["mine"]


def test_a_model_in_which_mixes_meet_is_found_out(priors):
    def leaky(mix=None):
        low, high = (pyro.sample(name, prior) for name, prior in priors.items())
        total = (low + high) / 2
        total = total / total.square().mean().sqrt()
        return pyro.sample("mix", pyro.distributions.Normal(total, NOISE).to_event(1), obs=mix)

    with pytest.raises(LeakError, match="some operation of the model reduces over the leading axis"):
        fit_guide(leaky, guide(priors), trainer=Trainer(settings(2), quiet=True))


@pytest.mark.parametrize(
    ("objective", "cuts", "words"), [("simulated", [64], "below the mixes' 64"), ("elbo", [16], "with 'elbo'")]
)
def test_cuts_that_are_none(priors, objective, cuts, words):
    mixes, _ = simulate(mean_mix(priors, NOISE), 4)
    with pytest.raises(ConfigurationError, match=words):
        fit_guide(
            mean_mix(priors, NOISE), guide(priors), mixes, objective=objective, cuts=cuts, trainer=Trainer(quiet=True)
        )


def test_errors(priors):
    model, own = mean_mix(priors), guide(priors)
    mixes = torch.randn(5, TIME)
    for wrong, message in (
        ({"objective": "supervised"}, "objective must be one of"),
        ({"objective": "elbo"}, "needs mixes to train on"),
        ({"objective": "elbo", "data": mixes, "stems": {"low": torch.randn}}, "no use for them"),
        ({"objective": "elbo", "data": 3}, "expected mixes as a tensor"),
        ({"objective": "elbo", "data": []}, "the data set is empty"),
        ({"annealing": 2.0}, "annealing must be from 0 to 1"),
        ({"beta": 1.5}, "beta must be from 0 to 1"),
        ({"num_samples": -1}, "num_samples must be at least 0"),
        ({"trainer": Trainer(settings(2, accelerator="cuda"))}, r"move them: prior.to\('cuda'\)"),
        ({"guide": lambda mix: None}, "pyro.infer.SVI"),
        ({"model": unknown_gains_mix(priors)}, "for_model builds one"),
        ({"model": mean_mix(priors | {"third": priors["low"]})}, "for_model builds one"),
        ({"model": lambda mix: model(mix)}, "without arguments"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            fit_guide(**{"model": model, "guide": own, "trainer": Trainer(settings(2), quiet=True)} | wrong)
    for data in (mixes[0], [torch.randn(8), torch.randn(9)], torch.randn(5, 2, TIME), torch.randn(5, 40)):
        with pytest.raises((ShapeError, RuntimeError)):
            fit_guide(model, own, data, objective="elbo", trainer=Trainer(settings(2), quiet=True))
