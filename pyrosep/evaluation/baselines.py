"""What separations are compared with: supervised NMF, and the ideal ratio mask as ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyrosep.errors import ConfigurationError, MissingDependencyError

__all__ = ["Nmf", "ideal_ratio_mask"]

#: Samples in a window of the short-time spectra.
_WINDOW = 2048
#: What every magnitude has at least, for divisions.
_LEAST = 1e-8


class Nmf:
    r"""Supervised non-negative matrix factorization: a dictionary of spectra for each source, learned from it alone.

    The mix's magnitudes are taken for sums of spectra of all dictionaries with non-negative activations (Lee & Seung,
    1999; as a separator Smaragdis et al., 2007), both by the Kullback-Leibler divergence (scikit-learn, multiplicative
    updates); sources are what Wiener filters of their parts' squared magnitudes let through.

    Arguments:
        dictionaries: by source, ``(component, bin)``.
        hop: samples from window to window.
        iterations: of the activations.
    """

    def __init__(self, dictionaries: Mapping[str, np.ndarray], *, hop: int, iterations: int = 200) -> None:
        self.dictionaries = dict(dictionaries)
        self.hop, self.iterations = hop, iterations

    @classmethod
    def learn(
        cls,
        frames: Mapping[str, Tensor],
        *,
        components: int = 64,
        hop: int = _WINDOW // 2,
        iterations: int = 200,
        seed: int = 0,
    ) -> Nmf:
        """Dictionaries from frames ``(n, time)`` of each source alone.

        Raises:
            ConfigurationError: a source that is silent, or fewer windows than components.
            MissingDependencyError: scikit-learn can't be imported.
        """
        found = {}
        for name, own in frames.items():
            magnitudes = _spectra(own, hop).abs().transpose(-1, -2).flatten(0, -2)
            magnitudes = magnitudes[magnitudes.sum(-1) > magnitudes.sum(-1).max() * 1e-3]
            if len(magnitudes) < components:
                raise ConfigurationError(
                    f"{components} components of {name!r} need as many windows of sound; got {len(magnitudes)}"
                )
            _, spectra, _ = _factorized(
                magnitudes.double().numpy() + _LEAST, n_components=components, max_iter=iterations, random_state=seed
            )
            found[name] = spectra / spectra.sum(-1, keepdims=True).clip(min=_LEAST)
        return cls(found, hop=hop, iterations=iterations)

    def __call__(self, mix: Tensor) -> Tensor:
        """Sources ``(source, channel, time)`` of a mix ``(channel, time)``, in the order of the dictionaries."""
        spectra = _spectra(mix, self.hop)
        magnitudes = spectra.abs().transpose(-1, -2)  # (channel, window, bin)
        stacked = np.concatenate(list(self.dictionaries.values()))
        activations, _, _ = _factorized(
            magnitudes.flatten(0, 1).double().numpy() + _LEAST,
            H=stacked,
            update_H=False,
            n_components=len(stacked),
            init="custom",
            max_iter=self.iterations,
        )
        power, first = [], 0
        for own in self.dictionaries.values():
            part = activations[:, first : first + len(own)] @ own
            power.append(torch.from_numpy(part).reshape(magnitudes.shape).transpose(-1, -2).square())
            first += len(own)
        return _masked(torch.stack(power), spectra, self.hop, mix)


def ideal_ratio_mask(sources: Tensor, mix: Tensor) -> Tensor:
    """What masks by the true sources' magnitudes make of a mix: ``(source, channel, time)`` of ``(channel, time)``."""
    magnitudes = torch.stack([_spectra(source, _WINDOW // 4).abs() for source in sources])
    return _masked(magnitudes, _spectra(mix, _WINDOW // 4), _WINDOW // 4, mix)


def _factorized(magnitudes: np.ndarray, **options: Any) -> tuple[np.ndarray, np.ndarray, int]:
    try:
        from sklearn.decomposition import non_negative_factorization
        from sklearn.exceptions import ConvergenceWarning
    except ImportError as error:
        raise MissingDependencyError(
            f"the NMF baseline needs scikit-learn ({error}); install pyrosep[baselines]"
        ) from error
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is part of the method
        return non_negative_factorization(magnitudes, solver="mu", beta_loss="kullback-leibler", tol=0.0, **options)


def _spectra(signal: Tensor, hop: int) -> Tensor:
    """Short-time spectra ``(..., bin, window)``."""
    return torch.stft(signal, _WINDOW, hop, window=_window(hop, signal), return_complex=True)


def _masked(weights: Tensor, spectra: Tensor, hop: int, mix: Tensor) -> Tensor:
    shares = weights.clamp(min=1e-20)
    masked = (shares / shares.sum(0)).to(spectra.real.dtype) * spectra
    window = _window(hop, mix)
    return torch.stack([torch.istft(one, _WINDOW, hop, window=window, length=mix.shape[-1]) for one in masked])


def _window(hop: int, like: Tensor) -> Tensor:
    """Hann's; its root where windows overlap by half only."""
    window = torch.hann_window(_WINDOW, dtype=like.dtype, device=like.device)
    return window.sqrt() if hop * 2 == _WINDOW else window
