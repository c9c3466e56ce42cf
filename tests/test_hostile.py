"""Broken and hostile files: a clean error, or a load that is proved equal; nothing in a file is executed."""

import copy
import hashlib
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import picture

import main
import snn_ft
from quant import fault
from utils.checkpoints.checkpoint import LAST, load_network, network_state, read_checkpoint, save_checkpoint
from utils.data.cifar import load_images
from utils.data.image_files import list_images
from utils.data.image_sets import read_binary
from utils.data.imagenet import ImageLoader
from utils.errors import UserError

TRIALS = 200


def damages(whole: bytes, seed: int, count: int = TRIALS) -> list[bytes]:
    """Return `count` copies with a flipped bit, a cut end, or a removed, doubled or zeroed piece; each differs."""
    draw = random.Random(seed)
    found = []
    while len(found) < count:
        data, kind = bytearray(whole), draw.randrange(6)
        at, size = draw.randrange(len(data)), draw.randrange(1, 400)
        if kind < 2:
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:at + size]
        elif kind == 4:
            data[at:at] = data[at:at + size]
        else:
            data[at:at + size] = bytes(len(data[at:at + size]))
        if data != whole:
            found.append(bytes(data))
    return found


def refusal(load: Callable[[], object]) -> tuple[str | None, object]:
    """Return (the message of a UserError, None), or (None, what was loaded)."""
    try:
        return None, load()
    except UserError as error:
        return str(error), None


def test_a_damaged_checkpoint_is_refused_or_equal(tmp_path, quantized):
    """Flips in the padding between the members of the archive do no harm; all else is noticed."""
    path = tmp_path / "net.pth"
    save_checkpoint(path, network_state(quantized))
    state, outcomes = quantized.state_dict(), Counter()
    for damaged in damages(path.read_bytes(), seed=1, count=80):
        path.write_bytes(damaged)
        message, network = refusal(lambda: load_network(path))
        if message is None:
            loaded = network.state_dict()
            assert loaded.keys() == state.keys()
            assert all(torch.equal(loaded[key], state[key]) for key in state)
        else:
            assert "net.pth" in message
            assert len(message.splitlines()) == 1
        outcomes["equal" if message is None else "refused"] += 1
    assert outcomes["refused"] > 40
    assert outcomes.total() == 80


@pytest.mark.filterwarnings("ignore")
def test_a_forged_checkpoint_is_refused_or_a_network(tmp_path, quantized):
    """Damaged pickles with checksums that fit, as an attacker would make them: only a UserError, or a network without faults."""
    save_checkpoint(tmp_path / "net.pth", network_state(quantized))
    with zipfile.ZipFile(tmp_path / "net.pth") as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    name = next(name for name in members if name.endswith("data.pkl"))
    refused = 0
    for forged in damages(members[name], seed=2, count=40):
        with zipfile.ZipFile(tmp_path / "forged.pth", "w") as archive:
            for member, data in members.items():
                archive.writestr(member, forged if member == name else data)
        message, network = refusal(lambda: load_network(tmp_path / "forged.pth"))
        if message is None:
            assert fault(network) is None
        else:
            assert "forged.pth" in message
            refused += 1
    assert refused > 20


