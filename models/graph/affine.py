"""Which calls may stand between two activations: those that are affine in the spikes, so that a mean over time passes through."""

from collections.abc import Callable

from torch import fx, nn

from .calls import POOLS, FollowsMode, argument, call_name, called

WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (*WEIGHTED, *NORMS, *POOLS, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
          nn.AdaptiveAvgPool3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
          nn.AlphaDropout, nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Fold, nn.Unfold,
          *(getattr(nn, f"{kind}Pad{n}d") for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular")
            for n in (1, 2, 3)))
NORMALISING = (nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
FUNCTIONS = {  # affine in all their tensors together
    "add", "sub", "neg", "cat", "concat", "concatenate", "stack", "split", "chunk", "tensor_split", "unbind", "getitem", "reshape",
    "view", "flatten", "unflatten", "permute", "transpose", "swapaxes", "swapdims", "movedim", "unsqueeze", "squeeze", "expand",
    "expand_as", "repeat", "repeat_interleave", "tile", "roll", "flip", "narrow", "select", "index_select", "contiguous", "clone",
    "detach", "to", "float", "double", "type_as", "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "interpolate",
    "upsample", "mean", "sum", "zeros_like", "new_zeros", "new_ones", "new_full", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "dropout", "dropout1d", "dropout2d", "dropout3d",
    "alpha_dropout", "feature_alpha_dropout", "stochastic_depth", "subtract", "rsub", "view_as", "reshape_as", "unfold", "fold"}
WEIGHTING = {"matmul", "mm", "bmm", "einsum", "linear", *(f"conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3))}
PRODUCTS = {"mul", "multiply", "batch_norm", "truediv", "div", "divide", *WEIGHTING}  # affine in one tensor
AXES = {  # call: (position, name, default) of the axes that it works along or moves; axis 0 holds time and batch
    "cat": (1, "dim", 0), "concat": (1, "dim", 0), "concatenate": (1, "dim", 0), "stack": (1, "dim", 0), "split": (2, "dim", 0),
    "chunk": (2, "dim", 0), "tensor_split": (2, "dim", 0), "unbind": (1, "dim", 0), "flatten": (1, "start_dim", 0),
    "mean": (1, "dim", 0), "sum": (1, "dim", 0), "transpose": (1, "dim0", 0), "swapaxes": (1, "axis0", 0),
    "swapdims": (1, "dim0", 0), "movedim": (1, "source", 0), "narrow": (1, "dim", 0), "select": (1, "dim", 0),
    "index_select": (1, "dim", 0), "unsqueeze": (1, "dim", 0), "roll": (2, "dims", 0), "flip": (1, "dims", 0),
    "repeat_interleave": (2, "dim", 0)}
SMOOTH = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic", "area")


def objection(node: fx.Node, root: nn.Module, spikes: Callable[[fx.Node], bool]) -> str | None:
    """Return why a call in the spiking region cannot be converted, with a remedy; None if it can be converted.

    Args:
        spikes: returns whether a node changes with the spikes.
    """
    module, name = called(node, root), call_name(node)
    if module is not None:
        return _layer_objection(module, node, spikes)
    if node.op == "call_method" or node.op == "call_function":
        inputs = [source for source in every_argument(node) if spikes(source)]
        if name in PRODUCTS:
            return _product_objection(node, name, inputs)
        if name in FUNCTIONS:
            return _axis_objection(node, name)
    what = "a sigmoid or softmax gate" if name in ("sigmoid", "softmax", "hardsigmoid") else f"{name}"
    return f"{what} is not affine in spikes: leave it out, replace it by a ReLU, or put it after the last one"


def every_argument(node: fx.Node) -> list[fx.Node]:
    """Return the nodes that a call reads, in order, as often as it reads them: x · x is a product of two."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return found


def _layer_objection(module: nn.Module, node: fx.Node, spikes: Callable[[fx.Node], bool]) -> str | None:
    kind = type(module).__name__
    if getattr(module, "affine_in_spikes", False):
        return None
    if isinstance(module, FollowsMode):
        name = module.function.__name__
        if name in FUNCTIONS or (name == "batch_norm" and not any(spikes(node) for node in node.all_input_nodes[1:])):
            return None
        return f"{name} is not affine in spikes: leave it out"
    if (isinstance(module, NORMS) and module.running_mean is None) or isinstance(module, NORMALISING):
        return f"{kind} normalises by what it reads: use batch normalisation with running statistics"
    if isinstance(module, POOLS) and getattr(module, "return_indices", False):
        return f"{kind} with return_indices has no spiking form: pool without them"
    if isinstance(module, nn.Upsample) and module.mode not in SMOOTH:
        return f"{kind} with mode {module.mode} is not affine"
    if isinstance(module, LAYERS):
        return None
    if isinstance(module, nn.Sigmoid | nn.Hardsigmoid | nn.Softmax | nn.LogSoftmax | nn.MultiheadAttention):
        return (f"{kind} is not affine in spikes, nor is the gate or attention that it makes, as in squeeze-and-excitation: leave "
                "it out, or put it after the last ReLU")
    if type(module).__module__ == nn.ReLU.__module__:
        return f"{kind} is an activation, but no ReLU: train the network with nn.ReLU in its place"
    return (f"{kind} is not known to be affine in spikes: leave it out, put it after the last ReLU, or, if it is affine, give it "
            "the attribute affine_in_spikes = True")


def _product_objection(node: fx.Node, name: str, spiking: list[fx.Node]) -> str | None:
    either = name in ("mul", "multiply", "matmul", "mm", "bmm", "einsum")  # of two factors, one may be spikes
    if len(spiking) > 1 or (spiking and not either and spiking[0] is not node.all_input_nodes[0]):
        return (f"{name} of two activations, as in squeeze-and-excitation, has no mean over time: leave the gate out, "
                "or multiply by a constant")
    if name in ("truediv", "div", "divide") and spiking and node.args[0] not in spiking:
        return f"{name} divides by an activation: multiply by a constant instead"
    if node.kwargs.get("rounding_mode"):
        return f"{name} rounds: leave rounding_mode out"
    if name == "batch_norm" and argument(node, 5, "training", False) is not False:
        return "batch_norm normalises by what it reads: pass training=self.training"
    return None


def _axis_objection(node: fx.Node, name: str) -> str | None:
    if name == "dropout" and argument(node, 2, "training", True) is True:
        return "dropout that is always on is noise: pass training=self.training"
    if name == "interpolate" and argument(node, 3, "mode", "nearest") not in SMOOTH:
        return f"interpolate with mode {argument(node, 3, 'mode')} is not affine"
    if name in ("add", "sub") and not all(isinstance(value, fx.Node | int | float) for value in node.args):
        return f"{name} takes an argument that is neither a tensor nor a number"
    axes = None
    if name == "permute":
        order = node.args[1:] or (node.kwargs["dims"],)
        order = order[0] if isinstance(order[0], tuple | list) else order
        axes = 0 if order[0] != 0 else None
    elif name == "getitem":
        index = node.args[1]
        first = index[0] if isinstance(index, tuple) else index
        from_list = call_name(node.args[0]) in ("split", "chunk", "tensor_split", "unbind")
        axes = None if from_list or first == slice(None) or first is Ellipsis else 0
    elif name in AXES:
        place, key, default = AXES[name]
        axes = argument(node, place, key, node.kwargs.get("axis", default))
        axes = 0 if axes is None else axes  # None stands for all
    among = axes if isinstance(axes, tuple | list) else (axes,)
    if name in ("transpose", "swapaxes", "swapdims", "movedim"):
        among = (*among, argument(node, 2, {"swapaxes": "axis1", "movedim": "destination"}.get(name, "dim1")))
    return f"{name} works along axis 0, which holds batch and time: keep that axis as it is" if 0 in among else None


def is_size(node: fx.Node, sizes: set[fx.Node]) -> bool:
    """Return whether a node is a size, a type or a device, or a tensor made of `sizes` alone, those before it."""
    if call_name(node) == "getattr" and node.op == "call_function":
        return node.args[1] in ("shape", "dtype", "device", "ndim")
    if node.op == "call_method" and node.target in ("size", "dim", "ndimension", "get_device", "new_zeros", "new_ones", "new_full"):
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(source in sizes for source in inputs)


def is_place(node: fx.Node) -> bool:
    """Return whether a node is the type or the device of a tensor, which folding time into the batch leaves as it is."""
    return call_name(node) == "getattr" and node.op == "call_function" and node.args[1] in ("dtype", "device")

