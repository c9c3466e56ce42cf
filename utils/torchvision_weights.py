"""TorchVision's float weights, where ImageNet training starts below 32 bits."""

from typing import Any

from .errors import UserError


def download(arch: str) -> dict[str, Any]:
    """Return TorchVision's state dict for alexnet, vgg11 or vgg16 (with BN), from its cache or its site.

    Raises:
        UserError: it cannot be downloaded.
    """
    from torchvision import models

    weights = {"alexnet": models.AlexNet_Weights, "vgg11": models.VGG11_BN_Weights, "vgg16": models.VGG16_BN_Weights}[arch]
    try:
        return dict(weights.DEFAULT.get_state_dict(check_hash=True, weights_only=True, map_location="cpu"))
    except (OSError, RuntimeError) as error:
        raise UserError(f"TorchVision's {arch} cannot be downloaded ({error}): --init FILE starts from a downloaded copy "
                        f"({weights.DEFAULT.url.rsplit('/', 1)[-1]}) or another network, --scratch from random weights") from error
