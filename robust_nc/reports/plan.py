"""The runs that a report on the claims needs: their commands, and what they cost."""

import argparse
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from robust_nc import build
from robust_nc.checks import check_run, check_training
from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.flags import SWEEP_FLAGS, TRAIN_FLAGS, train_parser
from robust_nc.networks.architectures import build_model
from robust_nc.networks.network import weight_bytes
from robust_nc.reports.readings import AT, AT_FROZEN, BATCH, FROZEN, MART, ST, ST_FROZEN
from robust_nc.results.conditions import step_sizes
from robust_nc.results.run_folder import RunFolder
from robust_nc.results.tables import markdown
from robust_nc.settings import (
    STATISTICS,
    Means,
    Settings,
    difference,
    flag_name,
    keys_that,
    select_epochs,
    unread,
    with_former_values,
)
from robust_nc.training.modes import MODES, bn_of


@dataclass(frozen=True)
class Experiment:
    """A network, the way it is trained, and how many seeds.

    deep: whether blocks, nearest centres and other radii are measured after the last epoch.
    dataset: another one than the scale's.
    epochs: of a small run, where it needs others than its way to train does.
    """

    mode: str
    model: str = "vgg11bn"
    norm: str = "l_inf"
    seeds: int = 1
    deep: bool = True
    dataset: str | None = None
    epochs: int | None = None


# The claims that a way to train is evidence for.
CLAIMS_OF: dict[str, tuple[int, ...]] = {
    ST: (1, 2, 3, 4, 5, 6, 7),  # 4 and 5: what AT is compared with
    AT: (4, 5, 6, 7),
    # AT (frozen) starts from a checkpoint of ST (frozen), which therefore comes first.
    **dict.fromkeys((ST_FROZEN, FROZEN, BATCH, MART, AT_FROZEN), (5,)),
}
DEEP_CLAIMS = {6, 7}  # on blocks, nearest centres and radii alone
ALL_CLAIMS = set(CLAIMS_OF[ST])
SHALLOW_CLAIMS = {1, 2, 3}  # on one network, and no other beside it
LAYER_CLAIMS = DEEP_CLAIMS | {3, 5}  # for which these are measured
EARLY_BLOCK = {"vgg11bn": "conv2", "PreActResNet18": "layer1"}  # that is attacked itself
SMALL = (
    Experiment(ST, seeds=3),
    Experiment(AT, seeds=2),
    Experiment(FROZEN, seeds=2),
    Experiment(BATCH, seeds=2),
    Experiment(ST_FROZEN, seeds=2),
    Experiment(AT_FROZEN, seeds=2),
    Experiment(MART),
    Experiment(ST, model="PreActResNet18", epochs=60),
    Experiment(AT, model="PreActResNet18"),
    Experiment(ST, norm="l_2"),
    Experiment(AT, norm="l_2"),
    Experiment(ST, deep=False, dataset="mnist"),
)
FULL = tuple(
    Experiment(mode, model=model, norm=norm, seeds=3)
    for model in ("vgg11bn", "PreActResNet18")
    for norm in PUBLISHED_ATTACKS
    for mode in CLAIMS_OF
)

# How small runs train, long enough to fit the images; digits need fewer epochs of ST.
SMALL_IMAGES = (2000, 1000)  # for training and test
SMALL_ST = {"epochs": 40}
SMALL_ADVERSARY = {"epochs": 30, "batch_size": 64, "lr_max": 0.05, "lr_schedule": "cosine"}
SMALL_ST_FROZEN = SMALL_ADVERSARY | {"epochs": 40}
# The epoch of ST (frozen) whose weights AT (frozen) starts from: from fresh ones the network does
# not leave chance, for without batch norm what PGD leaves of their small outputs teaches nothing.
START_EPOCH = {"small": 4, "full": 0}
DIGITS_ST = {"epochs": 10, "lr_max": 0.05, "lr_schedule": "cosine"}
DIGITS_RADIUS = 2.5  # times that of photographs
SWEPT = (0, 2, 4, 9, 19)  # epochs of a small run, and its last one


