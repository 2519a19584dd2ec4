"""The likelihood experiments, on few short frames: their figures against direct calls and hand computations."""

import csv
import json
import math

import pandas
import pytest
import torch
from command_line import run as run_command
from torch.distributions import Normal

from pyrosep import audio
from pyrosep.data import ToySource
from pyrosep.errors import ConfigurationError, DataError
from pyrosep.experiments import HeldOut, constant_inputs, cross_likelihood, noised_likelihood
from pyrosep.metrics import wilson_interval
from pyrosep.priors import SIZES, FloWaveNet, FloWaveNetwork, GaussianPrior, OscillatorPrior
from pyrosep.zoo import save_priors

TIME, FRAMES, LEVELS = 64, 10, (0.01, 0.36)
WAVES = ("sine", "saw")


def flow(wave, seed):
    torch.manual_seed(seed)
    network = FloWaveNetwork(SIZES["tiny"], OscillatorPrior(wave, TIME).spectrum)
    with torch.no_grad():
        for parameter in network.flow.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return FloWaveNet(network, TIME, sample_rate=14_700)


@pytest.fixture(scope="module")
def flows():
    return HeldOut({wave: flow(wave, seed) for seed, wave in enumerate(WAVES)}, frame=TIME, frames=FRAMES)


@pytest.fixture(scope="module")
def cross(flows, tmp_path_factory):
    out = tmp_path_factory.mktemp("cross")
    steps = []
    tables = cross_likelihood(out, flows, levels=(0.36, 0.01), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 4) for done in (1, 2, 3, 4)]
    return tables, out


@pytest.fixture(scope="module")
def noised(flows, tmp_path_factory):
    out = tmp_path_factory.mktemp("noised")
    return noised_likelihood(out, flows, levels=LEVELS, noises=(0.0, 0.1, 0.36)), out


def frames_at(held_out, source, level):
    """The same frames and noise, made anew."""
    noise = torch.randn(len(held_out.sources), FRAMES, TIME, generator=torch.Generator().manual_seed(0)).double()
    toy = ToySource(source, TIME, FRAMES, seed=2**32)
    clean = torch.stack([toy[index] for index in range(FRAMES)]).double()
    return clean + level * noise[held_out.sources.index(source)]


def test_frames_are_held_out(flows):
    assert torch.equal(flows.clean[1], frames_at(flows, "saw", 0.0))
    fitted = torch.stack([ToySource("saw", TIME, FRAMES, seed=0)[index] for index in range(FRAMES)])
    assert not any(torch.equal(one, other) for one in flows.clean[1].float() for other in fitted)


def test_log_densities_are_those_of_direct_calls(flows, cross):
    table = cross[0].densities
    assert len(table) == len(LEVELS) * len(WAVES) ** 2
    for row in table.itertuples():
        x = frames_at(flows, row.source, row.sigma)
        direct = flows.priors[row.prior].at(row.sigma).log_prob(x)
        assert row.nats_per_frame == pytest.approx(direct.mean().item(), rel=1e-5)
        assert row.nats_per_sample == pytest.approx(direct.mean().item() / TIME, rel=1e-5)
        assert row.std_error == pytest.approx(direct.std().item() / FRAMES**0.5, rel=1e-4)
        exact = OscillatorPrior(row.prior, TIME).at(row.sigma).log_prob(x).mean().item()
        assert row.exact_per_frame == pytest.approx(exact, rel=1e-9)
        assert row.below_exact == pytest.approx(exact - direct.mean().item(), rel=1e-4)


def latent_log_prob(network, x, sigma):
    """As FloWaveNet's code has it: latent variables under normal split priors, the last of them white."""
    features = network._features(sigma)
    x, total = (x / network._scale(sigma)).unsqueeze(1), 0.0
    for block in network.flow.blocks:
        for part in block.parts[:-1]:
            x, _ = part.encode(x, features)
        split = block.parts[-1]
        x, leaves = x[:, : split.kept], x[:, split.kept :]
        shift, log_scale = split._shift_and_log_scale(x, features)
        total = total + Normal(shift, (-log_scale).exp()).log_prob(leaves).sum((1, 2))
    return total + Normal(0.0, 1.0).log_prob(x).sum((1, 2))


