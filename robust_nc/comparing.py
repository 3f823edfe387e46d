"""Which flags have to be the same: what is compared before runs, or sweeps, are mixed.

The row of a flag says what it means (`Means` in settings.py); these rules follow from that alone.

A run goes on with the flags that decide it (RUN_MEANS), but for those that nothing reads in it. It
may become longer where its learning rates so far are those of the longer run.
A sweep agrees with what its run was trained with (TRAIN), where it is given, but may choose how
many images it takes (SUBSET), and how each row is measured (ROW). What is not given is the run's.
A sweep is added to the rows of an earlier one of the same MEASURE flags, but for what each row
tells (ROW); and of the same run, where the folder of --out does not say of which.
Images, and what they are normalised with, are compared as they are in use, once they are loaded.

What is averaged as seeds, and what is as planned, is in reports: `runs.read_flags`,
`plan.other_than_planned`.
"""

from typing import Any

from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.flags import SHARED_FLAGS, SWEEP_FLAGS, TRAIN_FLAGS
from robust_nc.results.conditions import Conditions
from robust_nc.results.files import sha256
from robust_nc.results.run_folder import FILES, RunFolder
from robust_nc.settings import (
    RUN_MEANS,
    STATISTICS,
    Means,
    Settings,
    difference,
    former_values,
    keys_that,
    unread,
    with_former_values,
)
from robust_nc.training.epoch import rate_at
from robust_nc.training.resume import saved_start
from robust_nc.training.schedules import schedules_without_an_end
from utils import InputError, logger

# In args.json: of the file of --init, so that another one of that name is noticed.
INIT_HASH = "init_sha256"
RATES_PER_EPOCH = 100  # at which the rates of two lengths of a schedule are compared


def other_run(settings: Settings, run: RunFolder) -> str | None:
    """One line on the flags that the run in a folder was made with and that are others now, if any.

    The file of --init is known by its content.
    """
    earlier = with_former_values(run.trained_with(), TRAIN_FLAGS)
    compared = keys_that(TRAIN_FLAGS, RUN_MEANS) - {*STATISTICS}
    compared -= unread(TRAIN_FLAGS, vars(settings))
    content, other_file = init_hash(settings, earlier).get(INIT_HASH), None
    if content and INIT_HASH in earlier:
        compared -= {"init"}
        if content != earlier[INIT_HASH]:
            other_file = f"--init {settings.init} is another file than it was"
    former, advice = earlier.get("epochs", settings.epochs), ""
    if settings.resume and settings.epochs > former:
        same_schedule = settings.lr_schedule == earlier.get("lr_schedule")
        if same_schedule and _has_same_rates(settings, former, _finished_epochs(settings, run)):
            compared -= {"epochs"}
        elif same_schedule:
            others = [name for name in schedules_without_an_end() if name != "milestones"]
            advice = (
                f" (with --lr-schedule {settings.lr_schedule} the rates so far would have been "
                f"others; {', '.join(others)} and milestones in epochs can be made longer)"
            )
    differing = difference(vars(settings), earlier, compared)
    return "; ".join(filter(None, (other_file, differing))) + advice or None


def _finished_epochs(settings: Settings, run: RunFolder) -> int:
    """Epochs that are trained with --resume as it is given, one that was begun included."""
    if isinstance(settings.resume, int):
        return settings.resume
    if not run.resume_file.exists():
        return 0
    start = saved_start(run)
    return start.epoch + (start.unfinished is not None)


def _has_same_rates(settings: Settings, epochs: int, until: int) -> bool:
    """Whether a run of so many epochs in all had the same learning rates before epoch `until`."""
    other = settings.replace(epochs=epochs)
    times = (step / RATES_PER_EPOCH for step in range(1, until * RATES_PER_EPOCH + 1))
    return all(rate_at(settings, t) == rate_at(other, t) for t in times)


def init_hash(settings: Settings, earlier: dict[str, Any]) -> dict[str, str]:
    """For args.json, the SHA-256 of the file of --init: a run that goes on needs it no more."""
    if settings.init is None:
        return {}
    if settings.init.is_file():
        return {INIT_HASH: sha256(settings.init)}
    return {INIT_HASH: earlier[INIT_HASH]} if settings.resume and INIT_HASH in earlier else {}


