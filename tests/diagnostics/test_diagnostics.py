"""From chains to ArviZ, tables and pictures."""

import contextlib
import re
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC

from pyrosep import MALA, SGLD, GaussianPrior, LangevinMCMC
from pyrosep.diagnostics import (
    compare_chains,
    plot_diagnostics,
    plot_spectrograms,
    read_netcdf,
    summarize,
    to_inference_data,
    verdict,
    write_netcdf,
)
from pyrosep.diagnostics.arviz_versions import from_groups, group, group_names
from pyrosep.errors import ConfigurationError, DataError, MissingFileError
from pyrosep.infer import ChainWarning
from pyrosep.mixing import linear_mix, panned_mix, unknown_gains_mix
from pyrosep.signal.summaries import audio_summaries

TIME, RATE = 16, 8000


@pytest.fixture
def priors():
    return {
        name: GaussianPrior(torch.tensor(spectrum), TIME, sample_rate=RATE)
        for name, spectrum in {"bass": [2.0, 0.5], "drums": [0.5, 1.0]}.items()
    }


def run(model, mix, num_samples=6, num_chains=3, **options):
    return LangevinMCMC(
        MALA(model, 0.5), num_samples, warmup_steps=60, thinning=5, num_chains=num_chains, seed=0, **options
    ).run(mix)


@pytest.fixture
def mcmc(priors):
    return run(unknown_gains_mix(priors, noise=0.3), torch.randn(TIME))


# --- InferenceData -----------------------------------------------------------------------------------------------


def test_groups_dims_and_coordinates(mcmc):
    truth = torch.randn(2, TIME)
    idata = to_inference_data(mcmc, truth=truth, dims={"gains": ["source"]})
    assert group_names(idata) == ["posterior", "sample_stats", "observed_data", "constant_data"]
    sources = idata.posterior["sources"]
    assert sources.dims == ("chain", "draw", "source", "time")
    assert sources.shape == (3, 6, 2, TIME)
    assert list(sources.coords["source"].values) == ["bass", "drums"]
    assert list(sources.coords["chain"].values) == [0, 1, 2]
    np.testing.assert_allclose(sources.coords["time"], np.arange(TIME) / RATE)
    draws = mcmc.get_samples(group_by_chain=True)
    np.testing.assert_array_equal(sources.sel(source="drums"), draws["drums"])
    assert idata.posterior["gains"].dims == ("chain", "draw", "source")
    np.testing.assert_array_equal(idata.posterior["gains"], draws["gains"])
    assert set(idata.sample_stats.data_vars) == {"lp", "acceptance_rate", "step_size", "residual"}
    np.testing.assert_array_equal(idata.sample_stats["lp"], mcmc.sample_stats()["lp"])
    assert idata.observed_data["mix"].dims == ("time",)
    assert idata.constant_data["sample_rate"].item() == RATE
    assert idata.constant_data["truth"].dims == ("source", "time")
    np.testing.assert_array_equal(idata.constant_data["truth"], truth)


def test_stereo_mix(priors):
    mcmc = run(panned_mix(priors, noise=0.3), torch.randn(2, TIME))
    idata = to_inference_data(mcmc)
    assert idata.observed_data["mix"].dims == ("mix_axis_0", "time")
    assert idata.posterior["pans"].shape == (3, 6, 2)


def test_sample_rate(priors, mcmc):
    assert to_inference_data(mcmc, sample_rate=100).constant_data["sample_rate"].item() == 100
    unknown = {name: GaussianPrior(torch.ones(2), TIME) for name in priors}
    idata = to_inference_data(run(linear_mix(unknown, noise=0.3), torch.randn(TIME)))
    np.testing.assert_array_equal(idata.posterior.coords["time"], np.arange(TIME))  # counts samples


def test_sources_in_a_plate(priors):
    def model(mix):
        with pyro.plate("channels", 2, dim=-1):
            sources = torch.stack([pyro.sample(name, prior) for name, prior in priors.items()], -2)
            pyro.sample("mix", dist.Normal(sources.sum(-2), 0.3).to_event(1), obs=mix)

    idata = to_inference_data(run(model, torch.randn(2, TIME)))
    assert idata.posterior["sources"].dims == ("chain", "draw", "plate_0", "source", "time")
    assert idata.posterior["sources"].shape == (3, 6, 2, 2, TIME)


