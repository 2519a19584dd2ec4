"""A linear mix of two Gaussian sources, whose posterior is known by dense linear algebra."""

from dataclasses import dataclass, field

import pytest
import scipy.linalg
import torch

from pyrosep import GaussianPrior
from pyrosep.infer import Potential
from pyrosep.mixing import linear_mix


def circulant(power, time):
    return torch.tensor(scipy.linalg.circulant(torch.fft.irfft(power, n=time).numpy()))


@dataclass
class LinearGaussian:
    """Everything about it, dense, in double precision; vectors are the sources one after the other."""

    time: int = 8
    noise: float = 0.5
    names: tuple[str, ...] = ("a", "b")
    gains: torch.Tensor = field(default_factory=lambda: torch.tensor([1.0, 0.7]))

    def __post_init__(self):
        spectra = ([2.0, 1.0, 0.5], [0.5, 1.0, 2.0])
        self.priors = {
            name: GaussianPrior(torch.tensor(spectrum), self.time, sigma_min=0.1)
            for name, spectrum in zip(self.names, spectra, strict=True)
        }
        self.model = linear_mix(self.priors, self.gains, self.noise)
        self.mix = torch.randn(self.time, generator=torch.Generator().manual_seed(1))
        blocks = [circulant(prior.variance(self.mix), self.time) for prior in self.priors.values()]
        self.prior_covariance = torch.block_diag(*blocks)
        self.mixing = torch.kron(self.gains.unsqueeze(0), torch.eye(self.time))  # (time, source * time)
        self.precision = torch.linalg.inv(self.prior_covariance) + self.mixing.mT @ self.mixing / self.noise**2
        self.covariance = torch.linalg.inv(self.precision)
        self.mean = self.mean_given(self.mix)

    def mean_given(self, mix):
        return (mix / self.noise**2) @ self.mixing @ self.covariance

    def potential(self, num_chains=None):
        return Potential(self.model, (self.mix,), num_chains=num_chains)

    def flat(self, values):
        return torch.cat([values[name] for name in self.names], -1)

    def split(self, vector):
        return dict(zip(self.names, vector.split(self.time, -1), strict=True))

    def matrix(self, operator):
        """The dense matrix of a map from values to values."""
        size = len(self.names) * self.time
        return self.flat(operator(self.split(torch.eye(size)))).mT


@pytest.fixture
def linear(double):
    return LinearGaussian()


@pytest.fixture
def linear_of(double):
    return LinearGaussian
