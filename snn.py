r"""Convert a quantized network to a spiking one with T = 2^b - 1 steps and evaluate both, side by side.

    python snn.py --arch alex --bit 3 -id 2 -e -u --init result/alex_3bit/model_best.pth.tar
    python snn.py --arch resnet20 --bit 3 -e --init result/resnet20_3bit_ft/model_best.pth.tar
    python snn.py --arch resnet20 --bit 2 --delay 1 --no-statistics
    python snn.py --arch mine.py:network --init float.pth --bit 4 --fit 512 --calibrate 512 -e
    python -m torch.distributed.launch --nproc_per_node=4 snn.py -a alexnet -b 256 -e -u --bit 3 \
        --init result/alexnet_3bit/model_best.pth.tar --workers 4 --dali_cpu /data/imagenet2012

With -e on the test set; without it on a fixed subset of the training images, so that neuron and delay can be chosen
without the test set.
"""

from typing import Any

import utils  # noqa: F401 - before torch
from models import Network
from snn_layers import HALF, StepNorm, latency, layer_table, norm_steps
from utils import cli, script
from utils.checkpoints.leaving import check_export, export
from utils.config import CHECK_IMAGES
from utils.data.splits import Data
from utils.errors import UserError
from utils.report.measure import compare
from utils.settings import Settings
from utils.training import loading


def parse(argv: list[str] | None) -> Settings:
    """Return the settings of the command line."""
    parser = cli.new_conversion_parser(__doc__)
    parser.add_argument("-e", "--evaluate", action="store_true",
                        help=f"use the test set (default: {CHECK_IMAGES} training images)")
    parser.add_argument("--no-statistics", action="store_false", dest="statistics",
                        help="accuracies only, without the table of the layers")
    cli.add_export_flag(parser)
    parser.add_argument("--fit", type=cli.count(1, "number of images"), metavar="N",
                        help="first quantize the float network of --init to --bit, without labels: clips, thresholds, biases, BN "
                             "are fitted on N training images, 512 are enough; the result is saved as the best of --arch and --bit")
    parser.add_argument("--weight-bit", type=cli.bits,
                        help="--fit: bits of the hidden weights; 32: all weights float (default: that of the recipe)")
    parser.add_argument("--overwrite", action="store_true", help="--fit: replace the network that is there")
    flags = parser.flags(argv)
    if flags["fit"] is None and (flags["weight_bit"] or flags["overwrite"]):
        raise UserError("--weight-bit and --overwrite say how --fit N quantizes a float network: give it, or leave them out")
    return Settings.of(cli.completed(flags, not flags["fit"]))


def report(settings: Settings, snn: Network, result: dict[str, Any]) -> None:
    """Print accuracies, latency and the table of the layers."""
    ann_top1, snn_top1 = result["ann"].top1, result["snn"].top1
    split = "test" if settings.run.evaluate else "training"
    print(f"{settings.run.arch}, {snn.bit} bits, {settings.data.dataset}, {result['snn'].count} {split} images")
    print(f"quantized ANN          {ann_top1:6.2f} %")
    print(f"SNN, {snn.neuron + ' neurons':<17} {snn_top1:6.2f} %   ({snn_top1 - ann_top1:+.2f})")
    print(f"latency                {result['latency']:6d} steps (T = {snn.time_steps}, delay = {snn.delay})")
    early = [2**power for power in range((snn.time_steps - 1).bit_length())]
    if early:
        accuracies = ", ".join(f"{result['readout'][steps - 1]:.2f}" for steps in early)
        after = ", ".join(str(result["latency"] - snn.time_steps + steps) for steps in early)
        print(f"read out earlier       {accuracies} % after {after} steps")
    counts = [module.weight.numel() for module in snn.modules() if isinstance(module, StepNorm)]
    if counts:
        print(f"BN of each time step   {2 * sum(counts):6d} scales and biases, {norm_steps(snn)} times as many as one BN has")
    if snn.start != HALF:
        print(f"membranes start at     {snn.start:6g} thresholds")
    if "after" in (result["finetune"] or {}):
        line = "tuned: {before:.2f} -> {after:.2f} % on the test set, {neuron}, delay {delay}; ANN before it {ann:.2f} %"
        print(line.format(**result["finetune"]))
    if "layers" in result:
        print(layer_table(result["layers"]))


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Convert and evaluate; return the results that are printed."""
    settings = parse(argv)
    run, calibrate = settings.run, settings.spiking.calibrate
    check_export(run.export, settings.spiking.neuron)
    with script.session(run, settings.data.seed) as (device, place):
        data = Data(settings.data, device, place)
        start, ann, finetune = loading.load_quantized(settings, data)
        snn = loading.spiking(settings.spiking, start)
        seconds = loading.calibrate(calibrate, snn, ann, data.batches(train=True, augment=True)) if calibrate else 0.0
        batches = data.batches(train=not run.evaluate, limit=None if run.evaluate else CHECK_IMAGES)
        network, ann = loading.fast_pair(snn, ann, batches, settings)
        with script.profiled(run):
            result = compare(ann, network, batches, run.amp, run.limit, settings.spiking.statistics)
        result |= {"latency": latency(snn), "seconds": seconds, "finetune": finetune}
        report(settings, snn, result)
        if run.export:
            snn_scores, split = result["snn"], "test" if run.evaluate else "training"
            export(snn, run.export, batches.size, data.normalisation(), snn_scores.top1, f"{snn_scores.count} {split} images")
    return result


if __name__ == "__main__":
    script.run(main)
