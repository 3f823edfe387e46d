"""Nothing lost: kills, signals, full disks, locks, shared sweeps, foreign checkpoints."""

import copy
import fcntl
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import read_resume
from test_scripts import TREE_FOLDER, assert_equal_runs, rows, series

import eval as eval_script
import train
from robust_nc.networks import architectures
from robust_nc.parsing import Parser
from robust_nc.results.files import Writer
from robust_nc.settings import select_epochs
from robust_nc.training import epoch, modes, resume
from robust_nc.training.resume import Snapshots
from utils import InputError, Stopped
from utils import run_script as run_as_script

ROOT = Path(__file__).parent.parent
FLAGS = "--epochs 3 --attack-iters 2 --batch-size 4 --lr-max 0.01 --neural-collapse"


@pytest.fixture
def flags(image_tree):
    return f"--dataset folder --data-dir {image_tree} {FLAGS}"


@pytest.fixture
def sweep_flags(flags):
    return flags.replace(" --batch-size 4", "")


def start(script, flags, folder, before="", **settings):
    """The script as a process of its own, on one thread."""
    code = f"{before}\nimport utils, {script} as script; utils.run_script(script.main)"
    return subprocess.Popen(
        [sys.executable, "-c", code, *flags.split()],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def finish(process):
    output, error = process.communicate(timeout=300)
    return process.returncode, output, error


def run_folder(mode):
    return Path(str(TREE_FOLDER).replace("std_train", mode))


def kill_until_done(flags, mode, folder, kills, rng):
    """Resume and kill at random moments, then let it end; returns what each kill hit."""
    hits = []
    while True:
        process = start("train", f"{flags} --train-mode {mode} --resume", folder)
        if len(hits) < kills:
            number = rng.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
            # Importing PyTorch takes seconds: wait for the run to begin, then for a moment of it.
            first = process.stdout.readline()
            if "is finished" not in first:
                time.sleep(rng.uniform(0, 1.5))
            process.send_signal(number)
        code, _, error = finish(process)
        if code == 0:
            return hits
        hits.append((code, error.strip()))
        # By its own handler, or killed; the latter also by what came when it had finished.
        assert code in (143, 130, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT), error
        assert code < 0 or error.count("\n") == 1, error


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("std_train", "pgd_train", "pgd_train_TRADES", "pgd_train_MART"))
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(mode, flags, tmp_path):
    """KILLS and KILL_SEED in the environment make it more kills, and others."""
    flags = flags.replace("--epochs 3", "--epochs 12 --checkpoint-epochs ::3")
    kills = int(os.environ.get("KILLS", "5"))
    seed = int(os.environ.get("KILL_SEED", "0"))
    whole = start("train", f"{flags} --train-mode {mode} --models-dir whole", tmp_path)
    assert finish(whole)[0] == 0
    hits = kill_until_done(flags, mode, tmp_path, kills, random.Random(f"{mode}{seed}"))
    folder = run_folder(mode)
    assert_equal_runs(tmp_path / folder, tmp_path / "whole" / folder.relative_to("models"))
    left = [path.name for path in (tmp_path / folder).rglob(".*.tmp")]
    assert not left
    print(f"{mode}: {len(hits)} kills: {[code for code, _ in hits]}")


@pytest.mark.parametrize(
    "killed_at",
    (
        "robust_nc.results.run_folder.RunFolder.add",
        "robust_nc.training.resume.Saver._write_resume",
    ),
)
def test_a_run_killed_while_its_first_epoch_is_written_begins_again(
    killed_at, flags, run_script, monkeypatch, tmp_path, tiny_models
):
    """resume.pth comes last: without it there is a checkpoint, with rows or without."""

    def kill(*_, **__):
        raise KeyboardInterrupt  # which nothing catches on the way, as a kill

    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    with monkeypatch.context() as patched:
        patched.setattr(killed_at, kill)
        assert run_script(train, flags)[0] == 130
    folder = tmp_path / TREE_FOLDER
    assert (folder / "model_0.pth").exists() and not (folder / "resume.pth").exists()
    assert run_script(train, f"{flags} --resume")[0] == 0
    assert_equal_runs(folder, tmp_path / "whole" / TREE_FOLDER.relative_to("models"))


def test_without_resume_pth_a_later_epoch_has_to_be_named(flags, run_script, tmp_path, tiny_models):
    assert run_script(train, flags)[0] == 0
    (tmp_path / TREE_FOLDER / "resume.pth").unlink()
    code, _, error = run_script(train, f"{flags} --resume")
    assert code == 1 and "resume.pth is missing: name an epoch, --resume N" in error


