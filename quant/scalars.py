"""The learned scalars of a network, which must stay positive."""

from torch import nn


def scalars(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return thresholds θ of activations and clips α of weights by name; other modules may have parameters of such names."""
    return {f"{path}.{module.learned_scalar}": getattr(module, module.learned_scalar) for path, module in network.named_modules()
            if hasattr(type(module), "learned_scalar")}


def thresholds(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the thresholds θ of activations by name."""
    return {name: scalar for name, scalar in scalars(network).items() if name.endswith(".threshold")}