class Payload:
    """Makes a directory when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("place", ["whole", "state_dict", "optimizer", "history", "args"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_no_payload_runs(tmp_path, tiny, quantized, place, kind):
    payload = Payload(tmp_path / "executed")
    contents = payload if place == "whole" else network_state(quantized) | {"history": [], "args": {}, place: payload}
    run = tmp_path / "resnet20_2bit"
    run.mkdir()
    if kind == "pickle":
        (run / LAST).write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, run / LAST, _use_new_zipfile_serialization=kind == "zip")
    flags = ["-a", "resnet20", "--bit", "2", "--data", str(tiny), "--result", str(tmp_path)]
    for arguments in (["--resume"], ["-e", "--init", str(run / LAST)]):
        with pytest.raises(UserError, match="damaged or of no known kind"):
            main.main([*flags, *arguments])
    assert not (tmp_path / "executed").exists()


def altered(state: dict, key: str, value: object) -> dict:
    return state | {"state_dict": state["state_dict"] | {key: value}}


FORGERIES: dict[str, tuple[Callable[[dict], object], str]] = {
    "future version": (lambda c: c | {"format": 2}, "format 2 is not 1"),
    "version of no kind": (lambda c: c | {"format": [1]}, r"format \[1\] is not 1"),
    "no dictionary": (lambda c: [c], "holds a list"),
    "a tensor": (lambda c: torch.zeros(3), "holds a Tensor"),
    "NaN": (lambda c: altered(c, "head.bias", torch.full((10,), torch.nan)), "head.bias holds NaN"),
    "infinity": (lambda c: altered(c, "body.0.bn.running_mean", torch.full((16,), torch.inf)), "body.0.bn.running_mean holds NaN"),
    "wrong shape": (lambda c: altered(c, "head.bias", torch.zeros(3)), "size mismatch for head.bias"),
    "integers": (lambda c: altered(c, "head.bias", torch.zeros(10, dtype=torch.int64)), "holds head.bias as torch.int64"),
    "complex": (lambda c: altered(c, "head.bias", torch.zeros(10, dtype=torch.complex64)), "holds head.bias as torch.complex64"),
    "sparse": (lambda c: altered(c, "head.bias", torch.zeros(10).to_sparse()), "torch.sparse_coo"),
    "a number": (lambda c: altered(c, "head.bias", 3.0), "head.bias"),
    "expanded": (lambda c: altered(c, "head.weight", torch.zeros(1, 64).expand(10**9, 64)), "of shape .* without its values"),
    "many classes": (lambda c: c | {"num_classes": 10**12}, "says 1000000000000 classes"),
    "classes by name": (lambda c: c | {"num_classes": "ten"}, "num_classes of type str"),
    "half a bit": (lambda c: c | {"bit": 2.5}, "bit of type float"),
    "9 bits": (lambda c: c | {"bit": 9}, "bit is 9"),
    "unknown network": (lambda c: c | {"arch": "lenet"}, "unknown architecture 'lenet'"),
    "unknown data": (lambda c: c | {"dataset": "mnist"}, "unknown data set 'mnist'"),
    "list for a name": (lambda c: c | {"arch": ["resnet20"]}, "arch of type list"),
    "no state": (lambda c: {k: v for k, v in c.items() if k != "state_dict"}, "damaged or of no known kind"),
    "state of no kind": (lambda c: c | {"state_dict": [1, 2]}, "state_dict of type list"),
    "negative threshold": (lambda c: altered(c, "body.0.activation.threshold", torch.tensor(-1.0)), "threshold is -1, but must be"),
    "foreign": (lambda c: {"weights": c["state_dict"], "epoch": 3}, "no state dict of tensors"),
    "foreign names": (lambda c: {f"net.{k}": v for k, v in c["state_dict"].items()}, "lacks"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_contents_are_named(tmp_path, quantized, name):
    forge, expected = FORGERIES[name]
    contents = forge(network_state(quantized))
    torch.save(contents, tmp_path / "forged.pth")
    with pytest.raises(UserError, match=expected) as caught:
        load_network(tmp_path / "forged.pth", *(() if isinstance(contents, dict) and "format" in contents else ("resnet20", 2)))
    assert "forged.pth" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_compressed_archives_are_refused(tmp_path, quantized):
    """A few kilobytes could become any number of gigabytes."""
    save_checkpoint(tmp_path / "net.pth", network_state(quantized))
    with zipfile.ZipFile(tmp_path / "net.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb:
        for member in source.namelist():
            bomb.writestr(member, source.read(member))
    with pytest.raises(UserError, match=r"bomb\.pth.*compressed"):
        load_network(tmp_path / "bomb.pth")


def test_the_published_checkpoints_load(find):
    for bit in (2, 3, 4):
        for suffix in ("", "_ft"):
            assert load_network(find(f"result/published/resnet20_{bit}bit{suffix}.pth.tar"), "resnet20", bit).bit == bit


@pytest.fixture(scope="module")
def run(tiny) -> Path:
    """Return the data's directory, which also holds a finished run of one epoch and a tuning of it."""
    flags = ["-a", "resnet20", "--bit", "2", "-b", "16", "--data", str(tiny), "--result", str(tiny)]
    main.main([*flags, "--epochs", "1", "--lr", "0.02"])
    snn_ft.main([*flags, "--method", "global", "--check-images", "16"])
    return tiny


