"""Flags that the scripts share."""

import argparse
from pathlib import Path
from typing import Any

import models
from quant import FLOAT_BITS
from snn_layers import HALF

from .checkpoints.checkpoint import read_checkpoint, refuse_unnamed
from .config import DEFAULT_ARCH, WORKERS
from .data.imagenet import LOADERS
from .distributed.processes import TIMEOUT
from .parser import Parser, bits, boolean, count, number
from .settings import FAST, words

MAX_GPUS = 16  # GPUs of a node; a larger index is a mistake
MAX_SEED = 2**32 - 1


def new_parser(description: str | None, datasets: list[str], batch_size: int = 128) -> Parser:
    """Return a parser with the flags of every script.

    Args:
        description: the script's docstring.
        datasets: those of the script; only their families count.
        batch_size: the default.
    """
    parser = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(directories=[], local_rank=None, cifar_type=None, data=None, dataset=None, size=None, timeout=TIMEOUT)
    add = parser.add_argument
    known = "; ".join(f"{models.family(dataset)}: {', '.join(models.architectures(dataset))}" for dataset in datasets)
    defaults = " or ".join(DEFAULT_ARCH[models.family(dataset)] for dataset in datasets)
    add("-a", "--arch", help=f"{known}; torchvision:NAME; or FILE.py:FUNCTION, whose FUNCTION(num_classes=...) returns your "
                             f"nn.Module (default: that of the checkpoint, else {defaults})")
    add("--bit", type=bits, help="bits of activations and weights: 2 to 8; 32 is float (default: those of the checkpoint "
                                 "that is evaluated or converted, else 32)")
    for name, what, low in (("--mean", "mean", 0), ("--std", "standard deviation", 1e-3)):
        add(name, type=number(float, low, 1, what), nargs=3, metavar=("R", "G", "B"),
            help=f"{what} with which pixels are normalised, on the scale 0 to 1; saved with the network (default: as the network "
                 "was trained, or the data set's)")
    add("--result", type=Path, default=Path("result"), metavar="DIR", help="parent of the run directories (default: result)")
    add("-b", "--batch-size", type=count(1, "batch size"), default=batch_size,
        help=f"images per batch, of each process (default: {batch_size})")
    add("-id", "--device", type=number(int, 0, MAX_GPUS - 1, "GPU index"),
        help="GPU index (default: 0, or the local rank of a process of several; CPU without a GPU)")
    add("--seed", type=number(int, 0, MAX_SEED, "seed"), default=0,
        help="seed of initialisation, order and augmentation (default: 0)")
    add("--amp", action="store_true", help="bfloat16 where safe; pays on GPUs and on CPUs with bfloat16 units")
    add("--tf32", type=boolean, default=True, metavar="BOOL",
        help="GPU: let convolutions round float32 to 11 bits (default: True in training, False where spikes are compared)")
    add("--channels-last", type=boolean, default=True, metavar="BOOL", help="memory format channels_last (default: True)")
    add("--deterministic", action="store_true", help="deterministic GPU kernels where they exist; a CPU run repeats anyway")
    add("-t", "--test", action="store_true", help="smoke test: at most 10 batches of 1 epoch, in a run directory of its own")
    add("--prof", action="store_true", help="a smoke test under the profiler; prints the costliest operators")
    return parser


def add_cifar_flags(parser: Parser) -> None:
    """Add the flags that choose CIFAR-10, CIFAR-100, digits or a folder."""
    add = parser.add_argument
    add("-ct", "--cifar-type", type=int, choices=(10, 100), help="CIFAR-10 or CIFAR-100 (default: 10)")
    add("--dataset", choices=("cifar10", "cifar100", "digits", "folder"),
        help="overrides -ct; digits come with scikit-learn; folder: your own images, train/ and test/ with a folder per class")
    add("--data", type=Path, metavar="DIR", help="where the data set is, or is downloaded to (default: data)")
    add("--size", type=count(8, "size"), metavar="S", help="folder: rows and columns of the images (default: 32)")


