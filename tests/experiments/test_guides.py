"""The study of guides on toy mixes, on two of them and an untrained guide."""

import numpy as np
import pytest
import torch

from pyrosep import EncoderGuide, load_priors, save_guide
from pyrosep.data.toy import SAMPLE_RATE, WAVES, ToyMixes
from pyrosep.errors import ConfigurationError
from pyrosep.experiments.guides import METHODS, _chosen, guides
from pyrosep.metrics import si_sdr
from pyrosep.nn.refining import UNetSize


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("guides") / "untrained"
    torch.manual_seed(0)
    size = UNetSize(hop=8, width=8, levels=1, layers=1)
    guide = EncoderGuide(load_priors("toy", frame=256), size=size, project=True, noise=0.01)
    guide.temperature.fill_(0.5)
    save_guide(folder, guide)
    return str(folder)


@pytest.fixture(scope="module")
def study(untrained, tmp_path_factory):
    out, steps = tmp_path_factory.mktemp("study"), []
    tables = guides(
        out,
        guides=[untrained],
        frames=(512,),
        mixes=3,
        flow_mixes=1,
        chains=2,
        workers=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    return *tables, out, steps


@pytest.mark.slow
def test_a_row_for_each_method_and_choice_of_chains(study):
    separation, coverage, out, steps = study
    rows = [("mix", "one"), ("guide untrained", "one"), ("guide+langevin", "one"), ("guide+langevin", "best")]
    rows += [("guide+flows", "one"), ("langevin", "one"), ("langevin", "best")]
    assert list(zip(separation.method, separation.chains, strict=True)) == rows
    assert separation.mixes.tolist() == [3, 3, 3, 3, 1, 3, 3]
    assert list(coverage.source) == list(WAVES)
    assert {path.name for path in out.iterdir()} == {"separation.csv", "coverage.csv", "guides.md", "guides.png"}
    assert steps == [(done + 1, len(METHODS)) for done in range(len(METHODS))]


@pytest.mark.slow
def test_the_mix_as_estimate_scores_what_it_scores(study):
    row = study[0].iloc[0]
    items = [ToyMixes(frame=512)[index] for index in range(3)]
    scores = torch.stack([si_sdr(mix.expand(4, 1, -1), sources.unsqueeze(1)) for mix, sources in items])
    assert row.mean_db == pytest.approx(scores.mean().item(), abs=1e-6)
    assert row.above_10 == (scores > 10).double().mean()
    assert row.low_10 <= row.above_10 <= row.high_10


@pytest.mark.slow
def test_calls_are_those_of_chains_alone(study):
    separation = study[0].set_index(["method", "chains"])
    assert (separation.calls[["mix", "guide untrained"]] == 0).all()
    # 5 levels, two steps at each and a move from each to the next.
    assert separation.calls["guide+flows", "one"] == 14
    assert separation.calls["langevin", "one"] >= 10


@pytest.mark.slow
def test_speed_is_of_one_second_of_audio(study):
    separation = study[0]
    product = separation.frames_per_second * separation.real_time_factor
    assert np.allclose(product[separation.method != "mix"], SAMPLE_RATE / 512)


@pytest.mark.slow
def test_coverage_before_is_that_without_temperature(study):
    """At half the deviation fewer samples are covered."""
    coverage = study[1]
    assert (coverage.temperature == 0.5).all()
    assert (coverage.after_90 < coverage.before_90).all()
    assert (coverage.before_50 < coverage.before_90).all()


def test_best_is_the_chain_of_highest_joint_density():
    parts = [
        {"si_sdr": np.array([[[1.0, 2.0], [3.0, 4.0]]]), "joint": np.array([[5.0, 4.0]])},
        {"si_sdr": np.array([[[5.0, 6.0], [7.0, 8.0]]]), "joint": np.array([[-5.0, -4.0]])},
    ]
    chosen = _chosen(parts)
    assert chosen["best"].tolist() == [[[1.0, 2.0]], [[7.0, 8.0]]]
    assert chosen["one"].shape == (2, 2, 2)


def test_wrong_arguments(untrained, tmp_path):
    with pytest.raises(ConfigurationError, match="expected methods"):
        guides(tmp_path, guides=[untrained], methods=["oracle"])
    with pytest.raises(ConfigurationError, match="need one"):
        guides(tmp_path, guides=[], methods=["guide"])
    save_guide(tmp_path / "other", EncoderGuide(["bass", "drums"], size=UNetSize(width=4, layers=1)))
    with pytest.raises(ConfigurationError, match="expected \\['sine'"):
        guides(tmp_path, guides=[str(tmp_path / "other")])
