"""Weights as others save them: keys, prefixes, copies, statistics, and what is no file of them."""

import argparse
import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CIFAR_STATISTICS
from test_fast_paths import warnings_of
from torch import nn

from robust_nc.networks.checkpoints import load_checkpoint, save_checkpoint
from robust_nc.networks.network import Network
from utils import InputError

MEAN, STD = (0.5, 0.25, 0.125), (0.25, 0.5, 0.75)


class Net(nn.Module):
    def __init__(self, child="conv", classes=4):
        super().__init__()
        setattr(self, child, nn.Conv2d(3, 6, 3))
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.bn(next(self.children())(x)).mean((2, 3)))


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", logger="robust_nc")


def fresh(factory=Net):
    torch.manual_seed(7)
    return Network(factory(), *CIFAR_STATISTICS)


def weights_of(factory=Net, seed=1):
    torch.manual_seed(seed)
    return {name: value.clone() for name, value in factory().state_dict().items()}


def named(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


def load(content, factory=Net, **options):
    """The network after loading a file with this content, and the statistics."""
    torch.save(content, "file.pth")
    network = fresh(factory)
    _, statistics = load_checkpoint(Path("file.pth"), network, **options)
    return network.model.state_dict(), statistics


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "model.",
    "model._orig_mod.",
    "_orig_mod.model.module.",
    "net.backbone.",
)
KEYS = (
    None,
    *("state_dict", "model", "net", "model_state_dict", "ema_state_dict", "state_dict_ema"),
    "weights",
)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", KEYS)
def test_weights_are_read_under_any_key_and_prefix(key, prefix, caplog):
    weights = weights_of()
    content = named(weights, prefix)
    found, statistics = load({key: content, "epoch": 3} if key else content)
    check_equal(found, weights)
    assert statistics is None and not caplog.records


def test_what_wrappers_put_into_the_middle_of_names_is_passed_over():
    weights = weights_of()
    odd = {
        name.replace("conv.", "conv._orig_mod.module."): value for name, value in weights.items()
    }
    check_equal(load(named(odd, "module."))[0], weights)


def parallel():
    return nn.DataParallel(Net())


FACTORIES = {
    "child_module": lambda: Net("module"),
    "child_orig_mod": lambda: Net("_orig_mod"),
    "child_model": lambda: Net("model"),
    "parallel": parallel,
    "parallel_twice": lambda: nn.DataParallel(parallel()),
    "sequential": lambda: nn.Sequential(Net(), nn.Identity()),
}


@pytest.mark.parametrize("wrapper", ("", "module.", "_orig_mod.", "model.", "module._orig_mod."))
@pytest.mark.parametrize("name", FACTORIES)
def test_whatever_a_network_calls_its_parts_its_own_file_is_read(name, wrapper, tmp_path):
    factory = FACTORIES[name]
    weights = weights_of(factory)
    save_checkpoint(tmp_path / "own.pth", state_dict=named(weights, wrapper), epoch=0)
    network = fresh(factory)
    rest, statistics = load_checkpoint(tmp_path / "own.pth", network)
    check_equal(network.model.state_dict(), weights)
    assert rest == {"epoch": 0} and statistics is None


def test_a_bare_network_s_weights_fit_one_of_several_gpus():
    check_equal(load(weights_of())[0], weights_of())
    assert load(weights_of(), parallel)[0].keys() == named(weights_of(), "module.").keys()


STATISTICS = (
    ("normalize.mean", "normalize.std", "model."),
    ("normalize.mean", "normalize.std", ""),
    ("module.normalize.mean", "module.normalize.std", "module."),
    ("mu", "sigma", "model."),
    ("module.mu", "module.sigma", "module.model."),
    ("_orig_mod.0.mean", "_orig_mod.0.std", "_orig_mod.1."),
    ("0.means", "0.sds", "1.module."),
    ("normalizer.new_mean", "normalizer.new_std", "model."),
    ("module.normalizer.new_mean", "module.normalizer.new_std", "module.model."),
    ("norm.mu", "norm.sigma", "net."),
)


def statistics_under(mean, std, values=(MEAN, STD)):
    return {mean: torch.tensor(values[0]).view(3, 1, 1), std: torch.tensor(values[1]).view(1, 3, 1)}


@pytest.mark.parametrize(("mean", "std", "prefix"), STATISTICS)
def test_the_statistics_of_a_wrapper_are_found(mean, std, prefix):
    weights = weights_of()
    content = {"state_dict": statistics_under(mean, std) | named(weights, prefix)}
    found, statistics = load(content)
    check_equal(found, weights)
    assert statistics == (MEAN, STD)


def test_statistics_of_images_from_0_to_255_become_those_of_images_from_0_to_1():
    values = [[255 * value for value in part] for part in (MEAN, STD)]
    _, statistics = load(statistics_under("mu", "sigma", values) | named(weights_of(), "model."))
    np.testing.assert_allclose(statistics, (MEAN, STD), rtol=1e-6)


