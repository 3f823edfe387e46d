"""Train one network with a checkpoint per epoch: standard (ST), PGD-adversarial (AT) or TRADES.

    python train.py                                                   # ST, CIFAR-10, VGG11
    python train.py --train-mode pgd_train --neural-collapse          # AT, with neural collapse
    python train.py --train-mode pgd_train_TRADES --neural-collapse   # TRADES
    python train.py --resume                                          # go on where it stopped

Su et al., "On the Robustness of Neural Collapse and the Neural Collapse of Robustness" (TMLR
2024). Everything goes to models/DATASET/MODEL/NORM/epsEPSILON/MODE/seedSEED/.
"""

import argparse
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from tqdm import tqdm

import utils
from attacks import l2_noise, pgd, trades
from nc_metrics import simplex_distance
from utils import (
    Dataset,
    EpochSummary,
    FoldedNetwork,
    InputError,
    Network,
    Record,
    RunFolder,
    Split,
    logger,
    measure,
)

TRADES_BETA = 6.0  # weight of the KL term: Zhang et al. 2019, section 5, and the paper
# Flags that may change when a run is resumed: they change its numbers by rounding at most.
FREE_FLAGS = {
    "data_dir",
    "data_url",
    "models_dir",
    "device",
    "compile",
    "checkpoint_epochs",
    "kept_epochs",
    "eval_batch_size",
    "resume",
    "overwrite",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = utils.Parser(
        description="Train one network with a checkpoint per epoch.", allow_abbrev=False
    )
    utils.add_run_flags(parser)
    training = parser.add_argument_group("training")
    training.add_argument("--batch-size", type=utils.positive_int, default=128, help="default: 128")
    training.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd")
    training.add_argument("--lr-schedule", choices=utils.SCHEDULES, default="piecewise")
    training.add_argument(
        "--lr-drop-epoch",
        type=utils.positive_int,
        default=100,
        help="epoch at which the schedule onedrop drops (default: %(default)s)",
    )
    training.add_argument(
        "--lr-one-drop",
        type=utils.non_negative_float,
        default=0.01,
        help="what it drops to (default: %(default)s)",
    )
    training.add_argument(
        "--neural-collapse",
        action="store_true",
        help="per epoch, NC of the training images; under AT and TRADES also of the perturbed "
        "images that the epoch trained on",
    )
    training.add_argument(
        "--neural-collapse-gaussian",
        action="store_true",
        help="per epoch, NC of the training images under normal noise renormed to an l_2 norm "
        "of at most 16 times --noise-level",
    )
    training.add_argument(
        "--checkpoint-epochs",
        metavar="EPOCHS",
        help="epochs whose checkpoint is kept: 0,10,399, a slice like ::10, or log for ten per "
        "decade (default: all)",
    )
    training.add_argument(
        "--resume",
        nargs="?",
        const="last",
        metavar="N",
        help="go on with the run in the folder; with N, train epoch N from model_{N-1}.pth",
    )
    training.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run that is in the folder first; with --resume N from epoch N on",
    )
    args = parser.parse_args(argv)
    utils.complete_run_flags(parser, args)
    args.kept_epochs = utils.parse_epochs(
        parser, "--checkpoint-epochs", args.checkpoint_epochs, args.epochs
    )
    if args.resume not in (None, "last"):
        try:
            args.resume = utils.positive_int(args.resume)
        except argparse.ArgumentTypeError as error:
            parser.error(f"argument --resume: {error}")
        if args.resume >= args.epochs:
            parser.error(f"--resume {args.resume}: the run has --epochs {args.epochs} only")
    if args.resume == "last" and args.overwrite:
        parser.error("--resume goes on with a run, --overwrite deletes it: give one of them")
    if args.lr_schedule == "multipledecay" and args.epochs < 10:
        parser.error("--lr-schedule multipledecay needs --epochs of 10 or more")
    if args.restarts > 1 and args.train_mode != "pgd_train":
        parser.error("--restarts is for --train-mode pgd_train: the others have no restarts")
    return args


