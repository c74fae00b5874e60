"""Models as folders and as repositories of the Hugging Face Hub.

A folder holds ``config.json`` (architecture and keywords), ``model.safetensors`` and a model card.
Only what goes over the network needs ``huggingface_hub`` (``pip install uniformer-kernels[hub]``).
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from .registry import create_model
from .weights import CheckpointError, load_checkpoint, save_checkpoint
from .weights.classes import Classes

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
LIBRARY = "uniformer-kernels"


def save_pretrained(
    model: nn.Module, folder: str | os.PathLike, *, class_names: Classes | None = None
) -> Path:
    """Write a model into a folder, which is made if it is not there.

    Args:
        model: of ``create_model``.
        folder: where to; files of the same names are replaced.
        class_names: of the model's classes in order, or a file of them.

    Returns:
        The folder.

    Raises:
        ValueError: the model was not made by ``create_model``.
        CheckpointError: the names are not one for each class, or a file cannot be written.
    """
    config = _config(model)
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(model, folder / WEIGHTS, class_names=class_names)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        (folder / CARD).write_text(model_card(model))
    except OSError as error:
        raise CheckpointError(f"save_pretrained: folder: {error}") from error
    return folder


def from_pretrained(
    source: str | os.PathLike,
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    token: str | bool | None = None,
    head: str = "take",
    **keywords: Any,
) -> nn.Module:
    """Build a model from a folder, or a repository, that ``save_pretrained`` made.

    Args:
        source: the folder; if there is none, a repository like ``"user/name"``.
        revision: branch, tag or commit of the repository.
        cache_dir: where repositories are kept.
        token: for private ones.
        head: ``"take"`` the classifiers, or ``"drop"`` them, for another ``num_classes``.
        **keywords: of ``create_model``, in place of the saved ones.

    Returns:
        The model, in evaluation.

    Raises:
        CheckpointError: there is no such folder, or its files are missing, damaged or do not fit.
        ImportError: a repository is asked for, and huggingface_hub is missing.
    """
    folder = Path(source)
    if not folder.is_dir():
        if str(source).count("/") != 1 or str(source).startswith((".", "/")):
            raise CheckpointError(
                f"from_pretrained: source: expected a folder or a repository user/name, "
                f"got {os.fspath(source)!r}"
            )
        folder = Path(
            _hub().snapshot_download(
                str(source),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                allow_patterns=[CONFIG, WEIGHTS],
            )
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        name, saved = config["architecture"], dict(config["keywords"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"from_pretrained: source: expected a folder with a {CONFIG} of save_pretrained, "
            f"got {str(folder)!r}: {error}"
        ) from error
    try:
        model = create_model(name, **{**saved, **keywords})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"from_pretrained: {error}") from error
    load_checkpoint(model, folder / WEIGHTS, head=head)
    return model.eval()


def push_to_hub(
    model: nn.Module,
    repository: str,
    *,
    class_names: Classes | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
) -> str:
    """Write a model into a repository of the Hub, which is made if it is not there.

    Args:
        model, class_names: as for ``save_pretrained``.
        repository: like ``"user/name"``.
        private: whether a new repository is.
        token: that may write to it.
        revision: the branch.
        message: of the commit.

    Returns:
        The commit's address.

    Raises:
        ValueError, CheckpointError: as ``save_pretrained``.
        ImportError: huggingface_hub is missing.
    """
    from tempfile import TemporaryDirectory

    api = _hub().HfApi(token=token)
    with TemporaryDirectory() as folder:
        save_pretrained(model, folder, class_names=class_names)
        api.create_repo(repository, private=private, exist_ok=True)
        return str(
            api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message=message
            )
        )


def model_card(model: nn.Module) -> str:
    """What is known of a model, in Markdown with the Hub's header.

    Published figures stand there as the authors'; nothing says that these weights reach them.
    """
    from .models.facts import FACTS

    config = _config(model)
    name, size = config["architecture"], config["input_size"]
    video, classes = len(size) == 4, config["num_classes"]
    kind = "video" if video else "image"
    task = f"{kind}-classification" if video or classes else "image-feature-extraction"
    rows = {
        "Parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "Keywords": f"`{config['keywords']}`",
        "Input": f"{' × '.join(map(str, size))}, channels × {'T × ' if video else ''}H × W",
        "Normalisation": f"mean {list(config['mean'])}, std {list(config['std'])}, RGB in 0..1",
        "Classes": str(classes or "none: a backbone"),
    }
    lines = [
        "---",
        f"library_name: {LIBRARY}",
        f"pipeline_tag: {task}",
        "tags:",
        "- uniformer",
        f"- {task}",
        "---",
        f"# {name}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
        "```python",
        "from uniformer.hub import from_pretrained",
        "",
        'model = from_pretrained("user/name")  # this repository, or a folder',
        "```",
        "",
        "Figures the authors published for this architecture; these weights may be others:",
        "",
        "| dataset | input | scores | source |",
        "|---|---|---|---|",
    ]
    for facts in FACTS[name]:
        for published in facts.published:
            scores = ", ".join(f"{key} {value}" for key, value in published.scores.items())
            shape = " × ".join(map(str, facts.input_size))
            lines.append(f"| {published.dataset} | {shape} | {scores} | {published.source} |")
    return "\n".join(lines) + "\n"


def _config(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None)
    if config is None or not hasattr(model, "feature_indices"):
        raise ValueError(
            f"model: expected one of uniformer.create_model, got {type(model).__name__}"
        )
    return {"library_name": LIBRARY, **config}


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            "repositories of the Hub need huggingface_hub: pip install 'uniformer-kernels[hub]'"
        ) from error
    return huggingface_hub
