"""Networks of other packages, and weights with a normalisation of their own."""

import copy
import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import CIFAR_STATISTICS
from test_fast_paths import relative, warnings_of, with_statistics
from test_scripts import TREE_FOLDER, assert_equal_runs, dying_after_the_second_checkpoint, rows
from torch import nn

import eval as eval_script
import train
from nc_metrics import neural_collapse
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.networks import any_network
from robust_nc.networks.architectures import build_model
from robust_nc.networks.blocks import block_outputs
from robust_nc.networks.folding import FoldedNetwork, conv_norm_pairs
from robust_nc.networks.network import Network

# Networks as others write them: each says in its name what is special about it.
SOURCE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Operations in place, dropout, a linear layer before the last, and one that is not used."""

    def __init__(self, num_classes, in_channels=3, classifier=None):
        super().__init__()
        self.unused = nn.Linear(3, 3)
        self.conv = nn.Conv2d(in_channels, 6, 3, stride=2)
        self.bn = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(
            nn.Conv2d(6, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(2)
        last = nn.Linear(12, num_classes)
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(32, 12), nn.ReLU(inplace=True), nn.Dropout(0.2), last
        )

    def forward(self, x):
        return self.head(self.pool(self.body(self.relu(self.bn(self.conv(x))))))


class Listing(Net):
    def blocks(self):
        return [("first", self.bn), ("then", self.body)]


class Branching(Net):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else x + 0)


class Viewing(Net):
    def forward(self, x):
        x = self.pool(self.body(self.relu(self.bn(self.conv(x)))))
        return self.head(x.view(x.size(0), -1))


class LikeTimm(nn.Module):
    """Children called `blocks` and `features`, and an optional argument."""

    def __init__(self, num_classes):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4))
        self.features = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Linear(4, num_classes)

    def forward(self, x, mask=None):
        x = self.blocks(x)
        if mask is not None:
            x = x * mask
        return self.classifier(self.features(x))


class Reusing(Net):
    def forward(self, x):
        x = self.body(self.relu(self.bn(self.conv(x))))
        return self.head(self.pool(self.relu(x - 0.1)))


class Pair(Net):
    def forward(self, x):
        return super().forward(x), x


class PairInTraining(Net):
    def forward(self, x):
        return {"out": super().forward(x)} if self.training else super().forward(x)


class Scaled(Net):
    def forward(self, x):
        return 2 * super().forward(x)


class Unused(Listing):
    def blocks(self):
        return [("first", self.bn), ("never", self.unused)]


class Module(nn.Module):
    """Its child has the name that nn.DataParallel gives to what it wraps."""

    def __init__(self, num_classes):
        super().__init__()
        self.module = Net(num_classes)

    def forward(self, x):
        return self.module(x)


def parallel(num_classes):
    return nn.DataParallel(Net(num_classes))


class Remembering(Net):
    """State of its own in checkpoints, and an output that depends on it."""

    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]

    def forward(self, x):
        self.seen += self.training
        return super().forward(x + self.seen / 100)


class Secret:
    pass


class OddState(Net):
    def get_extra_state(self):
        return Secret()

    def set_extra_state(self, state):
        pass


class LosesState(Net):
    def get_extra_state(self):
        return 1


class TwoOfOneName(Net):
    def blocks(self):
        return [("first", self.bn), ("first", self.body)]


class OtherFeatures(Net):
    def blocks(self):
        return [("first", self.bn), ("features", self.body)]


class NumberedBlocks(Net):
    def blocks(self):
        return list(enumerate([self.bn, self.body]))


class OwnFeatures(Net):
    """Its block `features` is what enters the last linear layer."""

    def blocks(self):
        return [("first", self.bn), ("features", self.head[3])]


class Underscored(LikeTimm):
    """Children called `features` and `features_`."""

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.features_ = nn.ReLU()

    def forward(self, x):
        return self.classifier(self.features(self.features_(self.blocks(x))))


def no_linear(num_classes):
    return nn.Sequential(nn.Conv2d(3, num_classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def unused_linear(num_classes):
    model = no_linear(num_classes)
    model[0].spare = nn.Linear(2, 2)
    return model


def thousand(num_classes):
    return Net(1000)


def failing(num_classes):
    raise KeyError("no such\\nbackbone")


def no_module(num_classes):
    return {"classes": num_classes}


def lazy(num_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes))


def no_classes():
    return Net(3)


def pooled_to_one(num_classes):
    """Like resnet18 at 32 pixels: a batch norm over one value per image."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(4, num_classes),
    )