def main() -> None:
    args = parse_args()
    utils.set_precision(args.precision)
    run = utils.run_folder(args)
    refuse_other_run(args, run)

    data, network, folded = utils.load_run(args)
    if args.resume:
        utils.refuse_other_data(run, data)
    optimizer = make_optimizer(args, network)
    check_disk(args, run, network, optimizer)
    with run.lock("train.py"):
        refuse_other_run(args, run)  # again: the images may have taken a while
        start = restore(args, run, network, optimizer)
        if start is None:
            return
        utils.write_json(run.path / "args.json", utils.describe_run(args, data))
        logger.info(
            f"{args.train_mode} of {args.model} on {args.dataset}: {len(data.train)} training and "
            f"{len(data.test)} test images, {data.num_classes} classes, on {args.device}; "
            f"to {run.path}"
        )
        if args.neural_collapse or args.neural_collapse_gaussian:
            logger.info(utils.NC1_SCALE)
        train(args, run, data, network, folded, optimizer, start)
        logger.info(f"finished; {utils.peak_memory(args.device)}")


def train(
    args: argparse.Namespace,
    run: RunFolder,
    data: Dataset,
    network: Network,
    folded: FoldedNetwork,
    optimizer: optim.Optimizer,
    start: "Start",
) -> None:
    """Train from the start on, writing every epoch, until the end or a signal."""
    batch_size = utils.eval_batch_size(args, folded, data.train.images)
    step = make_step(args, folded)
    if args.compile and args.device.type == "cuda":
        step = ReplayedStep(step)
    unfinished = start.unfinished
    with utils.StopSignals() as signals, utils.Writer() as writer:
        for epoch in range(start.epoch, args.epochs):
            try:
                summary, records = run_epoch(
                    args,
                    network,
                    folded,
                    optimizer,
                    data,
                    step,
                    epoch,
                    batch_size,
                    unfinished,
                    signals,
                )
            except InputError as error:
                raise InputError(
                    f"epoch {epoch}: {error}; the checkpoints before it are kept"
                ) from error
            except Interrupted as interrupted:
                # As if the epoch before had ended here, with what this one has seen beside it.
                weights, state = snapshot(network, optimizer)
                partly = utils.to_cpu(interrupted.unfinished)
                writer.submit(save_resume, args, run, epoch - 1, weights, state, partly)
                raise utils.Stopped(
                    signals.received,
                    f" in epoch {epoch}, after step {partly['steps']}; --resume goes on from there",
                ) from None
            unfinished = None
            writer.submit(save, args, run, *snapshot(network, optimizer), summary, records)
            log_epoch(args, summary, records)
            if signals.received and epoch + 1 < args.epochs:
                raise utils.Stopped(
                    signals.received, f" after epoch {epoch}; --resume goes on from there"
                )


def refuse_other_run(args: argparse.Namespace, run: RunFolder) -> None:
    """Stop before anything is read or written if the folder holds what would be lost or mixed."""
    if not args.resume and not args.overwrite and run.holds_run():
        raise InputError(
            f"{run.path} holds a run already: --resume goes on with it, "
            "--overwrite deletes it first"
        )
    later = [
        epoch for epoch in run.epochs() if isinstance(args.resume, int) and epoch >= args.resume
    ]
    if later and not args.overwrite:
        raise InputError(
            f"{run.checkpoint(later[0])} would be replaced by --resume {args.resume}: "
            "--overwrite deletes it and those behind it first"
        )
    earlier = utils.read_json(run.path / "args.json")
    if args.resume and earlier:
        difference = utils.differing_flag(args, earlier, vars(args).keys() - FREE_FLAGS)
        if difference:
            raise InputError(f"{run.path} was made with other flags: {difference}")


def make_optimizer(args: argparse.Namespace, network: Network) -> optim.Optimizer:
    parameters = network.model.parameters()
    settings: dict = {"lr": args.lr_max, "weight_decay": 5e-4}
    if args.device.type == "cuda":
        # The rate as a tensor: a step captured as a CUDA graph reads it anew at each replay.
        settings |= {"lr": torch.tensor(args.lr_max, device=args.device), "fused": True}
    if args.optimizer == "adam":
        return optim.Adam(parameters, capturable=args.device.type == "cuda", **settings)
    return optim.SGD(parameters, momentum=0.9, **settings)


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def present_rate(optimizer: optim.Optimizer) -> float:
    return float(optimizer.param_groups[0]["lr"])


