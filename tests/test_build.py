"""What is made of settings."""

import pytest
import torch

from robust_nc.build import eval_batch_size
from robust_nc.settings import Settings


@pytest.mark.parametrize(
    ("size", "on_cpu", "on_gpu"), ((28, 128, 1024), (32, 128, 1024), (160, 5, 128), (8, 128, 1024))
)
def test_images_of_any_size_have_a_batch_size(size, on_cpu, on_gpu):
    """Also below 32 pixels, of which none goes into a factor of 32."""
    for device, expected in (("cpu", on_cpu), ("cuda", on_gpu)):
        settings = Settings(eval_batch_size=None, image_size=size, device=torch.device(device))
        assert eval_batch_size(settings) == expected
