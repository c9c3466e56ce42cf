"""Run an exported network on CIFAR-10's test images with onnxruntime and numpy alone.

    python main.py -e --arch resnet20 --bit 2 --init result/published/resnet20_2bit.pth.tar --export network.onnx
    python examples/run_onnx.py network.onnx data/cifar-10-batches-bin/test_batch.bin

The file itself says how pixels are normalised. For a spiking network the accuracy after each of 1..T steps is printed.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime

BATCH = 100


def main(network: str, images: str) -> list[float]:
    """Print and return the accuracy in percent, for a spiking network after 1..T steps; `images` is a binary file of CIFAR-10."""
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    mean, std = (np.reshape(json.loads(told[name]), (3, 1, 1)) for name in ("pixel_mean", "pixel_std"))
    records = np.fromfile(images, np.uint8).reshape(-1, 3073)
    labels = records[:, 0]
    names = [output.name for output in session.get_outputs()]
    output, hits = "readouts" if "readouts" in names else "logits", 0
    for start in range(0, len(records), BATCH):
        pixels = records[start:start + BATCH, 1:].reshape(-1, 3, 32, 32)
        (logits,) = session.run([output], {"images": ((pixels / 255 - mean) / std).astype(np.float32)})
        hits = hits + (np.argmax(logits, -1) == labels[start:start + BATCH]).reshape(-1, len(pixels)).sum(1)
    accuracies = (100 * hits / len(records)).tolist()
    print(f"{told['architecture']}, {told['bits']} bits, {told.get('neuron', 'quantized ANN')}: "
          f"{', '.join(f'{accuracy:.2f}' for accuracy in accuracies)} % (in PyTorch {told['accuracy']} % on {told['accuracy_on']})")
    return accuracies


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", help="a .onnx file")
    parser.add_argument("images", help="a binary file of CIFAR-10")
    files = vars(parser.parse_args())
    for name, file in files.items():
        if not Path(file).is_file():
            parser.error(f"{name}: there is no file {file}; correct the path")
    main(**files)