@pytest.mark.parametrize("mode", ("pgd_train", "pgd_train_TRADES", "pgd_train_MART"))
def test_a_signal_within_an_epoch_stops_after_the_step_and_loses_nothing(
    mode, flags, run_script, monkeypatch, tmp_path, tiny_models
):
    """The epoch goes on in its middle: the same bits, perturbed images and draws included."""
    flags = f"{flags} --train-mode {mode}"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    taken = []
    original = modes.update

    def update(*args):
        taken.append(1)
        if len(taken) in (2, 8, 9):  # epoch 0 of five steps, epoch 1
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(modes, "update", update)
    code, output, error = run_script(train, flags)
    assert code == 143
    assert (
        error == "train.py: error: stopped by SIGTERM in epoch 0, after step 2; --resume goes "
        "on from there\n"
    )
    assert not (tmp_path / run_folder(mode) / "model_0.pth").exists()
    for where in ("resuming at epoch 0 after step 2", "resuming at epoch 1 after step 3"):
        code, output, error = run_script(train, f"{flags} --resume")
        assert code == 143 and where in output
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "resuming at epoch 1 after step 4" in output
    assert len(taken) == 15
    assert_equal_runs(run_folder(mode), Path("whole") / run_folder(mode).relative_to("models"))


def test_two_runs_never_write_into_one_folder(flags, sweep_flags, run_script, tiny_models):
    assert run_script(train, flags)[0] == 0
    before = sorted(path.stat().st_mtime_ns for path in TREE_FOLDER.rglob("*.[!l]*"))
    with (TREE_FOLDER / ".lock").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("train.py on node7, process 123, since 2026-01-01 00:00:00")
        file.flush()
        for script, command in (
            (train, f"{flags} --resume"),
            (train, f"{flags} --overwrite"),
            (eval_script, sweep_flags),
        ):
            code, _, error = run_script(script, command)
            assert code == 1 and error.count("\n") == 1
            assert "in use by train.py on node7, process 123, since 2026-01-01" in error
    assert sorted(path.stat().st_mtime_ns for path in TREE_FOLDER.rglob("*.[!l]*")) == before
    assert run_script(train, f"{flags} --resume")[0] == 0


def test_a_run_too_large_for_the_disk_is_refused_before_it_starts(
    flags, run_script, monkeypatch, tiny_models
):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**16))
    code, _, error = run_script(train, f"{flags} --epochs 5000")
    assert code == 1 and error.count("\n") == 1
    assert "5000 checkpoints" in error and "0.01 GiB" in error and "0.00 GiB are free" in error
    assert not TREE_FOLDER.exists()
    code, output, _ = run_script(train, f"{flags} --epochs 3")
    assert code == 0 and "disk: 3 checkpoints of" in output


def test_overwriting_counts_the_disk_that_it_frees(flags, run_script, monkeypatch, tiny_models):
    assert run_script(train, flags)[0] == 0
    held = sum(path.stat().st_size for path in TREE_FOLDER.glob("*.pth"))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=held // 10))
    code, _, error = run_script(train, f"{flags} --seed 2")
    assert code == 1 and "are free" in error  # a new run has no room
    assert run_script(train, f"{flags} --overwrite")[0] == 0
    assert run_script(train, f"{flags} --resume 1 --overwrite")[0] == 0
    code, _, error = run_script(train, f"{flags} --epochs 300 --overwrite")
    assert code == 1 and "300 checkpoints" in error  # more than what is freed
    assert (TREE_FOLDER / "model_2.pth").exists()


@pytest.mark.parametrize("kind", (torch.OutOfMemoryError, RuntimeError))
def test_memory_that_runs_out_in_training_names_the_flag_that_helps(
    kind, flags, run_script, monkeypatch, tiny_models
):
    def update(optimizer, loss):
        raise kind("can't allocate memory: 9 GiB\nmore")

    with monkeypatch.context() as patched:
        patched.setattr(modes, "update", update)
        code, _, error = run_script(train, flags)
    assert code == 1 and error.count("\n") == 1
    assert "--batch-size can be lowered" in error and "--eval-batch-size" not in error


