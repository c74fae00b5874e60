"""What a training run is: every number of a recipe, checked."""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent.parent / "recipes"
INHERITS = "inherits"


class SettingsError(ValueError):
    """A setting is unknown or has a value that makes no sense; names the key."""


def _number(default: Any, low: float, high: float = math.inf, **metadata: Any) -> Any:
    return field(default=default, metadata={"range": (low, high), **metadata})


def _choice(default: Any, *values: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"choices": values, **metadata})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a run, as recipe files and ``--set key=value`` give them.

    A batch is counted in videos over all processes, so that a recipe means the same on any number
    of devices. Those marked ``resumable`` may change when a run goes on.

    Raises:
        SettingsError: a value is of the wrong type or out of its range.
    """

    # The model.
    model: str
    keywords: dict[str, Any] = field(default_factory=dict)  # of create_model
    num_classes: int | None = _number(None, 2)  # as the data say if None
    starts_from: str | None = None  # what weights the published run started from, in words
    start: str | None = field(default=None, metadata={"resumable": True})  # a file of weights
    start_head: str = _choice("drop", "take", "drop")
    inflation: str | None = _choice(None, "average", "centre")

    # The clips.
    frames: int = _number(16, 1)
    sampling: str = _choice("dense", "dense", "uniform")
    stride: int = _number(4, 1)  # frames of the video between two of a clip, of dense sampling
    size: int = _number(224, 1)
    template: str | None = None  # names of the images in a folder of frames
    bgr: bool = False

    # Augmentation.
    rand_augment: str | None = "rand-m7-n4-mstd0.5-inc1"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (0.75, 4 / 3)
    short_side: tuple[int, int] | None = None
    flip: float = _number(0.5, 0, 1)
    erase: float = _number(0.25, 0, 1)
    repeats: int = _number(1, 1)
    mixup: float = _number(0.8, 0)
    cutmix: float = _number(1.0, 0)
    smoothing: float = _number(0.1, 0, 1)

    # Optimisation.
    batch_size: int = _number(32, 1)
    accumulate: int = _number(1, 1)
    epochs: int = _number(100, 1)
    warmup_epochs: float = _number(10.0, 0)
    lr: float = _number(1e-4, 0)
    warmup_lr: float = _number(1e-6, 0)
    min_lr: float = _number(1e-6, 0)
    weight_decay: float = _number(0.05, 0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = _number(1e-8, 0)
    clip_grad: float | None = _number(20.0, 0)
    ema: float | None = _number(None, 0, 1)
    seed: int = _number(0, 0)

    # How it is computed.
    amp: str | None = _choice(None, "bf16", "fp16")
    sync_batch_norm: bool = False
    parallel: str = _choice("ddp", "ddp", "fsdp", resumable=True)
    grad_checkpointing: bool = field(default=False, metadata={"resumable": True})
    compile: bool = field(default=False, metadata={"resumable": True})
    workers: int = _number(2, 0, resumable=True)
    log_interval: int = _number(10, 1, resumable=True)  # steps
    save_interval: int | None = _number(None, 1, resumable=True)  # steps; always at an epoch's end

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(Settings)
        for entry in fields(self):
            value = _convert(entry.name, getattr(self, entry.name), kinds[entry.name])
            _check_range(entry.name, value, entry.metadata)
            object.__setattr__(self, entry.name, value)
        for name in ("area", "aspect", "short_side"):
            if (pair := getattr(self, name)) and not 0 < pair[0] <= pair[1]:
                raise SettingsError(f"{name}: expected 0 < low <= high, got {list(pair)}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingsError(f"betas: expected 0 <= beta < 1, got {list(self.betas)}")
        if self.warmup_epochs > self.epochs:
            raise SettingsError(
                f"warmup_epochs: expected at most epochs={self.epochs}, got {self.warmup_epochs}"
            )


def _convert(name: str, value: Any, kind: Any) -> Any:
    """A value as its type has it; YAML reads 1e-4 as a string, and whole numbers are floats too."""
    wrong = SettingsError(f"{name}: expected {_describe(kind)}, got {value!r}")
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        kind = typing.get_args(kind)[0]
    options = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != len(options):
            raise wrong
        pairs = zip(value, options, strict=True)
        return tuple(_convert(name, part, option) for part, option in pairs)
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            raise wrong from None
    plain = typing.get_origin(kind) or kind
    if not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool):
        raise wrong
    return value


def _describe(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    options = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return f"{_describe(options[0])} or null"
    if typing.get_origin(kind) is tuple:
        return f"{len(options)} numbers"
    return names.get(kind, "keys and values")


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if value is None:
        return
    if (choices := metadata.get("choices")) and value not in choices:
        raise SettingsError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    low, high = metadata.get("range", (None, None))
    if low is not None and not (low <= value <= high and math.isfinite(value)):
        wanted = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise SettingsError(f"{name}: expected {wanted}, got {value}")


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def read_recipe(recipe: str | Path) -> dict[str, Any]:
    """The keys and values of a recipe, with those of what it ``inherits`` under them.

    Args:
        recipe: one of ``list_recipes()``, or a YAML file. A file inherits from a recipe by name, or
            from a file beside it.

    Raises:
        SettingsError: there is no such recipe, or it is not keys and values.
    """
    return _read(recipe, Path(), ())


def _read(recipe: str | Path, folder: Path, through: tuple[Path, ...]) -> dict[str, Any]:
    path = _find(recipe, folder)
    if path in through:
        raise SettingsError(f"{path}: {INHERITS}: expected another recipe, got a circle")
    try:
        content = _parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"recipe: cannot read {str(path)!r}: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingsError(f"{path}: expected keys and values, got {type(content).__name__}")
    _check_keys(content.keys() - {INHERITS}, str(path))
    parent = content.pop(INHERITS, None)
    inherited = {} if parent is None else _read(parent, path.parent, (*through, path))
    return _merge(inherited, content)


def _parse(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it says nothing.
        ImportError: PyYAML is missing.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ImportError(
            "settings are YAML, which needs PyYAML: pip install 'uniformer-kernels[train]'"
        ) from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _find(recipe: str | Path, folder: Path) -> Path:
    for path in (folder / recipe, RECIPES / f"{recipe}.yaml"):
        if path.is_file():
            return path.resolve()
    close = difflib.get_close_matches(str(recipe), list_recipes(), n=3) or list_recipes()
    raise SettingsError(
        f"recipe: expected a YAML file or a recipe's name, got {str(recipe)!r}; "
        f"there is {', '.join(close)}"
    )


def _check_keys(keys: typing.Iterable[str], where: str) -> None:
    known = [entry.name for entry in fields(Settings)]
    for key in sorted(keys):
        if key not in known:
            close = difflib.get_close_matches(key, known, n=3) or known
            raise SettingsError(f"{where}: {key}: no such setting; there is {', '.join(close)}")


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``under``; the model's keywords are merged one by one."""
    merged = {**under, **over}
    below, above = under.get("keywords"), over.get("keywords")
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        merged["keywords"] = {**below, **above}
    return merged


