"""Spike trains, read from a network."""

import torch

from snn_layers import spikes, to_spiking

IMAGES = torch.randn(3, 3, 9, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_spikes_of_a_full_delay_count_what_the_ann_puts_out(small):
    ann, activations = small.double(), []
    hooks = [module.register_forward_hook(lambda *call: activations.append(call[2]))
             for name, module in ann.named_modules() if name.endswith("activation")]
    ann(IMAGES)
    for hook in hooks:
        hook.remove()
    snn = to_spiking(ann, delay=3)
    trains = spikes(snn, IMAGES)
    thresholds = [module.threshold for name, module in snn.named_modules() if name.endswith("activation")]
    assert len(trains) == len(activations) == 5
    for (name, train), activation, threshold in zip(trains.items(), activations, thresholds, strict=True):
        assert name.startswith("body.")
        assert train.shape == (3, *activation.shape)
        assert set(train.unique().tolist()) <= {-1, 0, 1}
        torch.testing.assert_close(train.mean(0) * threshold, activation)


def test_reading_spikes_leaves_the_network_as_it_was(small):
    snn = to_spiking(small.double())
    first = snn(IMAGES)
    assert any((train < 0).any() for train in spikes(snn, IMAGES).values())  # signed neurons take some back
    assert not any(module._forward_hooks for module in snn.modules())
    assert torch.equal(snn(IMAGES), first)