class TestSeveralSets:
    @pytest.fixture
    def madry(self):
        """The robustness package: an attacker with its own copy of weights and statistics."""
        other = ((0.1, 0.1, 0.1), (0.2, 0.2, 0.2))
        attacker = statistics_under(
            "module.attacker.normalize.new_mean", "module.attacker.normalize.new_std", other
        )
        own = statistics_under("module.normalizer.new_mean", "module.normalizer.new_std")
        copies = named(weights_of(seed=2), "module.attacker.model.")
        model = attacker | copies | own | named(weights_of(), "module.model.")
        return {"model": model, "optimizer": {"state": {}, "param_groups": []}, "epoch": 90}

    def test_an_attacker_s_copy_is_not_taken(self, madry, caplog):
        found, statistics = load(madry)
        check_equal(found, weights_of())
        assert statistics == (MEAN, STD)
        [line] = warnings_of(caplog)
        assert line == (
            "file.pth: several sets of weights, model.module.model, model.module.attacker.model: "
            "those of model.module.model are used, --weights-key chooses others"
        )

    @pytest.mark.parametrize("key", ("model.module.attacker.model", "module.attacker.model"))
    def test_it_is_where_it_is_asked_for(self, key, madry):
        found, statistics = load(madry, key=key)
        check_equal(found, weights_of(seed=2))
        assert statistics[1] == pytest.approx((0.2, 0.2, 0.2))

    @pytest.mark.parametrize(
        ("key", "seed"), ((None, 1), ("state_dict_ema", 2), ("state_dict", 1), ("ema", 3))
    )
    def test_an_average_is_chosen_by_its_key(self, key, seed, caplog):
        content = {
            "ema": weights_of(seed=3),
            "state_dict_ema": weights_of(seed=2),
            "state_dict": weights_of(),
        }
        check_equal(load(content, key=key)[0], weights_of(seed=seed))
        [line] = warnings_of(caplog)
        assert "state_dict, state_dict_ema, ema" in line
        assert f"those of {key or 'state_dict'} are used" in line
        assert ("--weights-key" in line) == (key is None)

    def test_a_key_without_weights_names_those_that_are_there(self):
        content = {"state_dict": weights_of(), "state_dict_ema": weights_of(seed=2)}
        with pytest.raises(
            InputError, match=r"--weights-key best: no .* state_dict, state_dict_ema"
        ):
            load(content, key="best")

    def test_what_stands_beside_a_set_is_left_out_only_where_the_set_is_named(self, caplog):
        content = {"state_dict": named(weights_of(), "model.") | {"head2.weight": torch.ones(2, 6)}}
        with pytest.raises(InputError, match=r"it holds head2.weight \(1\).*--weights-key state_"):
            load(content)
        check_equal(load(content, key="state_dict.model")[0], weights_of())
        [line] = warnings_of(caplog)
        assert line.endswith("left out, beside state_dict.model: head2.weight (1)")


def test_entries_without_a_meaning_are_passed_over():
    averaged = named(weights_of(), "module.") | {"n_averaged": torch.tensor(3)}
    check_equal(load(averaged)[0], weights_of())
    old = {n: v for n, v in weights_of().items() if not n.endswith("num_batches_tracked")}
    check_equal(load({"state_dict": old})[0], weights_of())
    flags = {"args": argparse.Namespace(lr=0.1), "best": np.float64(0.9), "top": np.float32(0.5)}
    check_equal(load({"state_dict": weights_of()} | flags)[0], weights_of())


def test_arrays_of_numpy_are_read_beside_weights_and_as_weights():
    arrays = {name: value.numpy() for name, value in weights_of().items()}
    curve = {"losses": np.arange(3.0), "names": np.array(["a", "b"])}
    for content in (arrays, {"state_dict": weights_of()} | curve):
        check_equal(load(content)[0], weights_of())


def test_names_that_do_not_fit_are_told_by_three_of_each_side_and_how_many():
    others = {f"layer{i}.weight": torch.ones(i) for i in range(5)}
    with pytest.raises(InputError) as caught:
        load(others)
    assert str(caught.value) == (
        "file.pth: weights of another network: conv.weight is missing, this network has "
        "(6, 3, 3, 3); in the file alone layer0.weight, layer1.weight, layer2.weight, ... (5); in "
        "this network alone conv.weight, conv.bias, bn.weight, ... (8)"
    )
    wide = weights_of() | {"conv.weight": torch.ones(6, 3, 5, 5)}
    with pytest.raises(InputError, match=r"of another shape conv.weight \(1\)$"):
        load(named(wide, "module."))
    with pytest.raises(InputError, match="its network has 7 classes, the data has 4"):
        load(weights_of(lambda: Net(classes=7)))
    missing = named(weights_of(), "module.model.")
    del missing["module.model.bn.bias"]
    with pytest.raises(
        InputError, match=r"bn.bias is missing.* in this network alone bn.bias \(1\)"
    ):
        load(missing)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("kind", ("whole", "in_a_dict", "scripted"))
def test_a_pickled_model_comes_with_the_line_that_makes_weights_of_it(kind, tmp_path):
    torch.manual_seed(1)
    model = Net()
    path = tmp_path / "it's.pt"
    if kind == "scripted":
        torch.jit.save(torch.jit.trace(model.eval(), torch.rand(2, 3, 8, 8)), path)
    else:
        torch.save({"model": model, "epoch": 1} if kind == "in_a_dict" else model, path)
    with pytest.raises(InputError, match="refused, it is not a file of weights alone") as caught:
        load_checkpoint(path, fresh())
    message = str(caught.value)
    assert "\n" not in message
    exec(message.partition("turns it into one: ")[2])
    network = fresh()
    load_checkpoint(tmp_path / "it's.weights.pth", network)
    check_equal(network.model.state_dict(), copy.deepcopy(model.state_dict()))