@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_a_checkpoint_overrules_no_setting_of_the_optimiser(
    optimizer, flags, run_script, monkeypatch, tiny_models
):
    """Its buffers are taken over; rate, momentum and weight decay are those of this run."""
    flags = f"{flags} --optimizer {optimizer}"
    assert run_script(train, flags)[0] == 0
    path = TREE_FOLDER / "resume.pth"
    content = read_resume(TREE_FOLDER)
    for group in content["optimizer"]["param_groups"]:
        group |= {"weight_decay": 0.5, "lr": 7.0, "momentum": 0.1, "betas": (0.1, 0.1)}
        if optimizer == "sgd":
            del group["betas"]
        else:
            del group["momentum"]
    torch.save(content | {"epoch": 1}, path)
    seen = []
    original = epoch.train_epoch

    def train_epoch(run, *rest):
        state = run.learner.optimizer.state_dict()
        seen.append(copy.deepcopy((state["param_groups"][0], state["state"])))
        return original(run, *rest)

    monkeypatch.setattr(epoch, "train_epoch", train_epoch)
    assert run_script(train, f"{flags} --resume")[0] == 0
    [(group, buffers)] = seen
    assert group["weight_decay"] == 5e-4 and group["lr"] == 0.01
    assert group.get("momentum", 0.9) == 0.9 and group.get("betas", (0.9, 0.999)) == (0.9, 0.999)
    name = {"sgd": "momentum_buffer", "adam": "exp_avg_sq"}[optimizer]
    saved = content["optimizer"]["state"]
    assert buffers.keys() == saved.keys() and saved
    assert all(torch.equal(buffers[i][name], saved[i][name]) for i in saved)


