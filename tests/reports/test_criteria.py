"""Every criterion on constructed runs: some that it must hold for, and some that it must not."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_plot import filled

from nc_metrics import neural_collapse
from robust_nc.networks.architectures import ARCHITECTURES
from robust_nc.reports.claims import FAILS, HOLDS, NOT_MEASURED, NOT_TESTABLE, judge
from robust_nc.reports.criteria import CRITERIA
from robust_nc.reports.random_means import DIMENSION, RANDOM_MEANS, random_nc1
from robust_nc.reports.readings import AT, AT_FROZEN, BATCH, FROZEN, MART, ST, ST_FROZEN
from robust_nc.reports.report import finding_row, findings_in_words
from robust_nc.reports.runs import read_runs
from robust_nc.reports.verdicts import summed_up, verdicts_in_words
from robust_nc.results.layer_rows import LayerRecord
from robust_nc.results.records import CentreRecord, LeapRecord, Record
from robust_nc.results.run_folder import RunFolder
from robust_nc.training.modes import MODES

EPOCHS = (0, 4, 29)
IMAGES = 2000
METRICS = (
    *("accuracy", "loss", "nc1", "nc2_norm_activation", "nc2_angle_activation"),
    *("nc3", "nc4", "clean_angle"),
)


def table(**rows):
    """Metric -> its values at EPOCHS, of rows with the values of METRICS at one epoch each."""
    return {
        name: dict(zip(METRICS, zip(*of_epochs, strict=True), strict=True))
        for name, of_epochs in rows.items()
    }


# Rows: an epoch each; the columns are METRICS.
UNTRAINED = (0.1, 2.3, 90.0, 0.3, 0.6, 2.0, 0.9, 0.2)
BEGUN = (0.3, 2.2, 80.0, 0.3, 0.6, 1.2, 0.6, 0.2)
FITTED = (1.0, 0.05, 4.0, 0.1, 0.1, 0.4, 0.01, 0.1)
COLLAPSED = (1.0, 0.01, 1.0, 0.01, 0.01, 0.1, 0.0, 0.1)
STOPPED = (1.0, 0.01, 30.0, 0.3, 0.5, 1.1, 0.2, 0.9)
DESTROYED = (0.0, 9.0, 200.0, 0.3, 0.5, 1.5, 0.9, 1.5)
WEAKENED = (0.4, 3.0, 5.0, 0.3, 0.5, 0.1, 0.2, 0.5)
LEAPT = (0.9, 0.5, 2.0, 0.015, 0.02, 0.15, 0.1, 0.3)
MISSED = (0.6, 0.5, 400.0, 0.9, 0.6, 2.9, 0.6, 1.2)
SLOW = (1.0, 0.01, 20.0, 0.1, 0.1, 0.4, 0.0, 0.1)
SLOWER = (1.0, 0.01, 50.0, 0.1, 0.1, 0.4, 0.0, 0.1)
NOISY = (1.0, 0.011, 1.1, 0.01, 0.01, 0.1, 0.0, 0.1)
NOISE_HARMS = (0.7, 0.5, 60.0, 0.3, 0.5, 0.4, 0.3, 0.4)

COLLAPSES = (BEGUN, FITTED, COLLAPSED)
STANDARD = table(
    clean=COLLAPSES,
    pgd=(BEGUN, DESTROYED, DESTROYED),
    targeted=(BEGUN, LEAPT, LEAPT),
    gaussian=(BEGUN, FITTED, NOISY),
)
ADVERSARIAL = table(clean=COLLAPSES, seen=COLLAPSES, pgd=COLLAPSES)
SLOWLY = table(**dict.fromkeys(("clean", "seen", "pgd"), (BEGUN, FITTED, SLOW)))
MORE_SLOWLY = table(**dict.fromkeys(("clean", "seen", "pgd"), (BEGUN, FITTED, SLOWER)))
# Test accuracy at radius 0 (clean), 2, 4, 8 of 255.
FRAGILE, ROBUST = (0.8, 0.2, 0.05, 0.0), (0.7, 0.6, 0.5, 0.4)
EARLY_RELIABLE = {"clean": (0.5, 0.6, 0.8, 1.0), "pgd": (0.4, 0.4, 0.2, 0.0)}
TURNING, ALIGNED = (0.2, 0.3, 0.6, 1.5), (0.1, 0.1, 0.1, 0.1)  # angles of the blocks
# Of the nearest-centre classifier under attack, at 8 and at 4 of 255, and of an early block.
TRUE = {
    ST: (STANDARD, FRAGILE, (EARLY_RELIABLE, TURNING), (0.0, 0.05, 0.4)),
    AT: (ADVERSARIAL, ROBUST, (EARLY_RELIABLE, ALIGNED), (0.4, 0.5, 0.4)),
    FROZEN: (MORE_SLOWLY, ROBUST, None, None),
    BATCH: (SLOWLY, ROBUST, None, None),
    MART: (SLOWLY, ROBUST, None, None),
    AT_FROZEN: (SLOWLY, ROBUST, None, None),
    ST_FROZEN: (SLOWLY, FRAGILE, None, None),
}
# Networks that fit their images and are attacked with success, of which nothing that is claimed is
# true: no collapse, a simplex that PGD leaves as it is, TRADES that is less robust and collapses.
NO_COLLAPSE = (BEGUN, STOPPED, STOPPED)
LEFT = table(
    clean=NO_COLLAPSE,
    pgd=(BEGUN, WEAKENED, WEAKENED),
    targeted=(BEGUN, MISSED, MISSED),
    gaussian=(BEGUN, FITTED, NOISE_HARMS),
)
HALF_FITTED = (0.5, *STOPPED[1:])
HARDLY = table(clean=NO_COLLAPSE, seen=(BEGUN, HALF_FITTED, HALF_FITTED), pgd=NO_COLLAPSE)
FULLY = table(**dict.fromkeys(("clean", "seen", "pgd"), COLLAPSES))
LATE_RELIABLE = {"clean": (0.5, 0.6, 0.8, 1.0), "pgd": (0.0, 0.0, 0.4, 0.4)}
RETURNING = (1.5, 1.5, 0.6, 0.5)
UNTRUE = {
    ST: (LEFT, (0.8, 0.3, 0.2, 0.2), (LATE_RELIABLE, RETURNING), (0.3, 0.3, 0.1)),
    AT: (HARDLY, ROBUST, (LATE_RELIABLE, RETURNING), (0.3, 0.3, 0.1)),
    **dict.fromkeys((FROZEN, MART), (FULLY, FRAGILE, None, None)),
    BATCH: (FULLY, (0.8, 0.4, 0.4, 0.0), None, None),
    AT_FROZEN: (HARDLY, FRAGILE, None, None),
    ST_FROZEN: (LEFT, FRAGILE, None, None),
}
NEVER_TRAINED = table(
    **dict.fromkeys(("clean", "pgd", "seen", "targeted", "gaussian"), (UNTRAINED,) * 3)
)
CHANCE = (0.1, 0.1, 0.1, 0.1)
AT_CHANCE = dict.fromkeys(("clean", "pgd"), CHANCE)
UNLEARNT = (NEVER_TRAINED, CHANCE, (AT_CHANCE, ALIGNED), (0.1, 0.1, 0.1))


def write_run(mode, world, seed=1, epochs=30):
    """A finished run of VGG11 at 8/255, measured at EPOCHS."""
    values, robust, layers, centres = world
    path = Path("models/cifar/vgg11bn/l_inf/eps8.0") / mode / f"seed{seed}"
    run = RunFolder(path, standard=mode == ST)
    run.open()
    told = {
        "dataset": "cifar",
        "model": "vgg11bn",
        "norm": "l_inf",
        "epsilon": 8.0,
        "epochs": epochs,
    }
    told |= {"train_mode": MODES[mode].train_mode, "bn": MODES[mode].bn, "seed": seed}
    run.args_file.write_text(json.dumps(told))
    run.append([row for input, of_input in values.items() for row in rows_of(input, of_input)])
    run.append([of_radius(*place) for place in zip((math.nan, 2.0, 4.0, 8.0), robust, strict=True)])
    if layers:
        run.append([row for split in ("train", "test") for row in layer_rows(split, *layers)])
    if centres:
        run.append(list(centre_rows(*centres)))
    return run.path


def rows_of(input, values):
    source = "train" if input == "seen" else "eval"
    epsilon = 8.0 if input in ("pgd", "targeted", "seen") else math.nan
    for place, epoch in enumerate(EPOCHS):
        of_epoch = {metric: series[place] for metric, series in values.items()}
        of_epoch |= {"nc1_papyan": of_epoch["nc1"] / 10}
        key = {"source": source, "epoch": epoch, "split": "train", "input": input}
        leapt = of_epoch["nc1"] == DESTROYED[2]
        of_epoch |= {"vertex_agreement": 0.95 if leapt else 0.5}
        near = 0.3 if input == "clean" else 0.2 if leapt else 0.9
        of_epoch |= {"vertex_distance": near, "images": IMAGES}
        yield filled(Record, 0.5, **key, epsilon=epsilon, **of_epoch)


def of_radius(epsilon, accuracy):
    input = "clean" if math.isnan(epsilon) else "pgd"
    key = {"source": "eval", "epoch": 29, "split": "test", "input": input, "epsilon": epsilon}
    return filled(Record, 0.5, **key, accuracy=accuracy)


def layer_rows(split, shares, angles):
    leapt = {"target_centre_accuracy": 0.9, "centre_accuracy": 0.05}
    if shares["pgd"] != EARLY_RELIABLE["pgd"]:
        leapt = {"target_centre_accuracy": 0.1, "centre_accuracy": 0.1}
    for index, name in enumerate(("b0", "b1", "b2", "features")):
        key = {"epoch": 29, "split": split, "layer": name, "index": index, "features": 512}
        for input, of_blocks in shares.items():
            known = {"centre_accuracy": of_blocks[index], "clean_angle": angles[index]}
            yield filled(LayerRecord, 0.5, **key, input=input, epsilon=8.0, **known)
        yield filled(LayerRecord, 0.5, **key, input="targeted", epsilon=8.0, **leapt)


def centre_rows(whole, half, early):
    key = {"epoch": 29, "split": "test", "means": "clean"}
    for layer, epsilon, attacked, clean in (
        ("features", 8.0, whole, 0.7),
        ("features", 4.0, half, 0.7),
        ("b1", 8.0, early, 0.6),
    ):
        place = key | {"layer": layer, "epsilon": epsilon}
        yield filled(CentreRecord, attacked, **place, input="adaptive")
        yield filled(CentreRecord, clean, **place, input="clean")


@pytest.fixture
def judged(tmp_path, monkeypatch):
    """Text of a criterion -> finding, of a world: mode -> what its run has."""
    monkeypatch.chdir(tmp_path)

    def findings(world, epochs=30, more=()):
        paths = [write_run(mode, of_mode, epochs=epochs) for mode, of_mode in world.items()]
        if more:
            RunFolder(paths[0]).append(more)
        found = {finding.criterion.text: finding for finding in judge(read_runs(paths))}
        assert len(found) == len(CRITERIA)
        return found

    return findings


def test_every_criterion_can_hold(judged):
    assert {text: f.verdict for text, f in judged(TRUE).items() if f.kind != HOLDS} == {}


def test_every_criterion_can_fail_where_its_preconditions_hold(judged):
    assert {text: f.verdict for text, f in judged(UNTRUE).items() if f.kind != FAILS} == {}


def test_nothing_holds_for_untrained_networks(judged):
    found = judged(dict.fromkeys(TRUE, UNLEARNT))
    assert {finding.kind for finding in found.values()} == {NOT_TESTABLE}
    [why] = {f.failed for f in found.values() if f.criterion.claim == 1}
    assert why == "ST: training accuracy, best of the last 5 epochs 0.1, needs >= 0.999"
    # Nor of the untrained one where all the others are trained.
    for mode, part in ((FROZEN, "TRADES (frozen)"), (MART, "MART, an addition")):
        found = judged(TRUE | {mode: UNLEARNT})
        of_mode = {text: f.kind for text, f in found.items() if f.criterion.part == part}
        assert len(of_mode) == 8 and HOLDS not in of_mode.values()


def test_standard_training_does_not_pass_as_adversarial_training(judged):
    values, robust, layers, centres = TRUE[ST]
    impostor = values | {"seen": values["pgd"]}, robust, layers, centres
    found = judged({ST: TRUE[ST], AT: impostor})
    held = {text for text, f in found.items() if f.kind == HOLDS and text.startswith("AT")}
    # What holds says that its clean images collapse, as those of ST do.
    assert held == {
        *(
            f"AT: {name}, last epoch over the first that fits"
            for name in ("NC1", "NC2 norm", "NC2 angle", "NC3")
        ),
        "AT: NC4",
        *(f"AT: {name} of clean images, first epoch over last" for name in ("NC1", "NC3")),
        "AT: NC2 angle of clean images, first epoch over last",
    }
    beside = {f.kind for text, f in found.items() if text.endswith("less ST's")}
    assert beside == {NOT_TESTABLE}
    # TRADES is not as robust as AT where AT is not robust.
    found = judged(TRUE | {AT: impostor})
    kinds = {text: f.kind for text, f in found.items() if "less AT's" in text}
    assert len(kinds) == 6 and set(kinds.values()) == {NOT_TESTABLE}


def test_standard_training_does_not_pass_as_trades(judged):
    found = judged(TRUE | {FROZEN: (ADVERSARIAL, FRAGILE, None, None)})
    kinds = {f.kind for f in found.values() if f.criterion.part == "TRADES (frozen)"}
    assert kinds == {FAILS}


def test_noise_does_not_pass_as_an_attack(judged):
    values, _, layers, centres = TRUE[ST]
    noise = values["gaussian"]
    tampered = values | {"pgd": noise, "targeted": noise | {"accuracy": (0.1, 0.0, 0.0)}}
    found = judged({ST: (tampered, (0.8,) * 4, layers, centres)})
    assert {f.kind for f in found.values() if f.criterion.claim in (2, 3)} == {NOT_TESTABLE}
    [why] = {f.failed for f in found.values() if f.criterion.claim == 3}
    assert why == "ST: success of the targeted attack 0, needs >= 0.5"
    by_claim = Counter((f.criterion.claim, f.kind) for f in found.values())
    assert by_claim[6, HOLDS] == 0


def test_a_network_that_does_not_fit_is_not_testable_and_what_was_not_run_not_measured(judged):
    values, *others = TRUE[ST]
    clean = values["clean"] | {"accuracy": (0.3, 0.9, 0.998)}
    found = judged({ST: (values | {"clean": clean}, *others)})
    for claim, kind in ((1, NOT_TESTABLE), (5, NOT_MEASURED)):
        assert {f.kind for f in found.values() if f.criterion.claim == claim} == {kind}
    row = finding_row(found["ST: NC4"])
    assert (row["verdict"], row["mean"], row["values"]) == ("not testable", 0.0, "0.0")
    assert (
        row["not_testable"]
        == "ST: training accuracy, best of the last 5 epochs 0.998, needs >= 0.999"
    )


def test_seeds_that_are_not_testable_have_no_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values, *others = TRUE[ST]
    worse = values["clean"] | {"accuracy": (0.3, 0.9, 0.998), "nc4": (0.5, 0.5, 0.5)}
    paths = [write_run(ST, TRUE[ST]), write_run(ST, (values | {"clean": worse}, *others), seed=2)]
    found = {f.criterion.text: f for f in judge(read_runs(paths), [1])}
    finding = found["ST: NC4"]
    assert (finding.verdict, finding.values) == ("holds", {1: 0.0})
    lines = findings_in_words(list(found.values())).splitlines()
    [line] = [line for line in lines if line.startswith("| ST: NC4")]
    assert line.split(" | ")[3:] == [
        "0",
        "1",
        "holds; not testable of seed 2: ST: training accuracy, best of the last 5 epochs 0.998, "
        "needs >= 0.999 |",
    ]


def test_the_terminal_phase_begins_where_the_images_are_fitted(judged):
    text = "ST: NC1, last epoch over the first that fits"
    assert judged({ST: TRUE[ST]})[text].values == {1: 1.0 / 4.0}
    values, *others = TRUE[ST]
    late = values["clean"] | {"accuracy": (0.3, 0.998, 1.0)}
    found = judged({ST: (values | {"clean": late}, *others)})
    assert found[text].kind == NOT_TESTABLE  # it has just begun
    unknown = "ST: epochs among which the first fit lies, over those after it"
    assert found[text].failed == f"{unknown} inf, needs <= 0.2"
    assert (found[text].end, found[text].random) == (1.0, pytest.approx(35.857, abs=1e-3))
    row = finding_row(found[text])
    assert (row["mean"], row["end"]) == ("", 1.0)


@pytest.mark.parametrize(
    ("accuracies", "epochs", "kind"),
    (
        ((0.3, 1.0, 1.0), (0, 9, 19), NOT_TESTABLE),  # somewhere within nine of ten epochs
        ((0.3, 1.0, 1.0), (0, 2, 19), HOLDS),
        ((1.0, 1.0, 1.0), (4, 9, 19), NOT_TESTABLE),  # nothing was measured before
        ((0.3, 0.3, 1.0), (0, 18, 19), NOT_TESTABLE),
    ),
)
def test_the_epoch_of_the_fit_has_to_be_known(accuracies, epochs, kind, judged, monkeypatch):
    monkeypatch.setattr("test_criteria.EPOCHS", epochs)
    values, *others = TRUE[ST]
    clean = values["clean"] | {"accuracy": accuracies}
    found = judged({ST: (values | {"clean": clean}, *others)}, epochs=20)
    assert found["ST: NC1, last epoch over the first that fits"].kind == kind


@pytest.mark.parametrize(("epochs", "kind"), (((0, 25, 29), HOLDS), ((0, 24, 29), NOT_TESTABLE)))
def test_a_network_fits_where_one_of_its_last_epochs_does(epochs, kind, judged, monkeypatch):
    values, *others = TRUE[ST]
    clean = values["clean"] | {"accuracy": (0.3, 1.0, 0.9985)}
    monkeypatch.setattr("test_criteria.EPOCHS", epochs)
    assert judged({ST: (values | {"clean": clean}, *others)})["ST: NC4"].kind == kind


def test_what_has_fallen_tenfold_has_done_so_before_its_images_are_fitted(judged):
    text = "TRADES (frozen): NC1 of clean training images fell less than tenfold"
    values, *others = TRUE[FROZEN]
    for end, kind in ((4.0, FAILS), (40.0, NOT_TESTABLE)):
        clean = values["clean"] | {"accuracy": (0.3, 0.9, 0.99), "nc1": (80.0, end, end)}
        found = judged({AT: TRUE[AT], FROZEN: (values | {"clean": clean}, *others)})
        assert found[text].kind == kind


def test_targeted_images_are_told_apart_by_leaps_where_no_block_was_measured(judged):
    text = next(c.text for c in CRITERIA if "share nearest to the target's" in c.text)
    values, robust, _, centres = TRUE[ST]
    assert judged({ST: (values, robust, None, centres)})[text].kind == NOT_MEASURED
    place = {"epoch": 29, "split": "train", "input": "targeted", "epsilon": 8.0, "images": 20}
    pairs = {(0, 1): 7, (0, 0): 3, (1, 2): 1, (1, 1): 2, (1, 0): 2, (2, 0): 4, (2, -1): 1}
    leaps = [
        filled(LeapRecord, 0, **place, true_class=true, nearest_class=nearest, count=count)
        for (true, nearest), count in pairs.items()
    ]
    found = judged({ST: (values, robust, None, centres)}, more=leaps)
    assert found[text].values == {1: (7 + 1 + 4 - 3 - 2) / 20}


def test_what_train_py_does_not_measure_is_taken_from_the_sweep(judged):
    text = "ST: the same distance over that of clean images"
    known = {"source": "train", "epoch": 29, "split": "train", "input": "clean", "images": IMAGES}
    own = filled(Record, 0.5, **known, vertex_distance=math.nan)
    assert judged({ST: TRUE[ST]}, more=[own])[text].values == {1: pytest.approx(0.2 / 0.3)}


def test_equal_loss_is_that_of_the_network_that_ends_higher(judged):
    text = "TRADES (frozen): the same at equal loss on clean training images"
    values, *others = TRUE[FROZEN]
    for losses, nc1, kind in (
        ((2.2, 0.05, 0.05), 20.0 / 4.0, HOLDS),  # beside AT after epoch 4
        ((2.2, 0.01, 0.001), 20.0 / 1.0, HOLDS),  # AT ends higher: TRADES after epoch 4
        ((2.2, 0.026, 0.026), 20.0 / 1.0, NOT_TESTABLE),  # no epoch of AT is near
        ((2.2, 2.2, 2.2), 20.0 / 80.0, NOT_TESTABLE),  # equal before anything is learnt
    ):
        clean = values["clean"] | {"loss": losses, "nc1": (80.0, 20.0, 20.0)}
        found = judged({AT: TRUE[AT], FROZEN: (values | {"clean": clean}, *others)})
        assert found[text].values == {1: pytest.approx(nc1)}, losses
        assert found[text].kind == kind, losses


def test_verdicts_are_summed_up_and_stand_beside_their_values(tmp_path, monkeypatch):
    """Two settings: one network that fits its images, and one of the other architecture."""
    monkeypatch.chdir(tmp_path)
    values, *others = TRUE[ST]
    path, unfitted = write_run(ST, TRUE[ST]), write_run(ST, (values, *others), seed=2)
    worse = values["clean"] | {"accuracy": (0.3, 0.9, 0.998)}
    other = write_run(ST, (values | {"clean": worse}, *others), seed=3)
    told = json.loads((other / "args.json").read_text())
    (other / "args.json").write_text(json.dumps(told | {"model": "PreActResNet18"}))
    runs = read_runs([path, unfitted, other])
    lines = verdicts_in_words(judge(runs), runs).splitlines()
    assert lines[0].split(" | ")[1:] == ["cifar", "cifar, PreActResNet18 |"]
    assert lines[2] == "| seeds | ST 2 | ST 1 |"
    assert "; vgg11bn, l_inf, epsilon 8 where nothing else is said." in "\n".join(lines)
    cells = {line.split(". ")[0]: line.split(" | ")[1:] for line in lines[2:] if ". " in line}
    assert cells["| 1"] == ["holds (8 of 8)", "not testable |"]
    assert cells["| 4"] == ["not run", "not run |"]
    # One of four criteria says too little for the whole claim: those on AT were not tested.
    assert cells["| 7"][0] == "partly (2 of 2, 2 untested)"
    [nc3] = [line for line in lines if line.startswith("| ST: NC3, last epoch over")]
    assert nc3 == (
        "| ST: NC3, last epoch over the first that fits (<= 0.5) | 0.25 ± 0 (ends at 0.1, random 2)"
        " ✓ | - (ends at 0.1, random 2) ○ |"
    )
    why = next(line for line in lines if line.startswith("| remarks"))
    assert why.endswith(
        "| - | ○ because of ST: training accuracy, best of the last 5 epochs "
        "0.998, needs >= 0.999 |"
    )


@pytest.mark.parametrize(
    ("kinds", "expected"),
    (
        ([HOLDS, HOLDS], "holds (2 of 2)"),
        ([HOLDS, HOLDS, NOT_TESTABLE], "holds (2 of 2, 1 untested)"),
        ([HOLDS, NOT_MEASURED], "partly (1 of 1, 1 untested)"),
        ([HOLDS, FAILS, NOT_MEASURED], "partly (1 of 2, 1 untested)"),
        ([FAILS, NOT_TESTABLE], "does not hold (0 of 1, 1 untested)"),
        ([NOT_MEASURED, NOT_TESTABLE], "not testable"),
        ([NOT_MEASURED], "not run"),
        ([], "not run"),
    ),
)
def test_one_verdict_of_many(kinds, expected):
    assert summed_up([SimpleNamespace(kind=kind) for kind in kinds]) == expected


def test_a_quantity_has_one_bound():
    bounds = {}
    for criterion in CRITERIA:
        name = criterion.text.removeprefix(f"{criterion.part}: ")
        bounds.setdefault(name, set()).add(criterion.bound)
    assert {name: b for name, b in bounds.items() if len(b) > 1} == {}
    angles = [c.bound for c in CRITERIA if c.text.startswith("AT") and "angle between" in c.text]
    angles += [c.bound for c in CRITERIA if c.text.startswith("AT, PGD: the same angle")]
    assert angles == ["<= 0.2", "<= 0.2"]
    assert {c.bound for c in CRITERIA if c.text.endswith(": NC4")} == {"<= 0.001"}


def test_a_claim_s_table_has_at_most_seven_criteria_and_a_line_of_remarks():
    counts = Counter((c.claim, c.part) for c in CRITERIA if c.main)
    assert max(counts.values()) == 7


@pytest.mark.parametrize("classes", RANDOM_MEANS)
def test_the_scale_is_that_of_random_class_means(classes):
    """A network whose features are its class means has the NC2 and NC3 of those."""
    random = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(400 if classes == 10 else 20):
        means, weight = (
            torch.randn(classes, DIMENSION, generator=random, dtype=torch.float64) for _ in range(2)
        )
        # Two images of each class, at its mean but for rounding.
        features = torch.cat((means, means + 1e-6))
        labels = torch.arange(classes).repeat(2)
        drawn.append(neural_collapse(features, labels, features @ weight.T, weight))
    for metric, value in RANDOM_MEANS[classes].items():
        mean = np.mean([getattr(one, metric) for one in drawn])
        assert mean == pytest.approx(value, rel=0.03), metric


def test_nc1_of_features_without_classes_is_the_derived_one():
    random = torch.Generator().manual_seed(0)
    features = torch.randn(2000, DIMENSION, generator=random, dtype=torch.float64)
    labels = torch.arange(2000) % 10
    found = neural_collapse(features, labels, features[:, :10], features[:10])
    assert found.nc1 == pytest.approx(random_nc1(2000, 10), rel=0.1)
    assert random_nc1(2000, 10) == pytest.approx(35.857, abs=1e-3)


def test_the_networks_have_features_of_that_dimension():
    for factories in ARCHITECTURES.values():
        for factory in factories.values():
            network = factory(num_classes=10, in_channels=3)
            [linear] = [m for m in network.modules() if isinstance(m, torch.nn.Linear)]
            assert linear.in_features == DIMENSION
