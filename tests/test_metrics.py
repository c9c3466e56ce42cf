"""Scores, schedules and the training step."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn

from models import build
from quant import quantize_, requantize_
from utils.errors import UserError
from utils.training.engine import MILESTONES, evaluate, learning_rate, sgd, train_epoch
from utils.training.metrics import Meter
from utils.training.step import Step


def test_scores_are_sums_over_samples():
    """Percentages averaged over batches would weigh the short last batch like a full one."""
    meter = Meter()
    logits = torch.eye(10)
    meter.update(logits, torch.arange(10))  # all right
    meter.update(logits[:1], torch.tensor([5]))  # wrong; 5 is not among the first 5 either, ties go to low indices
    scores = meter.scores()
    assert scores.count == 11
    assert scores.top1 == pytest.approx(100 * 10 / 11)
    losses = [-math.log(math.e / (math.e + 9))] * 10 + [-math.log(1 / (math.e + 9))]
    assert scores.loss == pytest.approx(sum(losses) / 11)


def test_top5_counts_the_five_largest():
    meter = Meter()
    meter.update(torch.arange(10.0).repeat(10, 1), torch.arange(10))
    assert (meter.scores().top1, meter.scores().top5) == (10, 50)


def test_fewer_than_five_classes():
    meter = Meter()
    meter.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]))
    assert (meter.scores().top1, meter.scores().top5) == (0, 100)


def test_sums_are_reduced_over_processes(monkeypatch):
    """With a second process that saw 30 samples, all right, 10 of 40 are wrong."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda sums: sums.add_(torch.tensor([30, 30, 0, 30])))
    meter = Meter()
    meter.update(torch.eye(10), (torch.arange(10) + 1) % 10)
    assert meter.scores().top1 == 75
    assert meter.scores().count == 40
    assert meter.scores().count == 40  # asking twice reduces a copy


def test_step_schedule_is_the_published_one():
    rates = [learning_rate("step", epoch / 300, MILESTONES["cifar"]) for epoch in (0, 149, 150, 224, 225, 299)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_cosine_schedule_falls_from_one_to_zero():
    rates = [learning_rate("cosine", part / 10, ()) for part in range(11)]
    assert rates[0] == 1
    assert rates[-1] == pytest.approx(0)
    assert rates == sorted(rates, reverse=True)


def test_clips_have_a_weight_decay_of_their_own():
    network = quantize_(build("resnet20"), 3)
    weights, clips = sgd(network, 0.1, 0.9, 5e-4).param_groups
    assert (weights["weight_decay"], clips["weight_decay"]) == (5e-4, 1e-4)
    assert len(clips["params"]) == 19 + 20  # 19 thresholds, 18 hidden convs and 2 shortcuts
    assert len(weights["params"]) + len(clips["params"]) == len(list(network.parameters()))


def batches(count: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(8, 4), torch.arange(8) % 3) for _ in range(count)]


def test_training_lowers_the_loss_and_follows_the_rate():
    torch.manual_seed(0)
    network, data, asked = nn.Linear(4, 3), batches(4), []

    def rate(part: float) -> float:
        asked.append(part)
        return 0.1

    optimizer = sgd(network, 1.0, 0, 0)
    losses = [train_epoch(Step(network, optimizer), data, rate).loss for _ in range(20)]
    assert losses[-1] < losses[0]
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert set(asked) == {0, 0.25, 0.5, 0.75}


def test_a_diverged_run_stops_with_the_remedy():
    network = nn.Linear(4, 3)
    network.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="lower --lr"):
        train_epoch(Step(network, sgd(network, 0.1, 0, 0)), batches(), lambda _: 0.1)


def test_a_diverged_quantized_network_is_a_users_error():
    network = quantize_(build("resnet20"), 3)
    network.head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"batch 0 of train\): lower --lr"):
        train_epoch(Step(network, sgd(network, 0.1, 0, 0)), [(torch.randn(2, 3, 32, 32), torch.arange(2))], lambda _: 0.1)


def test_a_single_image_for_bn_is_a_users_error():
    network = build("alex")
    with pytest.raises(UserError, match="raise --batch-size"):
        train_epoch(Step(network, sgd(network, 0.1, 0, 0)), [(torch.randn(1, 3, 32, 32), torch.arange(1))], lambda _: 0.1)


def test_a_teacher_replaces_the_labels():
    torch.manual_seed(0)
    teacher, network = nn.Linear(4, 3), nn.Linear(4, 3)
    data = [(torch.randn(32, 4), torch.zeros(32).long()) for _ in range(4)]
    optimizer = sgd(network, 0.5, 0.9, 0)
    for _ in range(60):
        train_epoch(Step(network, optimizer, teacher=teacher), data, lambda _: 0.5)
    images = data[0][0]
    torch.testing.assert_close(network(images).softmax(1), teacher(images).softmax(1), rtol=0.05, atol=0.02)


def test_limit_stops_early_and_evaluation_restores_the_mode():
    network = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5)).train()
    assert evaluate(network, batches(5), limit=2).count == 16
    assert network.training
    assert network[0].weight.grad is None


@pytest.mark.parametrize("arch", ["small", pytest.param("resnet20", marks=pytest.mark.slow)])
def test_a_step_is_one_graph_with_the_gradients_of_the_uncompiled_one(small, arch):
    """The small network has all layers of a ResNet-20, but fewer, since its graph takes long."""
    torch.manual_seed(0)
    network = requantize_(small, 3) if arch == "small" else quantize_(build(arch), 3)
    images, labels, found = torch.randn(4, 3, 32, 32), torch.arange(4), []
    for compile in (False, True):
        trained = copy.deepcopy(network)
        step = Step(trained, sgd(trained, 0.1, 0.9, 1e-4))
        loss = torch.compile(step.loss, backend="aot_eager", fullgraph=True) if compile else step.loss
        loss(images, labels)[1].backward()
        found.append([parameter.grad for parameter in trained.parameters()])
    assert all(torch.equal(plain, compiled) for plain, compiled in zip(*found, strict=True))