number = 7
'''
RESNET = "torchvision.models:resnet18"
CLASSES = 5


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
    """SOURCE as the module `their_nets` in the current folder."""
    (tmp_path / "their_nets.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    importlib.invalidate_caches()
    yield
    sys.modules.pop("their_nets", None)


def make(name, bf16=False, size=32):
    """A Network of a factory, with statistics as after training."""
    name = name if ":" in name else f"their_nets:{name}"
    torch.manual_seed(0)
    model = with_statistics(build_model(name, size, 3, CLASSES))
    anatomy = any_network.examine(name, model, (3, size, size), CLASSES)
    network = Network(model, *CIFAR_STATISTICS, bf16, anatomy).eval()
    return network.to_channels_last() if anatomy.channels_last else network


def normalised(network, x):
    return (x - network.mean) / network.std


GOOD = ("Net", "Listing", "Branching", "Viewing", "LikeTimm", RESNET)


@pytest.mark.parametrize("name", GOOD)
def test_features_are_what_enters_the_last_linear_layer(name):
    network = make(name)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        logits, features = network(x, return_activations=True)
        bare = copy.deepcopy(network.model)
        torch.testing.assert_close(logits, bare(normalised(network, x)))
        head, weight = getattr(bare, "head", None), network.classifier_weight
        if head is not None:
            head[-1] = nn.Identity()
        else:
            setattr(bare, "fc" if name == RESNET else "classifier", nn.Identity())
        torch.testing.assert_close(features, bare(normalised(network, x)))
    assert weight.shape == (CLASSES, features.shape[1])
    assert network.classifier.entered is None  # nothing of a batch is kept


def test_resnet18_takes_both_sizes_of_images():
    network = make(RESNET, size=160)
    x = torch.rand(2, 3, 160, 160)
    with torch.no_grad(), block_outputs(network) as found:
        _, features = network(x, return_activations=True)
    assert torch.equal(found["features"], features) and features.shape == (2, 512)
    assert found["layer4"].shape == (2, 512 * 5 * 5)


def test_an_examined_model_is_as_it_was():
    torch.manual_seed(0)
    model = build_model("their_nets:Net", 32, 3, CLASSES)
    model.conv.eval()  # a mixture of modes
    modes = [module.training for module in model.modules()]
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    any_network.examine("their_nets:Net", model, (3, 32, 32), CLASSES)
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("bf16", (False, True), ids=("fp32", "bf16"))
@pytest.mark.parametrize("name", GOOD)
def test_a_folded_network_computes_the_same(name, bf16):
    plain, fast = make(name), make(name, bf16)
    folded = FoldedNetwork(fast)
    norms = [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
    # The norm of a stem whose convolution is a block stays, and all where there is no trace.
    assert len(norms) == {"Branching": 2, "LikeTimm": 0, "Listing": 0}.get(name, 1)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        for found, reference in zip(folded(x, True), plain(x, True), strict=True):
            assert found.dtype == torch.float32
            assert relative(found, reference) < (3e-2 if bf16 else 1e-5)


def test_only_what_folds_exactly_is_folded():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.tied, self.twin, self.weighted, self.read, self.good = (
                nn.Conv2d(3, 3, 1) for _ in range(6)
            )
            self.tied.weight = self.twin.weight
            nn.utils.parametrizations.weight_norm(self.weighted)
            self.norms = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(7))
            self.batch = nn.BatchNorm2d(3, track_running_stats=False)
            self.last = nn.Conv2d(3, 3, 1)

        def forward(self, x, mask=None):
            if mask is not None:
                return x
            x = self.norms[1](self.twice(self.norms[0](self.twice(x))))
            x = self.norms[3](self.twin(self.norms[2](self.tied(x))))
            x = self.norms[4](self.weighted(x))
            x = self.norms[5](self.read(x)) * self.read.weight.sum()
            return self.norms[6](self.good(self.batch(self.last(x))))

    assert conv_norm_pairs(Odd().eval()) == [("good", "norms.6")]


def test_what_cannot_be_traced_or_laid_out_otherwise_is_told_in_one_line(caplog):
    caplog.set_level("INFO", logger="robust_nc")
    FoldedNetwork(make("Branching"))
    [line] = warnings_of(caplog)
    assert line.startswith("batch norms are not folded, the model cannot be traced: ")
    caplog.clear()
    network = make("Viewing")
    [line] = warnings_of(caplog)
    assert line.startswith("channels-last is left out, in which the model does not run: ")
    assert not network.anatomy.channels_last and make("Net").anatomy.channels_last


@pytest.mark.slow
def test_a_compiled_network_computes_the_same():
    plain, compiled = make("Net"), make("Net")
    compiled.compile(dynamic=False)
    torch._dynamo.utils.counters.clear()
    for training in (True, False):
        for network in (plain, compiled):
            network.train(training)
            network.model.head[3].p = 0  # what dropout draws is not the same
        for _ in range(2):  # the second time as it was compiled
            x = torch.rand(8, 3, 32, 32)
            for found, expected in zip(compiled(x, True), plain(x, True), strict=True):
                assert relative(found, expected) < 1e-4
    assert torch._dynamo.utils.counters["frames"]["ok"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


BLOCKS = {
    "Net": ["conv", "bn", "relu", "body", "pool", "features"],
    "Listing": ["first", "then"],
    "LikeTimm": ["blocks", "features_", "features"],
    RESNET: [
        *("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"),
        "features",
    ],
}


def by_hand(name, model, x):
    """The output of every block, flattened, computed child by child without hooks."""
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    found = {}
    for child in model.children():
        if child is getattr(model, "unused", None):
            continue
        if isinstance(child, nn.Sequential) and isinstance(child[-1], nn.Linear):
            child = child[:-1]  # Net's head but for its last layer
        elif isinstance(child, nn.Linear):
            found[len(found)] = x.flatten(1)
            break
        x = child(x)
        found[len(found)] = x.clone().flatten(1)
    values = list(found.values())
    return dict(zip(BLOCKS[name], values[1::2] if name == "Listing" else values, strict=False))


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_the_children_in_forward_order(name):
    network = make(name)
    x = torch.rand(60, 3, 32, 32)
    labels = torch.arange(60) % 3
    x += labels.view(-1, 1, 1, 1) / 10  # classes that differ
    with torch.no_grad():
        expected = by_hand(name, network.model, normalised(network, x))
        assert list(expected) == BLOCKS[name]
        # Contiguous, a block's output is a view that an operation in place would change.
        contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        for seen in (network, FoldedNetwork(network), contiguous):
            with block_outputs(seen) as found:
                logits = seen(x)
            assert list(dict(seen.blocks())) == list(expected)
            for block, values in expected.items():
                assert relative(found[block], values) < 1e-5, block
            measured, _ = Evaluator(seen, batch_size=25).blocks(x, labels)
            for block, values in expected.items():
                width = measured[block]["features"]
                assert width == values.shape[1]
                weight = torch.zeros(CLASSES, width)
                whole = neural_collapse(values, labels, logits, weight)
                assert measured[block]["nc1"] == pytest.approx(whole.nc1, rel=2e-3), block
                assert measured[block]["ncc_accuracy"] == whole.ncc_accuracy


def test_no_two_blocks_have_the_same_name():
    names = list(dict(make("Underscored").blocks()))
    assert names == ["blocks", "features_", "features__", "features"]
    network = make("OwnFeatures")
    with torch.no_grad(), block_outputs(network) as found:
        _, features = network(torch.rand(2, 3, 32, 32), return_activations=True)
    assert torch.equal(found["features"], features)


def test_a_folded_network_takes_over_the_state_of_the_model_s_own():
    network = make("Remembering").train()
    folded, x = FoldedNetwork(network), torch.rand(4, 3, 32, 32)
    for _ in range(3):
        network(x)
    network.eval()
    with torch.no_grad():
        torch.testing.assert_close(folded.refold()(x), network(x), rtol=1e-4, atol=1e-5)


def test_a_child_used_twice_counts_where_it_was_last():
    network = make("Reusing")
    assert list(dict(network.blocks())) == ["conv", "bn", "body", "relu", "pool", "features"]
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad(), block_outputs(network) as found:
        network(x)
    torch.testing.assert_close(found["relu"], (found["body"] - 0.1).relu())


# ---------------------------------------------------------------------------------------------
# The scripts
# ---------------------------------------------------------------------------------------------

ROOTS = ("models", "whole")
SHORT = "--attack-iters 1 --lr-max 0.01"


@pytest.fixture
def tree(image_tree):
    return f"--dataset folder --data-dir {image_tree} {SHORT}"


def folder_of(model, mode="std_train"):
    return Path(str(TREE_FOLDER).replace("vgg11bn", model).replace("std_train", mode))


@pytest.mark.slow
@pytest.mark.parametrize("size", (32, 160))
def test_torchvision_s_resnet18_is_trained_attacked_swept_and_measured_by_layer(
    size, tree, run_script
):
    flags = f"{tree} --model {RESNET} --image-size {size} --train-mode pgd_train"
    flags += " --limit-train 6 --limit-test 3"
    assert run_script(train, f"{flags} --epochs 1")[0] == 0
    code, _, error = run_script(eval_script, f"{flags} --neural-collapse --layerwise --ncc")
    assert (code, error) == (0, "")
    folder = folder_of("torchvision.models.resnet18", "pgd_train")
    state = torch.load(folder / "model_0.pth", weights_only=True)["state_dict"]
    assert list(state) == list(torchvision.models.resnet18(num_classes=3).state_dict())
    layers = rows(folder / "results/layers.csv")
    assert list(dict.fromkeys(row["layer"] for row in layers)) == BLOCKS[RESNET]
    swept = [row for row in rows(folder / "results/metrics.csv") if row["source"] == "eval"]
    assert [row["input"] for row in swept] == ["clean", "pgd"]
    told = json.loads((folder / "args.json").read_text())
    assert told["model"] == RESNET


@pytest.mark.parametrize("mode", ("pgd_train", "pgd_train_TRADES"))
def test_a_resumed_run_is_the_uninterrupted_one(mode, tree, run_script, monkeypatch):
    flags = f"{tree} --model their_nets:Net --train-mode {mode} --epochs 3 --neural-collapse"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    with dying_after_the_second_checkpoint(monkeypatch):
        assert run_script(train, flags)[0] == 130
    assert run_script(train, f"{flags} --resume")[0] == 0
    folder = folder_of("their_nets.Net", mode)
    assert_equal_runs(folder, "whole" / folder.relative_to("models"))


@pytest.mark.parametrize("name", ("Module", "parallel", "Remembering", "OwnFeatures"))
def test_what_a_model_saves_it_goes_on_with_and_is_measured_by(name, tree, run_script):
    flags = f"{tree} --model their_nets:{name}"
    assert run_script(train, f"{flags} --epochs 2 --models-dir whole")[0] == 0
    assert run_script(train, f"{flags} --epochs 2")[0] == 0
    folder = folder_of(f"their_nets.{name}")
    (folder / "model_1.pth").unlink()
    assert run_script(train, f"{flags} --epochs 2 --resume 1 --overwrite")[0] == 0
    files = [path / folder.relative_to("models") / "model_1.pth" for path in map(Path, ROOTS)]
    first, again = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert list(first) == list(again)
    code, _, error = run_script(
        eval_script, f"{flags} --neural-collapse --split test --ncc-layers features"
    )
    assert (code, error) == (0, "")
    swept = [row for row in rows(folder / "results/metrics.csv") if row["source"] == "eval"]
    losses = [float(row["loss"]) for row in swept if row["input"] == "clean"]
    tested = [float(row["test_loss"]) for row in rows(folder / "history.csv")]
    assert losses == pytest.approx(tested, rel=1e-5)


def test_two_factories_share_no_folder(tree, run_script):
    for name in ("Net", "Listing"):
        assert run_script(train, f"{tree} --model their_nets:{name} --epochs 1")[0] == 0
        assert (folder_of(f"their_nets.{name}") / "model_0.pth").exists()


def test_a_factory_that_takes_the_channels_is_told_them(run_script):
    digits = f"--dataset digits --limit-train 20 --limit-test 10 --epochs 1 {SHORT}"
    assert run_script(train, f"{digits} --model their_nets:Net --precision bf16")[0] == 0
    code, _, error = run_script(train, f"{digits} --model {RESNET}")
    assert code == 1 and error.count("\n") == 1
    assert f"--model {RESNET}: does not take images of 1x32x32" in error and "in_channels" in error


@pytest.mark.parametrize(
    ("name", "told"),
    (
        ("no_linear", "it has none among Conv2d, AdaptiveAvgPool2d, Flatten"),
        ("unused_linear", "none of its layers 0.spare is called"),
        ("Scaled", "its last one, head.4, puts out other numbers, of the shape (2, 3)"),
        ("thousand", "its output has the shape (2, 1000), expected logits (2, 3)"),
        ("Pair", "its output is a tuple, expected one tensor"),
        ("PairInTraining", "its output is a dict, expected one tensor"),
        ("Unused", "its method blocks() lists never, of which"),
        ("TwoOfOneName", "its method blocks() lists two blocks of the name first"),
        (
            "OtherFeatures",
            "its method blocks() lists features, a name that is kept for what enters",
        ),
        ("NumberedBlocks", "its method blocks() must list (name, module) of each block"),
        (
            "OddState",
            "the state of its get_extra_state cannot be read back from a checkpoint, which",
        ),
        ("LosesState", "the state of its get_extra_state cannot be"),
        ("failing", "called with num_classes=3: KeyError: 'no such\\nbackbone'"),
        ("no_classes", "called with num_classes=3: TypeError: no_classes() got an unexpected"),
        ("no_module", "makes a dict, expected an nn.Module"),
        ("lazy", "has lazy layers"),
    ),
)
def test_a_model_that_cannot_be_used_is_told_in_one_line(name, told, tree, run_script, tmp_path):
    code, _, error = run_script(train, f"{tree} --model their_nets:{name}")
    assert code == 1 and error.count("\n") == 1, error
    assert error.startswith(f"train.py: error: --model their_nets:{name}: ") and told in error
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("name", "told"),
    (
        ("their_nets:number", "their_nets.py holds no function or class 'number'"),
        ("their_nets:nothing", "their_nets.py holds no function or class 'nothing'"),
        ("no_such_nets:make", "no_such_nets cannot be imported: ModuleNotFoundError"),
        ("their_nets:", "expected PACKAGE.MODULE:FACTORY, got 'their_nets:'"),
        ("../their_nets:Net", "expected PACKAGE.MODULE:FACTORY"),
        ("theirs", "expected vgg11bn, PreActResNet18, ResNet18 or PACKAGE.MODULE:FACTORY"),
    ),
)
def test_a_factory_that_is_not_there_is_told_in_one_line(name, told, tree, run_script):
    code, _, error = run_script(train, f"{tree} --model {name}")
    assert code == 2 and error.count("\n") == 1
    assert error.startswith("train.py: error: argument --model: ") and told in error


def test_a_last_batch_of_one_image_is_refused_where_it_cannot_be_trained_on(tree, run_script):
    flags = f"{tree} --model their_nets:pooled_to_one --epochs 1"
    code, _, error = run_script(train, f"{flags} --batch-size 17")
    assert code == 1 and error.count("\n") == 1 and "--batch-size 17: of 18 images" in error
    assert run_script(train, f"{flags} --batch-size 18")[0] == 0
    other = flags.replace("pooled_to_one", "Net")
    assert run_script(train, f"{other} --batch-size 17")[0] == 0


# ---------------------------------------------------------------------------------------------
# Normalisation
# ---------------------------------------------------------------------------------------------

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.3, 0.2)
GIVEN = "--mean 0.5 0.4 0.3 --std 0.25 0.3 0.2"


@pytest.fixture
def net_tree(tree):
    return f"{tree} --model their_nets:Net"


@pytest.fixture
def rewritten(net_tree, run_script):
    """The weights of a trained run, rewritten to compute the same of images less MEAN over STD."""
    assert run_script(train, f"{net_tree} --epochs 4 --batch-size 6")[0] == 0
    folder = folder_of("their_nets.Net")
    args = json.loads((folder / "args.json").read_text())
    weights = torch.load(folder / "model_3.pth", weights_only=True)["state_dict"]
    torch.save({"state_dict": weights}, "bare.pth")
    old_mean, old_std, mean, std = (
        torch.tensor(v).view(1, -1, 1, 1) for v in (args["mean"], args["std"], MEAN, STD)
    )
    kernel = weights["conv.weight"]
    shift = (kernel * (mean - old_mean) / old_std).sum((1, 2, 3))
    return weights | {
        "conv.weight": kernel * std / old_std,
        "conv.bias": weights["conv.bias"] + shift,
    }


def wrapped(weights, mean, std, prefix):
    """The weights as a wrapper that normalises saves them."""
    statistics = {mean: torch.tensor(MEAN).view(3, 1, 1), std: torch.tensor(STD).view(1, 3, 1, 1)}
    return statistics | {prefix + name: value for name, value in weights.items()}


WRAPPERS = (
    ("normalize.mean", "normalize.std", "model."),
    ("normalize.mean", "normalize.std", ""),
    ("mean", "std", "model."),
    ("0.mean", "0.std", "1."),
    ("module.0.mean", "module.0.std", "module.1."),
    ("0.mean", "0.std", "1.module."),
)
MEASURED = ("loss", "accuracy", "nc1", "nc4")


def outcomes(path):
    """What of a sweep's clean images is compared, by file."""
    found = [row for row in rows(path) if row["input"] == "clean"]
    return [[float(row[name]) for name in MEASURED] for row in found]


def test_wrapped_weights_are_measured_as_the_bare_ones(rewritten, net_tree, run_script):
    """Each with its own statistics, and a bare file between them with the data's."""
    names = []
    for number, layout in enumerate(WRAPPERS):
        names += [f"w{number}.pth"]
        torch.save({"state_dict": wrapped(rewritten, *layout)}, names[-1])
    torch.save(rewritten, "plain.pth")
    names.insert(2, "bare.pth")
    sweep = f"{net_tree} --neural-collapse --checkpoint"
    code, output, error = run_script(eval_script, f"{sweep} {' '.join(names)} --out found")
    assert (code, error) == (0, "")
    assert output.count(f"normalised with its own {GIVEN}\n") == len(WRAPPERS)
    [line] = [line for line in output.splitlines() if "bare.pth: normalised" in line]
    assert line.endswith(", it brings none along")
    told = json.loads(Path("found/eval_args.json").read_text())
    own = [[*MEAN], [*STD]]
    assert told["statistics"][2] == [told["data_mean"], told["std"]] != own
    others = [value for i, value in enumerate(told["statistics"]) if i != 2]
    np.testing.assert_allclose(others, [own] * len(WRAPPERS), rtol=1e-6)
    expected = outcomes("found/metrics.csv")[2]
    for found in outcomes("found/metrics.csv"):
        assert found == pytest.approx(expected, rel=1e-3)
    # Without a wrapper nothing tells the statistics but the flags.
    assert run_script(eval_script, f"{sweep} plain.pth --out given {GIVEN}")[0] == 0
    assert outcomes("given/metrics.csv")[0] == pytest.approx(expected, rel=1e-3)
    assert run_script(eval_script, f"{sweep} plain.pth --out wrong")[0] == 0
    assert outcomes("wrong/metrics.csv")[0] != pytest.approx(expected, rel=1e-2)


def test_the_weights_asked_for_are_measured(net_tree, rewritten, run_script):
    bare = torch.load("bare.pth", weights_only=True)["state_dict"]
    zeros = {name: torch.zeros_like(value) for name, value in bare.items()}
    torch.save({"state_dict_ema": bare, "state_dict": zeros}, "both.pth")
    sweep = f"{net_tree} --neural-collapse --checkpoint"
    assert run_script(eval_script, f"{sweep} bare.pth --out bare")[0] == 0
    code, output, _ = run_script(eval_script, f"{sweep} both.pth --out zeros")
    assert code == 0 and output.count("those of state_dict are used, --weights-key chooses") == 1
    ema = f"{sweep} both.pth --weights-key state_dict_ema"
    assert run_script(eval_script, f"{ema} --out ema")[0] == 0
    assert outcomes("ema/metrics.csv") == outcomes("bare/metrics.csv")
    assert float(rows("zeros/metrics.csv")[0]["loss"]) == pytest.approx(np.log(3))
    # Beside the others of the file, under a name of their own; the default's key is as none.
    code, output, error = run_script(eval_script, f"{ema} --out zeros")
    assert code == 0 and "(0 done before)" in output, error
    default = f"{sweep} both.pth --weights-key state_dict --out zeros"
    for again in (ema, default):
        code, output, error = run_script(eval_script, f"{again} --out zeros")
        assert code == 0 and "(1 done before)" in output, error
    found = rows("zeros/metrics.csv")
    assert [row["checkpoint"] for row in found[::2]] == ["both.pth", "both.pth:state_dict_ema"]
    as_alone = [row | {"epoch": "1"} for row in rows("ema/metrics.csv")]
    assert found[2:] == as_alone
    code, _, error = run_script(eval_script, f"{sweep} both.pth --weights-key best --out other")
    assert code == 1 and error.count("\n") == 1 and "they are: state_dict, state_dict_ema" in error


def test_flags_beat_what_a_file_brings_along(rewritten, net_tree, run_script):
    torch.save(wrapped(rewritten, *WRAPPERS[0]), "wrapped.pth")
    torch.save(rewritten, "plain.pth")
    for how in ("--mean 0.1 0.2 0.3 --std 0.3 0.2 0.1", "--no-normalisation"):
        for file in ("wrapped", "plain"):
            sweep = f"{net_tree} --neural-collapse --checkpoint {file}.pth --out {file} {how}"
            code, output, _ = run_script(eval_script, f"{sweep} --overwrite")
            assert code == 0
            assert output.count("as given, not with its own") == (file == "wrapped")
        measured = [
            [{**row, "checkpoint": ""} for row in rows(f"{file}/metrics.csv")]
            for file in ("wrapped", "plain")
        ]
        assert measured[0] == measured[1]
    # And what was measured with other statistics is not taken for these.
    sweep = f"{net_tree} --neural-collapse --checkpoint wrapped.pth --out wrapped"
    code, _, error = run_script(eval_script, sweep)
    assert code == 1 and error.count("\n") == 1 and "--mean was [0.0, 0.0, 0.0], is" in error


def test_statistics_of_the_data_given_as_flags_are_not_a_file_s_own(
    rewritten, net_tree, run_script
):
    torch.save(wrapped(rewritten, *WRAPPERS[0]), "wrapped.pth")
    sweep = f"{net_tree} --neural-collapse --checkpoint wrapped.pth --out res"
    assert run_script(eval_script, sweep)[0] == 0
    args = json.loads((folder_of("their_nets.Net") / "args.json").read_text())
    mean, std = (" ".join(map(repr, args[name])) for name in ("mean", "std"))
    code, _, error = run_script(eval_script, f"{sweep} --mean {mean} --std {std}")
    assert code == 1 and "--mean and --std were not given then" in error


@pytest.mark.parametrize(
    ("change", "told"),
    (
        ({"normalize.mean": torch.tensor([0.5])}, "normalize.mean must hold a finite number for"),
        ({"normalize.std": torch.tensor([0.5, float("nan"), 1])}, "normalize.std must hold"),
        ({"normalize.std": torch.tensor([0.5, 0, 1])}, "normalize.std must be above 0"),
        ({"model.extra": torch.ones(1)}, "weights of another network: extra is (1,)"),
    ),
)
def test_a_damaged_wrapper_is_told_in_one_line(change, told, net_tree, run_script):
    torch.manual_seed(0)
    weights = build_model("their_nets:Net", 32, 3, 3).state_dict()
    torch.save(wrapped(weights, *WRAPPERS[0]) | change, "odd.pth")
    sweep = f"{net_tree} --neural-collapse --checkpoint odd.pth --out res"
    code, _, error = run_script(eval_script, sweep)
    assert code == 1 and error.count("\n") == 1 and f"odd.pth: {told}" in error


def test_a_folded_network_follows_the_statistics():
    network = make("Net")
    folded = FoldedNetwork(network)
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        network.normalise_by(MEAN, STD)
        torch.testing.assert_close(folded.refold()(x), network(x))
        assert relative(network(x), before) > 1e-2
    assert network.normalises_by((MEAN, STD)) and not network.normalises_by((STD, MEAN))


class TestTrainedWithStatisticsOfOnesOwn:
    @pytest.fixture
    def trained(self, net_tree, run_script):
        assert run_script(train, f"{net_tree} --epochs 2 {GIVEN}")[0] == 0
        return net_tree

    def test_they_are_recorded_and_make_another_network(self, trained, run_script):
        folder = folder_of("their_nets.Net")
        told = json.loads((folder / "args.json").read_text())
        assert (tuple(told["mean"]), tuple(told["std"])) == (MEAN, STD)
        own = f"{trained} --epochs 2 --models-dir own"
        assert run_script(train, own)[0] == 0
        other = json.loads(("own" / folder.relative_to("models") / "args.json").read_text())
        assert other["mean"] == other["data_mean"] == told["data_mean"] != told["mean"]
        states = [
            torch.load(path / folder.relative_to("models") / "model_1.pth", weights_only=True)
            for path in (Path("models"), Path("own"))
        ]
        name = "head.4.weight"
        assert not torch.equal(*(state["state_dict"][name] for state in states))

    def test_a_sweep_takes_them_over(self, trained, run_script):
        code, output, _ = run_script(eval_script, f"{trained} --neural-collapse")
        assert code == 0 and f"images are normalised with {GIVEN}\n" in output
        folder = folder_of("their_nets.Net")
        swept = rows(folder / "results/metrics.csv")
        history = rows(folder / "history.csv")
        assert run_script(eval_script, f"{trained} --neural-collapse {GIVEN}")[0] == 0
        clean = f"{trained} --neural-collapse --split test --overwrite"
        assert run_script(eval_script, clean)[0] == 0
        tested = [r for r in rows(folder / "results/metrics.csv") if r["source"] == "eval"]
        losses = [float(r["loss"]) for r in tested if r["input"] == "clean"]
        assert losses == pytest.approx([float(row["test_loss"]) for row in history], rel=1e-5)
        assert len([r for r in swept if r["source"] == "eval"]) == 4

    @pytest.mark.parametrize("other", ("--mean 0 0 0 --std 1 1 1", "--no-normalisation"))
    def test_others_are_refused(self, other, trained, run_script):
        code, _, error = run_script(eval_script, f"{trained} --neural-collapse {other}")
        assert code == 1 and error.count("\n") == 1
        assert "--mean was [0.5, 0.4, 0.3], is [0.0, 0.0, 0.0] now" in error

    def test_a_run_goes_on_with_the_same_alone(self, trained, run_script):
        (folder_of("their_nets.Net") / "model_1.pth").unlink()
        command = f"{trained} --epochs 2 --resume 1 --overwrite"
        code, _, error = run_script(train, command)
        assert code == 1 and error.count("\n") == 1 and "--mean was [0.5, 0.4, 0.3], is" in error
        code, _, error = run_script(train, f"{command} --no-normalisation")
        assert code == 1 and "--no-normalisation was False, is True now" in error
        assert run_script(train, f"{command} {GIVEN}")[0] == 0

    def test_other_images_are_noticed_all_the_same(self, trained, run_script, image_tree):
        for path in (image_tree / "train" / "ant").iterdir():
            path.write_bytes((image_tree / "train" / "bee" / path.name).read_bytes())
        code, _, error = run_script(eval_script, f"{trained} --neural-collapse {GIVEN}")
        assert code == 1 and "was trained on other images" in error

    def test_a_run_does_not_go_on_from_a_file_with_others(self, trained, run_script):
        path = folder_of("their_nets.Net") / "model_0.pth"
        weights = torch.load(path, weights_only=True)["state_dict"]
        odd = wrapped(weights, *WRAPPERS[0]) | {"normalize.mean": torch.tensor(STD)}
        torch.save({"state_dict": odd}, path)
        command = f"{trained} --epochs 2 --resume 1 --overwrite"
        code, _, error = run_script(train, f"{command} {GIVEN}")
        assert code == 1 and error.count("\n") == 1
        assert "was trained with --mean 0.25 0.3 0.2 --std 0.25 0.3 0.2; give the same" in error


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    (
        ("--mean 0.5 0.5 0.5", 2, "--mean and --std go together"),
        ("--std 0.5 0.5 0.5", 2, "--mean and --std go together"),
        ("--mean 0.5 0.5 0.5 --std 0.5", 2, "--mean has 3 numbers, --std 1"),
        ("--mean 0.5 --std 0.5", 1, "--mean and --std take a number for each of 3 channels, got 1"),
        ("--mean 125 123 114 --std 1 1 1", 2, "--mean: expected a number from 0 to 1"),
        ("--mean 0 0 0 --std 1 0 1", 2, "--std: expected a number above 0"),
        (f"--no-normalisation {GIVEN}", 2, "--no-normalisation leaves out what --mean and --std"),
    ),
)
def test_statistics_without_a_meaning_are_refused(flags, code, told, net_tree, run_script):
    torch.save({}, "any.pth")  # what is wrong with the flags is told before it
    sweep = "--neural-collapse --checkpoint any.pth --out res"
    for script, more in ((train, ""), (eval_script, sweep)):
        found, _, error = run_script(script, f"{net_tree} {flags} {more}")
        assert found == code and error.count("\n") == 1 and told in error
