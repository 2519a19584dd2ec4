"""Scores: SI-SDR by its formula, silent stems, aggregates, toy and song data, BSS Eval."""

import importlib.util
import math
import sys

import numpy as np
import pytest
import torch

from pyrosep import GaussianPrior, OscillatorPrior, audio
from pyrosep.data import StemFolder, ToyMixes
from pyrosep.errors import ConfigurationError, DataError, MissingDependencyError
from pyrosep.evaluation.scores import Reference, Score, aggregate, evaluate, song_references, toy_references
from pyrosep.metrics import bss_eval, si_sdr
from pyrosep.separation import Chains, Settings

RATE = 8_000
EXACT = Settings("exact")


@pytest.fixture
def priors():
    return {
        "low": GaussianPrior(torch.tensor([1.0, 0.1, 0.01]), 512, sample_rate=RATE),
        "high": GaussianPrior(torch.tensor([0.01, 0.1, 1.0]), 512, sample_rate=RATE),
    }


def draw(priors, seconds=0.5, channels=1):
    """Sources as the priors have them."""
    count = round(seconds * RATE)
    return {name: 0.1 * prior.frame(count).sample((channels,)) for name, prior in priors.items()}


def reference(priors, name="song", **silent):
    sources = {one: samples * silent.get(one, 1.0) for one, samples in draw(priors).items()}
    return Reference(name, sum(sources.values()), sources, RATE)


# SI-SDR


def test_si_sdr_is_its_formula():
    generator = np.random.default_rng(0)
    truth = generator.standard_normal((3, 2, 1000))
    estimate = 0.4 * truth + 0.2 * generator.standard_normal((3, 2, 1000))
    expected = np.zeros((3, 2))
    for index in np.ndindex(3, 2):
        t, e = truth[index], estimate[index]
        target = (e @ t) / (t @ t) * t
        expected[index] = 10 * np.log10((target @ target) / ((e - target) @ (e - target)))
    found = si_sdr(torch.tensor(estimate), torch.tensor(truth))
    # Rounding, and torchmetrics' guard against division by zero.
    np.testing.assert_allclose(found.numpy(), expected.mean(-1), atol=1e-9)
    assert found.shape == (3,)


def test_si_sdr_has_no_scale_and_knows_its_limits():
    truth = torch.randn(1, 1000)
    noisy = truth + 0.1 * torch.randn(1, 1000)
    torch.testing.assert_close(si_sdr(7 * noisy, truth), si_sdr(noisy, truth))
    assert si_sdr(truth, truth) > 100
    orthogonal = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    assert si_sdr(orthogonal, torch.ones(1, 4)) < -100


# Evaluation


def test_scores_and_improvement(priors):
    one = reference(priors)
    scores, factors = evaluate([one], priors, ["exact"])
    assert [(score.method, score.source) for score in scores] == [
        ("mix", "low"), ("mix", "high"), ("exact", "low"), ("exact", "high"),
    ]  # fmt: skip
    table = {(score.method, score.source): score for score in scores}
    for source in priors:
        baseline = si_sdr(one.mix, one.sources[source]).item()
        assert table["mix", source].si_sdr == pytest.approx(baseline)
        assert table["mix", source].si_sdr_improvement == 0
        found = table["exact", source]
        assert found.si_sdr_improvement == pytest.approx(found.si_sdr - baseline)
        assert found.si_sdr_improvement > 3  # sources of different spectra are told apart
        assert found.bss is None
        assert found.name == "song"
    assert set(factors) == {"exact"}
    assert factors["exact"] > 0


def test_several_methods_and_mixes(priors):
    seen = []
    scores, factors = evaluate(
        [reference(priors, "a"), reference(priors, "b")],
        priors,
        {"exact": "exact", "ten draws": Chains(2, 10, 10, ladder=None)},
        on_reference=lambda one: seen.append(one.name),
    )
    assert seen == ["a", "b"]
    assert len(scores) == 2 * 3 * 2
    assert set(factors) == {"exact", "ten draws"}