def check_disk(
    args: argparse.Namespace, run: RunFolder, network: Network, optimizer: optim.Optimizer
) -> None:
    """Say what the run will take on the disk; refuse when there is less.

    A run that has all its checkpoints is not asked: it may have to say only that it is finished.
    """
    weights = sum(t.numel() * t.element_size() for t in network.model.state_dict().values())
    buffers = 2 if isinstance(optimizer, optim.Adam) else 1
    present = set() if args.overwrite and not args.resume else set(run.epochs())
    count = len(set(args.kept_epochs) - present)
    if count == 0:
        return
    # While resume.pth is written, the one before it is still there.
    copies = 1 if run.resume_file.exists() else 2
    needed = count * weights + copies * (1 + buffers) * weights
    free = utils.free_disk(run.path)
    figures = (
        f"{count} checkpoints of {weights / 2**20:.1f} MiB and resume.pth take "
        f"{needed / 2**30:.2f} GiB, {free / 2**30:.2f} GiB are free"
    )
    if needed > free:
        raise InputError(f"{run.path}: {figures}; --checkpoint-epochs keeps fewer")
    logger.info(f"disk: {figures}")


@dataclass
class Start:
    """Where training begins: at the first step of an epoch, or behind what was done of it."""

    epoch: int
    unfinished: dict | None = None


def restore(
    args: argparse.Namespace, run: RunFolder, network: Network, optimizer: optim.Optimizer
) -> Start | None:
    """Open the run folder and load what --resume asks for; None if the run is finished."""
    if args.resume is None and args.overwrite:
        run.clear()
    if args.resume is None or (args.resume == "last" and not run.resume_file.exists()):
        if run.holds_run():
            raise InputError(f"{run.resume_file} is missing: name an epoch, --resume N")
        run.open()
        utils.log_to(run.path / "output.log")
        return Start(0)
    path = run.resume_file if args.resume == "last" else run.checkpoint(args.resume - 1)
    rest = utils.load_checkpoint(path, network.model)
    load_optimizer(optimizer, rest.get("optimizer"), path)
    if args.resume == "last" and not isinstance(rest.get("epoch"), int):
        raise InputError(f"{path}: holds no epoch to go on from; name one, --resume N")
    start = Start(args.resume if args.resume != "last" else rest["epoch"] + 1)
    if start.epoch >= args.epochs:
        logger.info(f"{run.path} is finished: {args.epochs} epochs")
        return None
    run.open()
    utils.log_to(run.path / "output.log")
    if args.resume == "last":
        start.unfinished = rest.get("unfinished")
    else:
        run.clear(from_epoch=start.epoch)
    run.drop(from_epoch=start.epoch)  # what a sweep recorded of later checkpoints is stale as well
    behind = f" behind step {start.unfinished['steps']}" if start.unfinished else ""
    logger.info(f"resuming at epoch {start.epoch}{behind} from {path.name}")
    return start


def load_optimizer(optimizer: optim.Optimizer, state: dict | None, path: Path) -> None:
    """Load the optimiser state of a checkpoint, where it holds one."""
    if state is None:
        logger.warning(f"{path.name} holds no optimiser state: momentum starts at zero")
        return
    # Older PyTorch saved fewer settings per group; these two tell SGD and Adam apart.
    kind = "betas" if isinstance(optimizer, optim.Adam) else "momentum"
    machine = [
        {name: group.get(name) for name in ("lr", "fused", "foreach", "capturable")}
        for group in optimizer.param_groups
    ]
    try:
        if kind not in state["param_groups"][0]:
            raise ValueError("it is of another optimiser")
        optimizer.load_state_dict(state)
        # The state may have been saved on another kind of device.
        for group, settings in zip(optimizer.param_groups, machine, strict=True):
            group |= {name: value for name, value in settings.items() if name in group}
        # In the layout of its weight, without which a fused step refuses it.
        for parameter, buffers in optimizer.state.items():
            for name, value in buffers.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    buffers[name] = torch.empty_like(parameter).copy_(value)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(f"{path}: its optimiser state does not fit this run: {error}") from error


# ---------------------------------------------------------------------------------------------
# One training step of each mode
# ---------------------------------------------------------------------------------------------


@dataclass
class Step:
    """What a step saw: mean losses (scalars), logits (N, C), and the images it stepped on."""

    clean_loss: Tensor
    clean_logits: Tensor
    objective: Tensor
    robust_logits: Tensor | None = None
    perturbed: Tensor | None = None


def make_step(args: argparse.Namespace, folded: FoldedNetwork) -> Callable[..., Step]:
    """The step of a training mode: (network, optimizer, images, labels) -> Step."""
    attack = utils.attack_settings(args)
    if args.train_mode == "std_train":
        return standard_step
    if args.train_mode == "pgd_train":
        return partial(adversarial_step, restarts=args.restarts, attack=partial(pgd, **attack))
    return partial(trades_step, folded=folded, attack=partial(trades, **attack), bn=args.trades_bn)


