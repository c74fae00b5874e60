"""The names under which UniFormer's weights are found, and the official names of the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from torch import Tensor

from .files import CheckpointError

CLASSIFIERS = ("head.*", "head_cls.*", "aux_head.*", "transformer.proj.2.*")
"""Patterns of the keys whose rows are classes."""


@dataclass(frozen=True)
class Dialect:
    """How somebody's code names the weights.

    Args:
        name: for people.
        sign: a key that only its files have, of those no dialect further up claims.
        prefixes: the starts of its keys and what the official names have there; the first that
            fits counts, ``None`` is for what no model here has.
        inflation: how its code makes kernels over time from those of images.
    """

    name: str
    sign: str | None
    prefixes: Mapping[str, str | None] = field(default_factory=dict)
    inflation: str = "centre"

    def official(self, key: str) -> str | None:
        """The official name of a key, ``None`` if no model here has it."""
        for prefix, replacement in self.prefixes.items():
            if key.startswith(prefix):
                return None if replacement is None else replacement + key.removeprefix(prefix)
        return key


DIALECTS = (
    Dialect(
        "mmaction2 V2",
        "backbone.transformer.norm.weight",
        {
            "backbone.transformer.norm.": "transformer.proj.0.",
            "cls_head.fc_cls.": "transformer.proj.2.",
            "backbone.": "",
        },
    ),
    Dialect("official V2", "backbone.transformer.temporal_cls_token", {"backbone.": ""}),
    Dialect("official V2", "transformer.temporal_cls_token"),
    Dialect(
        "mmaction2 V1",
        "backbone.norm.running_mean",
        {"cls_head.fc_cls.": "head.", "backbone.": ""},
    ),
    # A whole detector, segmenter or pose estimator: what is around the backbone is not ours.
    Dialect("OpenMMLab dense", "backbone.norm1.weight", {"backbone.": "", "": None}, "average"),
    Dialect(
        "CLIP",
        "visual.class_embedding",
        {"visual.proj": None, "visual.ln_post.": None, "visual.": "", "": None},
    ),
    Dialect("CLIP", "class_embedding", {"proj": None, "ln_post.": None}),
    Dialect("official", None, inflation="average"),
)
"""Every dialect; of those whose sign is among the keys of a file, it is in the first."""


@dataclass(frozen=True)
class Exchange:
    """Weights of one kind of model in another, as the official code takes them.

    Args:
        applies: told by the file's and the model's weights.
        lacks: patterns of the model's keys that keep their values.
        carries: patterns of the file's keys that are dropped.
        inflates: whether the file's kernels are of images and the model's of clips.
    """

    applies: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
    lacks: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    inflates: bool = False


def _kernel_rank(state: Mapping[str, Tensor]) -> int:
    kernel = state.get("blocks1.0.pos_embed.weight")
    return 0 if kernel is None else kernel.dim()


EXCHANGES = (
    # A classifier's weights in a dense backbone, whose own norms start afresh.
    Exchange(
        lambda came, own: "norm.running_mean" in came and "norm1.weight" in own,
        lacks=("norm[1-4].*",),
        carries=("norm.*", "norm_cls.*", *CLASSIFIERS),
    ),
    # Image weights in a video model: what it has for time or as layer scale starts afresh.
    Exchange(
        lambda came, own: _kernel_rank(came) == 4 and _kernel_rank(own) == 5,
        lacks=("*.t_norm.*", "*.t_attn.*", "*.gamma_[12]"),
        inflates=True,
    ),
    # CLIP's image transformer in UniFormerV2: what works across frames starts afresh.
    Exchange(
        lambda came, own: (
            "class_embedding" in came
            and "transformer.temporal_cls_token" not in came
            and "transformer.temporal_cls_token" in own
        ),
        lacks=(
            "transformer.temporal_cls_token",
            "transformer.balance",
            "transformer.resblocks.*.lmhra[12].*",
            "transformer.dpe.*",
            "transformer.dec.*",
            "transformer.fuse.*",
            "transformer.proj.*",
        ),
        inflates=True,
    ),
    # A frozen UniFormerV2 classifies the video token alone: nothing to balance.
    Exchange(
        lambda came, own: "transformer.dec.0.ln_3.weight" in own,
        carries=("transformer.balance",),
    ),
)


@dataclass(frozen=True)
class Translation:
    """Weights under their official names.

    Args:
        dialect: what they were in.
        state: the weights.
        names: of every official key, the file's.
        dropped: the file's keys that no model here has.
    """

    dialect: Dialect
    state: dict[str, Tensor]
    names: dict[str, str]
    dropped: tuple[str, ...]


def translate(state: Mapping[str, Tensor]) -> Translation:
    """Recognise the dialect of a file's weights and give them their official names.

    Raises:
        CheckpointError: two weights have the same.
    """
    dialect = next(d for d in DIALECTS if d.sign is None or d.sign in state)
    names: dict[str, str] = {}
    dropped = []
    for key in state:
        official = dialect.official(key)
        if official is None:
            dropped.append(key)
        elif official in names:
            raise CheckpointError(
                f"checkpoint: expected one weight {official} in the {dialect.name} dialect, "
                f"got {names[official]} and {key}"
            )
        else:
            names[official] = key
    return Translation(
        dialect, {key: state[name] for key, name in names.items()}, names, tuple(dropped)
    )


def matches(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether a key is one of the patterns'."""
    return any(fnmatchcase(key, pattern) for pattern in patterns)
