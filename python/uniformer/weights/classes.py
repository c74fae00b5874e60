"""The order of classes: Kinetics' is one in the official code, another in mmaction2."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .dialects import CLASSIFIERS, matches
from .files import CheckpointError, describe, is_plain

Classes = Sequence[str] | Sequence[int] | str | os.PathLike
"""Names of classes in order, or row numbers; or the file of such a list."""


def read_classes(classes: Classes) -> list[str] | list[int]:
    """A list of class names, or of row numbers, from what the user gives.

    Args:
        classes: the list itself, or a file: ``.json``, a list; otherwise lines of a name alone or
            a name and its number, separated by a tab or, in ``.csv``, a comma.

    Raises:
        CheckpointError: the file cannot be read, or the list is of something else; numbers are
            not 0, 1, ..., or a name stands twice.
    """
    if isinstance(classes, str | os.PathLike):
        said = repr(os.fsdecode(classes))
        try:
            classes = _read(Path(os.fsdecode(classes)))
        except (OSError, ValueError, csv.Error) as error:
            raise CheckpointError(
                f"classes: expected a file of names, got {said}: {error}"
            ) from error
    else:
        said = f"a list with {list(classes)[:3]}"
    for kind in (str, int):
        if classes and all(isinstance(entry, kind) for entry in classes):
            if len(set(classes)) < len(classes):
                twice = next(entry for entry in classes if list(classes).count(entry) > 1)
                raise CheckpointError(f"classes: expected every one once, got {said}: {twice!r}")
            return list(classes)
    raise CheckpointError(f"classes: expected a list of names or of row numbers, got {said}")


def _read(path: Path) -> list:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
        content = json.loads(text)
        if not isinstance(content, list):
            raise ValueError(f"a {type(content).__name__}")
        return content
    lines = [line for line in text.splitlines() if line.strip()]
    comma = path.suffix == ".csv" and "\t" not in text
    rows = list(csv.reader(lines)) if comma else [line.split("\t") for line in lines]
    if all(len(row) == 1 for row in rows):
        return [row[0].strip() for row in rows]
    numbered = {int(number): name.strip() for name, number in rows}
    if sorted(numbered) != list(range(len(rows))):
        raise ValueError(f"its numbers are not 0 to {len(rows) - 1}")
    return [numbered[number] for number in range(len(rows))]


def arrange(
    state: Mapping[str, Tensor], classes_from: Classes | None, classes_to: Classes | None
) -> tuple[dict[str, Tensor], tuple[str, ...] | None]:
    """Put the rows of classifiers in another order, and leave out those of other classes.

    Args:
        state: weights under their official names.
        classes_from: names of the rows as they are.
        classes_to: names of the rows wanted, or the numbers of these rows; all by default.

    Returns:
        The weights and the names of the classifiers' rows, if known.

    Raises:
        CheckpointError: a name is missing, or the lists do not fit the classifiers.
    """
    heads = {
        key: value
        for key, value in state.items()
        if matches(key, CLASSIFIERS) and is_plain(value) and value.dim()
    }
    names = None if classes_from is None else read_classes(classes_from)
    wanted = None if classes_to is None else read_classes(classes_to)
    if names is None and wanted is None:
        return dict(state), None
    count = max((len(value) for value in heads.values()), default=0)
    if any(len(value) != count for value in heads.values()) or not heads:
        came = ", ".join(f"{key} {describe(value)}" for key, value in heads.items()) or "none"
        raise CheckpointError(f"classes: expected a classifier to put in order, got {came}")
    if names is not None and (len(names) != count or not isinstance(names[0], str)):
        raise CheckpointError(
            f"classes_from: expected {count} names, one for each of the file's classes, "
            f"got {len(names)}: {names[:3]}"
        )
    if wanted is None:
        return dict(state), tuple(names)
    if all(isinstance(row, int) for row in wanted):
        rows = wanted
        if any(not 0 <= row < count for row in rows):
            raise CheckpointError(f"classes_to: expected rows from 0 to {count - 1}, got {rows}")
        result = None if names is None else tuple(names[row] for row in rows)
    elif names is None:
        raise CheckpointError(
            "classes_to: expected classes_from too: the file does not name its classes"
        )
    else:
        places = {name: row for row, name in enumerate(names)}
        if unknown := [name for name in wanted if name not in places]:
            raise CheckpointError(
                f"classes_to: expected names of the file's {count} classes, got others: {unknown}"
            )
        rows, result = [places[name] for name in wanted], tuple(wanted)
    return {**state, **{key: value[rows] for key, value in heads.items()}}, result