def test_silent_stems_are_not_scored(priors):
    quiet = 10 ** (-50 / 20)  # of 0.1 and less: below -60 dB
    songs = [reference(priors, "a"), reference(priors, "b", high=0.0), reference(priors, "c", low=quiet)]
    scores, _ = evaluate(songs, priors, ["exact"])
    assert [(score.name, score.source) for score in scores if score.method == "exact"] == [
        ("a", "low"), ("a", "high"), ("b", "low"), ("c", "high"),
    ]  # fmt: skip
    counts = {(row["method"], row["source"]): row["count"] for row in aggregate(scores)}
    assert counts["exact", "low"] == counts["exact", "high"] == counts["mix", "low"] == 2
    assert counts["exact", "mean"] == 4


def test_a_mix_without_any_sound_is_passed_over(priors):
    seen = []
    silence = reference(priors, "silence", low=0.0, high=0.0)
    scores, factors = evaluate(
        [silence, reference(priors)], priors, ["exact"], on_reference=lambda one: seen.append(one.name)
    )
    assert {score.name for score in scores} == {"song"}
    assert seen == ["silence", "song"]
    assert evaluate([silence], priors, ["exact"]) == ([], {})
    assert evaluate([], priors) == ([], {})
    assert aggregate([]) == []
    assert factors["exact"] > 0


def test_sources_that_the_model_lacks(priors):
    one = reference(priors | {"tuba": priors["low"]})
    with pytest.raises(ConfigurationError, match=r"no prior for \['tuba'\]; it has \['low', 'high'\]"):
        evaluate([one], priors, ["exact"])


def test_an_unknown_method(priors):
    with pytest.raises(ConfigurationError, match="method must be one of"):
        evaluate([reference(priors)], priors, ["magic"])


def test_aggregate():
    scores = [
        Score("a", "bass", "exact", 1.0, 2.0),
        Score("b", "bass", "exact", 2.0, 3.0),
        Score("c", "bass", "exact", 9.0, 10.0),
        Score("a", "drums", "exact", 8.0, 1.0),
    ]
    rows = aggregate(scores)
    assert [(row["source"], row["count"]) for row in rows] == [("bass", 3), ("drums", 1), ("mean", 4)]
    bass, _, mean = rows
    assert (bass["si_sdr_mean"], bass["si_sdr_median"], bass["si_sdr_improvement_mean"]) == (4.0, 2.0, 5.0)
    # Every source weighs alike: (4 + 8) / 2, and not (1 + 2 + 9 + 8) / 4.
    assert (mean["si_sdr_mean"], mean["si_sdr_median"]) == (6.0, 5.0)


def test_aggregate_of_bss_eval_passes_over_what_is_undefined():
    scores = [
        Score("a", "bass", "exact", 1.0, 2.0, {"SDR": 3.0, "SIR": math.nan}),
        Score("b", "bass", "exact", 1.0, 2.0, {"SDR": 5.0, "SIR": math.nan}),
    ]
    (bass, _) = aggregate(scores)
    assert bass["SDR_median"] == 4.0
    assert math.isnan(bass["SIR_median"])


# Data


def test_toy_references():
    found = list(toy_references(("saw", "sine"), frame=64, size=3, seed=5))
    data = ToyMixes(("saw", "sine"), frame=64, size=3, seed=5)
    assert len(found) == 3
    for index, one in enumerate(found):
        assert one.sample_rate == 14_700
        assert list(one.sources) == ["saw", "sine"]
        assert torch.equal(one.mix[0], data[index].mix)
        # A mean of two is the sum of halves, to rounding.
        torch.testing.assert_close(sum(one.sources.values()), one.mix)


def test_toy_data_end_to_end():
    waves = ("sine", "square")
    priors = {wave: OscillatorPrior(wave, 64, sigma_min=0.05, periods=(16, 20)) for wave in waves}
    settings = Settings(gains="mean", noise_db=-20)
    methods = {"langevin": Chains(2, 4, 4, ladder=3, redraws=2)}
    scores, _ = evaluate(toy_references(waves, frame=64, size=2), priors, methods, settings)
    assert len(scores) == 8
    assert all(math.isfinite(score.si_sdr) for score in scores)


@pytest.fixture
def songs(tmp_path, priors):
    for song in ("a", "b"):
        (tmp_path / song).mkdir()
        for name, samples in draw(priors, channels=2).items():
            if (song, name) != ("b", "high"):
                audio.write(tmp_path / song / f"{name}.wav", samples, RATE)
    return StemFolder(tmp_path)


