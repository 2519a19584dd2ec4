"""Simulation-based calibration: whether a sampler or a guide gives the posterior of a model, for any model."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer import MCMC
from pyro.infer.mcmc.mcmc_kernel import MCMCKernel
from torch import Tensor

from pyrosep.errors import ConfigurationError
from pyrosep.infer import LangevinKernel, LangevinMCMC, Potential, initial_values, seeded
from pyrosep.infer.initial import Initial
from pyrosep.infer.potential import Values
from pyrosep.reading import Reading, plate_nesting

__all__ = ["Calibration", "plot_ranks", "sbc"]

#: A number for each draw: of values by site with any leading axes, to a tensor of those axes.
Quantity = Callable[[Values], Tensor]

#: Sites of more elements are told of by their mean square and a projection.
_MAX_ELEMENTS = 8


@dataclass(frozen=True)
class Calibration:
    """Ranks of true values among a sampler's draws; from 0 to ``draws``, uniform if the draws are the posterior's.

    Attributes:
        names: of the quantities that were ranked.
        ranks: ``(quantity, simulation)``.
        draws: that each true value was ranked among.
    """

    names: tuple[str, ...]
    ranks: Tensor
    draws: int

    @property
    def simulations(self) -> int:
        return self.ranks.shape[1]

    def histogram(self, bins: int | None = None) -> Tensor:
        """Counts of ranks, ``(quantity, bins)``.

        Arguments:
            bins: a divisor of ``draws + 1``; by default the largest up to 20 that expects five counts in a bin.

        Raises:
            ConfigurationError: the bins would not hold equally many ranks.
        """
        cells = self.draws + 1
        if bins is None:
            most = max(2, min(20, self.simulations // 5))
            bins = max((number for number in range(2, most + 1) if cells % number == 0), default=cells)
        if bins < 1 or cells % bins:
            raise ConfigurationError(f"expected bins that divide the {cells} ranks equally; got {bins}")
        place = self.ranks // (cells // bins)
        return torch.stack([torch.bincount(row, minlength=bins) for row in place])

    def p_values(self, bins: int | None = None) -> dict[str, float]:
        """By quantity, the p-value of Pearson's chi-square test of uniform ranks."""
        from scipy.stats import chisquare

        return {
            name: float(chisquare(counts.numpy()).pvalue)
            for name, counts in zip(self.names, self.histogram(bins), strict=True)
        }

    def coverage(self, level: float = 0.9, alarm: float = 0.05) -> dict[str, tuple[float, float, float]]:
        """By quantity, the share of true values in central intervals, and the band in which a right one lies.

        Arguments:
            level: of the intervals, rounded to whole ranks.
            alarm: the probability with which a right sampler's share falls outside of the band (binomial).
        """
        from scipy.stats import binom

        low, high = self._interval(level)
        inside = ((self.ranks >= low) & (self.ranks <= high)).double().mean(1)
        exact = (high - low + 1) / (self.draws + 1)
        band = np.array(binom.interval(1 - alarm, self.simulations, exact)) / self.simulations
        shares = zip(self.names, inside.tolist(), strict=True)
        return {name: (share, float(band[0]), float(band[1])) for name, share in shares}

    def _interval(self, level: float) -> tuple[int, int]:
        """The lowest and the highest rank within a central interval."""
        if not 0 < level < 1:
            raise ConfigurationError(f"a level must be between 0 and 1; got {level!r}")
        outside = round((1 - level) * (self.draws + 1) / 2)
        if 2 * outside >= self.draws + 1:
            raise ConfigurationError(f"expected more than {self.draws} draws for intervals of level {level}")
        return outside, self.draws - outside

    def rejected(self, alarm: float = 1e-4, levels: Sequence[float] = (0.5, 0.9)) -> dict[str, float]:
        """The quantities that are not calibrated, by name with their p-value.

        A quantity has the chi-square test and a binomial test for each level; the p-value is the smallest of them times
        their number and the number of quantities (Bonferroni), so that a right sampler has anything rejected with
        probability ``alarm`` at most.
        """
        from scipy.stats import binomtest

        found = self.p_values()
        for level in levels:
            low, high = self._interval(level)
            chance = (high - low + 1) / (self.draws + 1)
            for name, row in zip(self.names, self.ranks, strict=True):
                inside = int(((row >= low) & (row <= high)).sum())
                found[name] = min(found[name], float(binomtest(inside, self.simulations, chance).pvalue))
        tests = (1 + len(levels)) * len(self.names)
        return {name: min(1.0, tests * p) for name, p in found.items() if tests * p < alarm}

    def table(self, levels: Sequence[float] = (0.5, 0.9)) -> str:
        """A line for each quantity: chi-square p-value, and the shares in central intervals with their 95 % bands."""
        width = max(len(name) for name in self.names)
        title = f"{'':{width}}{'p':>10}" + "".join(f"{f'{100 * level:.0f} % intervals hold':>26}" for level in levels)
        lines = [title]
        shares = [self.coverage(level) for level in levels]
        for name, p in self.p_values().items():
            line = f"{name:{width}}{p:>10.2g}"
            for own in shares:
                share, low, high = (100 * value for value in own[name])
                line += f"{f'{share:.1f} ({low:.1f} to {high:.1f})':>26}"
            lines.append(line)
        return "\n".join(lines)


