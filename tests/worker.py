"""What each process of a distributed test does: torchrun ... tests/worker.py TASK[,TASK...] DIRECTORY OUT [TIMEOUT]."""

import os
import signal
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from models import Facts, Network
from models.resnet import residual_network
from quant import fit_, quantize_
from snn_layers import FinetuneConfig, RateNetwork, finetune, to_spiking
from utils import script
from utils.data.image_files import list_images
from utils.data.imagenet import ImageLoader
from utils.distributed.processes import Place, average_, group, once_per_node, parallel
from utils.training.engine import evaluate, sgd, train_epoch
from utils.training.step import Step


class FrozenNorm(nn.BatchNorm2d):
    """BN on running statistics in training too: batch statistics depend on how a batch is split."""

    def train(self, mode: bool = True) -> "FrozenNorm":
        """Stay in eval mode."""
        return super().train(False)


def small_network(frozen: bool = False, bit: int = 32) -> Network:
    """Return the same small residual network in each process."""
    torch.manual_seed(0)
    # oneDNN 3.12 crashes in jit_1x1 backward_weights (1x1, stride 2, channels_last) where a vector holds more than the inputs: AVX2
    # below 8 channels, AVX-512 below 16.
    small = nn.AvgPool2d(4)  # 56 x 56 pixels are enough
    network = Network(nn.Sequential(small, residual_network(16, (16, 32), (1, 1), 41)), Facts("resnet20", "cifar10", 41))
    if bit < 32:
        network = fit_(quantize_(network, bit), torch.randn(4, 3, 64, 64))
    for module in network.modules():
        for name, child in list(module.named_children()):
            if frozen and isinstance(child, nn.BatchNorm2d):
                setattr(module, name, FrozenNorm(child.num_features).eval())
    return network.eval()


class Work:
    """The tasks; each returns what is saved under its name in OUT/{rank}.pt."""

    def __init__(self, directory: Path, place: Place, out: Path):
        self.directory, self.place, self.out = directory, place, out

    def loader(self, split: str, decoder: str = "torchvision", batch_size: int = 4, **options) -> ImageLoader:
        """Return batches of this process; a global batch of 8 is 4 on each of two processes."""
        options = {"place": self.place, "workers": 0} | options
        return ImageLoader(list_images(self.directory / split), batch_size, False, decoder, **options)

    def validate(self) -> dict:
        """Scores on all validation images, by decoder."""
        network = small_network()
        return {decoder: asdict(evaluate(network, self.loader("val", decoder, 3))) for decoder in ("dali", "torchvision")}

    def train(self) -> dict:
        """Losses and weights after two epochs with frozen BN, on as many whole batches as there are."""
        network = small_network(frozen=True)
        if not self.place.first:  # all start from the first one's weights and statistics
            with torch.no_grad():
                for tensor in [*network.parameters(), *network.buffers()]:
                    tensor.add_(1)
        trained, optimizer = parallel(network), sgd(network, 0.05, 0.9, 1e-4)
        batches = self.loader("train", batch_size=8 // self.place.world, limit=40)
        losses = [train_epoch(Step(trained, optimizer), batches, lambda part: 0.05).loss for _ in range(2)]
        return {"losses": losses, "state": network.state_dict()}

    def accumulate(self) -> dict:
        """The same with batches of 4 on one process, two to a step."""
        network = small_network(frozen=True)
        optimizer, batches = sgd(network, 0.05, 0.9, 1e-4), self.loader("train", batch_size=4, limit=40)
        losses = [train_epoch(Step(network, optimizer), batches, lambda part: 0.05, accumulate=2).loss for _ in range(2)]
        return {"losses": losses, "state": network.state_dict()}

    def tune(self) -> dict:
        """A spiking network tuned layer by layer, then as a whole."""
        ann = small_network(bit=2)
        snn, batches = to_spiking(ann), self.loader("train", limit=8)
        results = finetune(snn, ann, batches, self.loader("train", limit=7), FinetuneConfig(lr=0.05), average_=average_)
        layerwise = {name: tensor.clone() for name, tensor in snn.state_dict().items()}
        whole = RateNetwork(snn, compile=False)
        train_epoch(Step(parallel(whole), sgd(whole, 0.01, 0.9, 1e-4)), batches, lambda part: 0.01)
        return {"layerwise": layerwise, "whole": snn.state_dict(), "accuracies": [result.accuracy_after for result in results]}

    def shard(self) -> dict:
        """The validation files of this process; what one process of each node has fetched and the others have found."""
        file = self.out / f"node{os.environ['GROUP_RANK']}"

        def fetch() -> str:
            if not file.exists():
                time.sleep(0.5)
                with open(file, "x") as new:
                    new.write(f"by local rank {self.place.local_rank}")
            return file.read_text()

        return {"paths": self.loader("val").shard().paths, "fetched": once_per_node(fetch, self.place)}

    def fail(self) -> dict:
        """The second process fails while the first waits for it."""
        if self.place.rank == 1:
            raise RuntimeError("the second process fails on purpose")
        average_([torch.zeros(1)])
        return {}

    def die(self) -> dict:
        """The second process is killed while the others wait for it."""
        if self.place.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        average_([torch.zeros(1)])
        return {}

    def read(self) -> dict:
        """All read in step; a file of the second process may be damaged, or a pipe whose reader waits for ever."""
        for _ in self.loader("train", workers=1):
            average_([torch.zeros(1)])
        return {}

    def wait(self) -> dict:
        """All go on for ever, their readers too."""
        batches = iter(self.loader("train", workers=1))
        next(batches)
        (self.out / f"{self.place.rank}.here").touch()
        time.sleep(3600)
        return {}


def main() -> None:
    """Join the others, work, save."""
    tasks, directory, out, *timeout = sys.argv[1:]
    place = Place.of_environment()
    torch.set_num_threads(1)
    warnings.simplefilter("error", FutureWarning)  # of interfaces that torch is about to drop
    with group(place, torch.device("cpu"), *map(float, timeout)):
        work = Work(Path(directory), place, Path(out))
        results = {task: getattr(work, task)() for task in tasks.split(",")}
    torch.save(results, Path(out) / f"{place.rank}.pt")


if __name__ == "__main__":
    script.run(main)
