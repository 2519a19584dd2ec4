"""What networks are evaluated in, and where half precision is the faster one."""

from __future__ import annotations

from functools import lru_cache

import torch

from pyrosep.errors import ConfigurationError

__all__ = ["PRECISIONS", "check_precision", "chosen_precision", "multiplies_bfloat16"]

#: By the names that Lightning has for it.
PRECISIONS = ("32-true", "bf16-mixed")


def check_precision(precision: str) -> None:
    """Raise ConfigurationError for a precision that is none of :data:`PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ConfigurationError(f"precision must be one of {PRECISIONS}, or 'auto'; got {precision!r}")


def chosen_precision(precision: str, device: torch.device | str) -> str:
    """A precision by name; ``"auto"`` is ``"bf16-mixed"`` on devices that are quicker in it, and else ``"32-true"``.

    Raises:
        ConfigurationError: it is neither ``"auto"`` nor one of :data:`PRECISIONS`.
    """
    if precision != "auto":
        check_precision(precision)
        return precision
    return "bf16-mixed" if multiplies_bfloat16(torch.device(device)) else "32-true"


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for products of bfloat16 matrices.

    Processors without them convert every number there and back, which takes four times as long as single precision.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or _cpu_multiplies_bfloat16()


@lru_cache(maxsize=1)
def _cpu_multiplies_bfloat16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # torch below 2.11
        return True
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