@pytest.mark.parametrize(
    "name",
    [
        *("time", "source", "chain", "draw", "band", "window"),
        *("lp", "residual", "energy_db", "band_db", "projection"),
        *("sources", "truth", "a/b", "../x", "..", "gains_dim_0"),
    ],
)
def test_sites_with_names_that_are_taken_get_others(priors, name, tmp_path):
    """Nothing is left out, and nothing is overwritten: draws, summaries and the file have all of it."""

    def model(mix):
        level = pyro.sample(name, dist.Normal(0.0, 1.0))
        gains = pyro.sample("gains", dist.Normal(torch.ones(2), 0.1).to_event(1))
        sources = torch.stack([pyro.sample(source, prior) for source, prior in priors.items()], -2)
        mean = (gains.unsqueeze(-1) * sources).sum(-2) + level.unsqueeze(-1)
        pyro.sample("mix", dist.Normal(mean, 0.3).to_event(1), obs=mix)

    mcmc = run(model, torch.randn(TIME))
    with pytest.warns(UserWarning, match=re.escape(f"{name!r} is ")) as told:
        idata = to_inference_data(mcmc, truth=torch.zeros(2, TIME))
    (other,) = re.findall(r"is '([^']+)'$", str(told[0].message))
    read = read_netcdf(write_netcdf(idata, tmp_path / "posterior.nc"))
    assert set(group(read, "posterior").data_vars) == {"sources", "gains", other}
    np.testing.assert_array_equal(group(read, "posterior")[other], mcmc.get_samples(group_by_chain=True)[name])
    np.testing.assert_array_equal(group(read, "sample_stats")["lp"], mcmc.sample_stats()["lp"])
    table = summarize(read)
    assert table.loc[other, "mean"] == pytest.approx(float(mcmc.get_samples()[name].mean()), rel=1e-4, abs=1e-6)
    assert table.loc["lp", "mean"] == pytest.approx(float(mcmc.sample_stats()["lp"].mean()))


def test_two_sites_that_would_get_one_name(priors):
    def model(mix):
        values = [pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("a/b", "a_b", "a_b_")]
        source = pyro.sample("bass", priors["bass"])
        pyro.sample("time", dist.Normal(source + sum(values).unsqueeze(-1), 0.3).to_event(1), obs=mix)

    mcmc = run(model, torch.randn(TIME))
    with pytest.warns(UserWarning, match="'a/b' is 'a_b__', 'time' is 'time_'"):
        idata = to_inference_data(mcmc)
    for site, name in (("a/b", "a_b__"), ("a_b", "a_b"), ("a_b_", "a_b_")):
        np.testing.assert_array_equal(idata.posterior[name], mcmc.get_samples(group_by_chain=True)[site])
    assert idata.observed_data["time_"].dims == ("time",)


def test_stopped_chains_are_left_out(priors):
    def quartic(mix):
        source = pyro.sample("bass", priors["bass"])
        pyro.sample("mix", dist.Normal(source.square(), 1.0).to_event(1), obs=mix)

    start = {"bass": torch.tensor([50.0, 0.1, 0.1]).unsqueeze(-1).expand(3, TIME)}
    mcmc = LangevinMCMC(SGLD(quartic, 0.01, preconditioner=None), 6, num_chains=3, init=start, seed=0)
    with pytest.warns(ChainWarning, match="chain 0 stopped"):
        mcmc.run(torch.zeros(TIME))
    idata = to_inference_data(mcmc)
    assert list(idata.posterior.coords["chain"].values) == [1, 2]
    assert idata.sample_stats["lp"].shape == (2, 6)


@pytest.mark.parametrize("kernel", [MALA, lambda model: HMC(model, step_size=0.05, num_steps=2)], ids=["mala", "hmc"])
def test_stock_mcmc(priors, kernel):
    model = unknown_gains_mix(priors, noise=0.3)
    mcmc = MCMC(kernel(model), 8, 10, disable_progbar=True)
    with pytest.raises(ConfigurationError, match=r"call mcmc\.run"):
        to_inference_data(mcmc)
    mix = torch.randn(TIME)
    mcmc.run(mix)
    idata = to_inference_data(mcmc)
    assert idata.posterior["sources"].shape == (1, 8, 2, TIME)
    np.testing.assert_array_equal(idata.posterior["sources"][0, :, 1], mcmc.get_samples()["drums"])
    np.testing.assert_array_equal(idata.observed_data["mix"], mix)
    assert "energy_db[bass]" in summarize(idata).index


def test_a_run_that_has_not_been(priors):
    with pytest.raises(ConfigurationError, match=r"call mcmc\.run"):
        to_inference_data(LangevinMCMC(MALA(linear_mix(priors)), 5))


