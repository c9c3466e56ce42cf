"""Take out of a checkpoint what only a resumed run needs, half of the file, before it goes into git.

    python -m utils.checkpoints.light result/study/GROUP/STAGE/RUN/model_best.pth.tar ...

The network, its settings, its log and the checksum of the file as it was written stay, so that records still know it.
"""

import sys
from functools import lru_cache
from pathlib import Path

from ..errors import UserError
from ..files import sha256
from .checkpoint import read_checkpoint, save_checkpoint

ORIGIN = "sha256"
OF_A_RUN = ("optimizer", "rng", "progress")


def origin(path: Path) -> str:
    """Return the SHA-256 of a file; of a lightened checkpoint that of the file that it was made from."""
    return _origin(path, sha256(path))


@lru_cache(maxsize=256)
def _origin(path: Path, found: str) -> str:
    try:
        return read_checkpoint(path).get(ORIGIN) or found
    except UserError:  # no checkpoint, which whoever starts from it will say
        return found


def lighten(path: Path) -> None:
    """Write a checkpoint anew without the state of its optimizer and generators."""
    contents = read_checkpoint(path)
    if any(contents.get(name) is not None for name in OF_A_RUN):
        kept = {name: value for name, value in contents.items() if name not in OF_A_RUN}
        save_checkpoint(path, {ORIGIN: sha256(path)} | kept)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        lighten(Path(argument))