@pytest.mark.parametrize("capturable", (False, True))
def test_the_optimiser_s_state_goes_to_where_the_running_one_needs_it(capturable, tmp_path):
    """Adam's step count is a number on the CPU, but on the device where a graph captures it."""
    on_cpu = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(on_cpu.parameters())
    on_cpu(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    elsewhere = torch.nn.Linear(3, 2, device="meta")
    running = torch.optim.Adam(elsewhere.parameters(), capturable=capturable)
    resume.load_optimizer(running, optimizer.state_dict(), tmp_path / "model_0.pth")
    for parameter, buffers in running.state.items():
        assert buffers["exp_avg"].device == parameter.device == torch.device("meta")
        assert buffers["step"].device.type == ("meta" if capturable else "cpu")
    assert len(running.state) == 2


@pytest.mark.parametrize("optimizer", ("sgd", "adam"))
def test_resume_pth_is_whole_and_needs_no_checkpoint(optimizer, flags, run_script, tiny_models):
    """Which epochs keep theirs may change from one resume to the next."""
    flags = f"{flags} --optimizer {optimizer} --lr-schedule onedrop"
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    args = TREE_FOLDER / "args.json"
    checkpoints = {}
    for epochs, kept in ((1, "0"), (2, "0"), (3, "::1")):
        if args.exists():  # a longer run
            former = f'"epochs": {epochs - 1}'
            args.write_text(args.read_text().replace(former, f'"epochs": {epochs}'))
        command = f"{flags} --epochs {epochs} --checkpoint-epochs {kept} --resume"
        assert run_script(train, command)[0] == 0
        content = read_resume(TREE_FOLDER)
        assert content["epoch"] == epochs - 1 and content["unfinished"] is None
        assert content.keys() == {"state_dict", "optimizer", "epoch", "seed", "unfinished"}
        for path in TREE_FOLDER.glob("model_*.pth"):
            checkpoints[path] = path.read_bytes()
            path.unlink()
    for path, checkpoint in checkpoints.items():
        path.write_bytes(checkpoint)
    whole = Path("whole") / TREE_FOLDER.relative_to("models")
    (whole / "model_1.pth").unlink()  # which the other run did not keep
    assert_equal_runs(TREE_FOLDER, whole)


def epochs_in_resume_pth(monkeypatch):
    """The list of the epochs of each resume.pth, as they are written."""
    written, save = [], resume.save_checkpoint

    def save_checkpoint(path, **content):
        save(path, **content)
        if path.name == "resume.pth":
            written.append(content["epoch"])

    monkeypatch.setattr(resume, "save_checkpoint", save_checkpoint)
    return written


@pytest.mark.parametrize(
    ("seconds", "epochs"),
    (
        (0, [0, 1, 2, 3, 4]),
        (10, [0, 2, 4]),  # with six seconds an epoch
        (1e9, [0, 4]),
    ),
)
def test_resume_pth_is_written_at_first_after_some_time_and_at_the_end(
    seconds, epochs, flags, run_script, monkeypatch, tiny_models
):
    written, times = epochs_in_resume_pth(monkeypatch), iter(range(0, 1000, 6))
    add = resume.RunFolder.add
    now = []

    def add_and_wait(*args):
        now.append(next(times))
        add(*args)

    monkeypatch.setattr(resume.RunFolder, "add", add_and_wait)
    monkeypatch.setattr(resume.time, "monotonic", lambda: now[-1])
    monkeypatch.setattr(resume, "RESUME_SECONDS", seconds)
    assert run_script(train, f"{flags} --epochs 5")[0] == 0
    assert written == epochs


def test_a_run_killed_long_after_resume_pth_makes_the_epochs_after_it_again(
    flags, run_script, monkeypatch, tiny_models
):
    flags = f"{flags} --epochs 5 --train-mode pgd_train"
    folder = run_folder("pgd_train")
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    write_epoch = resume.Saver._write_epoch

    def write_and_die(saver, summary, *rest):
        write_epoch(saver, summary, *rest)
        if summary.epoch == 2:
            raise KeyboardInterrupt  # which nothing catches on the way, as a kill

    monkeypatch.setattr(resume, "RESUME_SECONDS", 1e9)
    with monkeypatch.context() as patched:
        patched.setattr(resume.Saver, "_write_epoch", write_and_die)
        assert run_script(train, flags)[0] == 130
    assert read_resume(folder)["epoch"] == 0
    assert [row["epoch"] for row in rows(folder / "history.csv")] == ["0", "1", "2"]
    assert len(series(folder)["train_loss"]) == 1  # with resume.pth
    made = {path.name: path.read_bytes() for path in folder.glob("model_*.pth")}
    assert made.keys() == {"model_0.pth", "model_1.pth", "model_2.pth"}
    # What an epoch that is made again finds in its place must not matter.
    (folder / "model_2.pth").write_bytes(made["model_1.pth"])
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "resuming at epoch 1 from resume.pth" in output
    assert {name: (folder / name).read_bytes() for name in made} == made
    assert_equal_runs(folder, Path("whole") / folder.relative_to("models"))
    assert read_resume(folder)["epoch"] == 4


@pytest.mark.parametrize("mode", ("std_train", "pgd_train"))
def test_a_sweep_of_a_run_that_was_killed_leaves_the_series_of_a_whole_one(
    mode, flags, sweep_flags, run_script, monkeypatch, tiny_models
):
    """Killed before resume.pth and the series were written of the last epoch."""
    assert run_script(train, f"{flags} --train-mode {mode} --models-dir whole")[0] == 0
    write_resume = resume.Saver._write_resume

    def write_or_die(saver, epoch, *rest):
        if epoch == 2:
            raise KeyboardInterrupt  # which nothing catches on the way, as a kill
        write_resume(saver, epoch, *rest)

    monkeypatch.setattr(resume, "RESUME_SECONDS", 1e9)
    with monkeypatch.context() as patched:
        patched.setattr(resume.Saver, "_write_resume", write_or_die)
        assert run_script(train, f"{flags} --train-mode {mode}")[0] == 130
    folder = run_folder(mode)
    assert {len(values) for values in series(folder).values()} == {1}
    for models in ("models", "whole"):
        sweep = f"{sweep_flags} --train-mode {mode} --models-dir {models}"
        assert run_script(eval_script, sweep)[0] == 0
    assert_equal_runs(folder, Path("whole") / folder.relative_to("models"))
    assert {len(values) for values in series(folder).values()} == {3}


@pytest.mark.parametrize(
    ("steps", "expected"),
    ((0, (1, None)), (3, (1, 3))),  # of epoch 2; a signal in the last step stops after the epoch
)
def test_a_signal_writes_resume_pth_whenever_it_comes(
    steps, expected, flags, run_script, monkeypatch, tiny_models
):
    monkeypatch.setattr(resume, "RESUME_SECONDS", 1e9)
    stop_in_epoch(run_script, monkeypatch, flags, steps)
    content = read_resume(TREE_FOLDER)
    unfinished = content["unfinished"] and content["unfinished"]["steps"]
    assert (content["epoch"], unfinished) == expected


def test_a_diverged_run_keeps_the_epoch_before_in_resume_pth(
    flags, run_script, monkeypatch, tiny_models
):
    monkeypatch.setattr(resume, "RESUME_SECONDS", 1e9)
    taken, update = [], modes.update

    def update_to_nan(optimizer, loss):
        taken.append(1)
        return update(optimizer, loss * float("nan") if len(taken) == 12 else loss)

    monkeypatch.setattr(modes, "update", update_to_nan)
    code, _, error = run_script(train, flags)
    assert code == 1 and "epoch 2: step 2 of 5" in error and "no longer finite" in error
    content = read_resume(TREE_FOLDER)
    checkpoint = torch.load(TREE_FOLDER / "model_1.pth", weights_only=True)
    assert content["epoch"] == 1 and content["unfinished"] is None
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(content["state_dict"][name], value)


@pytest.mark.parametrize(
    ("kept", "units"),
    (
        # In units of the weights: checkpoints, resume.pth, which holds them and the momentum, and
        # the one before it.
        ("::1", 3 + 2 + 2),
        ("::2", 2 + 2 + 2),
    ),
)
def test_the_disk_is_asked_for_what_a_run_may_take(
    kept, units, flags, run_script, monkeypatch, tiny_models
):
    weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict().values()
    needed = units * sum(tensor.numel() * tensor.element_size() for tensor in weights)
    for free, expected in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(train, "free_disk", lambda path, free=free: free)
        assert run_script(train, f"{flags} --checkpoint-epochs {kept}")[0] == expected


def test_the_disk_holds_the_images_of_a_stop_in_mid_epoch(
    flags, run_script, monkeypatch, tiny_models
):
    """18 training images, of which AT keeps the perturbed ones for their neural collapse."""
    weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict().values()
    # Three checkpoints, resume.pth with weights and momentum, and the one before it.
    needed = (3 + 2 + 2) * sum(tensor.numel() * tensor.element_size() for tensor in weights)
    needed += 18 * 3 * 32 * 32 * 4
    for free, expected in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(train, "free_disk", lambda path, free=free: free)
        assert run_script(train, f"{flags} --train-mode pgd_train")[0] == expected


def stop_in_epoch(run_script, monkeypatch, flags, steps_of_it):
    """Start a run of five steps an epoch that is stopped in epoch 2, after so many of its steps."""
    taken, original = [], modes.update

    def update(*args):
        taken.append(1)
        if len(taken) == 10 + steps_of_it:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args)

    with monkeypatch.context() as patched:
        patched.setattr(modes, "update", update)
        assert run_script(train, flags)[0] == 143


