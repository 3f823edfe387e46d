"""Neural collapse of robustly trained networks: all that the scripts are made of.

From Python: `measure` is accuracy and neural collapse of any model and loader, `load_runs` a table
of what runs have measured.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robust_nc.measuring.any_model import measure
    from robust_nc.reports.loading import load_runs

__all__ = ["load_runs", "measure"]
_PLACES = {"measure": "robust_nc.measuring.any_model", "load_runs": "robust_nc.reports.loading"}


def __getattr__(name: str) -> Any:
    """Imported when they are asked for: the scripts do not need them."""
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