def sbc(
    model: Callable[..., Any],
    sampler: LangevinKernel | MCMCKernel | Callable[..., Any],
    *,
    simulations: int = 200,
    draws: int = 39,
    warmup_steps: int = 200,
    thinning: int = 5,
    observed: Mapping[str, str] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    init: Initial = "prior",
    seed: int = 0,
) -> Calibration:
    r"""Simulation-based calibration of a sampler or a guide (Talts et al., 2018).

    Latent values are drawn from the prior and data from the model given them. The rank of a true value among
    independent draws of its posterior given the data is uniform, of any quantity. Ranked are, by default:

    - of sites of up to eight elements each element; of larger ones the mean square, and the projection onto a fixed
      random direction;
    - the log-likelihood, which depends on the data too and so sees what no function of the latent values does
      (Modrák et al., 2023);
    - the distance to another simulation's truth, which is a random reference (TARP; Lemos et al., 2023).

    Draws of a chain that are not independent make ranks differ from uniform as well: choose ``thinning`` so that they
    are.

    Arguments:
        model: a Pyro model that draws its data where they are not given, such as those of :mod:`pyrosep.mixing`. It
            must be written for leading batch axes.
        sampler: a kernel of ``model``: of :mod:`pyrosep.infer`, with the simulations as chains of one batch, or one of
            Pyro's own, one simulation after the other; or a guide, called with the data.
        simulations: number of true values, and of data sets.
        draws: of the posterior, for each data set.
        warmup_steps, thinning: of a kernel's chains; see :class:`~pyrosep.LangevinMCMC`.
        observed: by parameter of the model, the site whose value it gives; by default, each parameter of a site's name.
        quantities: others to rank beside these, functions of the values by site, whose leading axes they keep.
        init: where a kernel of :mod:`pyrosep.infer` starts.
        seed: of everything that is drawn; the caller's random state is left as it was.

    Returns:
        the ranks. Chains that were stopped are left out, with a warning.

    Raises:
        ConfigurationError: the model doesn't draw its data, or the numbers are too small.

    Example:
        >>> from pyrosep import GaussianPrior, MALA
        >>> from pyrosep.mixing import linear_mix
        >>> model = linear_mix({"a": GaussianPrior(torch.ones(2), 16)}, noise=0.5)
        >>> found = sbc(model, MALA(model), simulations=100, draws=19, warmup_steps=50)
        >>> found.names
        ('mean square of a', 'projection of a', 'log-likelihood', 'distance')
        >>> found.rejected()
        {}
    """
    for name, number, least in (("simulations", simulations, 10), ("draws", draws, 1), ("thinning", thinning, 1)):
        if int(number) != number or number < least:
            raise ConfigurationError(f"{name} must be a whole number, at least {least}; got {number!r}")
    with seeded(seed):
        truth, data = _simulated(model, simulations, observed)
        kept = list(range(simulations))
        if isinstance(sampler, LangevinKernel):
            mcmc = LangevinMCMC(
                sampler, draws, warmup_steps, num_chains=simulations, thinning=thinning, init=init, disable_progbar=True
            ).run(**data)
            kept, drawn = mcmc.chains, mcmc.get_samples(group_by_chain=True)
        elif isinstance(sampler, MCMCKernel):
            drawn = _one_by_one(sampler, data, simulations, draws, warmup_steps, thinning)
        else:
            potential = Potential(model, (), data, num_chains=simulations)
            found = [potential.constrain(initial_values(potential, sampler)) for _ in range(draws)]
            drawn = {name: torch.stack([one[name] for one in found], 1) for name in truth}
        drawn = {
            name: drawn[name].to(value).reshape(len(kept), draws, *value.shape[1:]) for name, value in truth.items()
        }
        truth, data = ({name: value[kept] for name, value in part.items()} for part in (truth, data))
        pairs = _ranked(model, truth, drawn, data, dict(quantities or {}))
        ranks = torch.stack([_ranks(true, own).cpu() for true, own in pairs.values()])
    return Calibration(tuple(pairs), ranks, draws)


