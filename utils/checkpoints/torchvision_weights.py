"""TorchVision's float weights, where ImageNet training starts below 32 bits."""

from typing import Any

import torch

from models.registry import TORCHVISION

from ..errors import UserError


def download(arch: str) -> dict[str, Any]:
    """Return TorchVision's state dict for alexnet, vgg11 or vgg16 (with BN), or torchvision:NAME, from its cache or its site.

    Raises:
        UserError: a user's network, it cannot be downloaded, or what is in the cache is damaged.
    """
    from torchvision import models

    name = {"alexnet": "alexnet", "vgg11": "vgg11_bn", "vgg16": "vgg16_bn"}.get(arch, arch.removeprefix(TORCHVISION))
    if name not in models.list_models(module=models):
        raise UserError(f"--arch {arch}: TorchVision has no weights for it; --init FILE starts from a checkpoint, --scratch from "
                        "random weights")
    weights = models.get_model_weights(name)
    try:
        return dict(weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True, map_location="cpu"))
    except Exception as error:  # OSError, HTTPException, RuntimeError of a wrong hash; what torch.load raises has no end
        file = weights.DEFAULT.url.rsplit("/", 1)[-1]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"TorchVision's {arch} cannot be downloaded to {torch.hub.get_dir()}/checkpoints, or is damaged there "
                        f"({reason}): --init FILE starts from a copy of {file} or another network, --scratch from random weights"
                        ) from error
