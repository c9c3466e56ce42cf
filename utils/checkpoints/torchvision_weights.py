"""TorchVision's float weights, where ImageNet training starts below 32 bits."""

from typing import Any

import torch

from ..errors import UserError


def download(arch: str) -> dict[str, Any]:
    """Return TorchVision's state dict for alexnet, vgg11 or vgg16 (with BN), from its cache or its site.

    Raises:
        UserError: it cannot be downloaded, or what is in the cache is damaged.
    """
    from torchvision import models

    weights = {"alexnet": models.AlexNet_Weights, "vgg11": models.VGG11_BN_Weights, "vgg16": models.VGG16_BN_Weights}[arch]
    try:
        return dict(weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True, map_location="cpu"))
    except Exception as error:  # OSError, HTTPException, RuntimeError of a wrong hash; what torch.load raises has no end
        file = weights.DEFAULT.url.rsplit("/", 1)[-1]
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"TorchVision's {arch} cannot be downloaded to {torch.hub.get_dir()}/checkpoints, or is damaged there "
                        f"({reason}): --init FILE starts from a copy of {file} or another network, --scratch from random weights"
                        ) from error