def test_a_stop_in_mid_epoch_needs_no_checkpoint(flags, run_script, monkeypatch, tiny_models):
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    stop_in_epoch(run_script, monkeypatch, flags, 3)
    content = read_resume(TREE_FOLDER)
    assert content["epoch"] == 1 and content["unfinished"]["steps"] == 3
    kept = {path: path.read_bytes() for path in TREE_FOLDER.glob("model_*.pth")}
    for path in kept:
        path.unlink()
    assert run_script(train, f"{flags} --resume")[0] == 0
    for path, content in kept.items():
        path.write_bytes(content)
    assert_equal_runs(TREE_FOLDER, Path("whole") / TREE_FOLDER.relative_to("models"))


def leave_weights_to_the_checkpoint(folder):
    """Write resume.pth as earlier versions did: with its checkpoint's SHA-256, not the weights."""
    content = read_resume(folder)
    del content["state_dict"]
    checkpoint = (folder / f"model_{content['epoch']}.pth").read_bytes()
    content["checkpoint_sha256"] = hashlib.sha256(checkpoint).hexdigest()
    torch.save(content, folder / "resume.pth")


@pytest.mark.parametrize("fault", ("is missing", "is another file than it was"))
def test_a_checkpoint_that_an_older_resume_pth_refers_to_is_asked_for_in_one_line(
    fault, flags, run_script, monkeypatch, tiny_models
):
    assert run_script(train, f"{flags} --models-dir whole")[0] == 0
    stop_in_epoch(run_script, monkeypatch, flags, 0)  # after the last step of epoch 1
    leave_weights_to_the_checkpoint(TREE_FOLDER)
    checkpoint = TREE_FOLDER / "model_1.pth"
    content = checkpoint.read_bytes()
    checkpoint.unlink()
    if fault != "is missing":  # of the same epoch, seed and size
        other = torch.load(TREE_FOLDER / "model_0.pth", weights_only=True) | {"epoch": 1}
        torch.save(other, checkpoint)
    code, _, error = run_script(train, f"{flags} --resume")
    assert code == 1 and error.count("\n") == 1
    assert error.endswith(
        f"model_1.pth: {fault}, and resume.pth goes on from it: put it back, or "
        "--resume 1 --overwrite goes on from model_0.pth\n"
    )
    checkpoint.write_bytes(content)
    assert run_script(train, f"{flags} --resume")[0] == 0
    assert_equal_runs(TREE_FOLDER, Path("whole") / TREE_FOLDER.relative_to("models"))
    assert "state_dict" in read_resume(TREE_FOLDER)
    leave_weights_to_the_checkpoint(TREE_FOLDER)
    for path in TREE_FOLDER.glob("model_*.pth"):
        path.unlink()
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "is finished" in output


def test_a_resume_file_of_mid_epoch_by_an_older_version_is_told_so(flags, run_script, tiny_models):
    assert run_script(train, flags)[0] == 0
    path = TREE_FOLDER / "resume.pth"
    content = read_resume(TREE_FOLDER)
    older = {"steps": 1, "losses": torch.zeros(2, 5), "correct": torch.zeros(2), "perturbed": None}
    torch.save(content | {"epoch": 1, "unfinished": older}, path)
    code, _, error = run_script(train, f"{flags} --resume")
    assert code == 1 and error.count("\n") == 1 and "--resume 2 --overwrite" in error
    assert run_script(train, f"{flags} --resume 2 --overwrite")[0] == 0


