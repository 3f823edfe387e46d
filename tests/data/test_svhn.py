"""SVHN's files, read through torchvision."""

import numpy as np
import pytest
import scipy.io
import torch
from test_scripts import rows

import eval as eval_script
import train
from robust_nc.data.datasets import Selection, load_dataset
from utils import InputError


@pytest.fixture
def svhn_dir(tmp_path):
    """Both files with 20 and 10 random images; the digit 0 has the label 10, as published."""
    folder, rng = tmp_path / "data", np.random.RandomState(0)
    folder.mkdir()
    for part, count in (("train", 20), ("test", 10)):
        pixels = rng.randint(0, 256, (32, 32, 3, count)).astype(np.uint8)
        labels = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
        scipy.io.savemat(folder / f"{part}_32x32.mat", {"X": pixels, "y": labels})
    return folder


def test_images_and_labels_are_those_of_the_files(svhn_dir, caplog):
    data = load_dataset("svhn", Selection(svhn_dir))
    assert caplog.text.count("is not the published one") == 2
    assert data.train.images.shape == (20, 3, 32, 32) and len(data.test) == 10
    assert data.train.images.dtype == torch.uint8 and data.train.labels.dtype == torch.int64
    content = scipy.io.loadmat(svhn_dir / "train_32x32.mat")
    assert torch.equal(
        data.train.images[3], torch.from_numpy(content["X"][..., 3]).permute(2, 0, 1)
    )
    assert data.train.labels[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert data.num_classes == 10 and data.mean == (0.4377, 0.4438, 0.4728)


def test_it_is_trained_on_and_swept_under_its_name(svhn_dir, run_script, tiny_models):
    flags = f"--dataset svhn --data-dir {svhn_dir} --attack-iters 1"
    assert run_script(train, f"{flags} --epochs 1")[0] == 0
    assert run_script(eval_script, f"{flags} --neural-collapse")[0] == 0
    results = "models/svhn/vgg11bn/l_inf/eps8.0/std_train/seed1/results"
    assert [row["input"] for row in rows(f"{results}/metrics.csv")] == ["clean", "pgd", "clean"]


def test_missing_files_say_where_to_put_them(svhn_dir):
    (svhn_dir / "test_32x32.mat").unlink()
    chosen = Selection(svhn_dir, data_url="http://127.0.0.1:9/svhn")
    with pytest.raises(InputError) as caught:
        load_dataset("svhn", chosen)
    message = str(caught.value)
    assert "\n" not in message and "http://127.0.0.1:9/svhn/test_32x32.mat" in message
    assert f"put test_32x32.mat into {svhn_dir}" in message


def test_a_damaged_file_is_refused_in_one_line(svhn_dir):
    path = svhn_dir / "train_32x32.mat"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"SVHN cannot be read.*train_32x32\.mat") as caught:
        load_dataset("svhn", Selection(svhn_dir))
    assert "\n" not in str(caught.value)
    assert path.stat().st_size == 500
