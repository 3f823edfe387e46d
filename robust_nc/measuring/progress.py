"""How far a sweep has come, in rows, and within those under way."""

from typing import Any

from utils import Progress


class RowProgress(Progress):
    """Rows of a sweep; of those under way the share of their images that have passed is counted.

    So that the share and the time left move where one row takes an hour.
    """

    def __init__(self, total: int, **options: Any):
        super().__init__(total, "sweep", "rows", **options)
        self._rows, self._images, self._counted = 1, 1, 0.0

    def begin(self, rows: int, images: int) -> None:
        """Rows that come together, once about so many images have passed, are under way."""
        self._rows, self._images = rows, images

    def count_images(self, count: int) -> None:
        """So many images have passed; rows that have not come are never counted as whole."""
        share = min(self._counted / self._rows + count / self._images, 0.99)
        self.update(share * self._rows - self._counted)
        self._counted = share * self._rows

    def count_row(self) -> None:
        """A row has come, of which a part is counted already."""
        self._counted -= 1
        if self._counted < 0:
            self.update(-self._counted)
            self._counted = 0.0