def add_imagenet_flags(parser: Parser, nargs: str) -> None:
    """Add the flags that name ImageNet's images and say how they are read; `nargs`: of the directories."""
    add = parser.add_argument
    add("directories", nargs=nargs, type=Path, metavar="DIR",
        help="ImageNet: a directory with train/ and val/, or these two themselves, train first")
    add("--loader", choices=LOADERS, help="ImageNet: the decoder (default: dali if it is installed, else torchvision)")
    add("-j", "--workers", type=count(0, "number of workers"),
        help=f"ImageNet: threads (DALI) or processes (torchvision) that decode, of each process (default: {WORKERS})")
    add("--dali_cpu", action="store_true", help="ImageNet: DALI decodes on the CPU even if there is a GPU")
    add("--timeout", type=number(float, 1, what="number of seconds"), default=TIMEOUT, metavar="SECONDS",
        help=f"seconds that one of several processes waits for the others before it gives up (default: {TIMEOUT})")
    add("--local-rank", "--local_rank", type=count(0, "local rank"),
        help="set by torch.distributed.launch; LOCAL_RANK in the environment wins over it")


def new_conversion_parser(description: str | None) -> Parser:
    """Return a parser with the flags of the scripts that convert a network."""
    parser = new_parser(description, ["cifar10", "imagenet"])
    parser.set_defaults(tf32=False)
    add_cifar_flags(parser)
    add_imagenet_flags(parser, "*")
    add = parser.add_argument
    add("--init", type=Path, metavar="FILE", help="quantized network, ours or published (default: the best of --arch, --bit)")
    add("--neuron", default="signed", metavar="NEURON",
        help="signed, which may take a spike back, unsigned, or FILE.py:FUNCTION, an equation of your own (default: signed)")
    add("-u", "--unsigned", action="store_const", const="unsigned", dest="neuron", help="short for --neuron unsigned")
    add("--delay", type=count(0, "delay"), default=0, help="steps of input that a neuron sees before it fires, 0 to T (default: 0)")
    add("--steps", type=count(1, "number of time steps"), metavar="N",
        help="time steps to run, 1 to T; fewer is an early readout (default: T = 2^bit - 1)")
    add("--start", type=number(float, 0, HALF, "number of thresholds"), default=HALF, metavar="V",
        help=f"membrane of the neurons at the start, in thresholds: {HALF}, or 0 as an ablation (default: {HALF})")
    add("--calibrate", type=count(0, "number of images"), default=0, metavar="N",
        help="first shift the biases until the mean rates on N training images are the ANN's; 512 are enough (default: 0)")
    add("--reference", action="store_true",
        help="score, and tune globally, with the plain spiking layers instead of their fast, exact deployment")
    return parser


def add_optimizer_flags(parser: Parser) -> None:
    """Add the flags that training and tuning share."""
    add = parser.add_argument
    add("-p", "--print-freq", type=count(1, "number of batches"), default=50,
        help="batches between two checks of the loss, for which a GPU has to wait (default: 50)")
    add("--momentum", type=number(float, 0, 1, "momentum"), default=0.9, help="of SGD (default: 0.9)")
    add("--overwrite", action="store_true", help="delete the run in the directory")


