"""The pieces of a flow: each is a bijection, and its log-determinant that of its Jacobian."""

import copy
import pickle

import pytest
import torch
from torch.distributions import TransformedDistribution

from pyrosep.errors import ConfigurationError, ShapeError
from pyrosep.nn.flow import ActNorm, AffineCoupling, Flip, MultiScaleFlow, Sequential, Squeeze
from pyrosep.nn.wavenet import LevelEmbedding, SpectralGate, WaveNet

pytestmark = pytest.mark.usefixtures("double")

# Double precision through a few dozen layers; condition numbers here are below a thousand.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
FEATURES = 4


def stirred(module):
    """With random weights everywhere, those too that start at zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


PIECES = {
    "squeeze": lambda: (Squeeze(3), (2, 6)),
    "cosine squeeze": lambda: (Squeeze(4, cosine=True), (1, 8)),
    "flip": lambda: (Flip(), (3, 4)),
    "actnorm": lambda: (stirred(ActNorm(3)), (3, 4)),
    "coupling": lambda: (stirred(AffineCoupling(4, 2, width=3, layers=2, features=FEATURES)), (4, 5)),
    "coupling with a gate": lambda: (
        stirred(AffineCoupling(4, 2, width=3, layers=1, features=FEATURES, spectral=3)),
        (4, 5),
    ),
    "uneven coupling": lambda: (stirred(AffineCoupling(3, 2, width=3, layers=2, features=FEATURES)), (3, 5)),
    "sequence": lambda: (
        stirred(Sequential([Squeeze(2), ActNorm(4), AffineCoupling(4, 2, width=3, layers=1, features=FEATURES)])),
        (2, 6),
    ),
    "whole": lambda: (
        stirred(MultiScaleFlow((4, 2), flows=2, layers=2, width=(4, 3), features=FEATURES, spectral=2, cosine=True)),
        (16,),
    ),
    "whole, one channel at last": lambda: (
        stirred(MultiScaleFlow((2, 2, 2), flows=0, layers=(2, 2, 1), width=4, features=FEATURES)),
        (16,),
    ),
}


@pytest.fixture(params=PIECES)
def piece(request):
    torch.manual_seed(1)
    return PIECES[request.param]()


@pytest.fixture
def features():
    return torch.randn(3, FEATURES)


def test_inverse(piece, features):
    transform, shape = piece
    x = torch.randn(3, *shape)
    z, _ = transform.encode(x, features)
    torch.testing.assert_close(transform.decode(z, features), x, **ROUNDING)
    back, _ = transform.encode(transform.decode(z, features), features)
    torch.testing.assert_close(back, z, **ROUNDING)


def test_log_determinant_is_the_jacobians(piece, features):
    transform, shape = piece
    x = torch.randn(3, *shape)
    _, log_det = transform.encode(x, features)
    for i in range(3):

        def one(flat, i=i):
            return transform.encode(flat.reshape(1, *shape), features[i : i + 1])[0].flatten()

        jacobian = torch.autograd.functional.jacobian(one, x[i].flatten())
        torch.testing.assert_close(log_det[i], torch.linalg.slogdet(jacobian).logabsdet, **ROUNDING)


def test_as_a_transform_of_torch(piece, features):
    """From noise to data, with any batch shape, and its own inverse; nothing is cached."""
    transform, shape = piece
    bound = transform.given(features[:1])
    x = torch.randn(2, 3, *shape)
    z = bound.inv(x)
    torch.testing.assert_close(bound(z), x, **ROUNDING)
    assert bound.log_abs_det_jacobian(z, x).shape == (2, 3)
    _, log_det = transform.encode(x.reshape(6, *shape), features[:1])
    torch.testing.assert_close(bound.log_abs_det_jacobian(z, x), -log_det.reshape(2, 3), **ROUNDING)
    torch.testing.assert_close(bound.inv.log_abs_det_jacobian(x, z), log_det.reshape(2, 3), **ROUNDING)
    assert bound._cache_size == 0
    assert bound.inverse_shape(x.shape) == z.shape
    assert bound.forward_shape(z.shape) == x.shape
    assert transform.features is None


def test_in_a_transformed_distribution(piece, features):
    transform, shape = piece
    bound = transform.given(features[:1])
    inner = bound.inverse_shape(shape)
    normal = torch.distributions.Normal(0.0, 1.0).expand(inner)
    base = torch.distributions.Independent(normal, len(inner))
    flow = TransformedDistribution(base, [bound])
    x = flow.sample((5,))
    z, log_det = transform.encode(x, features[:1])
    torch.testing.assert_close(flow.log_prob(x), base.log_prob(z) + log_det, **ROUNDING)


def test_no_item_of_a_batch_reaches_another(piece, features):
    transform, shape = piece
    x = torch.randn(3, *shape, requires_grad=True)
    z, log_det = transform.encode(x, features)
    (gradient,) = torch.autograd.grad(z[1].sum() + log_det[1], x)
    assert float(gradient[1].abs().max()) > 0
    assert float(gradient[[0, 2]].abs().max()) == 0


def test_copies_and_pickles_are_the_same(piece, features):
    transform, shape = piece
    x = torch.randn(3, *shape)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other.encode(x, features)[0], transform.encode(x, features)[0])


def test_actnorm_is_set_by_the_first_batch_alone():
    norm = ActNorm(2)
    first = torch.tensor([3.0, 0.1]).unsqueeze(-1) * torch.randn(50, 2, 40) + 7
    norm.pending = True
    z, _ = norm.encode(first)
    torch.testing.assert_close(z.mean((0, 2)), torch.zeros(2), **ROUNDING)
    torch.testing.assert_close(z.std((0, 2)), torch.ones(2), **ROUNDING)
    before = norm.shift.clone()
    norm.encode(2 * first)
    assert torch.equal(norm.shift, before)
    assert set(norm.state_dict()) == {"shift", "log_scale"}


def test_actnorm_of_silence_is_finite():
    norm = ActNorm(2)
    norm.pending = True
    z, log_det = norm.encode(torch.zeros(4, 2, 8))
    assert bool(torch.isfinite(z).all() and torch.isfinite(log_det).all())


def test_a_coupling_starts_as_the_identity_and_its_scale_is_bounded():
    coupling = AffineCoupling(4, 2, width=3, layers=2, features=FEATURES, bound=1.5)
    x, features = torch.randn(3, 4, 5), torch.randn(3, FEATURES)
    z, log_det = coupling.encode(x, features)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(3))
    with torch.no_grad():
        coupling.wavenet.last.bias.fill_(1e6)
    _, log_det = coupling.encode(x, features)
    torch.testing.assert_close(log_det, torch.full((3,), 1.5 * 2 * 5))


def test_cosine_squeeze_orders_by_frequency():
    t = torch.arange(32)
    slow, fast = torch.cos(2 * torch.pi * (t + 0.5) / 32), torch.cos(torch.pi * 7 / 8 * (t + 0.5))
    for wave, half in ((slow, slice(0, 4)), (fast, slice(4, 8))):
        channels, _ = Squeeze(8, cosine=True).encode(wave.reshape(1, 1, 32))
        power = channels.square().sum((0, 2))
        assert float(power[half].sum() / power.sum()) > 0.95


def test_squeeze_by_two_puts_even_positions_first():
    out, _ = Squeeze(2).encode(torch.arange(6.0).reshape(1, 1, 6))
    torch.testing.assert_close(out, torch.tensor([[[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]]))


def test_wavenet_sees_as_far_as_its_dilations():
    net = stirred(WaveNet(1, 1, width=3, layers=3))
    x = torch.zeros(1, 1, 41, requires_grad=True)
    (gradient,) = torch.autograd.grad(net(x)[0, 0, 20], x)
    seen = gradient[0, 0].nonzero().squeeze(-1)
    assert (int(seen.min()), int(seen.max())) == (20 - 7, 20 + 7)


def test_an_open_spectral_gate_changes_nothing_and_a_closed_one_leaves_nothing():
    gate, x = SpectralGate(2, width=3), torch.randn(3, 2, 9)
    with torch.no_grad():
        gate.last.bias.fill_(100.0)
        torch.testing.assert_close(gate(x), x, **ROUNDING)
        gate.last.bias.fill_(-100.0)
        torch.testing.assert_close(gate(x), torch.zeros(3, 2, 9), **ROUNDING)


def test_a_spectral_gate_can_clean_a_wave():
    """A gate that opens where the power stands out of white noise takes most of the noise off a sine."""
    gate = SpectralGate(1, width=1)
    with torch.no_grad():
        for layer, weight in ((gate.first, 4.0), (gate.second, 1.0), (gate.last, 8.0)):
            layer.weight.zero_()
            layer.weight[0, 0, 2] = weight
            layer.bias.zero_()
        gate.last.bias.fill_(-20.0)  # half open at a power of about e**2.7, in 64 positions of noise of variance 1
    wave = 2 * torch.sin(torch.arange(64) * 0.61 + 0.4)
    noisy = wave + torch.randn(200, 1, 64)
    error = (gate(noisy) - wave).square().mean()
    assert float(error.detach()) < 0.5


def test_level_embedding_is_finite_at_zero_and_smooth():
    embedding = LevelEmbedding(5)
    assert bool(torch.isfinite(embedding(torch.tensor([0.0, 1e-3, 1e3]))).all())
    level = torch.tensor([0.01, 0.1, 1.0, 10.0], requires_grad=True)
    assert torch.autograd.gradcheck(embedding, (level,))


def test_log_determinants_stay_in_full_precision_under_autocast():
    flow = stirred(MultiScaleFlow((4, 2), flows=2, layers=2, width=4, features=FEATURES)).float()
    x, features = torch.randn(3, 16, dtype=torch.float32), torch.randn(3, FEATURES, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = flow.encode(x, features)
    assert z.dtype == log_det.dtype == torch.float32


@pytest.mark.parametrize(
    "arguments",
    [
        {"squeeze": ()},
        {"squeeze": (3,)},
        {"squeeze": (2, 3)},
        {"flows": 1},
        {"layers": (1,)},
        {"kernel": 2},
        {"width": 0},
    ],
)
def test_flows_that_can_not_be(arguments):
    with pytest.raises(ConfigurationError):
        MultiScaleFlow(**({"squeeze": (2, 2), "flows": 0, "layers": 1, "width": 2} | arguments))


def test_other_mistakes():
    with pytest.raises(ConfigurationError, match="at least 1"):
        Squeeze(0)
    with pytest.raises(ConfigurationError, match="keep some channels"):
        AffineCoupling(2, 2, width=2, layers=1)
    with pytest.raises(ShapeError, match="multiple of 4 samples; got 6"):
        MultiScaleFlow((2, 2), flows=0, layers=1, width=2).encode(torch.zeros(1, 6))
