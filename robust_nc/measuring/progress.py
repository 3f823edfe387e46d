"""How far a sweep has come, in parts, and within the one under way."""

from typing import Any

from utils import Progress


class PartProgress(Progress):
    """Parts of a sweep; of the one under way the share of its images that have passed is counted.

    So that the share and the time left move where one part takes an hour.
    """

    def __init__(self, total: int, **options: Any):
        super().__init__(total, "sweep", "parts", **options)
        self._parts, self._images, self._share = 0, 1, 0.0

    def begin(self, images: int) -> None:
        """Parts are under way that are whole once about so many images each have passed."""
        self._images = images

    def count_images(self, count: int) -> None:
        """So many images have passed; a part that is not finished is never counted as whole."""
        most = 0.99 if self._parts < self.total else 0.0
        self._show(self._parts, min(self._share + count / self._images, most))

    def count_part(self) -> None:
        """A part is finished."""
        self._show(self._parts + 1, 0.0)

    def _show(self, parts: int, share: float) -> None:
        self._parts, self._share = parts, share
        self.update(parts + share - self.done)