def momentum(buffer: torch.Tensor) -> dict:
    return {"state": {0: {"momentum_buffer": buffer}}}


DAMAGED_RUNS: dict[str, tuple[Callable[[dict], dict], str]] = {
    "no optimizer": (lambda c: c | {"optimizer": {}}, "no state of an optimizer"),
    "optimizer of another network": (lambda c: c | {"optimizer": {"state": {9999: {}}}}, "no state of an optimizer"),
    "momentum of another shape": (lambda c: c | {"optimizer": momentum(torch.zeros(2))}, "momentum 0"),
    "NaN momentum": (lambda c: c | {"optimizer": momentum(torch.full((16, 3, 3, 3), torch.nan))}, "momentum 0"),
    "short generator of earlier versions": (lambda c: c | {"rng": torch.zeros(7, dtype=torch.uint8)}, "cannot be resumed"),
    "short generator": (lambda c: c | {"rng": {"cpu": torch.zeros(7, dtype=torch.uint8)}}, "cannot be resumed"),
    "generator of no kind": (lambda c: c | {"rng": "seed"}, "cannot be resumed"),
    "generator of no device": (lambda c: c | {"rng": {}}, "cannot be resumed"),
    "log of no kind": (lambda c: c | {"history": "epoch 1"}, "damaged log"),
    "log without accuracy": (lambda c: c | {"history": [{"epoch": 0}]}, "damaged log"),
    "log with a gap": (lambda c: c | {"history": [*c["history"], {**c["history"][0], "epoch": 5}]}, "damaged log"),
    "arguments of no kind": (lambda c: c | {"args": 3}, "damaged log"),
}


@pytest.mark.parametrize("name", DAMAGED_RUNS)
def test_a_run_with_damaged_state_is_not_resumed(run, name, tmp_path):
    damage, expected = DAMAGED_RUNS[name]
    contents = read_checkpoint(run / "resnet20_2bit" / LAST)
    (tmp_path / "resnet20_2bit").mkdir()
    save_checkpoint(tmp_path / "resnet20_2bit" / LAST, damage(copy.deepcopy(contents)))
    before = (tmp_path / "resnet20_2bit" / LAST).read_bytes()
    with pytest.raises(UserError, match=expected):
        main.main(["-a", "resnet20", "--bit", "2", "-b", "16", "--epochs", "2", "--data", str(run), "--result", str(tmp_path),
                   "--resume"])
    assert [file.name for file in (tmp_path / "resnet20_2bit").iterdir()] == [LAST]
    assert (tmp_path / "resnet20_2bit" / LAST).read_bytes() == before


@pytest.mark.parametrize("damage", [{"history": 3}, {"finetune": {}}, {"args": {}}, {"progress": [1]}, {"history": [{"loss": 1}]}])
def test_a_tuning_run_with_damaged_state_is_not_resumed(run, damage, tmp_path):
    path = tmp_path / "resnet20_2bit_ft_global" / LAST
    path.parent.mkdir()
    save_checkpoint(path, read_checkpoint(run / path.parent.name / LAST) | damage)
    with pytest.raises(UserError, match="damaged log"):
        snn_ft.main(["-a", "resnet20", "--bit", "2", "--method", "global", "--resume", "--data", str(run),
                     "--result", str(tmp_path)])


