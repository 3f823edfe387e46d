"""A network: a model behind the normalisation of its images, so that attacks see pixels."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from robust_nc.networks.any_network import Anatomy

# Mean and standard deviation per channel, in [0, 1] units, that normalise images.
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def weight_bytes(model: nn.Module) -> int:
    """What a model's weights and statistics take in a checkpoint."""
    tensors = [value for value in model.state_dict().values() if isinstance(value, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


class Network(nn.Module):
    """A model after the normalisation of its data, so that attacks see images in [0, 1].

    With `bf16` the model runs under autocast; logits and features come out as float32 all the
    same. Checkpoints hold the bare `model`. Without an `anatomy` it has the interface of
    ARCHITECTURES (architectures.py).
    """

    model: Any
    mean: Tensor
    std: Tensor
    compiled = False

    def __init__(
        self,
        model: nn.Module,
        mean: Iterable[float],
        std: Iterable[float],
        bf16: bool = False,
        anatomy: Anatomy | None = None,
    ):
        super().__init__()
        self.model = model
        self.bf16 = bf16
        self.anatomy = anatomy
        self.channels_last = False
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(1, -1, 1, 1))

    def forward(
        self, images: Tensor, return_activations: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in [0, 1] -> logits (N, classes), and features (N, D) if asked."""
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            x = (images - self.mean) / self.std
            if self.channels_last:
                x = x.clone(memory_format=torch.channels_last)  # of one channel too
            if self.anatomy is None:
                logits, features = self.model(x, return_activations=True)
            else:
                logits, features = self.anatomy.outputs(self.model, x)
        return (logits.float(), features.float()) if return_activations else logits.float()

    @contextmanager
    def weights_cast(self) -> Iterator[None]:
        """With `bf16`, weights are cast here and not in every pass inside, to the same bits.

        For attacks in train mode, which differentiate the input alone: autocast keeps no cast of a
        weight that needs no gradient. In eval mode, and of other packages, weights stay as they
        are: attacks have a FoldedNetwork there, and a model may read its weights itself.
        """
        wanted = self.bf16 and self.training and self.anatomy is None
        weights = [
            (module, name, weight)
            for module in self.modules()
            if wanted and isinstance(module, nn.Conv2d | nn.Linear)
            for name, weight in module.named_parameters(recurse=False)
        ]
        for module, name, weight in weights:
            cast = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
            module.register_parameter(name, cast)
        try:
            yield
        finally:
            for module, name, weight in weights:
                module.register_parameter(name, weight)

    def compile(self, *args: Any, **options: Any) -> None:
        """As nn.Module.compile; `compiled_for` then says which batches are worth it."""
        self.compiled = True
        super().compile(*args, **options)

    def compiled_for(self, full: bool) -> AbstractContextManager[Any]:
        """Inside, compiled code runs a full batch alone: any other size runs as it is.

        Each size is compiled anew, which takes longer than the few batches of that size gain. It
        holds for every network in the process.
        """
        if full or not self.compiled:
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def to_channels_last(self) -> "Network":
        """Lay out weights, activations and images so; returns itself.

        Images too: given others, the first convolution has its gradient copied twice on a GPU.
        """
        self.channels_last = True
        return self.to(memory_format=torch.channels_last)

    def normalise_by(self, mean: Iterable[float], std: Iterable[float]) -> None:
        """Take other statistics per channel; a folded network follows when it is refolded."""
        for buffer, values in ((self.mean, mean), (self.std, std)):
            buffer.copy_(torch.tensor(tuple(values)).view(1, -1, 1, 1))

    def normalises_by(self, statistics: Statistics) -> bool:
        """Whether its statistics are these, in float32."""
        mean, std = map(torch.tensor, statistics)
        return torch.equal(mean, self.mean.cpu().flatten()) and torch.equal(
            std, self.std.cpu().flatten()
        )

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer, the only one that the models of ARCHITECTURES have."""
        if self.anatomy is not None:
            return self.model.get_submodule(self.anatomy.classifier)
        return next(m for m in self.model.modules() if isinstance(m, nn.Linear))

    @property
    def classifier_weight(self) -> Tensor:
        """Weight (classes, D) of the last linear layer."""
        return self.classifier.weight.detach()

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Name and module of every block in forward order.

        Where the module is the classifier, the block is what enters it.
        """
        return self.model.blocks() if self.anatomy is None else self.anatomy.blocks(self.model)


def statistics_in_words(statistics: Statistics) -> str:
    """Statistics as the flags that ask for them."""
    mean, std = (" ".join(f"{value:.6g}" for value in values) for values in statistics)
    return f"--mean {mean} --std {std}"