def test_song_references(songs):
    first, second = song_references(songs, ("low", "high"), seconds=0.25)
    assert first.mix.shape == first.sources["low"].shape == (1, 2000)
    torch.testing.assert_close(first.mix, songs[0].read_mix(0, 2000).mean(0, keepdim=True))
    torch.testing.assert_close(sum(first.sources.values()), first.mix)
    assert second.name == "b"
    assert not second.sources["high"].any(), "a source that the song lacks is silent"
    whole, _ = song_references(songs, ("low",), mono=False)
    assert whole.mix.shape == (2, 4000)


@pytest.mark.parametrize("mono", [True, False])
def test_a_folder_of_songs_end_to_end(songs, priors, mono):
    scores, _ = evaluate(song_references(songs, ("low", "high"), mono=mono), priors, ["exact"])
    own = [score for score in scores if score.method == "exact"]
    assert [(score.name, score.source) for score in own] == [("a", "low"), ("a", "high"), ("b", "low")]
    assert own[0].si_sdr_improvement > 3


# BSS Eval


@pytest.fixture
def museval():
    try:
        import museval
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"museval can't be imported: {error}")
    return museval


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
def test_bss_eval(museval, priors):
    truth = torch.stack(list(draw(priors, 2.0).values()))
    error = truth.std() * torch.randn(truth.shape)
    good, bad = bss_eval(truth, truth + 0.01 * error, RATE), bss_eval(truth, truth + 0.3 * error, RATE)
    assert set(good) == {"SDR", "ISR", "SIR", "SAR"}
    assert all(len(values) == 2 for values in good.values())
    for source in range(2):
        assert good["SDR"][source] > bad["SDR"][source] + 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")
def test_bss_eval_of_the_sources_that_sound(museval, priors, monkeypatch):
    sources = draw(priors, 2.0)
    sources["low"] = torch.zeros_like(sources["low"])
    one = Reference("song", sources["high"], sources, RATE)
    scores, _ = evaluate([one], priors, ["exact"], bss=True)
    assert [score.source for score in scores] == ["high", "high"]
    assert all(set(score.bss) == {"SDR", "ISR", "SIR", "SAR"} for score in scores)
    assert "SDR_median" in aggregate(scores)[0]


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_bss_eval_without_museval(error, monkeypatch, priors):
    class Refuses:
        def find_spec(self, name, path=None, target=None):
            if name == "museval":
                raise error("ffmpeg or ffprobe could not be found")

    monkeypatch.delitem(sys.modules, "museval", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Refuses(), *sys.meta_path])
    with pytest.raises(MissingDependencyError, match="install ffmpeg"):
        bss_eval(torch.ones(1, 1, 100), torch.ones(1, 1, 100), RATE)
    with pytest.raises(MissingDependencyError, match="install ffmpeg"):
        evaluate([reference(priors)], priors, ["exact"], bss=True)


def test_evaluation_without_bss_eval_needs_no_museval(monkeypatch, priors):
    monkeypatch.setitem(sys.modules, "museval", None)
    assert evaluate([reference(priors)], priors, ["exact"])[0]
    assert importlib.util.find_spec("torchmetrics") is not None


# The models that ship


@pytest.mark.slow
def test_the_shipped_model_beats_the_mix_for_every_source(recordings):
    """The exact posterior mean on the first ten seconds of songs that no model was trained on."""
    from pyrosep import load_priors

    songs = StemFolder(recordings / "minislakh" / "valid")
    priors = load_priors("band-gaussian")
    scores, _ = evaluate(song_references(songs, tuple(priors), seconds=10.0), priors, ["exact"])
    rows = {row["source"]: row for row in aggregate(scores) if row["method"] == "exact"}
    for source in priors:
        assert rows[source]["count"] >= 5
        assert rows[source]["si_sdr_improvement_mean"] > 0, source


def test_a_mix_that_fails_is_named_and_the_others_are_scored(priors):
    bad = reference(priors, "bad")
    bad.mix[0, 3] = float("nan")
    songs, failed = [reference(priors, "one"), bad, reference(priors, "two")], {}
    with pytest.raises(DataError, match="NaN"):
        evaluate(songs, priors, ["exact"])
    scores, _ = evaluate(songs, priors, ["exact"], on_failure=lambda name, error: failed.update({name: str(error)}))
    assert {score.name for score in scores} == {"one", "two"}
    assert list(failed) == ["bad"]
    assert "NaN" in failed["bad"]
