"""Leaps between the vertices of a simplex, and places in the plane of three of them."""

import csv
import itertools
import math
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_centres import RADIUS, Plain
from test_scripts import TREE_FOLDER, rows

import eval as eval_script
import train
from robust_nc import measure
from robust_nc.measuring import vertices as formulas
from robust_nc.measuring.collapse import training_vertices
from robust_nc.measuring.evaluator import Evaluator
from robust_nc.measuring.missing import missing_parts
from robust_nc.measuring.sweep import checkpoint_paths
from robust_nc.measuring.vertices import Triangle, find_leaps, find_points, vertices_of
from utils import Ranks

RESULTS = TREE_FOLDER / "results"
KINDS = "--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted"
HEIGHT = math.sqrt(3) / 2
CORNERS = [[0, 2 / 3 * HEIGHT], [-0.5, -HEIGHT / 3], [0.5, -HEIGHT / 3]]  # A, B, C


@pytest.fixture
def flags(image_tree, tiny_models, run_script):
    """The flags of a run of three epochs, which is there, to be swept at a radius of its own."""
    tree = f"--dataset folder --data-dir {image_tree} --attack-iters 2"
    assert run_script(train, f"{tree} --epochs 3 --batch-size 4 --lr-max 0.01")[0] == 0
    return f"{tree} --epsilons {RADIUS}"


