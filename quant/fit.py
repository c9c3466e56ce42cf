"""Fit clips, thresholds and BN statistics of a freshly quantized network, without labels or gradients."""

import warnings
from contextlib import ExitStack
from math import cos, inf, pi

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from models import NORMS, Network

from .functional import nearest_level, quantize_activation
from .layers import APoTWeight, Quantized, QuantReLU, quantized_once, shifted
from .levels import FLOAT_BITS
from .scalars import thresholds

CANDIDATES = 48
STEPS, BATCH, RATE = 48, 128, 0.01  # of `learn_`: steps, images of a step, learning rate at the start
SMALLEST = 1e-3  # smallest threshold
SAMPLES = 2**17


def _sample(x: Tensor) -> Tensor:
    """Return up to 2^17 values of x, drawn with a fixed seed: a stride that divides the row length would see one column."""
    x = x.flatten()
    if x.numel() <= SAMPLES:
        return x
    generator = torch.Generator(x.device).manual_seed(0)
    return x[torch.randint(x.numel(), (SAMPLES,), generator=generator, device=x.device)]


def best_threshold(x: Tensor, steps: int, clip: float = inf) -> float:
    """Return the θ that minimises Σ (min(max(x, 0), clip) - y(x; θ))² over a grid up to max(x); without a positive x at most 1.

    Args:
        x: pre-activations of any shape; of more than 2^17 only so many are used, drawn with a fixed seed.
        steps: T = 2^b - 1.
        clip: where the float activation is clipped; bounds θ.
    """
    x = _sample(x).clamp(min=0, max=clip)
    top = x.max()
    if not top > 0:
        return min(1.0, clip)
    grid = torch.arange(1, CANDIDATES + 1, device=x.device, dtype=x.dtype) / CANDIDATES * top
    errors = torch.stack([(quantize_activation(x, threshold, steps) - x).square().mean() for threshold in grid])
    return grid[errors.argmin()].item()


def best_clip(weight: Tensor, quantizer: APoTWeight) -> float:
    """Return the α that minimises Σ (z - Wq(z; α))² over 0.5, 0.55, ..., 4 standard deviations."""
    std, mean = torch.std_mean(weight)
    z = ((_sample(weight) - mean) / std).abs()
    levels = quantizer.levels(weight.dtype)
    grid = torch.arange(10, 81, device=weight.device, dtype=weight.dtype) / 20
    errors = torch.stack([(clip * nearest_level((z / clip).clamp(max=1), levels) - z).square().mean() for clip in grid])
    return grid[errors.argmin()].item()


@torch.no_grad()
def fit_(network: Network, images: Tensor, rescaled: bool = False) -> Network:
    """Re-estimate weight clips, BN statistics and thresholds in one forward pass, in place.

    Quantized weights are normalised, so the BN statistics of the float network do not fit. Each weight clip takes the
    value of least squared error, each BN after a quantized weight the statistics of this batch, each threshold the value of
    least squared error for its inputs. Later layers see the earlier ones already fitted. Where no BN follows, a warning says so.

    Args:
        network: a quantized network; in a float one all BN statistics are re-estimated.
        images: [N, 3, H, W], training images; about a thousand are enough.
        rescaled: float weights had been quantized, and so normalised, so that no BN statistics fit; all are re-estimated.

    Raises:
        ValueError: a module that `quantize_` has not returned.
    """
    if not isinstance(network, Network):
        raise ValueError(f"a {type(network).__name__} has no thresholds to fit: take the network that quantize_ returns")
    if bare := layers_without_norm(network):
        more = f" and {len(bare) - 1} more" * (len(bare) > 1)
        warnings.warn(f"no BN follows {bare[0]}{more}, whose weights are quantized and so normalised: what it computes has "
                      "another scale until it is trained; float weights (weight_bit 32) keep it", stacklevel=3)
    with ExitStack() as stack:
        stack.callback(network.train, network.training)
        network.eval()
        for norm in fitted_norms(network, rescaled):
            stack.callback(setattr, norm, "momentum", norm.momentum)
            norm.train()
            norm.momentum = 1.0  # running statistics = this batch's
        for module in network.modules():
            if isinstance(module, QuantReLU):
                hook = module.register_forward_pre_hook(_fit_threshold_)
                stack.callback(hook.remove)
            elif isinstance(module, Quantized) and isinstance(module.weight_quantizer, APoTWeight):
                module.weight_quantizer.alpha.fill_(best_clip(module.weight, module.weight_quantizer))
        network(images)
    return network


