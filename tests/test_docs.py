"""What the documents say is what happens: snippets and scripts run, flags and files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_safety import flags_of

import eval as eval_script
import plot
import reproduce
import train
from robust_nc import build
from robust_nc.results.series import series_names

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SOURCES = (*ROOT.glob("*.py"), *ROOT.glob("robust_nc/**/*.py"))


def code_after(path, line):
    """The code block that follows a line of a document."""
    text = path.read_text()
    assert text.count(line) == 1, line
    return re.search(r"```\w*\n(.*?)```", text.split(line)[1], re.DOTALL).group(1)


@pytest.mark.slow
def test_the_snippet_measures_collapse_of_a_network_of_one_s_own(tmp_path):
    snippet = code_after(DOCS / "extending.md", "<!-- run by tests/test_docs.py -->")
    result = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    nc1 = {name: float(v) for name, v in re.findall(r"(clean|PGD) +NC1 +([\d.]+)", result.stdout)}
    assert nc1["PGD"] > 2 * nc1["clean"] > 0
    angle = float(re.search(r"class means: ([\d.]+) radians", result.stdout).group(1))
    assert 0.1 < angle < 3.15


@pytest.fixture
def grid(tmp_path, monkeypatch):
    """The lines of grid.txt and sweeps.txt, made as docs/clusters.md does."""
    monkeypatch.chdir(tmp_path)
    code = code_after(DOCS / "clusters.md", "## The paper's grid")
    for _ in range(2):  # made again, they are the same
        subprocess.run(["bash", "-ec", code], check=True)
    return [Path(name).read_text().splitlines() for name in ("grid.txt", "sweeps.txt")]


def test_every_line_of_the_grid_is_a_run_and_its_sweep(grid):
    runs, sweeps = grid
    assert len(set(runs)) == len(runs) == len(sweeps) == 36
    for run, sweep in zip(runs, sweeps, strict=True):
        trained = train.parse_args(run.split())
        swept = eval_script.parse_args(sweep.split())
        assert build.run_folder(trained).path == build.run_folder(swept).path
        standard = trained.train_mode == "std_train"
        assert trained.neural_collapse and swept.neural_collapse_gaussian
        assert swept.neural_collapse == swept.neural_collapse_targeted == standard


@pytest.mark.parametrize(
    ("script", "lead", "lines"),
    (("train.py", "Eight runs at a time", 0), ("eval.py", "Sweeps likewise", 1)),
)
def test_xargs_starts_every_line_on_a_gpu_of_its_own(script, lead, lines, grid, monkeypatch):
    Path("python").write_text('#!/bin/bash\necho "$CUDA_VISIBLE_DEVICES $@" >> asked.txt\n')
    Path("python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    subprocess.run(["sh", "-ec", code_after(DOCS / "clusters.md", lead)], check=True)
    asked = [line.split(" ", 1) for line in Path("asked.txt").read_text().splitlines()]
    assert {gpu for gpu, _ in asked} <= set("01234567")
    end = " --resume" if script == "train.py" else ""
    assert sorted(words for _, words in asked) == sorted(
        f"{script} {line}{end}" for line in grid[lines]
    )


@pytest.mark.parametrize("script", ("train", "sweep"))
def test_one_slurm_script_makes_the_other(script, grid, monkeypatch):
    Path("train.sh").write_text(code_after(DOCS / "clusters.md", "## SLURM"))
    Path("sbatch").write_text('#!/bin/bash\necho "$@" >> submitted.txt; echo 41\n')
    Path("srun").write_text('#!/bin/bash\necho "$@" > asked.txt\n')
    for name in ("sbatch", "srun"):
        Path(name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{Path.cwd()}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "36")
    subprocess.run(
        ["bash", "-ec", code_after(DOCS / "clusters.md", "a sweep can wait")], check=True
    )
    submitted = Path("submitted.txt").read_text().splitlines()
    assert submitted == ["--parsable train.sh", "--dependency=aftercorr:41 sweep.sh"]
    assert subprocess.run(["bash", f"{script}.sh"]).returncode == 0
    expected = {"train": f"train.py {grid[0][-1]} --resume", "sweep": f"eval.py {grid[1][-1]}"}
    assert Path("asked.txt").read_text() == f"python {expected[script]}\n"


@pytest.mark.parametrize(("code", "requeued"), ((0, False), (1, False), (143, True)))
def test_the_slurm_script_exits_as_the_run_did_and_requeues_what_was_stopped(
    code, requeued, tmp_path
):
    """With stand-ins for srun and scontrol, which are on no test machine."""
    (tmp_path / "train.sh").write_text(code_after(DOCS / "clusters.md", "## SLURM"))
    (tmp_path / "grid.txt").write_text("--seed=1\n--seed=2 --train-mode=pgd_train\n")
    for name, content in {
        "srun": f'echo "$@" > asked.txt; exit {code}',
        "scontrol": 'echo "$@" > requeued.txt',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "2",
        "SLURM_JOB_ID": "77",
    }
    ran = subprocess.run(["bash", "train.sh"], cwd=tmp_path, env=environment)
    assert ran.returncode == code
    asked = (tmp_path / "asked.txt").read_text().strip()
    assert asked == "python train.py --seed=2 --train-mode=pgd_train --resume"
    assert (tmp_path / "requeued.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued.txt").read_text() == "requeue 77\n"


@pytest.mark.parametrize("script", (train, eval_script, plot, reproduce))
def test_every_flag_is_documented(script, monkeypatch):
    text = (DOCS / "flags.md").read_text()
    for action in flags_of(script, monkeypatch).values():
        for flag in action.option_strings:
            assert re.search(rf"{flag}(?![\w-])", text), flag


def test_every_series_is_documented():
    text = (DOCS / "results.md").read_text()
    for name in series_names():
        stem = name.removeprefix("test_")
        for prefix in ("linf_label_", "new_gaussian_label_", "gaussian_label_"):
            stem = stem.removeprefix(prefix)
        assert re.search(rf"\b({name}|{stem})\b", text), name


def test_the_readme_is_short_and_its_links_lead_somewhere():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for path in (ROOT / "README.md", *DOCS.glob("*.md")):
        for link in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
            assert link.startswith("http") or (path.parent / link).exists(), (path.name, link)


def test_every_required_package_has_a_tested_version():
    def names(file):
        lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
        return {re.split(r"[=<>]", line)[0] for line in lines if line}

    assert names("requirements.txt") == names("constraints.txt")


def test_files_of_the_project_that_a_document_or_docstring_names_are_there():
    named = re.compile(r"\b(?:tests|robust_nc|benchmarks|docs)/[\w/.-]*\.\w+")
    for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md"), *ROOT.glob("benchmarks/*.md"), *SOURCES):
        text = re.sub(r"<!-- in \S+ -->", "", path.read_text())  # a file that a recipe makes
        missing = [name for name in named.findall(text) if not (ROOT / name).exists()]
        assert not missing, path
