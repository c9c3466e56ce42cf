"""Flags that the scripts share, the device, and the frame that turns a user's mistake into one line and exit code 2."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import models
from quant import check_bits

from .checkpoint import BEST
from .errors import UserError

MAX_GPUS = 16  # per node; no larger index can be meant


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> None:
        """Print the message and where to find help; exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} -h lists the flags)\n")


def number(kind: type, low: float, high: float = float("inf"), what: str = "number") -> Callable[[str], float]:
    """Return an argparse type: a `kind` in [low, high]."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {what}") from None
        if not low <= value <= high:
            limits = f"at least {low}" if high == float("inf") else f"between {low} and {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range: {what} {limits}")
        return value

    return parse


def bits(text: str) -> int:
    """Parse a bit-width: 2 to 8, or 32 for float."""
    try:
        return check_bits(int(text), "bits")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error) if text.lstrip("-").isdigit() else f"{text!r} is no bit-width") from None


def count(low: int, what: str) -> Callable[[str], float]:
    """Return an argparse type: an integer of at least `low`."""
    return number(int, low, what=what)


def new_parser(description: str | None, epochs_help: bool = True) -> Parser:
    """Return a parser with the flags of every script; `description` is the script's docstring."""
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-a", "--arch", default="alex", help="architecture (default: alex)")
    add("--bit", type=bits, default=32, help="bits of activations and, by the recipe, of weights: 2 to 8; 32 is float (default: 32)")
    add("-ct", "--cifar-type", type=int, choices=(10, 100), default=10, help="CIFAR-10 or CIFAR-100 (default: 10)")
    add("--dataset", choices=("cifar10", "cifar100", "digits"), help="data set; overrides -ct; digits come with scikit-learn")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where the data set is, or is downloaded to (default: data)")
    add("--result", type=Path, default=Path("result"), metavar="DIR", help="parent of the run directories (default: result)")
    add("-b", "--batch-size", type=count(1, "batch size"), default=128, help="images per batch (default: 128)")
    add("-id", "--device", type=number(int, 0, MAX_GPUS - 1, "GPU index"), default=0, help="GPU index; without a GPU, the CPU (default: 0)")
    add("--seed", type=count(0, "seed"), default=0, help="seed of initialisation, order and augmentation (default: 0)")
    add("-p", "--print-freq", type=count(1, "number of batches"), default=10, help="batches between updates of the shown figures (default: 10)")
    add("--amp", action="store_true", help="compute in bfloat16 where it is safe (pays on GPUs and CPUs with bfloat16 units)")
    add("--channels-last", type=boolean, default=True, metavar="BOOL", help="memory format channels_last (default: True)")
    add("--deterministic", action="store_true", help="deterministic GPU kernels; a CPU run repeats bit for bit anyway")
    add("--prof", action="store_true", help="profile 10 training or evaluation batches, print the costliest operators, stop")
    add("-t", "--test", action="store_true", help="smoke test: 1 epoch of at most 10 batches")
    return parser


def boolean(text: str) -> bool:
    """Parse True or False."""
    values = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return values[text.lower()]


def add_init(parser: Parser, text: str) -> None:
    """Add --init, which names the checkpoint that a script starts from."""
    parser.add_argument("--init", type=Path, metavar="FILE", help=text)


def resolve(args: argparse.Namespace) -> argparse.Namespace:
    """Check what argparse cannot, one flag against another, and fill in what follows from the flags."""
    args.dataset = args.dataset or f"cifar{args.cifar_type}"
    args.limit = 10 if args.test else None
    try:
        models.recipe(args.arch, args.dataset)
    except ValueError as error:
        raise UserError(f"--arch {args.arch}: {error}") from error
    return args


def choose_device(index: int) -> torch.device:
    """Return the GPU with this index; on a machine without any, say so and return the CPU.

    Raises:
        UserError: there are GPUs, but not this one.
    """
    available = torch.cuda.device_count()
    if available == 0:
        print(f"no GPU here: -id {index} is ignored, the CPU is used", file=sys.stderr)
        return torch.device("cpu")
    if index >= available:
        raise UserError(f"-id {index}: this machine has {available} GPU{'s' * (available > 1)}, 0 to {available - 1}")
    return torch.device("cuda", index)


def set_up(args: argparse.Namespace) -> torch.device:
    """Choose the device, seed the generators and set the determinism that the flags ask for."""
    device = choose_device(args.device)
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = not args.deterministic
    torch.backends.cudnn.deterministic = args.deterministic
    return device


def init_path(args: argparse.Namespace) -> Path:
    """Return --init, or the best checkpoint of the run directory of this architecture and bit-width."""
    return args.init or args.result / f"{args.arch}_{args.bit}bit" / BEST


def run(main: Callable[[], object]) -> None:
    """Call a script's `main`; a user's mistake ends in one line on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        sys.exit(_report(error))
    except (PermissionError, FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        sys.exit(_report(f"{error.strerror}: {error.filename}; choose another path or change its permissions"))
    except KeyboardInterrupt:
        print("interrupted: --resume goes on from the last finished epoch", file=sys.stderr)
        sys.exit(130)


def _report(error: object) -> int:
    print(f"error: {error}", file=sys.stderr)
    return 2
