"""What a run, and earlier sweeps of it, were made with: a sweep has to agree with both."""

from typing import Any

from robust_nc.flags import SWEEP_FLAGS
from robust_nc.results.files import read_json
from robust_nc.results.records import TABLES
from robust_nc.results.run_folder import RunFolder
from robust_nc.settings import (
    STATISTICS,
    Means,
    Settings,
    difference,
    keys_that,
    with_former_values,
)
from utils import InputError, logger


def agree_with_run(settings: Settings, run: RunFolder) -> Settings:
    """The settings with what the run tells of its images, and of the attack at its own radius.

    Raises:
        InputError: flags that are given are not those of the run.
    """
    if not settings.checkpoint:
        settings = _as_trained(settings, run)
    if settings.alpha_given or settings.epsilons == (settings.epsilon,):
        return settings
    # Among several radii, the run's own is attacked as before: as swept, or else as trained.
    trained = run.trained_with().get("pgd_alpha", settings.pgd_alpha)
    return settings.replace(pgd_alpha=former_steps(run).get(f"{settings.epsilon:g}", trained))


def _as_trained(settings: Settings, run: RunFolder) -> Settings:
    if settings.epsilon not in settings.epsilons:
        radii = ", ".join(f"{radius:g}" for radius in settings.epsilons)
        logger.info(
            f"{run.path}, trained with epsilon {settings.epsilon:g}, is attacked at {radii}"
        )
    trained = run.trained_with()
    given = {name for name in ("lr_max", "epochs") if getattr(settings, name) is not None}
    differing = difference(vars(settings), trained, {"image_size"} | given)
    if differing:
        raise InputError(f"{run.path} was trained with other flags: {differing}")
    limits = {
        name: trained.get(name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("limit_train", "limit_test")
    }
    return settings.replace(**limits)


def former_steps(run: RunFolder) -> dict[str, float]:
    """Radius -> step size of the attacks that sweeps have recorded."""
    rows = [row for row_type in TABLES for row in run.swept_rows(row_type)]
    measured = {f"{row.epsilon:g}" for row in rows}
    steps = step_sizes(read_json(run.sweep_file) or {})
    return {radius: size for radius, size in steps.items() if radius in measured}


def step_sizes(sweep: dict[str, Any]) -> dict[str, float]:
    """Radius -> step size, of eval_args.json; older ones tell one of each."""
    if "step_sizes" in sweep or "pgd_alpha" not in sweep:
        return sweep.get("step_sizes", {})
    return {f"{sweep['epsilon']:g}": sweep["pgd_alpha"]}


def other_sweep(
    now: dict[str, Any],
    earlier: dict[str, Any],
    former_steps: dict[str, float],
    other_images: str | None,
) -> str | None:
    """One line on what an earlier sweep was made with, and this one is not, if anything.

    Args:
        now, earlier: what eval_args.json is to hold, and what it held.
        former_steps: radius -> step size of the attacks that are recorded.
        other_images: one line if they were others.
    """
    earlier = with_former_values(earlier, SWEEP_FLAGS)
    files = now["checkpoint"]
    # With --out the folder's name does not tell which run it is.
    naming = Means.NAME | Means.SEED if files else Means.FREE
    # The step size is one of each radius, and every file has rows of its own: those of others stay
    # beside them.
    compared = keys_that(SWEEP_FLAGS, Means.MEASURE | naming) - {"pgd_alpha", "checkpoint"}
    checks = [
        difference(now, earlier, compared),
        _other_step(now["step_sizes"], former_steps),
        f"its images were others: {other_images}" if other_images else None,
        difference(now, earlier, STATISTICS),
        _other_normalisation(now, earlier),
    ]
    return next((differing for differing in checks if differing), None)


def _other_step(steps: dict[str, float], former_steps: dict[str, float]) -> str | None:
    for radius, size in steps.items():
        former = former_steps.get(radius, size)
        if former != size:
            return f"--pgd-alpha was {former} at epsilon {radius}, is {size} now"
    return None


def _other_normalisation(now: dict[str, Any], earlier: dict[str, Any]) -> str | None:
    own = now.get("own_normalisation")
    if earlier.get("own_normalisation", own) == own:
        return None
    return f"--mean and --std were {'' if own else 'not '}given then"
