"""Named errors. Each says what was expected, what came and what to do, and is also the built-in that fits."""

from __future__ import annotations

__all__ = [
    "AudioError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "DivergenceError",
    "EmptyAudioError",
    "InitializationError",
    "LeakError",
    "MissingDependencyError",
    "MissingFileError",
    "NonFiniteAudioError",
    "NotAudioError",
    "PyrosepError",
    "SampleRateError",
    "ShapeError",
    "TruncatedAudioError",
    "UnknownModelError",
]


class PyrosepError(Exception):
    """Root of every error that pyrosep raises on purpose."""


class MissingFileError(PyrosepError, FileNotFoundError):
    """A file or folder that was named is not there."""


class AudioError(PyrosepError, ValueError):
    """A file that is there but can't be used as audio."""


class NotAudioError(AudioError):
    """The file holds no audio that can be decoded."""


class EmptyAudioError(AudioError):
    """The file has no bytes, or an audio stream without a single sample."""


class TruncatedAudioError(AudioError):
    """The file ends before the audio that its header announces."""


class NonFiniteAudioError(AudioError):
    """The audio has samples that are NaN or infinite."""


class SampleRateError(AudioError):
    """The sample rate is missing, not positive, or not the one that is needed."""


class DataError(PyrosepError, ValueError):
    """A data set whose folders or stems are not as expected."""


class ShapeError(PyrosepError, ValueError):
    """A tensor of another shape than expected."""


class ConfigurationError(PyrosepError, ValueError):
    """An option or argument out of its range."""


class MissingDependencyError(PyrosepError, ImportError):
    """A Python package or system program that this call needs can't be used."""


class UnknownModelError(PyrosepError, LookupError):
    """No model of that name ships, and no folder of that name holds one."""


class CheckpointError(PyrosepError, ValueError):
    """Weights on disk that are incomplete, damaged, or of another kind."""


class InitializationError(PyrosepError, ValueError):
    """No valid state to start a chain from; names the sites at fault."""


class LeakError(PyrosepError, ValueError):
    """A model whose chains are not independent of each other; names the sites at fault."""


class DivergenceError(PyrosepError, ArithmeticError):
    """Every chain has diverged."""
