"""What became of a model's modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A module that was swapped, or that looks as if it could have been.

    Args:
        name: the module's, as ``named_modules`` has it.
        kind: its class.
        becomes: the block function or operator that its forward calls now; ``None`` where its own
            was left.
        reason: why it was left, or that it had been swapped before.
    """

    name: str
    kind: str
    becomes: str | None
    reason: str | None = None


@dataclass(frozen=True)
class Report:
    """The rows of a model, in the order of its modules; true when this call swapped something.

    What is inside a swapped block has no row of its own.
    """

    rows: tuple[Row, ...]

    @property
    def swapped(self) -> tuple[Row, ...]:
        """The modules that this call swapped."""
        return tuple(row for row in self.rows if row.becomes and not row.reason)

    @property
    def left(self) -> tuple[Row, ...]:
        """The modules that run their own forward."""
        return tuple(row for row in self.rows if not row.becomes)

    @property
    def before(self) -> tuple[Row, ...]:
        """The modules that had been swapped before."""
        return tuple(row for row in self.rows if row.becomes and row.reason)

    def __bool__(self) -> bool:
        return bool(self.swapped)

    def __str__(self) -> str:
        return "\n".join([*self._table(), self._total()])

    def _table(self) -> Iterator[str]:
        if not self.rows:
            return
        head = ("module", "class", "becomes", "")
        cells = [head, *((r.name, r.kind, r.becomes or "-", r.reason or "") for r in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(3)]
        for *columns, reason in cells:
            padded = (cell.ljust(width) for cell, width in zip(columns, widths, strict=True))
            yield "  ".join([*padded, reason]).rstrip()

    def _total(self) -> str:
        counts = Counter(row.becomes for row in self.swapped)
        found = ", ".join(f"{count} {becomes}" for becomes, count in counts.items())
        text = f"{len(self.swapped)} swapped ({found})" if self else "nothing to swap"
        if self.before:
            text += f", {len(self.before)} swapped before"
        return text + (f", {len(self.left)} left as they are" if self.left else "")