def standard_step(network: nn.Module, optimizer: optim.Optimizer, x: Tensor, y: Tensor) -> Step:
    """ST: one step on the cross-entropy of the clean images."""
    logits = network(x)
    loss = F.cross_entropy(logits, y)
    update(optimizer, loss)
    return Step(loss.detach(), logits.detach(), loss.detach())


def adversarial_step(
    network: nn.Module,
    optimizer: optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    attack: Callable,
    restarts: int,
) -> Step:
    """AT: one step on the cross-entropy of images perturbed by PGD (Madry et al. 2018, eq. 2.1).

    The attack runs in the network's mode, train mode. The clean pass only tracks loss and
    accuracy, but it moves the running statistics too, as in the published code. There the pass
    that scores a single restart and the one that is stepped on are the same; here it is made once
    and moves the statistics twice.
    """
    perturbed = x + attack(network, x, y, restarts=restarts, score=False)
    with statistics_moved(network, times=2 if restarts == 1 else 1):
        logits = network(perturbed)
    loss = F.cross_entropy(logits, y)
    with torch.no_grad():
        clean_logits = network(x)
        clean_loss = F.cross_entropy(clean_logits, y)
    update(optimizer, loss)
    return Step(clean_loss, clean_logits, loss.detach(), logits.detach(), perturbed)