def test_a_model_without_sources():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor(0.5))

    mcmc = LangevinMCMC(MALA(model), 5, num_chains=2).run()
    with pytest.raises(ConfigurationError, match="no site with a source prior"):
        to_inference_data(mcmc)


# --- NetCDF ------------------------------------------------------------------------------------------------------


def test_netcdf_round_trip(mcmc, tmp_path):
    """Bit for bit, with every group, coordinate and attribute."""
    idata = to_inference_data(mcmc, truth=torch.randn(2, TIME))
    path = write_netcdf(idata, tmp_path / "deep" / "posterior.nc")
    write_netcdf(idata, path)  # over the first
    assert [one.name for one in path.parent.iterdir()] == ["posterior.nc"]
    again = read_netcdf(path)
    path.unlink()  # it is in memory
    assert group_names(again) == group_names(idata)
    for name in group_names(idata):
        assert group(again, name).equals(group(idata, name)), name
    assert again.attrs["inference_library"] == "pyrosep"


def test_netcdf_that_can_not_be_read(tmp_path):
    with pytest.raises(MissingFileError, match="no file"):
        read_netcdf(tmp_path / "posterior.nc")
    (tmp_path / "posterior.nc").write_bytes(b"not a NetCDF file")
    with pytest.raises(DataError, match="is not a NetCDF file"):
        read_netcdf(tmp_path / "posterior.nc")


# --- summaries ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [63, 64])
def test_audio_summaries(time):
    rng = np.random.default_rng(0)
    sources = rng.standard_normal((3, 2, time))
    found = audio_summaries(sources, 16_000)
    np.testing.assert_allclose(found["energy_db"], 10 * np.log10(np.square(sources).mean(-1)))  # Parseval
    assert found["band_db"].shape == (3, 2, 4)
    np.testing.assert_allclose((10 ** (found["band_db"] / 10)).sum(-1), 10 ** (found["energy_db"] / 10))
    assert found["projection"].shape == (3, 2, 4)
    again = audio_summaries(-2 * sources, 16_000)
    np.testing.assert_allclose(again["projection"], -2 * found["projection"])
    np.testing.assert_allclose(again["energy_db"], found["energy_db"] + 20 * np.log10(2))


def test_bands_hold_their_frequencies():
    time = np.arange(1600) / 16_000
    tones = np.stack([np.sin(2 * np.pi * frequency * time) for frequency in (100, 500, 2000, 6000)])
    bands = audio_summaries(tones, 16_000)["band_db"]
    assert list(bands.argmax(-1)) == [0, 1, 2, 3]
    np.testing.assert_allclose(bands.max(-1), 10 * np.log10(0.5))
    assert audio_summaries(tones, 1000)["band_db"].shape == (4, 2)  # only bands below half the sample rate
    assert np.isfinite(audio_summaries(np.zeros((1, 1600)), 16_000)["band_db"]).all()


def test_summarize_has_a_row_for_each_summary_and_none_for_samples(mcmc):
    table = summarize(to_inference_data(mcmc, dims={"gains": ["source"]}))
    assert list(table.columns) == ["mean", "sd", "mcse_mean", "ess_bulk", "ess_tail", "r_hat"]
    rows = list(table.index)
    assert not [row for row in rows if row.startswith(("sources", "bass", "drums"))]
    # Energy, three bands below 4 kHz, four projections for either source; two gains; lp and residual.
    assert len(rows) == 2 * (1 + 3 + 4) + 2 + 2
    assert {"lp", "residual", "energy_db[bass]", "gains[drums]", "band_db[drums, 250 Hz+]"} <= set(rows)


def test_summarize_gives_the_values(mcmc):
    idata = to_inference_data(mcmc)
    energy = 10 * np.log10(np.square(mcmc.get_samples()["bass"].numpy()).mean(-1))
    table = summarize(idata)
    assert table.loc["energy_db[bass]", "mean"] == pytest.approx(energy.mean(), rel=1e-5)  # single precision
    assert table.loc["energy_db[bass]", "sd"] == pytest.approx(energy.std(ddof=1), rel=1e-4)
    assert table.loc["lp", "mean"] == pytest.approx(float(mcmc.sample_stats()["lp"].mean()))


def test_summarize_what_was_read_from_disk(mcmc, tmp_path):
    idata = to_inference_data(mcmc)
    assert summarize(read_netcdf(write_netcdf(idata, tmp_path / "posterior.nc"))).equals(summarize(idata))


def test_summarize_leaves_the_draws_as_they_are(mcmc):
    idata = to_inference_data(mcmc)
    summarize(idata)
    assert set(idata.posterior.data_vars) == {"sources", "gains"}


