"""Remove the half of a checkpoint that only a resumed run needs, before it goes into git.

    python -m utils.checkpoints.light result/study/GROUP/STAGE/RUN/model_best.pth.tar ...

The network, its settings, its log and the checksum of the original file stay, so that records still know it.
"""

import argparse
from functools import lru_cache
from pathlib import Path

from ..errors import UserError
from ..files import sha256
from .checkpoint import read_checkpoint, save_checkpoint

ORIGIN = "sha256"
OF_A_RUN = ("optimizer", "rng", "progress", "trained")


def origin(path: Path) -> str:
    """Return the SHA-256 of a file; for a lightened checkpoint that of the original file."""
    return _origin(path, sha256(path))


@lru_cache(maxsize=256)
def _origin(path: Path, found: str) -> str:
    try:
        return read_checkpoint(path).get(ORIGIN) or found
    except UserError:  # not a checkpoint: an error follows when a run starts from it
        return found


def lighten(path: Path) -> None:
    """Rewrite a checkpoint without what only a resumed run needs: optimizer, random generators, weights beside their average."""
    contents = read_checkpoint(path)
    if any(contents.get(name) is not None for name in OF_A_RUN):
        kept = {name: value for name, value in contents.items() if name not in OF_A_RUN}
        save_checkpoint(path, {ORIGIN: sha256(path)} | kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a checkpoint, which is rewritten")
    try:
        for argument in parser.parse_args().files:
            lighten(argument)
    except UserError as mistake:
        parser.error(str(mistake))