@dataclass(frozen=True)
class Planned:
    """One run of an experiment: flags of the run, of its training, and of each of its sweeps."""

    experiment: Experiment
    seed: int
    run: dict[str, Any]
    training: dict[str, Any]
    sweeps: tuple[dict[str, Any], ...]

    @property
    def commands(self) -> list[list[str]]:
        train = ["train.py", *words(self.run | self.training), "--resume"]
        return [train, *(["eval.py", *words(self.run | sweep)] for sweep in self.sweeps)]

    @property
    def folder(self) -> Path:
        """Where train.py puts it."""
        defaults: dict[str, Any] = {"data_name": None, "run_name": None, "run_path": None}
        defaults["epsilon"] = PUBLISHED_ATTACKS[self.experiment.norm][0]
        given = {name: value for name, value in self.run.items() if value is not None}
        return build.run_folder(Settings(**defaults | {"bn": bn_of(given)} | given)).path

    @property
    def name(self) -> str:
        mode = MODES[self.experiment.mode].label
        data = self.run["dataset"]
        return f"{mode}, {self.experiment.model}, {self.experiment.norm}, {data}, seed {self.seed}"


def words(flags_by_name: dict[str, Any]) -> list[str]:
    """Flags as words of a command; True is a switch, None and False are left out."""
    command = []
    for name, value in flags_by_name.items():
        if value is None or value is False:
            continue
        command += [flag_name(name)] + ([] if value is True else [str(value)])
    return command


def plan(args: argparse.Namespace, only: Collection[int] | None) -> list[Planned]:
    """The runs that the claims need, None: all; first seeds first, since they answer most."""
    experiments = SMALL if args.scale == "small" else FULL
    chosen = [e for e in experiments if not only or set(only) & claims_of(e)]
    planned = []
    for place, seed in enumerate(args.seeds):
        for experiment in chosen:
            if place < experiment.seeds:
                # On two cores what takes long is measured of one seed.
                deep = experiment.deep and (place == 0 or args.scale == "full")
                deep = deep and (not only or bool(LAYER_CLAIMS & set(only)))
                planned.append(plan_run(args, replace(experiment, deep=deep), seed))
    return planned


def claims_of(experiment: Experiment) -> set[int]:
    """The claims that an experiment is evidence for."""
    return set(CLAIMS_OF[experiment.mode]) & (ALL_CLAIMS if experiment.deep else SHALLOW_CLAIMS)


def plan_run(args: argparse.Namespace, experiment: Experiment, seed: int) -> Planned:
    """The flags of one run, and of its sweeps."""
    dataset = dataset_of(args, experiment)
    mode = MODES[experiment.mode]
    train_images, test_images = SMALL_IMAGES if args.scale == "small" else (None, None)
    run = {
        "dataset": dataset,
        "data_dir": {"mnist": args.mnist_dir, "digits": None}.get(dataset, args.data_dir),
        "model": experiment.model,
        "norm": experiment.norm,
        **attack_of(dataset, experiment.norm),
        "train_mode": mode.train_mode,
        "bn": mode.bn if experiment.mode != mode.train_mode else None,
        "seed": seed,
        "limit_train": args.limit_train or train_images,
        "limit_test": args.limit_test or test_images,
        "precision": args.precision,
        "models_dir": args.models_dir,
    }
    training = training_of(args, experiment, dataset)
    last = training["epochs"] - 1
    kept = range(0, last, 10) if args.scale == "full" else SWEPT
    swept = ",".join(str(epoch) for epoch in (*(e for e in kept if e < last), last))
    if args.scale == "full":
        training["checkpoint_epochs"] = swept
    if experiment.mode == AT_FROZEN:
        start = plan_run(args, replace(experiment, mode=ST_FROZEN), seed)
        training["init"] = RunFolder(start.folder).checkpoint(min(START_EPOCH[args.scale], last))
    return Planned(experiment, seed, run, training, sweeps_of(experiment, swept, last, run))


def dataset_of(args: argparse.Namespace, experiment: Experiment) -> str:
    """The data set: the experiment's own, or that of the scale."""
    if experiment.dataset:
        return experiment.dataset
    if args.scale == "full":
        return "cifar"
    return "folder" if args.data_dir else "digits"