def test_a_disk_that_fills_up_stops_the_run_with_everything_before_intact(
    flags, tmp_path, run_script
):
    assert run_script(train, f"{flags} --epochs 1")[0] == 0
    folder = tmp_path / TREE_FOLDER
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    # A limit of the size of a file stands in for the disk: checkpoints are 37 MB.
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000_000,) * 2)"
    args = (folder / "args.json").read_text().replace('"epochs": 1', '"epochs": 3')
    (folder / "args.json").write_text(args)
    code, _, error = finish(start("train", f"{flags} --resume", tmp_path, before=limit))
    assert code == 1 and error.count("\n") == 1
    assert "model_1.pth: cannot be written: File too large" in error
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before
    assert not list(folder.rglob(".*.tmp"))
    assert run_script(train, f"{flags} --resume")[0] == 0
    assert (folder / "model_2.pth").exists()


@pytest.mark.parametrize("ending", (None, Stopped(signal.SIGTERM, ", saved")))
def test_an_error_of_the_writing_thread_stops_the_run(ending):
    written = []

    def fail():
        raise InputError("model_1.pth: cannot be written")

    with pytest.raises(InputError, match=r"model_1\.pth"), Writer() as writer:
        writer.submit(fail)
        writer.submit(written.append, 1)  # the next epoch
    with pytest.raises(InputError, match=r"model_1\.pth"), Writer() as writer:
        writer.submit(fail)
        if ending:
            raise ending
    assert not written


@pytest.fixture
def pinned(monkeypatch):
    """Tensors on the CPU stand in for a GPU's; which were pinned, and how often it was waited."""
    made, waits, empty = [], [], torch.empty

    def pinned_empty(*args, pin_memory=False, **options):
        tensor = empty(*args, **options)
        made.extend([tensor] * pin_memory)
        return tensor

    stream = SimpleNamespace(synchronize=lambda: waits.append(1))
    monkeypatch.setattr(torch, "empty", pinned_empty)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return made, waits


def test_snapshots_hold_until_they_are_written_in_two_sets_of_pinned_buffers(pinned):
    """The writer is slower than the epochs here."""
    made, waits = pinned
    weight = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"weight": weight, "groups": [{"lr": torch.zeros(()), "params": [0, 1]}]}
    snapshots, written = Snapshots(torch.device("cuda")), []

    def write(taken, epoch):
        time.sleep(0.05)
        buffer = io.BytesIO()
        torch.save(taken, buffer)
        buffer.seek(0)
        written.append((epoch, torch.load(buffer, weights_only=True)))

    with Writer() as writer:
        for epoch in range(6):
            weight.fill_(epoch)
            state["groups"][0]["lr"].fill_(epoch / 2)
            writer.submit(write, snapshots.take(state), epoch)
    assert len(made) == 2 * 2 and len(waits) == 6
    for epoch, found in written:
        assert found["groups"][0]["params"] == [0, 1]
        assert found["groups"][0]["lr"] == epoch / 2
        assert (found["weight"] == epoch).all() and found["weight"].is_contiguous()


def test_a_snapshot_of_a_gpu_is_written_as_the_bytes_of_one_of_the_cpu(pinned):
    torch.manual_seed(0)
    weight = torch.rand(2, 3, 4, 4).to(memory_format=torch.channels_last)
    files = []
    for device in ("cpu", "cuda"):
        files.append(io.BytesIO())
        taken = Snapshots(torch.device(device)).take({"weight": weight, "norm": [weight.sum()]})
        assert taken["weight"].data_ptr() != weight.data_ptr()
        torch.save(taken, files[-1])
    assert files[0].getvalue() == files[1].getvalue()


def test_only_chosen_epochs_keep_a_checkpoint_and_a_sweep_takes_those(
    flags, sweep_flags, run_script, tiny_models
):
    assert run_script(train, f"{flags} --checkpoint-epochs ::2")[0] == 0
    assert sorted(path.name for path in TREE_FOLDER.glob("*.pth")) == [
        "model_0.pth",
        "model_2.pth",
        "resume.pth",
    ]
    assert len(rows(TREE_FOLDER / "history.csv")) == 3
    code, output, error = run_script(eval_script, sweep_flags)
    assert code == 0 and "2 checkpoints" in output, error


def test_logarithmic_epochs():
    assert select_epochs("log", 400)[:12] == [0, 1, 2, 3, 4, 5, 7, 9, 12, 15, 19, 24]
    assert select_epochs("log", 400)[-3:] == [315, 397, 399]
    assert select_epochs("log", 1) == [0]
    assert select_epochs("log", 2) == [0, 1]


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_ranks_share_a_sweep_and_leave_the_files_of_a_single_process(
    flags, tmp_path, sweep_flags, run_script, one_thread
):
    assert run_script(train, flags)[0] == 0
    shutil.copytree(tmp_path / "models", tmp_path / "shared")
    sweep_flags += " --neural-collapse-gaussian --neural-collapse-targeted --leaps --simplex"
    assert run_script(eval_script, sweep_flags)[0] == 0
    result = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
            *(str(ROOT / "eval.py"), *sweep_flags.split(), "--models-dir", "shared"),
        ],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "rank 0 of 2 takes 2" in result.stdout and "rank 1 of 2 takes 1" in result.stdout
    alone = tmp_path / TREE_FOLDER / "results"
    shared = tmp_path / "shared" / TREE_FOLDER.relative_to("models") / "results"
    names = sorted(path.name for path in alone.glob("*.*") if path.name != "eval_args.json")
    assert names == sorted(p.name for p in shared.glob("*.*") if p.name != "eval_args.json")
    for name in names:
        assert (alone / name).read_bytes() == (shared / name).read_bytes(), name