def test_tuning_goes_on_with_its_own_network_only(run, tmp_path, fitted):
    save_checkpoint(tmp_path / "other.pth.tar", network_state(fitted.copy(dataset="cifar10")))
    with pytest.raises(UserError, match="tunes another network"):
        snn_ft.main(["-a", "resnet20", "--bit", "2", "--method", "global", "--data", str(run), "--result", str(run), "--resume",
                     "--init", str(tmp_path / "other.pth.tar")])


def test_a_resumed_run_takes_its_new_flags(run, tmp_path, monkeypatch):
    """The optimizer once brought its old weight decay and momentum back, after a line that said otherwise."""
    (tmp_path / "resnet20_2bit").mkdir()
    (tmp_path / "resnet20_2bit" / LAST).write_bytes((run / "resnet20_2bit" / LAST).read_bytes())
    main.main(["-a", "resnet20", "--bit", "2", "-b", "16", "--epochs", "2", "--data", str(run), "--result", str(tmp_path),
               "--resume", "--wd", "0.25", "--momentum", "0.5"])
    group = read_checkpoint(tmp_path / "resnet20_2bit" / LAST)["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["momentum"]) == (0.25, 0.5)


def test_damaged_cifar_files_are_refused(tmp_path):
    """With SHA256SUMS beside them every change is noticed; without it, changed pixels and labels in range are not."""
    file = tmp_path / "test_batch.bin"
    records = np.random.RandomState(0).randint(0, 10, (20, 3073)).astype(np.uint8)
    records.tofile(file)
    whole = file.read_bytes()
    (tmp_path / "SHA256SUMS").write_text(f"{hashlib.sha256(whole).hexdigest()}  test_batch.bin\n")
    assert len(read_binary([file], 1, 10, 10_000)[1]) == 20
    for damaged in damages(whole, seed=3):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"test_batch\.bin"):
            read_binary([file], 1, 10, 10_000)
    (tmp_path / "SHA256SUMS").unlink()
    for damaged in damages(whole, seed=3):
        file.write_bytes(damaged)
        message, found = refusal(lambda: read_binary([file], 1, 10, 10_000))
        if message is None:
            assert found[0].shape == (len(damaged) // 3073, 3, 32, 32)
            assert found[1].max() < 10
        else:
            assert "test_batch.bin" in message


def test_a_list_of_checksums_must_be_one(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "test_batch.bin").write_bytes(bytes(3073))
    for text in ("no list", "\xff\xfe", "abc  test_batch.bin\n", "abc  other.bin\n"):
        (folder / "SHA256SUMS").write_text(text, encoding="latin-1")
        with pytest.raises(UserError, match="SHA256SUMS"):
            load_images("cifar10", tmp_path, train=False)


def test_more_images_than_the_official_file_has_are_refused(tmp_path):
    file = tmp_path / "test_batch.bin"
    with open(file, "wb") as sparse:
        sparse.truncate(3073 * 10_001)
    with pytest.raises(UserError, match="not 1 to 10000 times 3073"):
        read_binary([file], 1, 10, 10_000)


def png_bomb() -> bytes:
    """Return a PNG whose header says 60,000 x 60,000."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_named_or_decode(tmp_path, suffix):
    folder = tmp_path / "val" / "n00000000"
    folder.mkdir(parents=True)
    victim = folder / f"0.{suffix}"
    picture(60, 48, seed=0).save(victim)
    outcomes, contents = Counter(), damages(victim.read_bytes(), seed=4, count=100)
    for content in [*contents, png_bomb(), b"", b"\x00" * 100]:
        victim.write_bytes(content)
        loader = ImageLoader(list_images(tmp_path / "val"), 1, False, "torchvision", workers=0)
        message, batches = refusal(lambda: list(loader))  # noqa: B023
        if message is None:
            (images, labels), = batches
            assert images.isfinite().all()
            assert (images.shape, labels.tolist()) == ((1, 3, 224, 224), [0])
        else:
            assert f"0.{suffix} cannot be decoded" in message
        outcomes["decoded" if message is None else "refused"] += 1
    assert outcomes["refused"] > 20
    assert outcomes.total() == 103