@contextmanager
def statistics_moved(network: nn.Module, times: int) -> Iterator[None]:
    """A pass in train mode moves the running statistics as far as `times` equal passes would."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = 1 - (1 - momentum) ** times
        norm.num_batches_tracked += times - 1
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def trades_step(
    network: nn.Module,
    optimizer: optim.Optimizer,
    x: Tensor,
    y: Tensor,
    *,
    folded: FoldedNetwork,
    attack: Callable,
    bn: str,
) -> Step:
    """TRADES: one step on CE(clean) + 6 KL(p(clean) || p(perturbed)) (Zhang et al. 2019, eq. 5).

    The attack runs in eval mode. With `bn` "frozen" the whole step does, as the published code does
    by accident, so the clean pass serves the attack as well; with "batch" both passes of the step
    use batch statistics.
    """
    if bn == "frozen":
        network.eval()
        clean_logits = network(x)
        perturbed = x + attack(folded.refold(), x, clean_logits=clean_logits)
    else:
        perturbed = x + attack(folded.refold(), x)
        clean_logits = network(x)
    logits = network(perturbed)
    clean_loss = F.cross_entropy(clean_logits, y)
    # Of logarithms: where a clean probability underflows to zero, the gradient through
    # F.softmax would be NaN.
    divergence = F.kl_div(
        F.log_softmax(logits, 1),
        F.log_softmax(clean_logits, 1),
        reduction="batchmean",
        log_target=True,
    )
    loss = clean_loss + TRADES_BETA * divergence
    update(optimizer, loss)
    return Step(
        clean_loss.detach(), clean_logits.detach(), loss.detach(), logits.detach(), perturbed
    )


def update(optimizer: optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


class ReplayedStep:
    """A step that is captured as a CUDA graph, attack loop included, and replayed without Python.

    The first steps of each batch size run as they are, on a side stream: they compile, tune and
    make the optimiser's state. What a replay returns holds until the next one. If capturing fails,
    one warning line says so and every step runs as it is.
    """

    WARM_UP = 3

    def __init__(self, step: Callable[..., Step]):
        self.step = step
        self.seen: Counter[int] = Counter()
        self.captured: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Step]] = {}
        self.works = True

    def __call__(
        self, network: nn.Module, optimizer: optim.Optimizer, x: Tensor, y: Tensor
    ) -> Step:
        size = len(y)
        self.seen[size] += 1
        if not self.works or self.seen[size] <= self.WARM_UP:
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                result = self.step(network, optimizer, x, y)
            torch.cuda.current_stream().wait_stream(side)
            return result
        if size not in self.captured:
            graph, inputs = torch.cuda.CUDAGraph(), (x.clone(), y.clone())
            optimizer.zero_grad(set_to_none=True)
            try:
                with torch.cuda.graph(graph):
                    result = self.step(network, optimizer, *inputs)
            except RuntimeError as error:
                self.works = False
                reason = str(error).splitlines()[0]
                logger.warning(f"--compile: no CUDA graph of the training step: {reason}")
                return self(network, optimizer, x, y)
            self.captured[size] = graph, *inputs, result
        graph, static_x, static_y, result = self.captured[size]
        static_x.copy_(x)
        static_y.copy_(y)
        graph.replay()
        return result


# ---------------------------------------------------------------------------------------------
# One epoch
# ---------------------------------------------------------------------------------------------


@dataclass
class EpochSums:
    """Means over the images of an epoch, as its steps saw them."""

    clean_loss: float
    clean_accuracy: float
    objective: float
    robust_accuracy: float


def run_epoch(
    args: argparse.Namespace,
    network: Network,
    folded: FoldedNetwork,
    optimizer: optim.Optimizer,
    data: Dataset,
    step: Callable[..., Step],
    epoch: int,
    batch_size: int,
    unfinished: dict | None = None,
    signals: utils.StopSignals | None = None,
) -> tuple[EpochSummary, list[Record]]:
    """Train for one epoch, then measure the test data and what the flags ask for."""
    started = time.perf_counter()
    utils.seed_everything(args.seed, epoch)
    network.train()
    sums, perturbed = train_epoch(
        network, optimizer, data.train, step, epoch, args, unfinished, signals
    )
    folded.refold()
    tested = measure(folded, data.test.images, data.test.labels, batch_size)
    records = [Record.of(tested, source="train", epoch=epoch, split="test", input="clean")]
    records += measure_collapse(args, folded, data.train, perturbed, epoch, batch_size)
    standard = args.train_mode == "std_train"
    summary = EpochSummary(
        epoch=epoch,
        lr=present_rate(optimizer),
        train_loss=sums.clean_loss,
        train_acc=sums.clean_accuracy,
        train_robust_loss=math.nan if standard else sums.objective,
        train_robust_acc=math.nan if standard else sums.robust_accuracy,
        test_loss=tested.loss,
        test_acc=tested.accuracy,
        seconds=round(time.perf_counter() - started, 3),
    )
    return summary, records


class Interrupted(Exception):
    """A signal came in the middle of an epoch; `unfinished` is what the epoch has seen so far."""

    def __init__(self, unfinished: dict):
        self.unfinished = unfinished


def train_epoch(
    network: Network,
    optimizer: optim.Optimizer,
    data: Split,
    step: Callable[..., Step],
    epoch: int,
    args: argparse.Namespace,
    unfinished: dict | None = None,
    signals: utils.StopSignals | None = None,
) -> tuple[EpochSums, Tensor | None]:
    """Visit all images once in random order.

    Args:
        unfinished: what an Interrupted epoch had seen, to go on behind it.
        signals: asked after every step whether to stop.

    Returns:
        What the steps saw, and under AT and TRADES with --neural-collapse the perturbed images
        (N, C, H, W) in the order of the data.

    Raises:
        InputError: a loss that is not finite.
        Interrupted: a signal asked to stop.
    """
    device = data.labels.device
    keep_perturbed = args.neural_collapse and args.train_mode != "std_train"
    order = torch.randperm(len(data)).to(device)
    batches = order.split(args.batch_size)
    # Clean loss and objective of each step, correct answers on both inputs. They stay on the
    # device: nothing waits for it until the epoch ends.
    seen = {
        "steps": 0,
        "losses": torch.zeros(2, len(batches), dtype=torch.float64, device=device),
        "correct": torch.zeros(2, dtype=torch.float64, device=device),
        "perturbed": torch.empty(data.images.shape, device=device) if keep_perturbed else None,
    }
    if unfinished:
        utils.set_random_state(unfinished["random"], device)
        for name in ("losses", "correct", "perturbed"):
            if seen[name] is not None:
                seen[name].copy_(unfinished[name])
    first = unfinished["steps"] if unfinished else 0
    losses, correct, kept = seen["losses"], seen["correct"], seen["perturbed"]
    with tqdm(total=len(data), desc=f"epoch {epoch}", unit="img", disable=None, leave=False) as bar:
        bar.update(min(first * args.batch_size, len(data)))
        for i in range(first, len(batches)):
            set_rate(optimizer, rate_of_step(args, epoch, i, len(batches)))
            indices = batches[i]
            x, y = utils.as_float(data.images[indices]), data.labels[indices]
            result = step(network, optimizer, x, y)
            robust = result.clean_logits if result.robust_logits is None else result.robust_logits
            losses[0, i] = result.clean_loss
            losses[1, i] = result.objective
            correct[0] += (result.clean_logits.argmax(1) == y).sum()
            correct[1] += (robust.argmax(1) == y).sum()
            if kept is not None:
                kept[indices] = result.perturbed
            bar.update(len(y))
            if signals is not None and signals.received and i + 1 < len(batches):
                random = utils.random_state(device)
                raise Interrupted(seen | {"steps": i + 1, "random": random})
    losses = losses.cpu()
    check_losses(args, losses, epoch)
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    clean_loss, objective = (losses @ sizes / len(data)).tolist()
    clean_accuracy, robust_accuracy = (correct / len(data)).tolist()
    return EpochSums(clean_loss, clean_accuracy, objective, robust_accuracy), kept


def rate_of_step(args: argparse.Namespace, epoch: int, i: int, steps: int) -> float:
    """The learning rate of step i of an epoch of so many steps."""
    return utils.learning_rate(
        args.lr_schedule,
        epoch + (i + 1) / steps,
        epochs=args.epochs,
        lr_max=args.lr_max,
        drop_epoch=args.lr_drop_epoch,
        drop_lr=args.lr_one_drop,
    )


def check_losses(args: argparse.Namespace, losses: Tensor, epoch: int) -> None:
    """Raise InputError naming the first step whose losses, in (2, steps), are not finite."""
    finite = losses.isfinite().all(0)
    if not finite.all():
        i, steps = int((~finite).nonzero()[0]), len(finite)
        rate = rate_of_step(args, epoch, i, steps)
        raise InputError(
            f"step {i} of {steps}, learning rate {rate:g}: the training loss is no longer finite"
        )


def measure_collapse(
    args: argparse.Namespace,
    network: Network,
    data: Split,
    perturbed: Tensor | None,
    epoch: int,
    batch_size: int,
) -> list[Record]:
    """The records that the --neural-collapse flags ask for, in eval mode after the epoch."""
    record = partial(Record.of, source="train", epoch=epoch, split="train")
    records = []
    if args.neural_collapse:
        clean = measure(network, data.images, data.labels, batch_size)
        records.append(record(clean, input="clean"))
        if perturbed is not None:
            robust = measure(network, perturbed, data.labels, batch_size)
            distance = simplex_distance(clean.collapse.class_means, robust.collapse.class_means)
            records.append(record(robust, input="pgd", from_clean=distance))
    if args.neural_collapse_gaussian:
        # 16 times the level: 128/255 at the default, as published, the l_2 radius of the paper.
        radius = 16 * args.noise_level / 255
        noisy = measure(
            network, data.images, data.labels, batch_size, lambda x, y: l2_noise(x, radius)
        )
        records.append(record(noisy, input="gaussian_l2"))
    return records


def snapshot(network: Network, optimizer: optim.Optimizer) -> tuple[dict, dict]:
    """Copies in main memory of the weights and the optimiser's state, which training changes."""
    return utils.to_cpu(network.model.state_dict()), utils.to_cpu(optimizer.state_dict())