def fitted_norms(network: Network, every: bool = False) -> list[nn.Module]:
    """Return the batch normalisations that read the output of a quantized weight, through affine calls; in a float network all."""
    found, touched, every = {}, set(), every or network.bit == FLOAT_BITS
    for node in (node for part in network.graph.parts for node in part.nodes):
        layer = network.layer(node.target) if node.op == "call_module" else None
        if isinstance(layer, Quantized) or any(source in touched for source in node.all_input_nodes):
            touched.add(node)
        if isinstance(layer, NORMS) and layer.running_mean is not None and (every or node in touched):
            found[node.target] = layer
    return list(found.values())


def normalised(network: nn.Module) -> bool:
    """Return whether a network has APoT weights, which are normalised."""
    return any(isinstance(module, APoTWeight) for module in network.modules())


def layers_without_norm(network: Network) -> list[str]:
    """Return the layers with normalised weights that an activation reads without a batch normalisation in between."""
    bare: dict[str, None] = {}
    passed: dict[fx.Node, dict[str, None]] = {}  # of each call, the layers since the last normalisation
    for part in network.graph.parts:
        for node in part.nodes:
            layer = network.layer(node.target) if node.op == "call_module" else None
            passed[node] = {}
            if not isinstance(layer, NORMS):
                for source in node.all_input_nodes:
                    passed[node] |= passed.get(source, {})
            if isinstance(layer, Quantized) and isinstance(layer.weight_quantizer, APoTWeight):
                passed[node][node.target] = None
        if part.activation is not None:
            bare |= passed.get(part.result, {})
    return list(bare)


def _fit_threshold_(relu: QuantReLU, inputs: tuple[Tensor, ...]) -> None:
    relu.threshold.fill_(best_threshold(shifted(inputs[0], relu.bias), relu.time_steps, relu.clip))


@torch.no_grad()
def outputs(network: Network, images: Tensor) -> list[Tensor]:
    """Return the outputs of a network in eval mode, each [N, ...]."""
    was_training = network.training
    network.eval()
    found = [tree_leaves(network(part)) for part in images.split(BATCH)]
    network.train(was_training)
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


@torch.enable_grad()
def learn_(network: Network, images: Tensor, targets: list[Tensor]) -> Network:
    """Let thresholds, biases and BN scales learn the outputs of the float network, in place.

    `fit_` chooses each threshold for its own inputs; here all of them learn together, by some steps of Adam on the mean squared
    error of the outputs, with a rate that falls to 0 as a cosine. There are no labels, and weights stay as they are.

    Args:
        network: a quantized network, fitted.
        images: [N, 3, H, W], training images; some hundreds are enough.
        targets: `outputs` of the float network on these images, taken before `fit_`, which may share its statistics.
    """
    was_training = network.training
    network.eval()
    learned = list(thresholds(network).values())
    affine = [parameter for module in network.modules() for name, parameter in module.named_parameters(recurse=False)
              if name == "bias" or isinstance(module, NORMS)]
    needed = {parameter: parameter.requires_grad for parameter in network.parameters()}
    for parameter in needed:
        parameter.requires_grad_(False)
    for parameter in (*learned, *affine):
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam([{"params": learned, "scale": 3.0}, {"params": affine, "scale": 1.0}], RATE)
    draw = torch.Generator().manual_seed(0)
    with quantized_once(network):
        for step in range(STEPS):
            for group in optimizer.param_groups:
                group["lr"] = group["scale"] * RATE * (1 + cos(pi * step / STEPS)) / 2
            chosen = torch.randint(len(images), (min(BATCH, len(images)),), generator=draw).to(images.device)
            pairs = zip(tree_leaves(network(images[chosen])), targets, strict=True)
            loss = sum(F.mse_loss(found, target[chosen]) for found, target in pairs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            for threshold in learned:
                threshold.data.clamp_(min=SMALLEST)
    for parameter, flag in needed.items():
        parameter.requires_grad_(flag)
        parameter.grad = None
    return network.train(was_training)