@pytest.mark.parametrize("key", (None, "state_dict", "model", "net"))
@pytest.mark.parametrize("prefix", ("", "module."))
def test_any_checkpoint_file_is_measured(
    key, prefix, sweep_flags, run_script, tmp_path, tiny_models
):
    torch.manual_seed(0)
    weights = architectures.build_model("vgg11bn", 32, 3, 3).state_dict()
    renamed = {prefix + name: value for name, value in weights.items()}
    torch.save({key: renamed, "acc": 93.1} if key else renamed, tmp_path / "theirs.pt")
    torch.save({"state_dict": weights}, tmp_path / "plain.pth")
    command = f"{sweep_flags} --checkpoint theirs.pt plain.pth --out here"
    code, output, error = run_script(eval_script, command)
    assert code == 0, error
    assert "theirs.pt train clean" in output
    found = rows("here/metrics.csv")
    assert [row["epoch"] for row in found] == ["0", "0", "1", "1"]
    assert [row["checkpoint"] for row in found] == ["theirs.pt"] * 2 + ["plain.pth"] * 2
    assert found[0] | {"epoch": "1", "checkpoint": "plain.pth"} == found[2]
    assert not (tmp_path / "models").exists()
    code, output, _ = run_script(eval_script, command)
    assert code == 0 and "2 done before" in output
    code, output, _ = run_script(eval_script, command.replace("theirs.pt ", ""))
    assert code == 0 and "1 done before" in output
    assert rows("here/metrics.csv") == found


# ---------------------------------------------------------------------------------------------
# Bad input, systematically: every flag of every script
# ---------------------------------------------------------------------------------------------

WORDS = ("", "-", "robust", "0.5")
COUNTS = ("0", "-1", "1.5", "two", "1e3", "1000001", "nan", "")
RADII = ("256", "8/0", "8/255/1", "/255", "8/", "-8/255", "8/inf")
NUMBERS = ("-1", "nan", "inf", "-inf", "1e999", "much", "")
SWITCHES = ("=1",)  # a switch takes no value
BAD = {
    "model": (*WORDS, "torchvision.models:", ":resnet18", "json:no_such", "no_such_module:make"),
    "model_args": ("", "x", "=1", "a-b=1", "num_classes=3", "a=1"),  # the last without a factory
    "run_name": ("", "a/b", "é", "a" * 101),
    "train_mode": WORDS,
    "bn": WORDS,
    "trades_bn": (*WORDS, "batch"),  # the last without TRADES
    "seed": ("-1", "0.5", "one", "4294967296", "nan", ""),
    "epochs": COUNTS,
    "lr_max": NUMBERS,
    "models_dir": ("/dev/null",),
    "dataset": WORDS,
    "data_dir": ("/dev/null",),
    "data_name": ("cifar", "a/b", "..", "", "cats"),  # the last without --dataset folder
    "data_url": ("file:///etc/passwd", "x", "ftp://x"),
    "mean": ("-0.1", "1.5", "nan", "white", "", "0.5"),  # the last without --std
    "std": ("0", "-1", "inf", "nan", "255", "", "0.5"),  # the last without --mean
    "no_normalisation": SWITCHES,
    "image_size": ("31", "0", "big", "160"),
    "limit_train": COUNTS,
    "limit_test": COUNTS,
    "norm": ("l_1", "inf", ""),
    "epsilon": (*NUMBERS, *RADII),
    "pgd_alpha": (*NUMBERS, *RADII),
    "attack_iters": COUNTS,
    "restarts": COUNTS,
    "noise_level": (*NUMBERS, *RADII),
    "device": ("gpu", "cuda:99", "cpu:x", "", "meta"),
    "precision": ("fp16", "32", ""),
    "compile": SWITCHES,
    "eval_batch_size": COUNTS,
    "neural_collapse": SWITCHES,
    "neural_collapse_gaussian": SWITCHES,
    "overwrite": SWITCHES,
}
BAD_TRAIN = {
    "cuda_graph": (*SWITCHES, " --no-cuda-graph"),
    "no_cuda_graph": (*SWITCHES, " --cuda-graph"),
    "batch_size": COUNTS,
    "optimizer": WORDS,
    "weight_decay": NUMBERS,
    "momentum": (*NUMBERS, "1", "0.5 --optimizer adam"),
    "nesterov": SWITCHES,
    "lr_milestones": ("", "0", "-1", "0.5,100", "nan", "inf", "1;2", "0.5 --lr-schedule cosine"),
    "lr_gamma": (*NUMBERS, "0", "0.5"),  # the last without milestones
    "init": ("no.pth", "", "."),
    "weights_key": ("ema",),  # without --init
    "lr_schedule": ("step", "", "multipledecay --epochs 5"),
    "lr_drop_epoch": (*COUNTS, "5"),  # the last without onedrop
    "lr_one_drop": (*NUMBERS, "0.5 --lr-schedule cosine"),
    "trades_beta": (*NUMBERS, "3"),  # the last without TRADES
    "mart_lambda": (*NUMBERS, "3"),  # likewise
    "checkpoint_epochs": ("400", "-1", "a", "::0", "1:2:3:4", "", "log10", "9:3"),
    "resume": ("0", "-1", "first", "400", "1.5"),
}
BAD_EVAL = {
    "split": WORDS,
    "epsilons": (
        "",
        "two",
        "8,",
        "-1,8",
        "8;16",
        "nan",
        "inf",
        "8:16",
        "0,8",
        "8,256",
        "8/0",
        "8/255/1",
    ),
    "equal_n": SWITCHES,
    "autoattack": COUNTS,
    "neural_collapse_targeted": SWITCHES,
    "leaps": SWITCHES,
    "simplex": ("", "0", "-1", "a", "0,1,2", "0.5"),
    "layerwise": (*SWITCHES, " --compile"),
    "ncc": SWITCHES,
    "ncc_layers": ("conv99", "", "conv1 --compile"),
    "layer_batch_size": (*COUNTS, "8"),  # without --layerwise
    "checkpoints": ("400", "-1", "a", "::0", "1:2:3:4", "", "0,400", "9:3"),
    "checkpoint": ("no.pth",),
    "weights_key": ("ema",),  # without --checkpoint
    "out": ("results",),
}
OWN = {train: BAD_TRAIN, eval_script: BAD_EVAL}


