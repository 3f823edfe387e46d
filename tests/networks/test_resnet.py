"""ResNet18: torchvision's network with a 3x3 stem and no max-pool, under names of our own."""

import pytest
import torch
import torchvision
from conftest import CIFAR_STATISTICS
from test_scripts import TREE_FOLDER, rows
from torch import nn

import eval as eval_script
import train
from robust_nc.networks.architectures import build_model
from robust_nc.networks.folding import FoldedNetwork
from robust_nc.networks.network import Network


def make_model():
    """With statistics as after training."""
    torch.manual_seed(0)
    model = build_model("ResNet18", 32, in_channels=3, num_classes=7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_it_computes_what_torchvision_s_does():
    model, peer = make_model(), torchvision.models.resnet18(num_classes=7)
    peer.conv1, peer.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    names = {"shortcut": "downsample", "linear": "fc"}
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = value
    peer.load_state_dict(weights)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        logits, features = model(x, return_activations=True)
        torch.testing.assert_close(logits, peer.eval()(x))
        torch.testing.assert_close(logits, model.linear(features))


def test_every_batch_norm_folds_into_its_convolution():
    network = Network(make_model(), *CIFAR_STATISTICS).eval()
    folded = FoldedNetwork(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), network(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_is_trained_and_measured_layer_by_layer(image_tree, run_script):
    data = f"--dataset folder --data-dir {image_tree} --model resnet18 --attack-iters 1"
    assert run_script(train, f"{data} --train-mode pgd_train --epochs 1 --lr-max 0.01")[0] == 0
    sweep = f"{data} --train-mode pgd_train --neural-collapse --layerwise"
    assert run_script(eval_script, sweep)[0] == 0
    folder = str(TREE_FOLDER).replace("vgg11bn", "ResNet18").replace("std_train", "pgd_train")
    layers = list(dict.fromkeys(row["layer"] for row in rows(f"{folder}/results/layers.csv")))
    assert layers == ["stem", "layer1", "layer2", "layer3", "layer4", "features"]


def test_it_is_for_32_pixels(image_tree, run_script):
    data = f"--dataset folder --data-dir {image_tree} --image-size 160 --model ResNet18"
    code, _, error = run_script(train, data)
    assert code == 2 and error.count("\n") == 1
    assert "--model ResNet18 is for images of 32 pixels, not 160" in error