def attack_of(dataset: str, norm: str) -> dict[str, float]:
    """Radius, step and noise where they are not the defaults; the noise is as large as l_inf's."""
    if dataset == "mnist":
        return {"epsilon": 0.2, "pgd_alpha": 0.05, "noise_level": 0.2 * 255}
    if dataset == "digits":
        radius, step = (DIGITS_RADIUS * published for published in PUBLISHED_ATTACKS[norm])
        noise = DIGITS_RADIUS * PUBLISHED_ATTACKS["l_inf"][0]
        return {"epsilon": radius, "pgd_alpha": step, "noise_level": noise}
    return {}


def training_of(args: argparse.Namespace, experiment: Experiment, dataset: str) -> dict[str, Any]:
    """How long a run is trained, and which checkpoints it keeps."""
    adversary = MODES[experiment.mode].adversary
    if args.scale == "full":
        training: dict[str, Any] = {"epochs": 400}
    elif adversary:
        training = SMALL_ADVERSARY | {"checkpoint_epochs": "log"}
    elif experiment.mode == ST_FROZEN:
        training = SMALL_ST_FROZEN | {"checkpoint_epochs": "log"}
    else:
        small = DIGITS_ST if dataset == "digits" else SMALL_ST
        training = small | {"checkpoint_epochs": "log"}
    if experiment.epochs and args.scale == "small" and dataset != "digits":
        training["epochs"] = experiment.epochs
    if args.epochs:
        training["epochs"] = args.epochs
    # Small runs are swept at few epochs, and would not tell when their images are fitted.
    return training | {"neural_collapse": adversary or args.scale == "small"}


def sweeps_of(
    experiment: Experiment, swept: str, last: int, run: dict[str, Any]
) -> tuple[dict[str, Any], ...]:
    """All kinds of input over the epochs; then test images and more after the last one.

    Leaps and simplex come first: what is attacked for them is not attacked again over the epochs.
    """
    standard = not MODES[experiment.mode].adversary
    epochs = {
        "neural_collapse": True,
        "neural_collapse_gaussian": True,
        "neural_collapse_targeted": standard,
        "checkpoints": swept,
    }
    end: dict[str, Any] = {"neural_collapse": True, "split": "both", "checkpoints": last}
    if not experiment.deep:
        return epochs, end
    radius = run.get("epsilon", PUBLISHED_ATTACKS[experiment.norm][0])
    quarter, half, double = (f"{radius * factor:g}" for factor in (0.25, 0.5, 2))
    blocks = {"ncc_layers": EARLY_BLOCK[experiment.model]} if standard else {}
    where = {"neural_collapse_targeted": True, "leaps": True, "simplex": True}
    return (
        {"neural_collapse": True, **where, "checkpoints": last},
        epochs,
        end | {"layerwise": True, "ncc": True} | blocks,
        # Without --pgd-alpha, so that the step follows the radius.
        end | {"epsilons": f"{quarter},{half},{double}", "pgd_alpha": None},
        {"ncc": True, "epsilons": half, "pgd_alpha": None, "checkpoints": last},
    )


def other_than_planned(
    planned: Planned, arguments: dict[str, Any], swept: dict[str, Any]
) -> str | None:
    """One line on what a run was trained or swept with, and is not planned, if anything.

    Args:
        arguments, swept: what its args.json and its eval_args.json tell.
    """
    parser = train_parser()
    args = parser.parse_args(planned.commands[0][1:])
    check_run(parser, args)  # both fill in defaults that depend on other flags
    check_training(parser, args)
    asked = vars(args)
    trained = keys_that(TRAIN_FLAGS, Means.TRAIN | Means.NAME | Means.SEED | Means.SUBSET)
    trained -= unread(TRAIN_FLAGS, asked) | {*STATISTICS}
    arguments = with_former_values(arguments, TRAIN_FLAGS)
    differing = difference(asked, arguments, trained)
    if differing:
        return differing
    mean = arguments.get("mean")
    if arguments.get("data_mean", mean) != mean:
        return f"--mean was {mean}, is {arguments['data_mean']} now, that of the data"
    step = step_sizes(swept).get(f"{args.epsilon:g}", args.pgd_alpha)
    if step != args.pgd_alpha:
        return f"swept with another attack: --pgd-alpha was {step}, is {args.pgd_alpha} now"
    sweep = {flag.key: flag.default for flag in SWEEP_FLAGS} | asked | planned.sweeps[-1]
    measured = keys_that(SWEEP_FLAGS, Means.MEASURE) - {"pgd_alpha"}  # one for each radius
    differing = difference(sweep, with_former_values(swept, SWEEP_FLAGS), measured)
    return f"swept with other flags: {differing}" if differing else None