def test_columns_without_log_determinants(flows, cross):
    for row in cross[0].densities.itertuples():
        x = frames_at(flows, row.source, row.sigma).float()
        prior = flows.priors[row.prior].at(row.sigma)
        with torch.no_grad():
            white = Normal(0.0, 1.0).log_prob(prior.transforms[0].inv(x)).sum(-1).mean().item()
            talk = latent_log_prob(prior.network, x, torch.tensor([row.sigma])).mean().item()
        assert row.latent_per_sample == pytest.approx(white / TIME, rel=1e-5)
        assert row.latent_per_sample < -0.5 * math.log(2 * math.pi)  # the most that white noise can have
        assert row.talk_per_sample == pytest.approx(talk / TIME, rel=1e-5)
        assert abs(talk - white) > 1  # nat: the split priors of these flows are not white
        assert abs(talk - row.nats_per_frame) > 1


def test_naming_counted_by_hand(flows, cross):
    naming = cross[0].naming.set_index(["sigma", "source"])
    assert list(naming.index) == [(level, name) for level in LEVELS for name in (*WAVES, "all")]
    for level in LEVELS:
        totals = {"": 0, "exact_": 0, "talk_": 0}
        for index, source in enumerate(WAVES):
            x = frames_at(flows, source, level)
            exact = [OscillatorPrior(wave, TIME).at(level).log_prob(x).tolist() for wave in WAVES]
            with torch.no_grad():
                sigma = torch.tensor([level])
                talk = [latent_log_prob(flows.priors[wave].network, x.float(), sigma).tolist() for wave in WAVES]
            own = [flows.priors[wave].at(level).log_prob(x).tolist() for wave in WAVES]
            row = naming.loc[(level, source)]
            for prefix, values in (("", own), ("exact_", exact), ("talk_", talk)):
                right = sum(values[index][k] > values[1 - index][k] for k in range(FRAMES))
                totals[prefix] += right
                assert row[f"{prefix}right"] == pytest.approx(right / FRAMES)
                assert (row[f"{prefix}low"], row[f"{prefix}high"]) == wilson_interval(right / FRAMES, FRAMES)
            assert row[f"as_{source}"] == row.right == pytest.approx(1 - row[f"as_{WAVES[1 - index]}"])
            assert row.frames == FRAMES
        row = naming.loc[(level, "all")]
        assert row.frames == 2 * FRAMES
        for prefix, right in totals.items():
            assert row[f"{prefix}right"] == pytest.approx(right / (2 * FRAMES))
            assert (row[f"{prefix}low"], row[f"{prefix}high"]) == wilson_interval(right / 2 / FRAMES, 2 * FRAMES)
    assert naming.exact_right.max() == 1.0


def test_snr_of_denoised_frames(flows, cross):
    row = cross[0].naming.set_index(["sigma", "source"]).loc[(0.36, "saw")]
    clean, x = frames_at(flows, "saw", 0.0), frames_at(flows, "saw", 0.36)
    estimates = {
        "snr_db": flows.priors["saw"].at(0.36).denoise(x),
        "exact_snr_db": OscillatorPrior("saw", TIME).at(0.36).denoise(x),
        "noisy_snr_db": x,
    }
    for column, estimate in estimates.items():
        ratio = clean.square().sum(-1) / (clean - estimate).square().sum(-1)
        assert row[column] == pytest.approx((10 * ratio.log10()).mean().item(), rel=1e-5)