def _simulated(model: Callable[..., Any], count: int, observed: Mapping[str, str] | None) -> tuple[Values, Values]:
    """True values by site, and data by the model's parameters, ``(simulation, ...)`` each."""
    with torch.no_grad(), pyro.validation_enabled(False):
        try:
            single = poutine.trace(model).get_trace()
        except TypeError as error:
            raise ConfigurationError(
                f"to simulate data the model is called without arguments ({error}); write it as model(mix=None), and "
                "give what is no data by functools.partial"
            ) from error
        sites = list(Reading.of(single).latent)
        if observed is None:
            observed = {name: name for name in inspect.signature(model).parameters if name in sites}
        if not observed or not set(observed.values()) <= set(sites):
            raise ConfigurationError(
                f"expected data among the sites that the model draws, {sites}; got {dict(observed)}. Call a parameter "
                "of the model by the name of its observed site, or name it by observed={'parameter': 'site'}"
            )
        with pyro.plate("_pyrosep_simulations", count, dim=-1 - plate_nesting(single)), poutine.trace() as tracer:
            model()
    nodes = tracer.trace.nodes
    truth = {name: nodes[name]["value"] for name in sites if name not in observed.values()}
    if wrong := [name for name in (*truth, *observed.values()) if nodes[name]["value"].shape[:1] != (count,)]:
        raise ConfigurationError(
            f"the sites {wrong} have no value for each of {count} simulations; write the model for leading batch axes"
        )
    return truth, {name: nodes[site]["value"] for name, site in observed.items()}


def _one_by_one(kernel: MCMCKernel, data: Values, count: int, draws: int, warmup_steps: int, thinning: int) -> Values:
    """Draws of a kernel that runs a chain at a time, ``(simulation, draw, ...)``."""
    found = []
    for number in range(count):
        own = copy.deepcopy(kernel)  # one that has run keeps the potential of other data
        chain = MCMC(own, draws * thinning, warmup_steps, disable_progbar=True)
        chain.run(**{name: value[number] for name, value in data.items()})
        found.append({name: value[thinning - 1 :: thinning] for name, value in chain.get_samples().items()})
    return {name: torch.stack([one[name] for one in found]) for name in found[0]}


