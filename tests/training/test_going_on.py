"""Runs that go on: named by their folder, for more epochs, from other weights, or not at all."""

import pytest
import torch
from test_scripts import TREE_FOLDER, assert_equal_runs

import eval as eval_script
import train

FLAGS = "--epochs 3 --attack-iters 2 --batch-size 4 --lr-max 0.01"


@pytest.fixture
def flags(image_tree, tiny_models):
    return f"--dataset folder --data-dir {image_tree} {FLAGS}"


def folder_of(mode, models="models", seed="seed1"):
    return TREE_FOLDER.parents[1] / mode / seed if models == "models" else None


def other_models(folder, models):
    """The same run below another --models-dir."""
    return folder.parent.__class__(models) / folder.relative_to("models")


@pytest.mark.parametrize("mode", ("pgd_train", "std_train"))
def test_frozen_batch_norm_stays_as_it_was_and_goes_on_to_the_same_bits(mode, flags, run_script):
    flags = f"{flags} --train-mode {mode} --bn frozen"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    folder = folder_of(f"{mode}_frozen")
    assert run_script(train, flags)[0] == 0
    assert run_script(train, f"{flags} --resume 1 --overwrite")[0] == 0
    content = torch.load(folder / "model_2.pth", weights_only=True)["state_dict"]
    assert (content["norm.running_mean"] == 0).all() and (content["norm.running_var"] == 1).all()
    whole = other_models(folder, "whole")
    found = torch.load(whole / "model_2.pth", weights_only=True)["state_dict"]
    assert found.keys() == content.keys()
    assert run_script(train, f"{flags} --resume --bn frozen")[0] == 0
    code, output, error = run_script(eval_script, f"{flags.replace(' --batch-size 4', '')} --ncc")
    assert code == 0, error