def agree_with_run(settings: Settings, run: RunFolder) -> Settings:
    """The settings with what the run tells of its images, and of the attack at its own radius.

    What is not given, and no run tells, is as in train.py.

    Raises:
        InputError: flags that are given are not those of the run.
    """
    trained = {} if settings.checkpoint else run.trained_with()
    if not settings.checkpoint:
        _refuse_other_training(settings, run)
    keys = keys_that(SHARED_FLAGS, Means.TRAIN | Means.MEASURE)
    # Without those that every args.json tells: epochs, rate and statistics stay those of the run.
    former = former_values({}, (flag for flag in SHARED_FLAGS if flag.key in keys))
    not_given = {key for key in former if getattr(settings, key) is None}
    settings = settings.replace(**{key: trained.get(key, former[key]) for key in not_given})
    return _with_step_sizes(settings, trained)


def _refuse_other_training(settings: Settings, run: RunFolder) -> None:
    if settings.epsilon not in settings.epsilons:
        radii = ", ".join(f"{radius:g}" for radius in settings.epsilons)
        logger.info(
            f"{run.path}, trained with epsilon {settings.epsilon:g}, is attacked at {radii}"
        )
    trained = with_former_values(run.trained_with(), SHARED_FLAGS)
    chosen = keys_that(SHARED_FLAGS, Means.SUBSET | Means.ROW)
    compared = keys_that(SHARED_FLAGS, Means.TRAIN) - chosen - {*STATISTICS}
    compared = {key for key in compared if getattr(settings, key) is not None}
    if settings.run:  # otherwise the folder's path has told the others
        compared |= keys_that(SHARED_FLAGS, Means.NAME | Means.SEED)
    differing = difference(vars(settings), trained, compared)
    if differing:
        advice = ""
        if settings.epsilon != trained.get("epsilon", settings.epsilon):
            advice = f"; --epsilons {settings.epsilon:g} attacks it at another radius"
        raise InputError(f"{run.path} was trained with other flags: {differing}{advice}")


def _with_step_sizes(settings: Settings, trained: dict[str, Any]) -> Settings:
    """The settings with the step size of each radius: --pgd-alpha, or else the run's own attack's.

    At another radius than its own the step is in proportion, whatever other radii are asked for.
    """
    published, step = PUBLISHED_ATTACKS[settings.norm], settings.pgd_alpha
    attack = Conditions(step_size=step, epsilon=0.0)  # the same step at every radius
    if step is None:
        step = trained.get("pgd_alpha", published[1])
        attack = Conditions(settings.epsilon, step) if settings.epsilon else Conditions(*published)
    steps = {f"{radius:g}": attack.step_at(radius) for radius in settings.epsilons}
    return settings.replace(pgd_alpha=step, step_sizes=steps)


def other_sweep(
    now: dict[str, Any],
    earlier: dict[str, Any],
    other_images: str | None,
) -> str | None:
    """One line on what an earlier sweep was made with, and this one is not, if anything.

    Args:
        now, earlier: what eval_args.json is to hold, and what it held.
        other_images: one line if they were others.
    """
    earlier = with_former_values(earlier, SWEEP_FLAGS)
    naming = Means.NAME | Means.SEED if now["out"] else Means.FREE
    told_by_rows = keys_that(SWEEP_FLAGS, Means.ROW)
    if not _names_tell_keys(earlier):
        told_by_rows -= {"weights_key"}
    compared = keys_that(SWEEP_FLAGS, Means.MEASURE | naming) - told_by_rows
    flags = difference(now, earlier, compared)
    if flags and now["epsilon"] != earlier.get("epsilon", now["epsilon"]):
        flags += f" (--epsilons {now['epsilon']:g} attacks at it beside the other)"
    checks = [
        _other_source(now, earlier),
        flags,
        f"its images were others: {other_images}" if other_images else None,
        difference(now, earlier, STATISTICS),
        _other_normalisation(now, earlier),
    ]
    return next((differing for differing in checks if differing), None)


def _names_tell_keys(earlier: dict[str, Any]) -> bool:
    """Whether the names of files tell which of their weights were measured."""
    files = (earlier.get(FILES) or {}).values()
    return earlier.get("weights_key") is None or any(":" in digest for _, digest in files)


def _other_source(now: dict[str, Any], earlier: dict[str, Any]) -> str | None:
    if not now["out"] or not earlier:
        return None
    if bool(now["checkpoint"]) != bool(earlier.get("checkpoint")):
        return f"it was {'of a run' if now['checkpoint'] else 'of files of --checkpoint'}"
    if now["run"] != earlier.get("run"):
        return f"it was of {earlier.get('run')}, not of {now['run']}"
    return None


def _other_normalisation(now: dict[str, Any], earlier: dict[str, Any]) -> str | None:
    own = now.get("own_normalisation")
    if earlier.get("own_normalisation", own) == own:
        return None
    return f"--mean and --std were {'' if own else 'not '}given then"
