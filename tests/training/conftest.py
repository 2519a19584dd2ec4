"""What tests of training share: short runs, and frames of a source that is known."""

import pytest
import torch

from pyrosep import GaussianPrior
from pyrosep.training.frames import Frames
from pyrosep.training.settings import TrainingSettings


@pytest.fixture
def quick():
    """Settings of six steps, but for what is given."""
    return lambda **settings: TrainingSettings(
        **({"steps": 6, "batch": 4, "validate_every": 3, "save_every": 3} | settings)
    )


@pytest.fixture
def gaussian_frames():
    """Frames of a coloured Gaussian, whose density and denoiser are known, and can be learned in seconds."""

    def frames(frame=32):
        exact = GaussianPrior(torch.tensor([4.0, 0.5, 0.05, 0.01]), frame, sigma_min=0.0, sample_rate=8000)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            held_out = exact.sample((200,))
        return Frames(lambda count: exact.at(0.0).sample((count,)), held_out, 8000, exact)

    return frames