def _ranked(
    model: Callable[..., Any], truth: Values, drawn: Values, data: Values, more: dict[str, Quantity]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By quantity, the true values ``(simulation,)`` and the draws ``(simulation, draw)``."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    scale: Values = {}
    for name, true in truth.items():
        flat, own = true.reshape(*true.shape[:1], -1).double(), drawn[name].double()
        own = own.reshape(*own.shape[:2], -1)
        scale[name] = flat.var(0).mean().clamp(min=1e-300) * flat.shape[1]
        if flat.shape[1] <= _MAX_ELEMENTS:
            single = flat.shape[1] == 1
            pairs |= {name if single else f"{name}[{i}]": (flat[:, i], own[..., i]) for i in range(flat.shape[1])}
        else:
            direction = torch.randn(flat.shape[1]).to(flat)
            pairs[f"mean square of {name}"] = flat.square().mean(-1), own.square().mean(-1)
            pairs[f"projection of {name}"] = flat @ direction, own @ direction

    def distance(values: Values, axes: int) -> Tensor:
        parts = []
        for name, value in values.items():
            reference = truth[name].roll(1, 0).reshape(len(value), *(1,) * (axes - 1), -1)
            difference = value.reshape(*value.shape[:axes], -1) - reference
            parts.append(difference.double().square().sum(-1) / scale[name])
        return torch.stack(parts).sum(0)

    potential = Potential(model, (), data, num_chains=len(next(iter(truth.values()))))

    def log_likelihood(values: Values) -> Tensor:
        found = potential.log_prob_by_site(potential.unconstrain(values))
        return torch.stack([found[name].double() for name in potential.observed]).sum(0)

    by_draw = [log_likelihood({name: value[:, i] for name, value in drawn.items()}) for i in range(_draws(drawn))]
    pairs["log-likelihood"] = log_likelihood(truth), torch.stack(by_draw, 1)
    pairs["distance"] = distance(truth, 1), distance(drawn, 2)
    return pairs | {name: (quantity(truth), quantity(drawn)) for name, quantity in more.items()}


def _draws(drawn: Values) -> int:
    return next(iter(drawn.values())).shape[1]


def _ranks(true: Tensor, drawn: Tensor) -> Tensor:
    """Draws below the true value, those that equal it at random: ``(simulation,)``."""
    true = true.unsqueeze(-1)
    equal = (drawn == true).sum(-1)
    at_random = (torch.rand(equal.shape, dtype=torch.float64, device=equal.device) * (equal + 1)).long()
    return (drawn < true).sum(-1) + at_random


def plot_ranks(calibrations: Mapping[str, Calibration], path: str | os.PathLike[str]) -> Path:
    """Draw rank histograms, a row for each sampler by name and a column for each quantity; returns the picture's path.

    The band holds each bar of a right sampler with probability 0.99 (binomial).
    """
    import matplotlib

    matplotlib.use("Agg", force=False)
    import matplotlib.pyplot as plt
    from scipy.stats import binom

    columns = max(len(one.names) for one in calibrations.values())
    size = (2.2 * columns, 1.8 * len(calibrations))
    figure, axes = plt.subplots(len(calibrations), columns, figsize=size, sharex="col", squeeze=False)
    for row, (sampler, one) in zip(axes, calibrations.items(), strict=True):
        counts = one.histogram()
        bins = counts.shape[1]
        low, high = binom.interval(0.99, one.simulations, 1 / bins)
        centres = (np.arange(bins) + 0.5) / bins
        for axis, name, own in zip(row, one.names, counts, strict=False):
            axis.axhspan(low, high, color="0.88")
            axis.axhline(one.simulations / bins, color="0.6", linewidth=1)
            axis.bar(centres, own.numpy(), 0.9 / bins, color="C0")
            axis.set_title(name, fontsize=8)
            axis.set_xlim(0, 1)
            axis.tick_params(labelsize=7)
        row[0].set_ylabel(sampler, fontsize=9)
    figure.supxlabel("rank of the truth, from 0 to 1", fontsize=9)
    figure.tight_layout()
    target = Path(path)
    figure.savefig(target, dpi=110)
    plt.close(figure)
    return target