def save(
    args: argparse.Namespace,
    run: RunFolder,
    weights: dict,
    optimizer_state: dict,
    summary: EpochSummary,
    records: list[Record],
) -> None:
    """Write the epoch. resume.pth comes last: what it resumes from is on disk by then."""
    if summary.epoch in args.kept_epochs:
        utils.save_checkpoint(
            run.checkpoint(summary.epoch), state_dict=weights, epoch=summary.epoch, seed=args.seed
        )
    run.add(records, summary)
    save_resume(args, run, summary.epoch, weights, optimizer_state)


def save_resume(
    args: argparse.Namespace,
    run: RunFolder,
    epoch: int,
    weights: dict,
    optimizer_state: dict,
    unfinished: dict | None = None,
) -> None:
    """Write resume.pth: the last finished epoch, and what is done of the next one."""
    utils.save_checkpoint(
        run.resume_file,
        state_dict=weights,
        epoch=epoch,
        seed=args.seed,
        optimizer=optimizer_state,
        unfinished=unfinished,
    )


def log_epoch(args: argparse.Namespace, summary: EpochSummary, records: list[Record]) -> None:
    robust = ""
    if args.train_mode != "std_train":
        robust = (
            f" | robust loss {summary.train_robust_loss:.4f} acc {summary.train_robust_acc:.4f}"
        )
    logger.info(
        f"epoch {summary.epoch} ({summary.epoch + 1} of {args.epochs}) | lr {summary.lr:g} | "
        f"train loss {summary.train_loss:.4f} acc {summary.train_acc:.4f}{robust} | test loss "
        f"{summary.test_loss:.4f} acc {summary.test_acc:.4f} | {summary.seconds:.1f} s"
    )
    for record in records:
        if record.split == "train":
            logger.info(f"    {utils.format_record(record)}")


if __name__ == "__main__":
    utils.run_script(main)
