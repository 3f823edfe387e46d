"""`make gpu` and `make gpu-run`, on a CPU: what they time, write, and say when something fails."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict, replace
from pathlib import Path

import gpu
import gpu_run
import gpu_stages
import gpu_steps
import pytest
import sides
import torch
from conftest import BENCHMARKS
from switches import SWITCHES

from robust_nc.training import resume

CPU = torch.device("cpu")
FIGURE = gpu_stages.Figure("ST epoch", 0.5, "s", target=0.6)


@pytest.fixture
def path(tmp_path):
    """The file of a GPU that has been through a stage."""
    path = tmp_path / "NVIDIA_H99.json"
    gpu_stages.note(path, "tests", figures=[asdict(FIGURE)], error=None, when="2026-01-01 00:00")
    return path


def stages(path):
    return json.loads(path.read_text())["stages"]


def test_a_gpu_s_name_is_a_file_s():
    assert gpu.slug("NVIDIA H100 80GB HBM3") == "NVIDIA_H100_80GB_HBM3"
    assert gpu.slug("a/b (c)") == "a_b_c"


def test_figures_tell_whether_they_meet_their_target():
    assert FIGURE.met and not gpu_stages.Figure("x", 0.7, "s", target=0.6).met
    ratio = gpu_stages.Figure("x", 12.0, "times", target=10, at_least=True)
    assert ratio.met and not gpu_stages.Figure("x", 9.0, "times", target=10, at_least=True).met
    assert gpu_stages.Figure("x", 1.0, "s").met is None
    assert gpu_stages.describe(FIGURE) == "ST epoch: 0.5 s (target 0.6)"
    assert gpu_stages.describe(gpu_stages.Figure("x", 0.71234, "s")) == "x: 0.712 s"


def test_the_table_is_made_from_the_file_alone(path):
    ratio = gpu_stages.Figure("AT", 2.0, "times", target=3, at_least=True)
    figures = [asdict(ratio), asdict(gpu_stages.Figure("peak", 7.254, "GiB"))]
    gpu_stages.note(path, "memory", figures=figures, error="did not end", when="later", seconds=3.5)
    gpu.write_table(path)
    text = path.with_suffix(".md").read_text()
    assert text.startswith("# NVIDIA_H99\n")
    assert "| ST epoch | 0.5 s | at most 0.6 s | yes |" in text
    assert "| AT | 2 times | at least 3 times | **no** |" in text
    assert "| peak | 7.25 GiB |  |  |" in text
    assert text.count("**Not finished:** did not end") == 1


SAYS_WHY = """
content = json.load(open(path))
content["stages"]["kernels"]["error"] = "no cuDNN"
json.dump(content, open(path, "w"))
sys.exit(1)
"""


@pytest.mark.parametrize(
    ("code", "limit", "error"),
    (
        ("pass", 60, None),
        ("import sys; sys.exit(3)", 60, "exit code 3"),
        (SAYS_WHY, 60, "no cuDNN"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 60, "exit code -9"),
        ("time.sleep(60)", 0, "took more than 0 s"),
    ),
)
def test_a_stage_that_fails_is_noted_and_leaves_the_others(code, limit, error, path):
    before = stages(path)["tests"]
    command = [sys.executable, "-c", f"import json, sys, time; path = {str(path)!r}\n{code}"]
    assert gpu.run_stage(path, "kernels", command, limit) == (error is None)
    found = stages(path)
    assert found["kernels"]["error"] == error and found["kernels"]["seconds"] >= 0
    assert found["kernels"]["figures"] == []  # those of an earlier time are gone
    assert found["tests"] == before


@pytest.mark.slow
def test_nothing_is_left_of_a_stage_that_takes_too_long(path, tmp_path):
    """Of its own processes neither."""
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(4); open({str(alive)!r}, 'w')"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not gpu.run_stage(path, "kernels", [sys.executable, "-c", command], 2)
    time.sleep(3)
    assert not alive.exists()


def test_a_stage_that_raises_says_why(path, monkeypatch):
    bench = gpu_stages.Bench(CPU, path, "kernels")
    gpu_stages.note(path, "kernels", figures=[], error=gpu.UNENDED)

    def stage(bench):
        bench.report(FIGURE)
        raise ValueError("one\ntwo")

    monkeypatch.setitem(gpu.STAGES, "kernels", (stage, 1))
    with pytest.raises(ValueError):
        gpu.run_worker(bench)
    assert stages(path)["kernels"] == {"figures": [asdict(FIGURE)], "error": "ValueError: one"}
    assert "CPU threads" in json.loads(path.read_text())["machine"]


@pytest.mark.parametrize(("stages", "seconds"), ((gpu.MAKE_GPU, 600), (gpu.HALF_HOUR, 570)))
def test_stages_together_take_no_more_than_a_call_may(stages, seconds):
    assert sum(gpu.STAGES[stage][1] for stage in stages) <= seconds
    assert {*gpu.MAKE_GPU, *gpu.HALF_HOUR} == {*gpu.STAGES}


@pytest.mark.parametrize(
    ("output", "figures", "error"),
    (
        ("== 12 passed in 3.4s ==", {"passed": 12}, None),
        (
            "FAILED test_gpu.py::a - no\nSKIPPED [1] b\n= 1 failed, 2 passed, 1 skipped in 3s",
            {"passed": 2, "failed": 1, "skipped": 1},
            "test_gpu.py::a - no; [1] b",
        ),
        ("no tests ran in 0.1s", {}, "pytest ran no test"),
    ),
)
def test_what_pytest_says_becomes_figures(output, figures, error, path):
    bench = gpu_stages.Bench(CPU, path, "tests")
    gpu_stages.note(path, "tests", figures=[])
    try:
        gpu_stages.report_tests(bench, output)
        found = None
    except gpu_stages.StageError as raised:
        found = str(raised)
    assert found == error
    told = {f["what"].split()[1]: f["value"] for f in stages(path)["tests"]["figures"]}
    assert told == figures


def test_ratios_to_the_baseline_become_figures(path):
    rows = [
        ["st", "vgg11bn", "baseline", 9.0, 10.0, 30.0],
        ["st", "vgg11bn", "tf32", 1.0, 0.5, 0.4],
        ["sweep", "vgg11bn", "baseline", 30.0],
        ["sweep", "vgg11bn", "tf32", 3.0],
    ]
    gpu_stages.note(path, "kernels", figures=[])
    bench = gpu_stages.Bench(CPU, path, "kernels")
    gpu_stages.report_ratios(bench, {"seconds": rows, "rates": {"tf32": 4e14}})
    figures = [gpu_stages.Figure(**figure) for figure in stages(path)["kernels"]["figures"]]
    assert [figure.value for figure in figures] == [20, 10, 400]
    assert [figure.met for figure in figures] == [True, False, None]
    gpu_stages.report_ratios(bench, {"seconds": [], "rates": {"tf32": 3e14}})  # of the next task
    assert len(stages(path)["kernels"]["figures"]) == len(figures)


@pytest.fixture
def tiny_bench(path, tiny_models, monkeypatch):
    """Ten images, tiny networks, no graphs: those need a GPU."""
    settings = sides.our_settings
    monkeypatch.setattr(
        sides,
        "our_settings",
        lambda variant, *rest: settings(variant.split("+")[0], *rest),
    )

    def bench(stage):
        gpu_stages.note(path, stage, figures=[])
        return gpu_stages.Bench(CPU, path, stage, scale=10 / sides.IMAGES)

    return bench


@pytest.mark.slow
def test_jobs_and_the_column_are_timed_as_published(tiny_bench, path, monkeypatch):
    written, epochs = [], []
    save, run_epoch = resume.save_checkpoint, gpu_stages.run_epoch

    def saved(path, **state):
        written.append(path.name)
        save(path, **state)

    def counted(training, epoch):
        epochs.append(training.settings)
        return run_epoch(training, epoch)

    monkeypatch.setattr(resume, "save_checkpoint", saved)
    monkeypatch.setattr(gpu_stages, "run_epoch", counted)
    jobs = [replace(job, variants=job.variants[-1:]) for job in gpu_stages.JOBS[1::2]]
    monkeypatch.setattr(gpu_stages, "JOBS", (gpu_stages.JOBS[0], *jobs))
    gpu_stages.time_jobs(tiny_bench("end-to-end"))
    figures = stages(path)["end-to-end"]["figures"]
    assert len(figures) == len(gpu_stages.JOBS[0].variants) + len(jobs)
    assert all(figure["value"] > 0 and figure["target"] for figure in figures)
    assert "model_2.pth" in written and "resume.pth" in written  # of three ST epochs, timed
    modes = {(settings.train_mode, settings.neural_collapse) for settings in epochs}
    assert modes == {("std_train", False), ("pgd_train", True)}

    monkeypatch.setattr(gpu_stages, "COLUMN_VARIANTS", ("tf32",))
    epochs.clear()
    gpu_stages.project_column(tiny_bench("column"))
    [figure] = stages(path)["column"]["figures"]
    assert figure["unit"] == "h" and figure["target"] == 24
    assert {settings.model for settings in epochs} == {"vgg11bn", "PreActResNet18"}
    assert {settings.train_mode for settings in epochs} == set(sides.TRAIN_MODES.values())


def test_memory_and_profile_are_measured(tiny_bench, path):
    gpu_stages.limit_memory(tiny_bench("memory"))
    assert [f["target"] for f in stages(path)["memory"]["figures"]] == [8.0] * 4
    bench = tiny_bench("profile")
    training = gpu_stages.make_training(bench, "st", "vgg11bn", "fp32")
    gpu_steps.profile_steps(bench, training, "st", count=2)
    first, share, *kernels = stages(path)["profile"]["figures"]
    assert first["value"] > 0 and 0 < share["value"] <= 1.5 and len(kernels) == 6


def test_steps_and_attacks_are_timed(tiny_bench, path, monkeypatch):
    for stage, work, count in (
        ("steps", gpu_steps.time_steps, len(gpu_steps.STEPS)),
        ("attack", gpu_steps.time_attacks, len(gpu_steps.ATTACK_MODELS)),
    ):
        monkeypatch.setattr(gpu_steps, "VARIANTS", ("tf32", "tf32+graph"))  # one, on a CPU
        monkeypatch.setattr(gpu_steps, "ATTACK_VARIANTS", ("tf32+compile",))
        work(tiny_bench(stage))
        figures = stages(path)[stage]["figures"]
        assert len(figures) == count and len({figure["what"] for figure in figures}) == count
        assert all(figure["unit"] == "ms" and figure["value"] > 0 for figure in figures)


def test_every_switch_is_timed_beside_its_variant_as_it_is(tiny_bench, path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "time_step", lambda *_: 1.0)
    gpu_steps.time_switches(tiny_bench("switches"))
    names = [figure["what"] for figure in stages(path)["switches"]["figures"]]
    variants = {switch.variant for switch in SWITCHES.values()}
    assert len(set(names)) == len(names) == len(SWITCHES) + len(variants)


def half_hour(part, tmp_path):
    """A part of half_hour.sh as it is tried without a GPU."""
    folders = {"OUT": "out", "MODELS": "models", "GPU_TABLES": "gpu", "REPORT": "report"}
    return subprocess.run(
        ["bash", str(BENCHMARKS / "half_hour.sh"), part],
        env=os.environ
        | {name: str(tmp_path / folder) for name, folder in folders.items()}
        | {"HALF_HOUR_TRY": "1", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_every_part_of_the_half_hour_runs_without_a_gpu(tmp_path):
    """Both parts of evidence are done by the first here; the second finds nothing left."""
    for part in ("1", "2", "3", "tables"):
        result = half_hour(part, tmp_path)
        assert result.returncode == 0, (part, result.stdout[-2000:], result.stderr[-2000:])
    [found] = (tmp_path / "gpu").glob("*.json")
    measured = stages(found)
    assert {*measured} == {*gpu.HALF_HOUR}
    assert all(stage["figures"] and not stage["error"] for stage in measured.values())
    log = (tmp_path / "models/evidence.log").read_text()
    assert (tmp_path / "models/ended").exists() and "error" not in log, log[-2000:]
    finished = (tmp_path / "out/runs/finished").read_text().split()
    assert [Path(line).name for line in finished] == [
        "std_train",
        "pgd_train",
        "pgd_train_TRADES",
        "pgd_train_TRADES_batch",
        "pgd_train_frozen",
    ]
    assert not list((tmp_path / "out").rglob("*.pth"))
    for report in ("full", "small"):
        assert (tmp_path / "report" / report / "claims.md").exists()
        assert list((tmp_path / "report" / report / "figures").glob("*.png"))


def test_a_part_of_the_half_hour_that_there_is_not_is_refused_in_one_line(tmp_path):
    result = half_hour("4", tmp_path)
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "expected 1, 2, 3 or tables" in result.stderr and not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("script", (gpu, gpu_run))
def test_without_a_gpu_one_line_says_so(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--out", str(tmp_path / "gpu")])
    with pytest.raises(SystemExit) as stop:
        script.main()
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "there is no GPU here" in error and not (tmp_path / "gpu").exists()


SCRIPT = """
import pathlib, signal, sys, time
name = pathlib.Path(__file__).stem
count = pathlib.Path(f"{name}.calls")
calls = int(count.read_text()) if count.exists() else 0
count.write_text(str(calls + 1))
pathlib.Path(f"{name}.argv").write_text(" ".join(sys.argv[1:]))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(SLEEP if calls == 0 else 0)
"""


def test_a_run_goes_on_in_pieces_and_its_wall_times_add_up(tmp_path, monkeypatch, capsys):
    for name, sleep in (("train", 60), ("eval", 0)):
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(SCRIPT.replace("SLEEP", str(sleep))))
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    former = signal.getsignal(signal.SIGTERM)
    path, more = tmp_path / "CPU.json", ["--dataset", "folder"]
    try:
        assert gpu_run.run(path, more, limit=2) == gpu_run.TIME_IS_UP
        assert "the same command goes on" in capsys.readouterr().err
        told = stages(path)["run"]
        assert told["error"] == "under way" and 1.5 < told["wall"]["train.py"] < 30
        assert not (tmp_path / "eval.calls").exists()
        first = told["wall"]["train.py"]
        assert gpu_run.run(path, more, limit=None) == 0
    finally:
        signal.signal(signal.SIGTERM, former)
    told = stages(path)["run"]
    assert told["error"] is None and told["wall"]["train.py"] > first
    assert told["wall"].keys() == {"train.py", "eval.py"}
    trained = (tmp_path / "train.argv").read_text()
    assert trained.endswith("--epochs 400 --resume --dataset folder")
    swept = (tmp_path / "eval.argv").read_text()
    assert "--neural-collapse-targeted --dataset folder" in swept and "--resume" not in swept
    assert "| train.py, " in path.with_suffix(".md").read_text()
    assert gpu_run.earlier_seconds(path, more) == {}  # a finished run is not gone on with
    assert gpu_run.run_script([sys.executable, "-c", "import sys; sys.exit(1)"], 30) == 1


@pytest.mark.slow
def test_the_run_and_its_sweep_on_a_cpu(tmp_path):
    flags = "--dataset digits --limit-train 20 --limit-test 10 --epochs 2 --lr-max 0.01"
    flags += " --attack-iters 2 --device cpu --out out"
    command = [sys.executable, str(BENCHMARKS / "gpu_run.py"), *flags.split()]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [path] = (tmp_path / "out").glob("*.json")
    assert stages(path)["run"]["error"] is None
    assert list((tmp_path / "models").rglob("nc1.npy"))
