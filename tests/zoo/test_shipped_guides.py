"""The guides that ship, on mixes that they were not trained on."""

import pytest
import torch

from pyrosep import load_guide, load_priors
from pyrosep.data import ToyMixes
from pyrosep.diagnostics import interval_coverage
from pyrosep.metrics import si_sdr
from pyrosep.zoo import guides

#: Bytes on disk, all files together.
MOST = 16_000_000


@pytest.mark.parametrize("info", guides(), ids=lambda info: info.name)
def test_they_are_small_have_cards_and_a_model(info):
    assert sum(path.stat().st_size for path in info.folder.rglob("*") if path.is_file()) < MOST
    card = (info.folder / "README.md").read_text(encoding="utf-8")
    assert all(source in card for source in info.sources)
    assert info.summary
    assert load_priors(info.model).guide_info == info
    assert tuple(load_priors(info.model)) == info.sources


@pytest.mark.slow
@pytest.mark.parametrize(("frame", "count"), [(4096, 40), (16_384, 15)])
def test_the_toy_guide_alone_recovers_most_sources(frame, count):
    """60 % of the sources above 10 dB, of 91 measured on 200 mixes, and intervals that hold the truth."""
    guide = load_guide("toy-guide")
    data = ToyMixes(frame=frame, seed=77)
    mix, truth = (torch.stack(part) for part in zip(*(data[index] for index in range(count)), strict=True))
    with torch.no_grad():
        mean = torch.cat([guide.moments(part)[0] for part in mix.split(10)])
    scores = si_sdr(mean.unsqueeze(-2), truth.unsqueeze(-2))
    assert (scores > 10).double().mean() >= 0.6
    coverage = interval_coverage(guide, mix, truth)
    for wave, shares in coverage.items():
        assert 0.8 <= shares[0.9] <= 0.98, wave
