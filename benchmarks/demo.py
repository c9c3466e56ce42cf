"""The whole way in a minute or two, without a data set to download: float -> 4 -> 3 -> 2 bits -> spiking networks, on digits.

    make demo

The network of examples/resnet.py on scikit-learn's 8x8 digits, shown to it as 3x32x32 images, by the scripts that run CIFAR-10.
"""

import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import main
import report
import snn
import snn_ft
from quant import time_steps
from utils import script
from utils.plot import pyplot

RESULT, NETWORK, RUN = Path("result/demo"), "examples/resnet.py:resnet14", "resnet-resnet14"
FLAGS = ["--arch", NETWORK, "--dataset", "digits", "--result", str(RESULT), "-b", "64"]
FLOAT_TRAINING = ["--epochs", "8", "--lr", "0.05", "--lr-schedule", "cosine", "--overwrite"]
QUANTIZED_TRAINING = ["--epochs", "3", "--lr", "0.02", "--lr-schedule", "cosine", "--overwrite"]
TUNING = ["-n", "1", "--lr", "0.1", "--calib", "128", "--check-images", "128", "--overwrite"]
NEXT = """next: python main.py --arch resnet20 --bit 32 --data DIR    trains on CIFAR-10, whose unpacked binary files are in DIR
      python snn.py -h                                     converts a network; docs/networks.md tells how to bring your own"""


def quietly(call: Callable[[list[str]], Any], arguments: list[str]) -> Any:
    """Call a script's main() without the lines that it prints; its progress bars stay."""
    with redirect_stdout(io.StringIO()):
        return call(arguments)


def stage(bit: int, source: int) -> dict[str, float]:
    """Quantize to `bit` bits, convert, tune; return accuracies on the test set in percent."""
    print(f"\n{source} -> {bit} bits", flush=True)
    best = RESULT / f"{RUN}_{source}bit" / "model_best.pth.tar"
    main.main([*FLAGS, "--bit", str(bit), *QUANTIZED_TRAINING, "--init", str(best)])
    print(f"convert to T = {time_steps(bit)} steps, tune layer by layer", flush=True)
    flags = [*FLAGS, "--bit", str(bit)]
    unsigned, signed = (quietly(snn.main, [*flags, "-e", *neuron]) for neuron in (["-u"], []))
    tuned = quietly(snn_ft.main, [*flags, *TUNING])
    return {"ann": signed["ann"].top1, "unsigned": unsigned["snn"].top1, "signed": signed["snn"].top1, "tuned": tuned["after"]}


def table(float_top1: float, rows: dict[int, dict[str, float]]) -> str:
    """Return the accuracies as a table of text."""
    lines = [f"{'bits':>4} {'T':>3} {'quantized ANN':>14} {'unsigned SNN':>13} {'signed SNN':>11} {'tuned SNN':>10}"]
    lines += [f"{bit:>4} {time_steps(bit):>3} {row['ann']:>12.2f} % {row['unsigned']:>11.2f} % {row['signed']:>9.2f} % "
              f"{row['tuned']:>8.2f} %" for bit, row in rows.items()]
    return "\n".join([f"{NETWORK} on 360 test digits; float network {float_top1:.2f} %", *lines])


def draw(rows: dict[int, dict[str, float]], path: Path) -> None:
    """Draw accuracy over time steps."""
    plt = pyplot()
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    steps = [time_steps(bit) for bit in rows]
    for name, style in (("ann", "k--"), ("unsigned", "o-"), ("signed", "s-"), ("tuned", "^-")):
        axes.plot(steps, [row[name] for row in rows.values()], style, label="quantized ANN" if name == "ann" else f"{name} SNN")
    axes.set(xlabel="time steps T", ylabel="accuracy on 360 test digits (%)", xticks=steps, title=f"{NETWORK}, digits")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def demo() -> dict[int, dict[str, float]]:
    """Run all of it; print one table at the end."""
    began = time.monotonic()
    print("float network", flush=True)
    float_top1 = main.main([*FLAGS, *FLOAT_TRAINING])["best"]["test_top1"]
    rows = {bit: stage(bit, source) for source, bit in ((32, 4), (4, 3), (3, 2))}
    draw(rows, RESULT / "accuracy.png")
    page = quietly(report.main, [str(RESULT / f"{RUN}_2bit"), "--arch", NETWORK, "--images", "100"])
    print(f"\n{table(float_top1, rows)}\n{time.monotonic() - began:.0f} s; picture in {RESULT / 'accuracy.png'}, page of the 2-bit "
          f"network and its tuned one in {page[0]}\n\n{NEXT}")
    return rows


if __name__ == "__main__":
    script.run(demo)
