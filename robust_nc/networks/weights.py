"""Where in a file's content a network's weights are: under which key, by which names.

Others save them bare or under a key, from within wrappers that add a prefix to every name (several
GPUs, torch.compile, a normalisation in front, the module of a training framework), more than one
copy of them, and with the statistics of a normalisation beside them. Names are tried as they are
first, so that whatever a network calls its own parts, its own file is read.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from robust_nc.networks.any_network import EXTRA_STATE

# Where in a file weights lie, the preferred ones first; they are looked for under other keys too.
WEIGHT_KEYS = (
    "state_dict",
    "model",
    "net",
    "model_state_dict",
    "ema_state_dict",
    "state_dict_ema",
)
DEPTH = 3  # of dicts within dicts
# What torch.compile and wrappers for several GPUs put into names, anywhere and repeatedly.
TRANSPARENT = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What wrappers call the mean and the standard deviation that they normalise with.
STATISTICS_NAMES = (
    ("mean", "std"),
    ("_mean", "_std"),
    ("mu", "sigma"),
    ("mu", "std"),
    ("new_mean", "new_std"),
    ("means", "stds"),
    ("means", "sds"),
    ("mean", "sigma"),
    ("image_mean", "image_std"),
    ("pixel_mean", "pixel_std"),
    ("norm_mean", "norm_std"),
    ("data_mean", "data_std"),
)
BESIDE = {"n_averaged"}  # entries without a meaning for the network: of AveragedModel
OPTIONAL = "num_batches_tracked"  # which files of PyTorch before 0.4.1 lack


@dataclass
class WeightSet:
    """A set of weights in a file that has the names of a network's.

    place: the keys of the dict that holds it.
    prefix: what its names begin with there, ending in a dot, or "".
    values: the network's name -> value.
    statistics: names and values of the mean and the standard deviation that go with it.
    unused: what else that dict holds, and belongs to nothing known.
    """

    place: tuple[str, ...]
    prefix: str
    values: dict[str, Any]
    statistics: tuple[tuple[str, Any], tuple[str, Any]] | None = None
    unused: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As --weights-key takes it; "" is the file's whole content."""
        return ".".join([*self.place, *self.prefix.split(".")]).strip(".")

    def has_shapes(self, shapes: Mapping[str, Any]) -> bool:
        return all(shapes[name] == shape_of(name, value) for name, value in self.values.items())

    def chosen_by(self, key: str) -> bool:
        """Whether --weights-key means this one, or the dict that holds it."""
        return self.named_by(key) or f"{self.name}.".startswith(f"{key}.")

    def named_by(self, key: str | None) -> bool:
        """Whether --weights-key names this very set."""
        return key is not None and key in (self.name, self.prefix.strip("."))


def shape_of(name: str, value: Any) -> Any:
    """What is compared of a value: its shape, or what else it is; nothing of extra state."""
    if name.rpartition(".")[2] == EXTRA_STATE:
        return EXTRA_STATE
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def find_sets(content: Any, shapes: Mapping[str, Any]) -> list[WeightSet]:
    """Every set of weights in a file with all names of a network, the preferred one first.

    Args:
        shapes: the network's name -> shape_of its value.
    """
    return [found for place, held in places(content) for found in _sets_within(place, held, shapes)]


def places(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict]]:
    """Keys and content of every dict in a file that holds tensors, the preferred ones first."""
    if not isinstance(content, dict):
        return
    if len(place) < DEPTH:
        known = [key for key in WEIGHT_KEYS if key in content]
        for key in (*known, *(key for key in content if key not in known)):
            yield from places(content[key], (*place, str(key)))
    if any(isinstance(value, Tensor) for value in content.values()):
        yield place, {str(name): value for name, value in content.items()}


def _as_it_is(name: str) -> str:
    return name


