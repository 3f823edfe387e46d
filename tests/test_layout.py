"""The rooms: who may import whom, how large each is, how many arguments a function takes."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
# From the ground up: a file imports files before it, never one after it or beside it on a floor.
FLOORS = (
    {"vgg", "preactresnet", "preactresnet_imagenet", "resnet", "attacks", "nc_metrics", "utils"},
    {"vgg_imagenet", "any_network", "files", "inputs"},
    {"records", "data", "networks"},
    {"steps", "run_folder", "measure", "tables"},
    {"flags", "cuda_graphs", "layers"},
    {"training", "groups", "claims", "parts"},
    {"figures", "report"},
    {"train", "eval", "plot", "compare_published"},
    {"reproduce"},
)
PURE = {"attacks", "nc_metrics"}  # to be copied into other projects as they are


def imports(name):
    """The names of our files that a file imports."""
    tree = ast.parse((ROOT / f"{name}.py").read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found & set().union(*FLOORS)


def test_every_file_has_its_floor():
    assert set().union(*FLOORS) == {path.stem for path in ROOT.glob("*.py")}
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


def test_arrows_only_go_down():
    below = set()
    for floor in FLOORS:
        for name in sorted(floor):
            assert imports(name) <= below, name
        below |= floor


def test_attacks_and_metrics_stand_alone():
    assert not any(imports(name) for name in PURE)


def test_utils_knows_nothing_of_neural_collapse():
    text = (ROOT / "utils.py").read_text()
    assert len(text.splitlines()) <= 350
    assert text.lower().count("collapse") == 1  # its first line, which says so


def test_functions_of_the_scripts_take_five_arguments_at_most():
    for name in set().union(*FLOORS) - PURE:
        for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef):
                arguments = [a.arg for a in (*node.args.args, *node.args.kwonlyargs)]
                count = len([a for a in arguments if a not in ("self", "cls")])
                assert count <= (6 if node.name == "__init__" else 5), f"{name}.{node.name}"


def test_benchmarks_use_the_rooms():
    for path in (ROOT / "benchmarks").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        assert not names & {"train", "eval", "plot", "compare_published"}, path.name
