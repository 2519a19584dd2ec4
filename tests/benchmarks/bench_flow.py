"""What a flow costs beside a plain PyTorch stack of the same layers, forward and backward.

Not a test. The plain stack has the same squeezes, convolutions and couplings, written down as straight-line PyTorch:
no transforms of Pyro, no distribution, and of the log-determinant the sums alone. All are timed in turn, in an order
drawn anew each time; medians over the repeats::

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_flow.py --size small --frame 2048 --batch 16 --bf16 --compile

With ``--bf16`` and ``--compile`` the network is also timed under bfloat16 autocast, compiled (for the gradient to
frames alone: compiling takes minutes), and both; how far its log-densities then are from float32 is printed.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import random
import time

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyrosep.priors import SIZES, FloWaveNet, FloWaveNetwork


def plain_wavenet(net: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    h = functional.conv1d(x, net.first.weight, net.first.bias)
    bias = functional.linear(features, net.level.weight).unsqueeze(-1).chunk(net.layers, 1)
    skips = 0.0
    for i in range(net.layers):
        dilated, mixed = net.dilated[i], net.mixed[i]
        reach = net.kernel // 2 * 2**i
        gates = functional.conv1d(h, dilated.weight, dilated.bias, padding=reach, dilation=2**i) + bias[i]
        signal, gate = gates.chunk(2, 1)
        out = functional.conv1d(signal.tanh() * gate.sigmoid(), mixed.weight, mixed.bias)
        if i < net.layers - 1:
            residual, out = out.chunk(2, 1)
            h = h + residual
        skips = skips + out
    out = functional.conv1d(functional.silu(skips / math.sqrt(net.layers)), net.last.weight, net.last.bias)
    return out + functional.linear(features, net.level_output.weight).unsqueeze(-1)


def plain_gate(net: nn.Module, x: Tensor, features: Tensor) -> Tensor:
    positions = x.shape[-1]
    spectrum = torch.fft.rfft(x, n=2 * positions)
    h = (torch.view_as_real(spectrum).square().sum(-1) / positions + 1e-6).log() / 4
    one, two = functional.linear(features, net.level.weight).unsqueeze(-1).chunk(2, 1)
    h = functional.silu(functional.conv1d(h, net.first.weight, net.first.bias, padding=2) + one)
    h = functional.silu(functional.conv1d(h, net.second.weight, net.second.bias, padding=2) + two)
    gate = functional.conv1d(h, net.last.weight, net.last.bias, padding=2).sigmoid()
    return torch.fft.irfft(spectrum * gate, n=2 * positions)[..., :positions]


def plain_flow(network: FloWaveNetwork, x: Tensor, sigma: Tensor) -> Tensor:
    """The log-density, as a script that knows nothing of transforms."""
    scale = (network.variance + sigma.square()).sqrt()
    features = network.embedding(sigma / network.variance.sqrt())
    h, total, squares = (x / scale.unsqueeze(-1)).unsqueeze(1), 0.0, 0.0
    for block in network.flow.blocks:
        squeeze, *rest = block.parts
        h = h.unflatten(-1, (-1, squeeze.factor))
        if squeeze.basis is not None:
            h = h @ squeeze.basis.mT
        h = h.permute(0, 3, 1, 2).flatten(1, 2)
        half = h.shape[1] // 2
        for i in range(0, len(rest), 3):
            norm, coupling = rest[i], rest[i + 1]
            h = (h - norm.shift) * norm.log_scale.exp()
            a, b = h[:, :half], h[:, half:]
            seen = a if coupling.gate is None else torch.cat([a, plain_gate(coupling.gate, a, features)], 1)
            shift, raw = plain_wavenet(coupling.wavenet, seen, features).chunk(2, 1)
            log_scale = coupling.bound * torch.tanh(raw / coupling.bound)
            h = torch.cat([a, (b - shift) * log_scale.exp()], 1)
            total = total + norm.log_scale.sum() * h.shape[-1] + log_scale.sum((1, 2))
            if i + 2 < len(rest):
                h = h.flip(1)
        h, leaves = h.chunk(2, 1)
        squares = squares + leaves.square().sum((1, 2))
    squares = squares + h.square().sum((1, 2))
    time = x.shape[-1]
    return total - 0.5 * (squares + time * math.log(2 * math.pi)) - time * scale.log()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="small")
    parser.add_argument("--frame", type=int, default=2048, help="samples in a frame")
    parser.add_argument("--batch", type=int, default=16, help="frames in a batch")
    parser.add_argument("--repeats", type=int, default=20, help="repeats of each timing")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--bf16", action="store_true", help="time bfloat16 autocast too")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    network = FloWaveNetwork(SIZES[args.size], torch.full((65,), 0.3))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    x, sigma = torch.randn(args.batch, args.frame), torch.rand(args.batch) + 0.1
    prior = FloWaveNet(network, args.frame).at(sigma)
    torch.testing.assert_close(plain_flow(network, x, sigma), prior.log_prob(x), rtol=1e-4, atol=1e-2)

    def training(density) -> None:  # type: ignore[no-untyped-def]
        network.requires_grad_(True)
        network.zero_grad()
        density().sum().backward()
        network.requires_grad_(False)

    def score(density) -> None:  # type: ignore[no-untyped-def]
        leaf = x.clone().requires_grad_()
        torch.autograd.grad(density(leaf).sum(), leaf)

    functions = {
        "weights, plain stack": lambda: training(lambda: plain_flow(network, x, sigma)),
        "weights, network": lambda: training(lambda: network(x, sigma)),
        "weights, prior.log_prob": lambda: training(lambda: prior.log_prob(x)),
        "frames, plain stack": lambda: score(lambda leaf: plain_flow(network, leaf, sigma)),
        "frames, network": lambda: score(lambda leaf: network(leaf, sigma)),
        "frames, prior.log_prob": lambda: score(prior.log_prob),
    }

    def autocast(function):  # type: ignore[no-untyped-def]
        def cast(*arguments: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return function(*arguments)

        return cast

    faster = {"bf16": autocast(network)} if args.bf16 else {}
    if args.compile:
        compiled = torch.compile(network)
        faster["compiled"] = compiled
        if args.bf16:
            faster["compiled, bf16"] = autocast(compiled)
    network.requires_grad_(False)
    reference = network(x, sigma)
    for name, function in faster.items():
        frames = x.clone().requires_grad_()  # the graph that is timed, so that it is compiled once
        off = (function(frames, sigma).detach() - reference).abs().max() / args.frame
        print(f"{name}: at most {off:.1e} nats a sample from float32", flush=True)
        if "compiled" not in name:
            functions[f"weights, {name}"] = lambda function=function: training(lambda: function(x, sigma))
        functions[f"frames, {name}"] = lambda function=function: score(lambda leaf: function(leaf, sigma))
    spent: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(args.repeats + 1):
        for name, function in random.sample(list(functions.items()), len(functions)):
            start = time.perf_counter()
            function()
            spent[name].append(1000 * (time.perf_counter() - start))
    print(
        f"torch {torch.__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs, "
        f"{args.threads} threads, load {os.getloadavg()[0]:.1f}\n{args.size}, {args.batch} frames of {args.frame}, "
        f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters, {args.repeats} repeats\n"
        f"{'forward and backward, to the':30}{'ms':>10}{'per cent':>10}"
    )
    for name, ms in spent.items():
        plain = np.array(spent[name.partition(",")[0] + ", plain stack"][1:])
        # The median of the rounds' ratios: what slows the machine for a while is in both of its terms.
        print(f"{name:30}{np.median(ms[1:]):10.1f}{100 * np.median(np.array(ms[1:]) / plain) - 100:+10.1f}")


if __name__ == "__main__":
    main()
