"""What every block of a model costs: time, bytes moved, launches; on the kernels and in eager."""

from .blocks import PATHS, Cost, Row, profile_blocks, total
from .instruments import REST

__all__ = ["PATHS", "REST", "Cost", "Row", "profile_blocks", "total"]