def flags_of(script, monkeypatch):
    """Every flag of a script's parser."""
    found = {}

    def parse_args(parser, argv=None):
        flags = [action for action in parser._actions if action.option_strings]
        found.update({action.dest: action for action in flags if action.dest != "help"})
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Parser, "parse_args", parse_args)
        with pytest.raises(KeyboardInterrupt):
            script.parse_args([])
    return found


@pytest.mark.parametrize("script", (train, eval_script))
def test_every_flag_refuses_bad_values_with_one_line(
    script, run_script, monkeypatch, tmp_path, capsys
):
    table = BAD | OWN[script]
    actions = flags_of(script, monkeypatch)
    assert actions.keys() == table.keys()  # a new flag comes with bad values
    needed = " --neural-collapse" if script is eval_script else ""
    tried = 0
    for dest, values in table.items():
        flag = f"--{dest.replace('_', '-')}"
        argvs = [
            [flag + value] if value.startswith("=") else [f"{flag}={value}"] for value in values
        ]
        argvs.append([f"{flag}=--"])  # which argparse of Python 3.11 takes for no value
        if actions[dest].nargs not in (0, "*") and dest != "resume":
            argvs.append([flag])  # its value is missing
        for argv in argvs:
            *given, last = argv
            monkeypatch.setattr(sys, "argv", ["x.py", *given, *last.split(" "), *needed.split()])
            if last == flag:  # at the end of the line, where no other word can be its value
                monkeypatch.setattr(sys, "argv", ["x.py", *needed.split(), flag])
            capsys.readouterr()
            with pytest.raises(SystemExit) as stop:
                run_as_script(script.main)
            error = capsys.readouterr().err
            assert stop.value.code == 2, (argv, error)
            assert error.count("\n") == 1 and flag in error, (argv, error)
            tried += 1
    assert not [path for path in tmp_path.iterdir() if path.name != "tree"]
    print(f"{tried} bad values")


def test_a_run_that_goes_on_needs_no_disk_for_what_is_behind_it(
    flags, run_script, monkeypatch, tmp_path, tiny_models
):
    """Checkpoints of finished epochs that were deleted are not written again."""
    assert run_script(train, flags)[0] == 0
    for number in (0, 1):
        (tmp_path / TREE_FOLDER / f"model_{number}.pth").unlink()
    monkeypatch.setattr(train, "free_disk", lambda _: 0)
    code, output, _ = run_script(train, f"{flags} --resume")
    assert code == 0 and "is finished" in output