def test_noised_inputs(flows, noised):
    table, _ = noised
    pairs = {(0.01, 0.0), (0.01, 0.1), (0.01, 0.36), (0.36, 0.0), (0.36, 0.1), (0.36, 0.36), (0.1, 0.1)}
    assert {(row.prior_sigma, row.input_sigma) for row in table.itertuples()} == pairs
    assert len(table) == len(pairs) * len(WAVES)
    assert (table.matched == (table.prior_sigma == table.input_sigma)).all()
    for row in table.itertuples():
        x = frames_at(flows, row.source, row.input_sigma)
        direct = flows.priors[row.source].at(row.prior_sigma).log_prob(x).mean().item()
        assert row.nats_per_frame == pytest.approx(direct, rel=1e-5)
    exact = table[(table.prior_sigma == 0.01)].pivot(index="source", columns="input_sigma", values="exact_per_frame")
    assert (exact[0.0] > exact[0.1]).all()
    assert (exact[0.1] > exact[0.36]).all()


def gaussians(**powers):
    """White priors, but for a power of their own at 0 Hz."""
    spectra = {wave: torch.full((TIME // 2 + 1,), 0.3) for wave in powers}
    for wave, power in powers.items():
        spectra[wave][0] = power
    return {wave: GaussianPrior(spectra[wave], TIME, sample_rate=14_700) for wave in powers}


def test_constants_that_are_likelier_than_data(tmp_path):
    held_out = HeldOut(gaussians(sine=0.3, saw=1e4), frame=TIME, frames=FRAMES)
    table = constant_inputs(tmp_path, held_out, levels=(0.01,)).set_index(["prior", "input"])
    assert list(table.loc["saw"].index) == ["data", "0", "1", "data + noise", "0 + noise", "1 + noise"]
    # A Gaussian is likeliest at 0, whatever its spectrum. Under a white one a frame's power decides, and 1 has more
    # than a sine has. Where all power is at 0 Hz, 1 is as good as 0.
    assert table.likelier.loc["sine"].tolist() == 2 * [False, True, False]
    assert table.likelier.loc["saw"].tolist() == 2 * [False, True, True]
    assert not table.exact_likelier.any()
    assert table.talk_likelier.isna().all()
    prior = held_out.priors["saw"].at(0.01)
    one = prior.log_prob(torch.ones(1, TIME).double()).item()
    data = prior.log_prob(frames_at(held_out, "saw", 0.0)).mean().item()
    noised = prior.log_prob(frames_at(held_out, "saw", 0.01)).mean().item()
    noise = prior.log_prob(frames_at(held_out, "saw", 0.01) - frames_at(held_out, "saw", 0.0)).mean().item()
    assert table.nats_per_frame.loc[("saw", "1")] == pytest.approx(one)
    assert table.above_data.loc[("saw", "1")] == pytest.approx(one - data)
    assert table.nats_per_frame.loc[("saw", "0 + noise")] == pytest.approx(noise)
    assert table.above_data.loc[("saw", "0 + noise")] == pytest.approx(noise - noised)
    assert table.frames.loc["saw"].tolist() == [FRAMES, 1, 1, FRAMES, FRAMES, FRAMES]


def test_less_noise_is_likelier_whatever_it_is_on(tmp_path):
    """So that bare constants are compared with bare data: a noised frame lies sigma * sqrt(T) from the clean one."""
    held_out = HeldOut(gaussians(sine=0.3), frame=TIME, frames=FRAMES)
    exact = constant_inputs(tmp_path, held_out, levels=(3.0,)).set_index("input").exact_per_frame
    assert exact["0"] > exact["data + noise"]
    for kind in ("data", "0", "1"):
        assert exact[kind] - exact[f"{kind} + noise"] == pytest.approx(TIME / 2, abs=0.3 * TIME / 2)


def test_talk_flags_of_flows(flows, tmp_path):
    table = constant_inputs(tmp_path, flows, levels=(0.36,))
    for part in (table[~table.input.str.contains("noise")], table[table.input.str.contains("noise")]):
        data = part[part.input.str.contains("data")].set_index("prior").talk_per_sample
        assert (part.talk_likelier == (part.talk_per_sample > part.prior.map(data))).all()
    assert (table.likelier == (table.above_data > 0)).all()


@pytest.mark.parametrize(
    ("fixture", "name", "tables"),
    [("cross", "cross-likelihood", ("cross-likelihood", "naming")), ("noised", "noised-likelihood", None)],
)
def test_files(fixture, name, tables, request):
    found, out = request.getfixturevalue(fixture)
    tables = dict(zip(tables, found, strict=True)) if tables else {name: found}
    expected = {f"{name}.md", f"{name}.png", *(f"{key}.csv" for key in tables)}
    assert {path.name for path in out.iterdir()} == expected
    assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    markdown = (out / f"{name}.md").read_text(encoding="utf-8")
    for key, table in tables.items():
        read = pandas.read_csv(out / f"{key}.csv")
        pandas.testing.assert_frame_equal(read, table, check_dtype=False, rtol=1e-5)  # six digits
        lines = markdown.partition(f"## {key}\n\n")[2].partition("\n\n")[0].splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        with (out / f"{key}.csv").open(encoding="utf-8") as file:
            assert [cells[0], *cells[2:]] == list(csv.reader(file))


def test_same_seed_same_figures(tmp_path):
    tables = [
        noised_likelihood(tmp_path, HeldOut(gaussians(saw=0.3), frame=TIME, frames=3, seed=seed), noises=(0.1,))
        for seed in (5, 5, 6)
    ]
    pandas.testing.assert_frame_equal(tables[0], tables[1])
    assert (tables[0].nats_per_frame != tables[2].nats_per_frame).all()


@pytest.fixture
def songs(tmp_path):
    """A song whose bass is silent for its first half."""
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "data" / "song").mkdir(parents=True)
    for name in ("bass", "drums"):
        samples = 0.1 * torch.randn(1, 4000, generator=generator)
        if name == "bass":
            samples[:, :2000] = 0
        audio.write(tmp_path / "data" / "song" / f"{name}.wav", samples, 8000)
    return tmp_path / "data"


def test_recordings(songs, tmp_path):
    priors = {name: GaussianPrior(torch.full((9,), 0.01), TIME, sample_rate=8000) for name in ("bass", "drums")}
    held_out = HeldOut(priors, str(songs), frame=TIME, frames=FRAMES)
    assert held_out.clean.shape == (2, FRAMES, TIME)
    assert (held_out.clean.square().mean(-1) > 1e-6).all()
    tables = cross_likelihood(tmp_path / "out", held_out, levels=(0.1,))
    direct = priors["drums"].at(0.1).log_prob(held_out.noised("bass", 0.1)).mean().item()
    assert tables.densities.nats_per_frame[1] == pytest.approx(direct)
    unknown = ["exact_per_frame", "below_exact", "latent_per_sample", "talk_per_sample"]
    assert tables.densities[unknown].isna().all().all()
    assert tables.naming[["exact_right", "talk_right", "exact_snr_db"]].isna().all().all()
    assert tables.naming[["right", "snr_db", "noisy_snr_db"]].notna().all().all()
    title = (tmp_path / "out" / "cross-likelihood.md").read_text().splitlines()[0]
    assert title == "# Cross-likelihood: GaussianPrior on data, 10 frames a source of 64 samples"
    header, first = (tmp_path / "out" / "cross-likelihood.csv").read_text().splitlines()[:2]
    assert first.split(",")[header.split(",").index("exact_per_frame")] == ""


def test_recordings_that_hardly_sound(songs):
    audio.write(songs / "song" / "bass.wav", torch.zeros(1, 4000), 8000)
    priors = {"bass": GaussianPrior(torch.full((9,), 0.01), TIME, sample_rate=8000)}
    with pytest.raises(DataError, match=r"of 40 random frames of 'bass' only 0 are above -60 dB; 2 were asked for"):
        HeldOut(priors, str(songs), frame=TIME, frames=2)


def test_priors_without_a_density_are_refused():
    class Unnormalised(GaussianPrior):
        has_density = False

    with pytest.raises(ConfigurationError, match=r"priors of \['saw'\] have no density"):
        HeldOut({"saw": Unnormalised(torch.ones(3), TIME)}, frame=TIME)


def test_bad_inputs(tmp_path):
    saw = gaussians(saw=0.3)
    with pytest.raises(ConfigurationError, match="at least one prior and one frame; got 0 priors"):
        HeldOut({}, frame=TIME)
    with pytest.raises(ConfigurationError, match="and frames=0"):
        HeldOut(saw, frame=TIME, frames=0)
    with pytest.raises(ConfigurationError, match=r"toy data has the sources .* the priors are of \['bass'\]"):
        HeldOut({"bass": saw["saw"]}, frame=TIME)
    with pytest.raises(ConfigurationError, match="one sample rate"):
        HeldOut(saw | {"sine": GaussianPrior(torch.ones(3), TIME, sample_rate=8000)}, frame=TIME)
    held_out = HeldOut(saw, frame=TIME, frames=1)
    for levels in ((), (1e-4, 0.1), (math.nan,), (math.inf,)):
        with pytest.raises(ConfigurationError, match=r"noise levels of at least 0.001, .*; got"):
            cross_likelihood(tmp_path / "out", held_out, levels=levels)
        with pytest.raises(ConfigurationError, match=r"noise levels of at least 0.001"):
            constant_inputs(tmp_path / "out", held_out, levels=levels)
    with pytest.raises(ConfigurationError, match=r"noise levels of at least 0, .*; got \[-1\]"):
        noised_likelihood(tmp_path / "out", held_out, noises=(-1,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("command", "arguments", "tables"),
    [
        ("cross-likelihood", ["--levels", "0.1,1"], {"cross-likelihood": 8, "naming": 6}),
        ("noised-likelihood", ["--levels", "0.1", "--noises", "0,0.5"], {"noised-likelihood": 6}),
        ("constant-inputs", ["--levels", "0.1"], {"constant-inputs": 12}),
    ],
)
def test_commands(command, arguments, tables, tmp_path):
    save_priors(tmp_path / "model", gaussians(sine=0.3, saw=0.1))
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    common = ["-o", str(out), "--priors", str(tmp_path / "model"), "--frame", "64", "--frames", "2", "-d", "cpu"]
    result = run_command("experiment", command, *common, *arguments, "--json", figures)
    assert result.exit_code == 0, result.output
    assert "nats_per_frame" in result.output
    assert f"written to {out}" in result.output
    found = json.loads(figures.read_text())
    found = found if len(tables) > 1 else {command: found}
    assert {key: len(rows) for key, rows in found.items()} == tables
    for key, rows in tables.items():
        assert len((out / f"{key}.csv").read_text().splitlines()) == rows + 1


def test_commands_with_bad_options(tmp_path):
    common = ["experiment", "cross-likelihood", "-o", str(tmp_path / "out"), "--frame", "64", "--frames", "2"]
    for arguments, message in (
        (["--priors", "toy-flowavenet"], "a multiple of this flow's stride, 512 samples; got 64"),
        (["--priors", "toy", "--levels", "0.1;1"], "--levels: expected numbers by commas; got '0.1;1'"),
        (["--priors", "toy", "--levels", "0.001"], "at least 0.01"),
        (["--priors", "nothing"], "no prior set 'nothing'"),
        (["--priors", "song-gaussian"], "toy data has the sources"),
    ):
        result = run_command(*common, *arguments)
        assert result.exit_code == (2 if ";" in arguments[-1] else 1)
        assert message in result.stderr
    assert not (tmp_path / "out").exists()