def parse_overrides(entries: typing.Iterable[str]) -> dict[str, Any]:
    """``["lr=1e-3", "keywords.drop_path_rate=0.2"]`` as keys and values; these are YAML.

    Raises:
        SettingsError: an entry is no ``key=value``, or there is no such setting.
    """
    given: dict[str, Any] = {}
    for entry in entries:
        key, equals, text = entry.partition("=")
        if not equals:
            raise SettingsError(f"--set: expected key=value, got {entry!r}")
        try:
            value = _parse(text)
        except ValueError as error:
            raise SettingsError(f"--set: {key}: expected a value, got {text!r}: {error}") from error
        key, dot, keyword = key.strip().partition(".")
        _check_keys([key], "--set")
        if dot and key != "keywords":
            raise SettingsError(f"--set: {key}: it has no parts, got {entry!r}")
        given = _merge(given, {key: {keyword: value} if dot else value})
    return given


def make_settings(
    recipe: str | Path | None,
    overrides: typing.Iterable[str] = (),
    under: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of a recipe, or of a mapping ``under`` it, some of them overridden.

    Raises:
        SettingsError: the recipe or a setting is not as it should be; names the key.
    """
    given = _merge(under or {}, {} if recipe is None else read_recipe(recipe))
    given = _merge(given, parse_overrides(overrides))
    for entry in fields(Settings):
        if entry.name not in given and entry.default is entry.default_factory is MISSING:
            raise SettingsError(f"{entry.name}: expected a value, from --recipe or --set, got none")
    return Settings(**given)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Which settings of a resumed run differ: those that must not, and those that may.

    Each is ``"lr: 0.001, now 0.01"``.
    """
    may = {entry.name for entry in fields(Settings) if entry.metadata.get("resumable")}
    lines: tuple[list[str], list[str]] = [], []
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            line = f"{name}: {before.get(name)!r}, now {now.get(name)!r}"
            lines[name in may].append(line)
    return lines