def add_run_flags(parser: Parser, epochs: int, lr: float, wd: float, milestones: str) -> None:
    """Add the flags that main.py and dali_main.py share."""
    add = parser.add_argument
    add("--epochs", type=count(1, "number of epochs"), default=epochs, help=f"length of the run (default: {epochs})")
    add("--start-epoch", type=count(0, "epoch"), help="epoch to start at, from 0 (default: 0, or where --resume goes on)")
    add("--lr", "--learning-rate", type=number(float, 0, what="learning rate"), default=lr, help=f"initial value (default: {lr})")
    add("--lr-schedule", choices=("step", "cosine"), default="step",
        help=f"step: x0.1 at {milestones} of the run; cosine: to 0 (default: step)")
    add("--wd", "--weight-decay", type=number(float, 0, what="weight decay"), default=wd,
        help=f"of SGD, except clips and thresholds, which have 1e-4 (default: {wd:g})")
    add("--warmup", type=number(float, 0, what="number of epochs"), default=0.0, metavar="EPOCHS",
        help="epochs over which the learning rate rises first (default: 0)")
    add("--threshold-lr", type=number(float, 0, what="learning rate"), metavar="LR",
        help="initial learning rate of the thresholds (default: that of the weights)")
    add("--clip-lr", type=number(float, 0, what="learning rate"), metavar="LR",
        help="initial learning rate of the weight clips (default: that of the weights)")
    add("--nesterov", action="store_true", help="Nesterov's momentum")
    add("--ema", type=number(float, 0, 1, "decay"), default=0.0, metavar="DECAY",
        help="evaluate and save the exponential moving average of the weights, for example 0.999 (default: 0, the weights); "
             "it costs accuracy at 2 bits")
    add("--label-smoothing", type=number(float, 0, 1, "share"), default=0.0, metavar="SHARE",
        help="of the labels, spread over all classes (default: 0)")
    add("--teacher", type=Path, metavar="FILE",
        help="learn the probabilities of this network, of any architecture, instead of the labels")
    add("--teacher-arch", metavar="ARCH",
        help="of the teacher, if it is from a file of yours, FILE.py:FUNCTION, or a published file (default: --arch)")
    add("--accum", type=count(1, "number of batches"), default=1, help="batches whose gradients make one step (default: 1)")
    add("--weight-bit", type=bits, help="bits of the hidden weights, instead of the recipe's")
    add("--compile", action="store_true",
        help="compile the training step: faster, after a minute; on one GPU, without --accum, a CUDA graph")
    add("--tensorboard", action="store_true", help="write the log for TensorBoard too")
    add("-e", "--evaluate", action="store_true", help="evaluate --init (default: the run's best checkpoint) and stop")
    add_export_flag(parser)
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--init", type=Path, metavar="FILE", help="start from this checkpoint, ours or a published one")
    start.add_argument("--resume", nargs="?", type=Path, const=Path(), metavar="FILE",
                       help="go on with an interrupted run: its directory's last checkpoint, or FILE")
    add("--init-bit", type=bits, help="bits of a published quantized --init file (default: --bit)")
    parser.set_defaults(pretrained=False)
    add_optimizer_flags(parser)


def add_recipe_flag(parser: Parser) -> None:
    """Add the flag that stands for a whole schedule of training."""
    fast = "; ".join(f"{'float' if bit == FLOAT_BITS else f'{bit} bits'} {' '.join(words(flags))}" for bit, flags in FAST.items())
    parser.add_argument("--recipe", choices=("published", "fast"), default="published",
                        help="published: the defaults of the flags; fast: fewer epochs ("
                             f"{fast}; at 4 and 3 bits add the float network as --teacher); a flag of its own wins "
                             "(default: published)")


def add_export_flag(parser: Parser) -> None:
    """Add the flag that writes the evaluated network to a file."""
    parser.add_argument("--export", type=Path, metavar="FILE",
                        help="write the evaluated network to FILE.onnx, for onnxruntime and others (requirements-export.txt), or "
                             "FILE.pt2, for torch.export.load")


def completed(flags: dict[str, Any], as_it_is: bool = True) -> dict[str, Any]:
    """Return flags whose missing architecture comes from --init, if that is a checkpoint of ours; see `refuse_unnamed`.

    Args:
        as_it_is: the network keeps its bits, so that missing ones come from the file too.
    """
    file = flags.get("init")
    wanted = [name for name in ("arch", *["bit"] * as_it_is) if flags[name] is None]
    if file is None or not wanted:
        return flags
    ours = read_checkpoint(file)
    known = {name: ours[name] for name in wanted if "format" in ours and isinstance(ours.get(name), str | int)}
    refuse_unnamed(file, ours, flags["arch"])
    return flags | known