def test_summarize_too_few_draws(priors):
    idata = to_inference_data(run(linear_mix(priors, noise=0.3), torch.randn(TIME), num_samples=3))
    table = summarize(idata)
    energy = 10 * np.log10(np.square(idata.posterior["sources"].values[..., 0, :]).mean(-1))
    name = idata.posterior.coords["source"].values[0]
    assert table.loc[f"energy_db[{name}]", "mean"] == pytest.approx(energy.mean(), rel=1e-5)
    assert table.loc[f"energy_db[{name}]", "sd"] == pytest.approx(energy.std(ddof=1), rel=1e-4)
    assert table[["mcse_mean", "ess_bulk", "ess_tail", "r_hat"]].isna().all(axis=None)
    assert re.match(r"R-hat and ESS need at least 4 draws a chain; got 3; .* over \d+ draws of", verdict(table))


@pytest.mark.parametrize(("chains", "draws"), [(4, 1), (1, 2), (2, 3)])
@pytest.mark.filterwarnings("ignore:More chains")
def test_few_draws_are_told_and_drawn(chains, draws, tmp_path):
    values = np.random.default_rng(0).standard_normal((chains, draws, 30)) * np.arange(30)
    idata = from_groups({"posterior": {"level": values}}, dims={"level": ["source"]})
    table = summarize(idata)
    assert table["mean"].values == pytest.approx(values.mean((0, 1)))
    assert f"over {chains * draws} draws of {chains} chains, 30 summaries" in verdict(table)
    with pytest.raises(DataError, match="one draw has no deviation"):
        summarize(idata.isel(chain=[0], draw=[0]))
    (picture,) = plot_diagnostics(idata, tmp_path)
    assert picture == tmp_path / "draws.png"
    assert picture.stat().st_size > 5000


def constructed(offset, draws=500, chains=4):
    """Independent draws, the first chain off by an offset."""
    noise = np.random.default_rng(0).standard_normal((chains, draws))
    noise[0] += offset
    other = np.random.default_rng(1).random((chains, draws))
    return summarize(from_groups({"posterior": {"level": noise, "other": other}}))


def test_verdict():
    good, bad = verdict(constructed(0.0)), verdict(constructed(5.0))
    assert good.startswith("the chains agree: largest R-hat 1.0")
    assert "2 summaries" in good
    assert bad.startswith("the chains disagree on 1 of 2 summaries")
    assert "(level)" in bad
    assert "the chains agree, but there are few independent draws" in verdict(constructed(0.0, draws=20))


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:divide by zero encountered:RuntimeWarning")
def test_verdict_of_constant_draws():
    """Stuck together or apart, they say nothing good."""
    for values in ([[1.0], [1.0]], [[1.0], [2.0]]):
        table = summarize(from_groups({"posterior": {"level": np.ones((2, 10)) * np.array(values)}}))
        assert not verdict(table).startswith("the chains agree")


def test_verdict_of_one_chain():
    assert "can't be told from one chain" in verdict(constructed(0.0, chains=1))


# --- pictures ----------------------------------------------------------------------------------------------------

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23 beside Matplotlib 3.11
def test_plot_diagnostics(mcmc, tmp_path):
    from matplotlib import image

    pictures = plot_diagnostics(to_inference_data(mcmc, dims={"gains": ["source"]}), tmp_path / "pictures")
    assert [path.name for path in pictures] == ["trace.png", "rank.png", "autocorrelation.png", "log_joint.png"]
    for path in pictures:
        assert path.read_bytes().startswith(PNG)
        assert float(image.imread(path)[..., :3].std()) > 0.01, f"{path.name} is blank"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping")  # ArviZ 0.23 beside Matplotlib 3.11
def test_plot_diagnostics_of_a_stock_run(priors, tmp_path):
    mcmc = MCMC(MALA(linear_mix(priors, noise=0.3)), 20, 40, disable_progbar=True)
    mcmc.run(torch.randn(TIME))
    names = [path.name for path in plot_diagnostics(to_inference_data(mcmc), tmp_path)]
    assert names == ["trace.png", "rank.png", "autocorrelation.png"]  # a stock run has no log joint density


def test_plot_spectrograms(tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        "truth": {"bass": rng.standard_normal(5000), "drums": rng.standard_normal(5000)},
        "mix": {"bass": rng.standard_normal(500)},  # shorter than a window, and no drums
    }
    plot_spectrograms(rows, RATE, tmp_path / "spectrograms.png", title="Two rows")
    assert (tmp_path / "spectrograms.png").read_bytes().startswith(PNG)


