"""What the training of a guide maximises, with all the numbers that belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyrosep.errors import ConfigurationError

__all__ = ["OBJECTIVES", "GuideObjective"]

OBJECTIVES = ("simulated", "elbo", "both")


@dataclass(frozen=True)
class GuideObjective:
    r"""The objective of a guide's training.

    - ``"elbo"`` maximises :math:`E_q[\log p(m, s) - \log q(s | m)]` over mixes alone (:class:`pyro.infer.Trace_ELBO`).
      With Gaussian priors and a Normal observation this is minus a Kullback-Leibler divergence and a squared error, the
      loss of a variational auto-encoder. The priors are smoothed: their noise level falls geometrically from
      ``sigma_max`` to their own over the first part ``annealing`` of the steps, and stays there.
    - ``"simulated"`` maximises :math:`\log q(s | m)` over pairs that the model draws from its priors, or from unpaired
      recordings: the forward divergence, the objective of :class:`pyro.infer.CSIS` (Le et al., 2017). It does not
      settle on one mode of the posterior.
    - ``"both"`` spends the first half of the steps on simulation, and the second half on the ELBO.

    Attributes:
        name: ``simulated``, ``elbo``, or ``both``, one after the other.
        cuts: Lengths in samples of pieces that simulated mixes are cut into, so that the guide reads them too.
        beta: Weigh the log-density of each simulated sample by its own deviation, beside the root mean square of the
            mix, to the power of twice this; no gradient passes through the weight (Seitzer et al., 2022). At 0 it is
            the likelihood, and quiet passages count as much as loud ones; at 1 means are drawn to the sources by the
            squared error.
        sigma_max: Noise level at which the annealing begins. By default one by the loudest prior.
        annealing: Part of the steps by the ELBO over which the priors' noise level falls.

    Raises:
        ConfigurationError: an unknown name, a number out of range, or cuts where nothing is simulated.
    """

    name: str = "simulated"
    cuts: tuple[int, ...] = ()
    beta: float = 0.0
    sigma_max: float | None = None
    annealing: float = 0.7

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise ConfigurationError(f"objective must be one of {OBJECTIVES}; got {self.name!r}")
        if not 0 <= self.annealing <= 1:
            raise ConfigurationError(f"annealing must be from 0 to 1; got {self.annealing!r}")
        if not 0 <= self.beta <= 1:
            raise ConfigurationError(f"beta must be from 0 to 1; got {self.beta!r}")
        if self.cuts and not self.simulates:
            raise ConfigurationError(
                "cuts are for objectives that simulate; with 'elbo' frames are as the priors have them"
            )

    @property
    def simulates(self) -> bool:
        """Whether some of the steps are by simulation."""
        return self.name != "elbo"

    @property
    def needs_mixes(self) -> bool:
        """Whether some of the steps are by the ELBO, on mixes that must be given."""
        return self.name != "simulated"

    def simulated_steps(self, steps: int) -> int:
        """How many of the steps are by simulation; they come first."""
        return {"simulated": steps, "elbo": 0, "both": steps // 2}[self.name]

    def annealed_steps(self, steps: int) -> int:
        """Over how many of the steps by the ELBO the noise level falls, at least one."""
        return max(1, round(self.annealing * (steps - self.simulated_steps(steps))))

    def check_data(self, data: Any, stems: Mapping[str, Any] | None) -> None:
        """Raise ConfigurationError where mixes are missing, or where stems are given that are not used."""
        if self.needs_mixes and data is None:
            raise ConfigurationError(f"objective {self.name!r} needs mixes to train on; give them as data")
        if stems and not self.simulates:
            raise ConfigurationError("stems are for objectives that simulate; with 'elbo' there is no use for them")

    @property
    def about(self) -> dict[str, Any]:
        """What a checkpoint keeps of the objective, in plain values."""
        return {
            "objective": self.name,
            "cuts": list(self.cuts),
            **({"beta": self.beta} if self.beta else {}),
            "annealing": self.annealing,
            "sigma_max": self.sigma_max,
        }
