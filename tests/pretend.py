"""A GPU that is none: tensors that say they are on cuda:0, hold their data on the CPU, and refuse what CUDA refuses.

It finds operations that mix devices, and counts by file and line where a program waits for the device: each number that it asks
for, each copy to or from the CPU. It knows nothing of streams, TF32 and memory formats, and autocast is off on it.
"""

import collections
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

GPU = torch.device("cuda", 0)
ROOT = Path(__file__).parent.parent
# Operations that may take tensors of both devices: copies, and indices, which CUDA takes from the CPU by a copy.
MIXED = {"_to_copy", "copy_", "index", "index_put", "index_put_", "_index_put_impl_"}


def on_gpu(device: Any) -> bool:
    """Return whether a device, as given to an operation, is the pretended one."""
    return device is not None and torch.device(device).type == "cuda"


class PretendedTensor(Tensor):
    """A tensor of the CPU that says it is on cuda:0."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: GPU)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    is_meta = property(lambda self: False)

    @staticmethod
    def __new__(cls, inner: Tensor) -> "PretendedTensor":
        made = Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
                                             dtype=inner.dtype, layout=inner.layout, device="cpu")
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(operation, args, kwargs or {}, PretendedGPU.active)

    @property
    def data(self) -> Tensor:
        return self.detach()

    def __repr__(self) -> str:
        return f"pretended {self.inner!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.detach().__reduce_ex__(protocol)

    def get_device(self) -> int:
        return 0

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def tolist(self) -> Any:
        PretendedGPU.active.note("number")
        return self.inner.tolist()

    def cpu(self, memory_format: Any = None) -> Tensor:
        PretendedGPU.active.note("to the CPU")
        return self.inner.detach().clone()

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, dtype, _, memory_format = torch._C._nn._parse_to(*args, **{k: v for k, v in kwargs.items() if k != "copy"})
        if device is not None and device.type == "cpu":
            # The optimizers group tensors in C++, which sees where the data really is: that is no copy.
            grouped = sys._getframe(1).f_code.co_filename.endswith("sgd.py")
            return self if grouped else self.cpu().to(dtype or self.dtype)
        layout = {} if memory_format is None else {"memory_format": memory_format}
        return Tensor.to(self, dtype or self.dtype, copy=kwargs.get("copy", False), **layout)


class HostGenerator(torch.Generator):
    """A generator that takes any device and draws on the CPU."""

    def __new__(cls, device: Any = "cpu") -> torch.Generator:
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = "cpu"):
        pass


class PretendedGPU(TorchDispatchMode):
    """Inside it .to("cuda:0") and device="cuda:0" make pretended tensors.

    Attributes:
        waits: how often the program waited for the device, by kind, file and line.
        calls: operations on the device, by name.
    """

    active: "PretendedGPU"

    def __init__(self) -> None:
        super().__init__()
        self.waits: collections.Counter = collections.Counter()
        self.calls: collections.Counter = collections.Counter()

    def note(self, kind: str) -> None:
        """Count a wait at the file and line of the project's innermost frame."""
        frames = [f for f in traceback.extract_stack() if f.filename.startswith(str(ROOT)) and ".venv" not in f.filename]
        ours = [f for f in frames if not f.filename.startswith(str(ROOT / "tests"))] or frames
        self.waits[f"{kind}, {Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}"] += 1

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(operation, args, kwargs or {}, self)

    def __enter__(self) -> "PretendedGPU":
        PretendedGPU.active = self
        self.kept = torch.cuda._lazy_init, torch.Generator, torch._C._only_lift_cpu_tensors(), torch.cuda.device_count
        self.queries = torch.cuda.mem_get_info, torch.cuda.set_device
        torch.cuda.mem_get_info, torch.cuda.set_device = lambda device=None: (2**30, 2**30), lambda device: None
        torch.cuda._lazy_init, torch.Generator, torch.cuda.device_count = lambda: None, HostGenerator, lambda: 1
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        torch.cuda._lazy_init, torch.Generator, lift, torch.cuda.device_count = self.kept
        torch.cuda.mem_get_info, torch.cuda.set_device = self.queries
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_overwrite_module_params_on_conversion(False)
        super().__exit__(*error)


def dispatch(operation: Any, args: tuple, kwargs: dict, gpu: PretendedGPU) -> Any:
    """Run an operation on the CPU's data as the pretended device would, or refuse it."""
    name = operation.overloadpacket.__name__
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, Tensor)]
    pretended = [x for x in tensors if isinstance(x, PretendedTensor)]
    others = [x for x in tensors if not isinstance(x, PretendedTensor)]
    target = kwargs.get("device")
    if target is not None and torch.device(target).type == "meta":
        return operation(*args, **kwargs)
    if pretended:
        gpu.calls[name] += 1
        if name not in MIXED and any(x.dim() > 0 and x.device.type != "meta" for x in others):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu")
        if name == "_local_scalar_dense":
            gpu.note("number")
        elif name in ("index", "index_put_") and others:
            gpu.note("index of the CPU")
        elif name == "copy_" and others:
            gpu.note("copy")
    elif name == "_to_copy" and on_gpu(target):
        gpu.note("to the GPU")
    flat = [x.inner if isinstance(x, PretendedTensor) else torch.device("cpu") if isinstance(x, torch.device) and on_gpu(x) else x
            for x in flat]
    inner_args, inner_kwargs = tree_unflatten(flat, spec)
    with _disable_current_modes():
        result = operation(*inner_args, **inner_kwargs)
    if name == "copy_":
        return args[0]
    if not pretended and not on_gpu(target):
        return result
    wrapped = tree_map(lambda x: PretendedTensor(x) if isinstance(x, Tensor) else x, result)
    return return_and_correct_aliasing(operation, args, kwargs, wrapped)
