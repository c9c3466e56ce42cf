"""Draw the page of a run: accuracy over time and latency, layers, neurons, energy, learning curves, provenance.

    python report.py result/resnet20_3bit
    python report.py result/study/resnet20-45epochs-amp-compile/3bit-seed0 --images 2000
    python report.py result/published/resnet20_3bit.pth.tar --output page.html
    python report.py result/published/resnet20_3bit.pth.tar --neuron mine.py:leaky
    python report.py published_4bit.pth.tar --arch resnet20 --bit 4

A run is a directory with model_best.pth.tar, a stage of reproduce.py that trains or tunes, or a checkpoint. The page also shows
the tuned networks beside it. It goes to {run}/report.html, or {checkpoint}.html, holds its pictures and opens offline. For a
quantized network a .json file of the same name beside it holds the numbers.
"""

import argparse
import json
from pathlib import Path

from utils import cli, script
from utils.errors import UserError
from utils.files import write_text
from utils.report import sections
from utils.report.subject import known_neurons, read_subject


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments."""
    parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN",
        help="a run directory, a stage of reproduce.py that trains or tunes, or a checkpoint")
    add("-a", "--arch", help="of a published checkpoint, or of a run whose network is from a file of yours, FILE.py:FUNCTION")
    add("--bit", type=cli.bits, help="bits of a published quantized checkpoint")
    add("--neuron", metavar="FILE.py:FUNCTION", help="an equation of yours, measured beside signed and unsigned neurons")
    add("--data", type=Path, default=Path("data"), metavar="DIR", help="where the data set is (default: data)")
    add("--images", type=cli.count(1, "number of images"), default=1000, help="test images to measure on (default: 1000)")
    add("--output", type=Path, metavar="FILE", help="where the page goes (default: report.html in the run, or beside a checkpoint)")
    args = parser.parse_args(argv)
    if args.output and len(args.runs) > 1:
        raise UserError(f"--output {args.output}: {len(args.runs)} runs make {len(args.runs)} pages; leave it out")
    if args.output and args.output.suffix not in (".html", ".htm"):
        raise UserError(f"--output {args.output}: a page is a .html file, and its numbers go to a .json file beside it")
    if args.output and not args.output.parent.is_dir():
        raise UserError(f"--output {args.output}: there is no directory {args.output.parent}; make it first")
    return args


def main(argv: list[str] | None = None) -> list[Path]:
    """Run the script; return the pages."""
    args = parse(argv)
    kinds = known_neurons(args.neuron)
    pages = []
    for run in args.runs:
        subject = read_subject(run, args.arch, kinds, args.bit)
        pages.append(args.output or subject.page)
        page, numbers = sections.build(subject, args.data, args.images)
        write_text(pages[-1], page)
        if numbers:
            write_text(pages[-1].with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
        print(pages[-1])
    return pages


if __name__ == "__main__":
    script.run(main)