# What runs cost, in passes of one image. Forward and backward in training are 1; a backward pass to
# the image alone costs as much as a forward pass.
FORWARD = 1 / 3
ATTACKED = 10 * 2 * FORWARD + FORWARD
# Of --ncc against its classifier, in attacks of ten steps: 1 where all images fall, 21 where none.
CENTRE_ATTACKS = 11


def training_passes(planned: Planned) -> float:
    """Passes of one image, forward and backward, that the training of a run makes."""
    train_images, test_images = images_of(planned)
    adversary = MODES[planned.experiment.mode].adversary
    measured = FORWARD * planned.training["neural_collapse"]
    step = 1 + (ATTACKED + 3 * FORWARD if adversary else measured)
    return planned.training["epochs"] * (train_images * step + test_images * FORWARD)


def sweep_passes(planned: Planned) -> float:
    """Likewise of its sweeps."""
    train_images, test_images = images_of(planned)
    checkpoints = max(len(str(sweep["checkpoints"]).split(",")) for sweep in planned.sweeps)
    adversary = MODES[planned.experiment.mode].adversary
    attacks = 1 if adversary else 2
    passes = checkpoints * train_images * (attacks * ATTACKED + 3 * FORWARD)
    passes += test_images * ATTACKED
    if planned.experiment.deep:
        both = train_images + test_images
        passes += train_images * (ATTACKED + FORWARD) if adversary else 0  # the leaps of targeted
        passes += both * (2 * ATTACKED + 12 * FORWARD) + 3 * both * ATTACKED
        # At two radii the features, of ST an early block as well, each of two kinds of class means.
        classifiers = 2 if adversary else 3
        passes += 2 * classifiers * test_images * CENTRE_ATTACKS * ATTACKED
    return passes


def images_of(planned: Planned) -> tuple[int, int]:
    """Training and test images of a run, as far as the flags and the data set tell."""
    whole = {"digits": (1437, 360)}.get(planned.run["dataset"], (50_000, 10_000))
    limits = planned.run["limit_train"], planned.run["limit_test"]
    return min(whole[0], limits[0] or whole[0]), min(whole[1], limits[1] or whole[1])


def disk_of(planned: Planned) -> int:
    """Bytes of a run's checkpoints."""
    kept = select_epochs(planned.training["checkpoint_epochs"], planned.training["epochs"])
    return (len(kept) + 2) * model_bytes(planned.experiment.model)


@cache
def model_bytes(name: str) -> int:
    return weight_bytes(build_model(name, 32, 3, 10))


def cost_in_words(planned: list[Planned]) -> tuple[str, str]:
    """Millions of passes of an image forward and backward, and GiB of disk, of all these runs."""
    passes = sum(training_passes(run) + sweep_passes(run) for run in planned)
    return f"{passes / 1e6:.1f}", f"{sum(map(disk_of, planned)) / 2**30:.1f}"


def cost_table(planned: list[Planned]) -> str:
    """Markdown: passes of an image forward and backward, and disk, of each experiment's runs."""
    alike: dict[tuple, list[Planned]] = {}
    for run in planned:
        experiment = run.experiment
        label = MODES[experiment.mode].label
        place = (label, experiment.model, experiment.norm, run.run["dataset"])
        alike.setdefault(place, []).append(run)
    rows = [
        (*place, str(len(runs)), *cost_in_words(runs))
        for place, runs in [*alike.items(), (("all", "", "", ""), planned)]
    ]
    heads = ("mode", "model", "norm", "data", "runs", "passes (million)", "disk (GiB)")
    return markdown(heads, rows, ("model", "norm", "data"))
