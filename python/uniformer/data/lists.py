"""Which videos there are and what they show: lists in the official formats, trees of folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

SUFFIXES = (
    *(".asf", ".avi", ".flv", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg"),
    *(".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
"""How the names of video files in a tree of folders end."""

TEMPLATE = "img_{:05d}.jpg"
"""Names of the images in a folder of frames, numbered from 1: Something-Something V2's."""

PROBED = 64  # entries of a list that are looked for on the disk before anything starts


class VideoListError(ValueError):
    """A list of videos cannot be used; says where, what was expected and what came."""


class Video(NamedTuple):
    """An entry of a list.

    ``path`` is a video file; or, where ``frames`` is a number, a folder of that many images, whose
    names ``template`` makes from 1, 2, ...
    """

    path: Path
    label: int
    frames: int | None = None
    template: str = TEMPLATE


def read_videos(
    source: str | bytes | os.PathLike,
    *,
    root: str | bytes | os.PathLike | None = None,
    template: str = TEMPLATE,
    separator: str | None = None,
    num_classes: int | None = None,
) -> tuple[list[Video], list[str] | None]:
    """Read a list of videos, or a tree with a folder for each class.

    A list is a text file with a video a line, in one of the official formats: ``path label``, or
    ``folder frames label`` for folders of images (Something-Something, HMDB51). Names may be in any
    encoding. Whether a file is there is found out when it is decoded; only when none of a sample of
    the list is there, that is an error here, for the root is wrong.

    Args:
        source: the list; or a folder whose folders, sorted by name, are the classes, and the video
            files in those their examples.
        root: folder that the paths of a list start from; the list's own if None.
        template: names of the images in a folder of frames; ``"{:05d}.jpg"`` for
            Something-Something V1.
        separator: what stands between the fields of a line; if None a comma where the line has
            one, else blanks.
        num_classes: if given, labels have to be below it.

    Returns:
        The videos in the order of the list (of a tree: sorted), and the names of the classes, which
        a list does not tell: None.

    Raises:
        VideoListError: no such file or folder; nothing in it; a line with another number of fields,
            or a label or number of frames that is none; one path in two lines; labels that are not
            below ``num_classes``; none of the videos is there.
    """
    source = Path(os.fsdecode(source))
    if source.is_dir():
        videos, classes = _read_tree(source)
        if num_classes is not None and len(classes) > num_classes:
            raise VideoListError(
                f"{str(source)!r}: expected {num_classes} folders at most, one a class, "
                f"got {len(classes)}"
            )
        return videos, classes
    try:
        content = source.read_bytes()
    except OSError as error:
        raise VideoListError(
            f"source: expected a list of videos or a folder, got {str(source)!r}: {error.strerror}"
        ) from error
    folder = source.parent if root is None else Path(os.fsdecode(root))
    videos = _read_list(str(source), content, folder, template, separator, num_classes)
    _probe(videos, folder)
    return videos, None


def _read_tree(root: Path) -> tuple[list[Video], list[str]]:
    folders = sorted(path for path in root.iterdir() if _visible(path) and path.is_dir())
    videos = [
        Video(path, label)
        for label, folder in enumerate(folders)
        for path in sorted(folder.iterdir())
        if _visible(path) and path.suffix.lower() in SUFFIXES
    ]
    if not videos:
        raise VideoListError(
            f"{str(root)!r}: expected a folder for each class with video files in it, "
            f"got {len(folders)} folders and no video"
        )
    return videos, [folder.name for folder in folders]


def _visible(path: Path) -> bool:
    return not path.name.startswith(".")


def _read_list(
    source: str,
    content: bytes,
    root: Path,
    template: str,
    separator: str | None,
    num_classes: int | None,
) -> list[Video]:
    videos: list[Video] = []
    first: dict[str, int] = {}
    for number, raw in enumerate(content.removeprefix(b"\xef\xbb\xbf").splitlines(), 1):
        if not (line := os.fsdecode(raw).strip()):
            continue
        where = f"{source!r}, line {number}"
        video = _read_line(where, line, separator, root, template)
        if num_classes is not None and video.label >= num_classes:
            raise VideoListError(
                f"{where}: expected a label below {num_classes}, the number of classes, "
                f"got {video.label}"
            )
        if (before := first.setdefault(os.path.normpath(video.path), number)) != number:
            raise VideoListError(
                f"{where}: expected every video once, got {str(video.path)!r} again, "
                f"which line {before} has already"
            )
        videos.append(video)
    if not videos:
        raise VideoListError(f"{source!r}: expected a video a line, got an empty list")
    return videos


def _read_line(where: str, line: str, separator: str | None, root: Path, template: str) -> Video:
    split_at = separator or ("," if "," in line else None)
    fields = [field.strip() for field in line.split(split_at)]
    if len(fields) not in (2, 3) or not fields[0]:
        shown = "blanks" if split_at is None else repr(split_at)
        raise VideoListError(
            f"{where}: expected `path label` or `folder frames label` with {shown} between them "
            f"(a path must not hold any), got {line!r}"
        )
    path, *counts = fields
    label = _number(f"{where}: label", counts[-1], 0)
    frames = _number(f"{where}: frames", counts[0], 1) if len(counts) == 2 else None
    return Video(root / path, label, frames, template)


def _number(name: str, text: str, least: int) -> int:
    if not (text.isascii() and text.removeprefix("-").isdigit() and int(text) >= least):
        raise VideoListError(f"{name}: expected a whole number from {least}, got {text!r}")
    return int(text)


def _probe(videos: Sequence[Video], root: Path) -> None:
    sample = videos[:: max(1, len(videos) // PROBED)]
    if not any(os.path.exists(video.path) for video in sample):
        raise VideoListError(
            f"root: expected the folder that the paths of the list start from, got {str(root)!r}: "
            f"{str(sample[0].path)!r} is not there, nor any other of {len(sample)} looked for"
        )