def _stripped(name: str) -> str:
    """A name without what wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in TRANSPARENT)


def _sets_within(
    place: tuple[str, ...], held: dict[str, Any], shapes: Mapping[str, Any]
) -> list[WeightSet]:
    for rename in (_as_it_is, _stripped):
        expected = {rename(name): name for name in shapes}
        given = {rename(name): value for name, value in held.items()}
        if len(expected) < len(shapes) or len(given) < len(held):
            continue  # of two names, which only what is left out tells apart
        needed = [name for name in expected if not name.endswith(OPTIONAL)]
        prefixes = [
            prefix
            for prefix in matches(given, expected)
            if all(prefix + name in given for name in needed)
        ]
        sets = [_set_at(place, prefix, given, expected) for prefix in prefixes]
        # A second copy is one of the same shapes; a name alone explains no entry.
        copies = [one for one in sets if one.has_shapes(shapes)] or sets[:1]
        for one in copies:
            _look_beside(one, given, expected, [copy.prefix for copy in copies])
        if copies:
            return copies
    return []


def matches(given: Mapping[str, Any], expected: Mapping[str, Any]) -> Counter[str]:
    """How many of the expected names the file has behind each prefix, the shortest prefix first."""
    counts: Counter[str] = Counter()
    for name in given:
        parts = name.split(".")
        for i in range(len(parts)):
            if ".".join(parts[i:]) in expected:
                counts["".join(f"{part}." for part in parts[:i])] += 1
    return Counter({p: counts[p] for p in sorted(counts, key=lambda prefix: prefix.count("."))})


def _set_at(
    place: tuple[str, ...], prefix: str, given: dict[str, Any], expected: dict[str, str]
) -> WeightSet:
    values = {own: given[prefix + n] for n, own in expected.items() if prefix + n in given}
    return WeightSet(place, prefix, values)


def _look_beside(
    weights: WeightSet, given: dict[str, Any], expected: dict[str, str], prefixes: list[str]
) -> None:
    """Fill in the statistics that go with a set of weights, and what belongs to nothing known."""
    owned = {prefix + name for prefix in prefixes for name in expected}
    others = [name for name in given if name not in owned]
    pairs = list(_statistics(others))
    path = [part for part in weights.prefix.split(".") if part]

    def distance(pair: tuple[str, str]) -> tuple[int, int]:
        """How far from the weights: by the part of the path that they share, then by its own."""
        parts = pair[0].split(".")
        shared = 0
        while shared < len(path) and parts[shared : shared + 1] == [path[shared]]:
            shared += 1
        return -shared, len(parts)

    if pairs:
        mean, std = min(pairs, key=distance)
        weights.statistics = (mean, given[mean]), (std, given[std])
    explained = {name for pair in pairs for name in pair} | BESIDE
    weights.unused = {
        name: given[name]
        for name in others
        if name not in explained and (isinstance(given[name], Tensor) or weights.place)
    }


def _statistics(names: list[str]) -> Iterator[tuple[str, str]]:
    """The pairs of names of a mean and a standard deviation."""
    for mean_name, std_name in STATISTICS_NAMES:
        for name in names:
            owner, dot, last = name.rpartition(".")
            if last == mean_name and f"{owner}{dot}{std_name}" in names:
                yield name, f"{owner}{dot}{std_name}"


def closest(content: Any, shapes: Mapping[str, Any]) -> dict[str, Any]:
    """Of a file without all names of a network, name -> value where most of them are."""
    best: tuple[int, dict[str, Any]] = (-1, {})
    rename: Callable[[str], str]
    for _, held in places(content):
        for rename in (_as_it_is, _stripped):
            given = {rename(name): value for name, value in held.items()}
            expected = {rename(name): name for name in shapes}
            counts = matches(given, expected)
            prefix, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
            if count > best[0]:
                known = {name for pair in _statistics(list(given)) for name in pair} - {*expected}
                within = {
                    name.removeprefix(prefix): value
                    for name, value in given.items()
                    if name.startswith(prefix) and name not in known
                }
                best = count, {expected.get(n, n): value for n, value in within.items()}
    return best[1]
