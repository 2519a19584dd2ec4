"""Which precision is the faster one is the machine's to say."""

import pytest
import torch

from pyrosep.errors import ConfigurationError
from pyrosep.nn import precision
from pyrosep.nn.precision import chosen_precision, multiplies_bfloat16


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, "32-true"),
        ({"avx2": True, "avx512_bf16": True}, "bf16-mixed"),
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"neon": True, "bf16": True}, "bf16-mixed"),
    ],
)
def test_half_precision_is_for_processors_that_multiply_in_it(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    precision._cpu_multiplies_bfloat16.cache_clear()
    assert chosen_precision("auto", "cpu") == expected
    assert multiplies_bfloat16(torch.device("cpu")) == (expected == "bf16-mixed")
    precision._cpu_multiplies_bfloat16.cache_clear()


def test_what_is_asked_for_is_given():
    assert chosen_precision("bf16-mixed", "cpu") == "bf16-mixed"
    assert chosen_precision("32-true", "cpu") == "32-true"
    with pytest.raises(ConfigurationError, match="precision must be one of"):
        chosen_precision("half", "cpu")
