"""The house: who may import whom, how large files and functions are, what stands at the root."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up: a file imports files of its own wing, or of one above it in this list.
WINGS = (
    "attacks nc_metrics utils vgg vgg_imagenet preactresnet preactresnet_imagenet",
    "robust_nc.data",
    "robust_nc.results",
    "robust_nc.networks",
    "robust_nc.settings robust_nc.published_flags robust_nc.parsing",
    "robust_nc.measuring",
    "robust_nc.training",
    "robust_nc.flags_training robust_nc.flags_sweep robust_nc.flags robust_nc.checks",
    "robust_nc.build robust_nc.comparing robust_nc.going_on",
    "robust_nc.reports",
    "train eval plot reproduce",
)
SCRIPTS = WINGS[-1].split()
PURE = {"attacks", "nc_metrics"}  # to be copied into other projects as they are
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in (*ROOT.glob("*.py"), *ROOT.glob("robust_nc/**/*.py"))
    if path.name != "__init__.py"
}


def wing_of(name):
    """The place in WINGS of a file."""
    for place, wing in enumerate(WINGS):
        if any(name == part or name.startswith(f"{part}.") for part in wing.split()):
            return place
    raise AssertionError(f"{name} has no place in the house")


def imports(name):
    """The names of our files that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & FILES.keys()


def defined_names(path):
    """What a file has at its top level, what it imports left out."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return names


@pytest.mark.parametrize("name", FILES)
def test_a_name_is_imported_from_the_file_that_defines_it(name):
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in FILES:
            elsewhere = {alias.name for alias in node.names} - defined_names(FILES[node.module])
            assert not elsewhere, node.module


def test_the_root_shows_what_a_person_runs_or_copies():
    at_root = {path.stem for path in ROOT.glob("*.py")}
    assert at_root == {*WINGS[0].split(), *SCRIPTS}


@pytest.mark.parametrize("name", FILES)
def test_arrows_only_go_down(name):
    for imported in imports(name):
        assert wing_of(imported) <= wing_of(name), imported


def test_there_is_no_circle():
    above = {name: imports(name) for name in FILES}
    while free := {name for name, needed in above.items() if not needed & above.keys()}:
        for name in free:
            del above[name]
    assert not above


def test_no_script_imports_another():
    for script in SCRIPTS:
        assert not imports(script) & {*SCRIPTS}


def test_attacks_and_metrics_stand_alone():
    assert not any(imports(name) for name in PURE)


def test_utils_knows_nothing_of_neural_collapse():
    assert not imports("utils")
    text = (ROOT / "utils.py").read_text()
    assert text.lower().count("collapse") == 1  # its first line, which says so


@pytest.mark.parametrize("path", [*FILES.values(), *ROOT.glob("benchmarks/*.py")], ids=str)
def test_files_and_functions_are_read_on_a_few_screens(path):
    text, name = path.read_text(), path.stem
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
            arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
            count = len([a for a in arguments if a not in ("self", "cls")])
            most = 12 if name in PURE else 6 if node.name == "__init__" else 5
            assert count <= most or path.parent.name == "benchmarks", node.name


def public_functions(body):
    """Functions of more than five lines that others may call, and methods of classes."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if isinstance(node, ast.ClassDef):
                yield from public_functions(node.body)
            elif node.end_lineno - node.lineno >= 5:
                yield node


@pytest.mark.parametrize("name", FILES)
def test_public_functions_say_what_they_do(name):
    tree = ast.parse(FILES[name].read_text())
    assert not [f.name for f in public_functions(tree.body) if not ast.get_docstring(f)]


LOOKS = {"color", "edgecolor", "ecolor", "mec", "fill", "cmap", "fontsize"}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("robust_nc.reports.")])
def test_colours_and_type_sizes_stand_in_one_file(name):
    written = {
        (node.arg, node.value.value)
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant)
        if node.arg in LOOKS and node.value.value not in ("none", False)
    }
    assert not written or name == "robust_nc.reports.style"


def test_mypy_checks_every_file():
    tomllib = pytest.importorskip("tomllib")  # not in Python 3.10
    mypy = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]
    checked = {path for pattern in mypy["files"] for path in ROOT.glob(pattern)}
    folders = [path for path in checked if path.is_dir()]
    missing = [
        path
        for path in FILES.values()
        if path not in checked and not any(folder in path.parents for folder in folders)
    ]
    assert not missing


def test_benchmarks_use_the_rooms():
    for path in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not names & {*SCRIPTS}, path.name


USERS_FILES = {
    # Names that a user is likely to have, and that files of ours once had.
    "data.py": "CLASSES = 'theirs'",
    "records.py": "KEPT = 'theirs'",
    "networks.py": "WIDTH = 4",
    "my_nets.py": """
from torch import nn

from data import CLASSES
from networks import WIDTH
from records import KEPT

assert CLASSES == KEPT == "theirs"


def make(num_classes, in_channels):
    pooled = nn.Sequential(nn.Conv2d(in_channels, WIDTH, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(pooled, nn.Linear(WIDTH, num_classes))
""",
}


def test_scripts_run_from_anywhere_and_hide_no_file_of_the_user_s(tmp_path):
    for name, content in USERS_FILES.items():
        (tmp_path / name).write_text(content)
    run = "--dataset digits --model my_nets:make --limit-train 20 --limit-test 10 --device cpu"
    for script, flags in {
        "train.py": f"{run} --epochs 1",
        "eval.py": f"{run} --neural-collapse",
        "plot.py": "models/digits/my_nets.make/l_inf/eps8.0/std_train/seed1",
    }.items():
        result = subprocess.run(
            [sys.executable, str(ROOT / script), *flags.split()],
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
    assert list((tmp_path / "figures").glob("*.png"))