def simplex(classes, dimension=12, size=1.0, seed=0):
    """A perfect simplex, turned and moved at random: (C, D)."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    turned = torch.linalg.qr(matrix)[0][:classes]
    return size * turned + 5 * torch.randn(dimension, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------------------------------------
# Leaps
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (1e-3, 1.0, 1e3))
def test_leaps_that_are_known_are_counted(size):
    """Class c leaps to c + 1, but for each fifth image, which stays; the network says where to."""
    vertices = simplex(4, size=size)
    labels = torch.arange(40) % 4
    lands = torch.where(torch.arange(40) % 5 == 0, labels, (labels + 1) % 4)
    leaps = find_leaps(vertices[lands], labels, lands, vertices)
    assert leaps.agreement == 1.0 and leaps.distance == pytest.approx(0, abs=1e-9)
    assert leaps.counts == Counter(zip(labels.tolist(), lands.tolist(), strict=True))
    # The network says the label instead: all others are the side of the simplex away from it.
    leaps = find_leaps(vertices[lands], labels, labels, vertices)
    assert leaps.agreement == 8 / 40 and leaps.distance == pytest.approx(32 / 40)
    # Half the way to another vertex, and a third of the side at a right angle to the simplex.
    half = (vertices[[0]] + vertices[[1]]) / 2
    leaps = find_leaps(half, labels[:1], labels[:1], vertices)
    assert leaps.distance == pytest.approx(0.5)


def test_leaps_equal_plain_loops_over_images():
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(5, 7, generator=generator)
    features = torch.randn(60, 7, generator=generator)  # float32, as a network's
    labels, says = (torch.randint(5, (60,), generator=generator) for _ in range(2))
    leaps = find_leaps(features, labels, says, means)
    h, v = features.double().numpy(), means.double().numpy()
    apart = np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(v, 2)])
    nearest = [int(np.argmin([np.linalg.norm(x - c) for c in v])) for x in h]
    assert leaps.agreement == np.mean([n == s for n, s in zip(nearest, says, strict=True)])
    away = [np.linalg.norm(x - v[s]) for x, s in zip(h, says, strict=True)]
    assert leaps.distance == pytest.approx(np.mean(away) / apart)
    assert leaps.counts == Counter(zip(labels.tolist(), nearest, strict=True))


@pytest.mark.parametrize("fault", ("coincide", "missing"))
def test_without_vertices_nothing_is_known_and_every_image_is_counted(fault):
    vertices, labels = simplex(3), torch.tensor([0, 0, 2, 1])
    if fault == "coincide":
        vertices[:] = vertices[0]
    else:
        vertices = vertices_of(vertices, torch.tensor([0, 2, 2]))
        assert vertices[1].isnan().all() and vertices[[0, 2]].isfinite().all()
        seen = SimpleNamespace(collapse=SimpleNamespace(class_means=simplex(3)))
        with pytest.warns(RuntimeWarning, match="no training image of class 1: vertex_agreement"):
            assert training_vertices(seen, torch.tensor([0, 2, 2]))[1].isnan().all()
    leaps = find_leaps(torch.randn(4, 12), labels, labels, vertices)
    assert math.isnan(leaps.agreement) and math.isnan(leaps.distance)
    assert leaps.counts == {(0, -1): 2, (1, -1): 1, (2, -1): 1}


# ---------------------------------------------------------------------------------------------
# The plane of three vertices
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", list(itertools.permutations((0, 1, 2))))
@pytest.mark.parametrize("mirrored", (False, True))
def test_a_simplex_is_an_equilateral_triangle_that_does_not_turn(classes, mirrored):
    vertices = simplex(5, size=3.0)[list(classes)]
    if mirrored:
        vertices[:, 0] *= -1
    triangle = Triangle(vertices)
    np.testing.assert_allclose(triangle.corners, CORNERS, atol=1e-12)
    placed = triangle.place(torch.cat((vertices, vertices.mean(0, keepdim=True))))
    np.testing.assert_allclose(placed[:, :2], [*CORNERS, [0, 0]], atol=1e-12)
    np.testing.assert_allclose(placed[:3, 2], 0, atol=1e-7)


def test_a_feature_is_projected_at_a_right_angle_and_tells_what_is_left_out():
    vertices = simplex(4, size=2.0)
    a, b, c, other = vertices
    centroid = (a + b + c) / 3
    up = other - centroid
    up = up - torch.stack((b - a, c - a)).T @ torch.linalg.lstsq(
        torch.stack((b - a, c - a)).T, up.unsqueeze(1)
    ).solution.squeeze(1)
    side = (a - b).norm()
    inside = centroid + 0.3 * (c - b)  # 0.3 sides to the right
    points = torch.stack((inside, inside + 0.4 * side * up / up.norm(), other))
    placed = Triangle(vertices[:3]).place(points)
    np.testing.assert_allclose(placed[:2, :2], [[0.3, 0]] * 2, atol=1e-12)
    np.testing.assert_allclose(placed[:2, 2], [0, 0.8], atol=1e-7)
    # Another vertex of a simplex lies over the centroid, all of it outside.
    np.testing.assert_allclose(placed[2], [0, 0, 1], atol=1e-12)


def test_a_triangle_with_unequal_sides_keeps_its_shape():
    generator = torch.Generator().manual_seed(3)
    vertices = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    for order in itertools.permutations(range(3)):
        corners = Triangle(vertices[list(order)]).corners
        sides, true = torch.pdist(corners), torch.pdist(vertices[list(order)])
        torch.testing.assert_close(sides, true / true.mean())
        (_, top), (left, base), (right, other) = corners.tolist()
        assert top > base == pytest.approx(other) and left < right
        np.testing.assert_allclose(corners.mean(0), 0, atol=1e-12)


@pytest.mark.parametrize(
    "vertices",
    (
        [[0, 0], [1, 1], [3, 3]],
        [[0, 0], [0, 0], [1, 0]],
        [[0, 0], [1, 0], [1, 0]],
        [[1, 2]] * 3,
        [[0], [1], [3]],
        [[0, 0], [1, 0], [math.nan] * 2],
    ),
)
def test_three_vertices_that_span_no_plane_have_no_coordinates(vertices):
    vertices = torch.tensor(vertices, dtype=torch.float64)
    triangle = Triangle(vertices)
    assert not triangle.known and Triangle(simplex(3)).known
    assert triangle.place(vertices).isnan().all()


def test_points_are_the_mean_of_all_and_the_first_images_of_a_class(monkeypatch):
    monkeypatch.setattr(formulas, "MOST_POINTS", 3)
    vertices = simplex(4)
    labels = torch.tensor([1, 0, 1, 3, 1, 1, 1])
    features = vertices[labels] + torch.arange(7).unsqueeze(1) / 10
    triangle = Triangle(vertices[[1, 2, 0]])
    points = find_points(features.float(), labels, torch.arange(7), triangle, (1, 2, 0))
    assert [point[:3] for point in points] == [
        *((-1, 1, -1), (0, 1, 0), (2, 1, 2), (4, 1, 4)),  # none of class 2, which has no images
        *((-1, 0, -1), (1, 0, 1)),
    ]
    assert [point.images for point in points] == [5, 1, 1, 1, 1, 1]
    mean = triangle.place(features[labels == 1].mean(0, keepdim=True))[0]
    np.testing.assert_allclose(points[0][3:6], mean, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# In a sweep
# ---------------------------------------------------------------------------------------------


def places(found):
    return [[float(row[name]) for name in ("x", "y", "outside")] for row in found]


def plain_triangle(corners):
    """From features (N, D) to x, y and outside, by Gram and Schmidt in numpy."""
    a, b, c = corners
    right = (c - b) / np.linalg.norm(c - b)
    up = a - b - (a - b) @ right * right
    up /= np.linalg.norm(up)
    unit = np.mean([np.linalg.norm(p - q) for p, q in ((a, b), (b, c), (c, a))])

    def place(features):
        h = features - (a + b + c) / 3
        x, y = h @ right, h @ up
        rest = np.linalg.norm(h - x[:, None] * right - y[:, None] * up, axis=1)
        return np.stack((x / unit, y / unit, rest / np.linalg.norm(h, axis=1)), 1)

    return place


def test_every_number_again_from_a_checkpoint_by_other_code(flags, image_tree, run_script):
    what = f"{KINDS} --leaps --simplex 2 0 1 --split both --checkpoints 2"
    code, output, error = run_script(eval_script, f"{flags} {what}")
    assert code == 0, error
    plain = Plain(image_tree, 2)
    x, y, _ = plain.images("train", "clean")
    clean = plain.outputs(x, "features")
    means = np.stack([clean[y == c].mean(0) for c in range(3)])
    apart = np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(means, 2)])
    place = plain_triangle(means[[2, 0, 1]])
    recorded = rows(RESULTS / "metrics.csv")
    swept = {(r["split"], r["input"]): r for r in recorded if r["source"] == "eval"}
    moved = 0
    for split, name in itertools.product(("train", "test"), ("clean", "pgd", "targeted")):
        x, _, true = plain.images(split, name)
        h = plain.outputs(x, "features")
        with torch.no_grad():
            said = plain.network(x).argmax(1).numpy()
        distances = np.linalg.norm(h[:, None] - means[None], axis=2)
        nearest = distances.argmin(1)
        row = swept[split, name]
        assert float(row["vertex_agreement"]) == (nearest == said).mean()
        away = distances[np.arange(len(h)), said].mean() / apart
        assert float(row["vertex_distance"]) == pytest.approx(away, rel=1e-4)
        mine = [r for r in rows(RESULTS / "leaps.csv") if (r["split"], r["input"]) == (split, name)]
        counts = {(int(r["true_class"]), int(r["nearest_class"])): int(r["count"]) for r in mine}
        assert counts == Counter(zip(true.tolist(), nearest.tolist(), strict=True))
        assert {r["images"] for r in mine} == {str(len(h))}
        moved += (nearest != true).sum()
        mine = [
            r for r in rows(RESULTS / "simplex.csv") if (r["split"], r["input"]) == (split, name)
        ]
        # Of targeted images A and B alone, 2 and 0: the third class has no next corner.
        classes = (0, 2) if name == "targeted" else (0, 1, 2)
        images = [r for r in mine if r["image"] != "-1"]
        numbers = [int(r["image"]) for r in images]
        assert sorted(numbers) == [i for i, c in enumerate(true) if c in classes]
        np.testing.assert_allclose(places(images), place(h[numbers]), rtol=1e-3, atol=1e-4)
        assert [int(r["label"]) for r in images] == true[numbers].tolist()
        assert [int(r["predicted"]) for r in images] == said[numbers].tolist()
        averages = [r for r in mine if r["image"] == "-1"]
        assert [int(r["label"]) for r in averages] == list(classes)
        expected = place(np.stack([h[true == c].mean(0) for c in classes]))
        np.testing.assert_allclose(places(averages), expected, rtol=1e-3, atol=1e-4)
        assert {(r["classes"], r["predicted"]) for r in averages} == {("2 0 1", "-1")}
    assert moved and "commonest leaps" in output and "outside their plane" in output


@pytest.fixture
def passes(monkeypatch):
    """How many images each pass through the network had, in order."""
    made, original = [], Evaluator.outputs

    def outputs(evaluator, images, labels, perturb=None):
        made.append(len(images))
        return original(evaluator, images, labels, perturb)

    monkeypatch.setattr(Evaluator, "outputs", outputs)
    return made


def contents():
    return {path.name: path.read_bytes() for path in RESULTS.glob("*.csv")}


def test_they_cost_no_pass_where_the_input_is_measured_anyway(flags, run_script, passes):
    what = f"{flags} {KINDS} --split both --checkpoints 0,2"
    assert run_script(eval_script, f"{what} --leaps --simplex")[0] == 0
    assert sorted(passes) == [6] * 10 + [18] * 10  # of two epochs five kinds of input
    at_once = contents()
    for name in ("leaps.csv", "simplex.csv"):  # of a run that is swept already
        (RESULTS / name).unlink()
    for more, name in (("--leaps", "leaps.csv"), ("--simplex", "simplex.csv")):
        passes.clear()
        assert run_script(eval_script, f"{what} {more}")[0] == 0
        assert len(passes) == 20 and contents()[name] == at_once[name]
        passes.clear()
        code, output, _ = run_script(eval_script, f"{what} {more}")
        assert code == 0 and "(2 done before)" in output and not passes
    assert contents() == at_once
    # Of one kind of input alone what is missing, and the clean images for their class means.
    lose("leaps.csv", lambda r: (r["epoch"], r["split"], r["input"]) == ("2", "test", "sign"))
    assert run_script(eval_script, f"{what} --leaps --simplex")[0] == 0
    assert passes == [18, 6] and contents() == at_once
    passes.clear()
    # One image's row, and one count, of several.
    is_lost = iter([True])
    lose("simplex.csv", lambda r: r["input"] == "gaussian" and next(is_lost, False))
    assert run_script(eval_script, f"{what} --leaps --simplex")[0] == 0
    assert passes == [18, 18] and contents() == at_once


def lose(name, is_gone):
    path = RESULTS / name
    kept = [row for row in rows(path) if not is_gone(row)]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, kept[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def test_what_tasks_share_is_counted_once_in_the_progress(flags, run_script, bars):
    """Also where one of them has more to measure than the other."""
    for asked in (KINDS, f"{KINDS} --leaps --simplex", f"{KINDS} --leaps --simplex --split both"):
        assert run_script(eval_script, f"{flags} --checkpoints 0 {asked}")[0] == 0
    assert [(bar.total, bar.done) for bar in bars] == [(90, 90), (90, 90), (30, 30)]


def test_alone_they_are_of_all_kinds_of_input(flags, run_script, passes):
    assert run_script(eval_script, f"{flags} --leaps --checkpoints 2")[0] == 0
    kinds = {"clean", "pgd", "gaussian", "sign", "targeted"}
    assert {row["input"] for row in rows(RESULTS / "leaps.csv")} == kinds
    passes.clear()
    noise = f"{flags} --neural-collapse-gaussian --simplex --split test --checkpoints 2"
    assert run_script(eval_script, noise)[0] == 0
    assert passes == [18, 6, 6, 6]
    found = Counter((r["split"], r["input"]) for r in rows(RESULTS / "simplex.csv"))
    # Three means and their images: the corners are those of the clean training images.
    assert found == {("train", "clean"): 21} | {
        ("test", name): 9 for name in ("clean", "gaussian", "sign")
    }
    corners = [r for r in rows(RESULTS / "simplex.csv") if r["image"] == "-1"][:3]
    np.testing.assert_allclose([r[2] for r in places(corners)], 0, atol=1e-6)


def test_targeted_images_go_to_the_next_corner_whichever_the_classes(
    flags,
    image_tree,
    run_script,
    passes,
):
    what = f"{flags} --neural-collapse-targeted --checkpoints 2"
    assert run_script(eval_script, f"{what} --simplex 2 0 1")[0] == 0  # as all targets are
    assert passes == [18, 18]
    passes.clear()
    assert run_script(eval_script, f"{what} --simplex 1 0 2")[0] == 0
    assert passes == [18, 12]  # those of 1 and 0 once more
    found = rows(RESULTS / "simplex.csv")
    by_classes = {
        classes: [r for r in found if r["classes"] == classes] for classes in ("2 0 1", "1 0 2")
    }
    assert {len(group) for group in by_classes.values()} == {3 + 18 + 2 + 12}
    targeted = [r for r in by_classes["1 0 2"] if r["input"] == "targeted"]
    assert {r["label"] for r in targeted} == {"0", "1"}
    # The attack at this radius gets them there: 1 towards 0, and 0 towards 2.
    said = Counter((r["label"], r["predicted"]) for r in targeted if r["image"] != "-1")
    assert said["1", "0"] + said["0", "2"] > 6


def test_rows_of_older_versions_get_their_vertices_with_leaps(flags, run_script, passes):
    what = f"{flags} --neural-collapse --checkpoints 0,2"
    assert run_script(eval_script, f"{what} --leaps")[0] == 0
    whole = contents()
    (RESULTS / "leaps.csv").unlink()
    table = rows(RESULTS / "metrics.csv")
    with (RESULTS / "metrics.csv").open("w", newline="") as file:
        names = [name for name in table[0] if not name.startswith("vertex_")]
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    passes.clear()
    code, output, _ = run_script(eval_script, what)  # nothing is measured again by itself
    assert code == 0 and "(2 done before)" in output and not passes
    assert run_script(eval_script, f"{what} --leaps")[0] == 0
    assert passes == [18, 18] * 2 and contents() == whole


def test_ranks_share_them_out(flags, run_script, tmp_path):
    what = f"{flags} {KINDS} --leaps --simplex"
    before = (RESULTS / "metrics.csv").read_bytes()
    assert run_script(eval_script, what)[0] == 0
    alone = contents()
    shutil.rmtree(RESULTS)
    RESULTS.mkdir()
    (RESULTS / "metrics.csv").write_bytes(before)
    settings = eval_script.parse_args(what.split())
    run = eval_script.results_folder(settings)
    settings = eval_script.agree_with_run(settings, run)
    sweep = eval_script.prepare(settings, run, checkpoint_paths(settings, run))
    missing = missing_parts(settings, sweep.data, sweep.network, sweep.files, run)
    for number in (1, 0):
        eval_script.measure(sweep, missing, Ranks(number, 2))
    assert (RESULTS / ".leaps.csv.1.added").exists() and (RESULTS / ".simplex.csv.1.added").exists()
    run.settle()
    assert contents() == alone


def test_training_measures_them_where_it_measures_clean_images(flags, run_script, image_tree):
    recorded = rows(RESULTS / "metrics.csv")
    assert all(row["vertex_agreement"] == row["vertex_distance"] == "" for row in recorded)
    tree = f"--dataset folder --data-dir {image_tree} --attack-iters 2 --train-mode pgd_train"
    more = "--epochs 1 --neural-collapse --neural-collapse-gaussian --batch-size 4"
    assert run_script(train, f"{tree} {more}")[0] == 0
    folder = Path(str(TREE_FOLDER).replace("std_train", "pgd_train"))
    recorded = {(r["split"], r["input"]): r for r in rows(folder / "results/metrics.csv")}
    assert recorded.keys() == {
        *(("train", name) for name in ("clean", "seen", "gaussian_l2")),
        ("test", "clean"),
    }
    for row in recorded.values():
        assert 0 <= float(row["vertex_agreement"]) <= 1 and float(row["vertex_distance"]) > 0
    assert run_script(eval_script, f"{tree} --neural-collapse --split both")[0] == 0
    swept = {(r["split"], r["input"]): r for r in rows(folder / "results/metrics.csv")}
    for key in (("train", "clean"), ("test", "clean")):  # the same checkpoint
        for name in ("vertex_agreement", "vertex_distance"):
            assert float(swept[key][name]) == pytest.approx(float(recorded[key][name]), rel=1e-4)


def test_vertices_that_coincide_or_are_missing_are_told_in_one_line(
    flags,
    run_script,
    image_tree,
):
    for path in TREE_FOLDER.glob("model_*.pth"):
        content = torch.load(path, weights_only=True)
        for name in ("norm.weight", "norm.bias"):
            content["state_dict"][name].zero_()
        torch.save(content, path)
    what = f"{flags} {KINDS} --leaps --simplex"
    code, output, error = run_script(eval_script, what)
    assert (code, error) == (0, "")
    assert output.count("class means of the features coincide") == 1
    assert output.count("are in no plane") == 1
    swept = [row for row in rows(RESULTS / "metrics.csv") if row["source"] == "eval"]
    assert all(row["vertex_agreement"] == row["vertex_distance"] == "" for row in swept)
    assert {row["nearest_class"] for row in rows(RESULTS / "leaps.csv")} == {"-1"}
    assert all(row["x"] == row["outside"] == "" for row in rows(RESULTS / "simplex.csv"))
    code, output, _ = run_script(eval_script, what)
    assert code == 0 and "(3 done before)" in output


@pytest.mark.parametrize(
    ("classes", "code", "told"),
    (
        ("0 1", 2, "three different classes"),
        ("0 1 2 3", 2, "three different classes"),
        ("0 1 1", 2, "three different classes"),
        ("0 1 -2", 2, "the number of a class"),
        ("0 1 two", 2, "the number of a class"),
        ("0 1 3", 1, "there is no class 3: the images have 3 classes"),
    ),
)
def test_classes_that_make_no_triangle_are_refused(classes, code, told, flags, run_script):
    before = contents()
    found, _, error = run_script(eval_script, f"{flags} --simplex {classes}")
    assert found == code and error.count("\n") == 1
    assert "--simplex" in error and told in error
    assert contents() == before and not (RESULTS / "eval_args.json").exists()


# ---------------------------------------------------------------------------------------------
# robust_nc.measure
# ---------------------------------------------------------------------------------------------


def test_measure_tells_them_of_any_model():
    """A network that hands on what it sees: its features are the images."""
    vertices = simplex(3, dimension=4, size=0.2)
    vertices = (vertices - vertices.mean(0) + 0.5).float()
    classifier = torch.nn.Linear(4, 3)
    centred = vertices - vertices.mean(0)
    with torch.no_grad():
        classifier.weight.copy_(centred)
        classifier.bias.copy_(-(centred @ vertices.mean(0)))
    model = torch.nn.Sequential(torch.nn.Flatten(), classifier)
    labels = torch.arange(12) % 3
    loader = [(vertices[labels].view(12, 1, 2, 2), labels)]
    clean = measure(model, loader)
    assert clean.vertex_agreement == 1.0 and clean.vertex_distance == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(clean.vertices, vertices.double())

    def half_way(x, y):
        return x + 0.6 * (vertices[(y + 1) % 3] - vertices[y]).view_as(x)

    unknown = measure(model, loader, half_way)
    assert math.isnan(unknown.vertex_agreement) and math.isnan(unknown.vertex_distance)
    found = measure(model, loader, half_way, clean=clean)
    assert found.accuracy == 0 and found.vertex_agreement == 1.0
    assert found.vertex_distance == pytest.approx(0.4, rel=1e-5)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5))
    with (
        pytest.warns(RuntimeWarning, match="it is no vertex"),
        pytest.raises(ValueError, match="clean is of another model"),
    ):
        measure(other, loader, clean=clean)
    missing = [(x[y != 1], y[y != 1]) for x, y in loader]
    with pytest.warns(RuntimeWarning, match="no image of class 1"):
        assert math.isnan(measure(model, missing).vertex_agreement)
