"""What a run, and earlier sweeps of it, were made with: a sweep has to agree with both."""

from pathlib import Path
from typing import Any

from robust_nc.data.inputs import PUBLISHED_ATTACKS
from robust_nc.flags import ATTACK, DATA, RUN, SWEEP_FLAGS
from robust_nc.going_on import flags_of_run
from robust_nc.results.conditions import FORMER, Conditions
from robust_nc.results.run_folder import FILES, RunFolder, list_runs
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
    return _with_attack(settings, {} if settings.checkpoint else run.trained_with())


# What of a run's flags a sweep takes over by itself, or later, or not at all.
_NOT_TAKEN = {"epochs", "lr_max", "models_dir", "mean", "std", "no_normalisation", "pgd_alpha"}


def swept_by_folder(path: Path) -> dict[str, Any]:
    """The flags of eval.py for the run in a folder: its name, data, attack and precision.

    Raises:
        InputError: there is no run in the folder; the runs that there are below it are listed.
    """
    if not (path / "args.json").is_file():
        raise InputError(f"{path}: no run there (it has no args.json); {list_runs(path)}")
    keys = {flag.key for flag in (*RUN, *DATA, *ATTACK)} | {"precision"}
    flags = flags_of_run(path)
    return {name: flags[name] for name in (keys & flags.keys()) - _NOT_TAKEN}


def _with_attack(settings: Settings, trained: dict[str, Any]) -> Settings:
    """The settings with the step size of each radius: --pgd-alpha, or else the run's own attack's.

    At another radius than its own the step is in proportion, whatever other radii are asked for.
    What else of the attack and the noise is not given is the run's, or else as in train.py.
    """
    given = {name: getattr(settings, name) for name in FORMER}
    chosen = {
        name: trained.get(name, FORMER[name]) if value is None else value
        for name, value in given.items()
    }
    published, step = PUBLISHED_ATTACKS[settings.norm], settings.pgd_alpha
    attack = Conditions(step_size=step, epsilon=0.0)  # the same step at every radius
    if step is None:
        step = trained.get("pgd_alpha", published[1])
        attack = Conditions(settings.epsilon, step) if settings.epsilon else Conditions(*published)
    steps = {f"{radius:g}": attack.step_at(radius) for radius in settings.epsilons}
    return settings.replace(**chosen, pgd_alpha=step, step_sizes=steps)


def _as_trained(settings: Settings, run: RunFolder) -> Settings:
    if settings.epsilon not in settings.epsilons:
        radii = ", ".join(f"{radius:g}" for radius in settings.epsilons)
        logger.info(
            f"{run.path}, trained with epsilon {settings.epsilon:g}, is attacked at {radii}"
        )
    trained = run.trained_with()
    given = {n for n in ("lr_max", "epochs", "model_args") if getattr(settings, n) is not None}
    compared = {"image_size"} | given
    if settings.run:  # otherwise the folder's path has told the others
        compared |= keys_that(SWEEP_FLAGS, Means.NAME | Means.SEED) & trained.keys()
    differing = difference(vars(settings), trained, compared)
    if differing:
        advice = ""
        if settings.epsilon != trained.get("epsilon", settings.epsilon):
            advice = f"; --epsilons {settings.epsilon:g} attacks it at another radius"
        raise InputError(f"{run.path} was trained with other flags: {differing}{advice}")
    limits = {
        name: trained.get(name) if getattr(settings, name) is None else getattr(settings, name)
        for name in ("limit_train", "limit_test")
    }
    model_args = settings.model_args or trained.get("model_args")
    return settings.replace(model_args=model_args, **limits)


def step_sizes(sweep: dict[str, Any]) -> dict[str, float]:
    """Radius -> step size, of eval_args.json; older ones tell one of each."""
    if "step_sizes" in sweep or "pgd_alpha" not in sweep:
        return sweep.get("step_sizes", {})
    return {f"{sweep['epsilon']:g}": sweep["pgd_alpha"]}


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
    # With --out the folder's name does not tell which run it is.
    naming = Means.NAME | Means.SEED if now["out"] else Means.FREE
    # Rows tell their attack, noise, precision and file: those of others stay beside them.
    of_rows = {*FORMER, "pgd_alpha", "checkpoint"}
    if _names_tell_keys(earlier):
        of_rows |= {"weights_key"}
    compared = keys_that(SWEEP_FLAGS, Means.MEASURE | naming) - of_rows
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
