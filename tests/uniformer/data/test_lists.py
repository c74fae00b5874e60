"""Lists in the official formats, trees of folders, and all that can be wrong with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from uniformer.data import Video, VideoListError, read_videos


def _write(folder: Path, content: str | bytes, *names: str) -> Path:
    """A list, and empty files for it to name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    path = folder / "list.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "content",
    [
        "a.mp4 3\nb/c.mp4 0\n",  # UCF101
        "a.mp4,3\nb/c.mp4,0\n",  # Kinetics
        "\n  a.mp4\t3 \r\n\r\nb/c.mp4  0",
        b"\xef\xbb\xbfa.mp4, 3\nb/c.mp4 ,0\n",
    ],
)
def test_lists_of_files(tmp_path: Path, content: str | bytes) -> None:
    videos, classes = read_videos(_write(tmp_path, content, "a.mp4"))
    assert videos == [Video(tmp_path / "a.mp4", 3), Video(tmp_path / "b/c.mp4", 0)]
    assert classes is None


def test_a_list_of_folders_of_frames(tmp_path: Path) -> None:
    path = _write(tmp_path, "100218 42 140\n7 9 0\n", "v/7/00001.jpg")
    videos, _ = read_videos(path, root=tmp_path / "v", template="{:05d}.jpg")
    assert videos == [
        Video(tmp_path / "v/100218", 140, 42, "{:05d}.jpg"),
        Video(tmp_path / "v/7", 0, 9, "{:05d}.jpg"),
    ]
    assert read_videos(path, root=tmp_path / "v")[0][0].template == "img_{:05d}.jpg"


def test_another_separator_and_an_absolute_path(tmp_path: Path) -> None:
    path = _write(tmp_path, f"an old one.mp4;1\n{tmp_path}/a,b.mp4;2\n", "an old one.mp4")
    videos, _ = read_videos(path, separator=";", root=tmp_path)
    assert videos == [Video(tmp_path / "an old one.mp4", 1), Video(tmp_path / "a,b.mp4", 2)]


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    Path(os.fsdecode(name)).touch()
    ((video,), _) = read_videos(_write(tmp_path, b"\xff\xfe.mp4 1\n"))
    assert os.fsencode(video.path) == name
    assert video.path.exists()


def test_a_tree_of_folders(tmp_path: Path) -> None:
    names = ["b/2.mp4", "b/10.MKV", "a a/x.webm", "b/notes.txt", "b/.hidden.mp4", ".git/x.mp4"]
    _write(tmp_path, "", *names, "top.mp4")
    (tmp_path / "c").mkdir()
    videos, classes = read_videos(tmp_path)
    assert classes == ["a a", "b", "c"]  # one without videos counts, or labels would move
    assert videos == [
        Video(tmp_path / "a a/x.webm", 0),
        Video(tmp_path / "b/10.MKV", 1),
        Video(tmp_path / "b/2.mp4", 1),
    ]
    with pytest.raises(VideoListError, match="expected 2 folders at most, one a class, got 3"):
        read_videos(tmp_path, num_classes=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "expected a video a line, got an empty list"),
        (" \n\n", "expected a video a line, got an empty list"),
        ("a.mp4 1\n\na.mp4\n", r"line 3: expected `path label` or .* with blanks .*, got 'a.mp4'"),
        (
            "my video a.mp4 1\n",
            r"line 1: expected .* \(a path must not hold any\), got .my video a",
        ),
        ("a,b.mp4,1,2\n", "line 1: expected .* with ',' between them"),
        (",1\n", "line 1: expected `path label`"),
        ("path,label\na.mp4,1\n", "line 1: label: expected a whole number from 0, got 'label'"),
        ("a.mp4 -1\n", "line 1: label: expected a whole number from 0, got '-1'"),
        ("a.mp4 1.0\n", "line 1: label: expected a whole number from 0, got '1.0'"),
        ("a.mp4 ²\n", "line 1: label: expected a whole number from 0, got '²'"),
        ("a 0 1\n", "line 1: frames: expected a whole number from 1, got '0'"),
        ("a x 1\n", "line 1: frames: expected a whole number from 1, got 'x'"),
        ("a.mp4 5\n", "line 1: expected a label below 5, the number of classes, got 5"),
        ("a.mp4 1\nb.mp4 1\n./a.mp4 1\n", r"line 3: .* got '.*a.mp4' again, which line 1 has"),
        ("b.mp4 1\nc.mp4 2\n", "b.mp4' is not there, nor any other of 2 looked for"),
    ],
)
def test_a_bad_list_says_where_and_what(tmp_path: Path, content: str, message: str) -> None:
    path = _write(tmp_path, content, "a.mp4")
    with pytest.raises(VideoListError, match=message):
        read_videos(path, num_classes=5)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(VideoListError, match=r"source: .*gone.csv': No such file"):
        read_videos(tmp_path / "gone.csv")
    with pytest.raises(VideoListError, match=r"a folder for each class .* 0 folders and no video"):
        read_videos(tmp_path)