# --- posteriors of other programs --------------------------------------------------------------------------------


def draws(*shape, bad=None):
    values = np.random.default_rng(0).standard_normal(shape)
    return values if bad is None else np.full(shape, bad)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"observed_data": {"mix": draws(4)}},
            r"draws in a group 'posterior'; there are the groups \['observed_data'\]",
        ),
        ({"posterior": {"x": np.full((2, 5), "loud")}}, "expected numbers of 'x' in 'posterior'"),
        ({"posterior": {"x": draws(2, 5, bad=np.nan)}}, r"no draw is finite; the posterior's \['x'\]"),
    ],
)
def test_posteriors_without_draws_are_refused_by_name(groups, message, tmp_path):
    idata = from_groups(groups)
    with pytest.raises(DataError, match=message):
        summarize(idata)
    with pytest.raises(DataError, match=message):
        read_netcdf(write_netcdf(idata, tmp_path / "posterior.nc"))


def with_bad_draws(bad, draws_=8):
    """Of ``energy_db`` two draws of one window are bad, of ``theta`` one draw, of ``lp`` those of a chain."""
    energy, theta, lp = draws(3, draws_, 2, 2), draws(3, draws_), draws(3, draws_, 2)
    energy[0, :2, 1, 0] = theta[2, 0] = bad
    lp[1, :, 0] = bad
    return from_groups(
        {"posterior": {"energy_db": energy, "theta": theta, "fine": draws(3, draws_)}, "sample_stats": {"lp": lp}},
        dims={"energy_db": ["window", "source"], "lp": ["window"]},
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("draws_", [2, 8], ids=["few", "enough"])
def test_variables_with_some_draws_that_are_not_finite_are_named(draws_, bad):
    table = summarize(with_bad_draws(bad, draws_))
    assert table.attrs["not_finite"] == {"energy_db": 2, "theta": 1, "lp": draws_}
    words = verdict(table)
    told = f"energy_db (2 draws), theta (1 draws), lp ({draws_} draws)"
    assert words.startswith(f"draws are NaN or infinite: {told}; of the others, "), words
    assert "constant" not in words, "draws that are NaN are not constant"
    assert np.isfinite(table.loc["fine", "mean"])
    assert not np.isfinite(table.loc["theta", "mean"])


def test_nothing_is_judged_where_every_variable_has_draws_that_are_not_finite():
    values = draws(3, 8)
    values[0, 0] = np.nan
    words = verdict(summarize(from_groups({"posterior": {"theta": values}})))
    assert words == "draws are NaN or infinite: theta (1 draws); nothing else is there to judge"


def test_chains_that_are_not_finite_are_left_out_of_modes_and_pictures(tmp_path):
    idata = with_bad_draws(np.nan)
    table = compare_chains(idata)
    assert [(row.chain, row.window) for row in table.itertuples()] == [(0, 0), (2, 0), (1, 1), (2, 1)]
    assert table.groupby("window")["weight"].sum().tolist() == pytest.approx([1, 1])
    assert plot_diagnostics(with_bad_draws(np.nan, 2), tmp_path) == [tmp_path / "draws.png"]


# h5netcdf's destructor fails on files that it could not open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_files_that_are_no_posterior(tmp_path):
    import xarray

    path = tmp_path / "posterior.nc"
    plain = xarray.Dataset({"x": ("place", np.arange(3.0))})
    plain.to_netcdf(path, engine="h5netcdf")
    with pytest.raises(DataError, match=r"draws in a group 'posterior'|not a NetCDF file"):
        read_netcdf(path)
    plain.to_netcdf(path, group="posterior", engine="h5netcdf", mode="w")
    with pytest.raises(DataError, match=r"draws by chain and draw of 'x' in 'posterior'; got axes \{'place': 3\}"):
        read_netcdf(path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 40)):  # cut short, and a byte changed
        for damaged in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            path.write_bytes(damaged)
            with contextlib.suppress(DataError):  # and no other error, of those that can't be read
                read_netcdf(path)


def test_a_posterior_on_a_full_disk_is_an_error_of_the_system(tmp_path):
    """HDF5 by itself would end the process."""
    code = (
        "import resource, numpy, sys\n"
        "from pyrosep.diagnostics import arviz_versions\n"
        "from pyrosep.diagnostics.inference_data import write_netcdf\n"
        "data = arviz_versions.from_groups({'posterior': {'x': numpy.zeros((2, 50, 1000))}})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write_netcdf(data, sys.argv[1])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "posterior.nc")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("OSError: ")
    assert [*tmp_path.iterdir()] == []
