"""Sampling against indices worked out by hand; decoding of good, short and bad files."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from uniformer.data import VideoError, count_frames, decode
from uniformer.data import video as video_module
from uniformer.data.sampling import dense_test, dense_train, uniform_test, uniform_train
from uniformer.data.scene import scene_frames, write_video

LENGTHS, FRAMES, STRIDES, VIEWS = (st.integers(1, most) for most in (400, 40, 9, 6))


# Dense sampling


def test_dense_16x4_has_the_official_spacing_of_4_2_frames() -> None:
    (indices,) = dense_test(64, 16, 4)
    assert indices.tolist() == [0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63]
    assert indices.dtype == torch.int64


def test_dense_clips_start_at_multiples_of_the_floored_step() -> None:
    # 300 - 64 = 236 spare frames; 236 // 3 = 78.
    assert dense_test(300, 16, 4, clips=4)[:, 0].tolist() == [0, 78, 156, 234]
    # 237 // 3 = 79, so the last clip ends at the last frame.
    assert dense_test(301, 16, 4, clips=4)[:, -1].tolist() == [63, 142, 221, 300]


def test_dense_single_clip_is_in_the_middle() -> None:
    assert dense_test(13, 4, 2).tolist() == [[2, 4, 6, 9]]  # start (13 - 8) // 2, spacing 7 / 3


def test_dense_clamps_a_short_video() -> None:
    assert dense_test(6, 4, 4, clips=2).tolist() == [[0, 5, 5, 5]] * 2
    assert dense_test(1, 4, 4).tolist() == [[0, 0, 0, 0]]


def test_dense_takes_a_single_frame() -> None:
    assert dense_test(9, 1, 3).tolist() == [[3]]


def test_dense_train_start_is_real_valued() -> None:
    starts = [dense_train(70, 16, 4, generator=torch.Generator().manual_seed(s)) for s in range(50)]
    assert {start[0].item() for start in starts} == {0, 1, 2, 3, 4, 5}  # U(0, 6), truncated
    # A whole start always has start + 21 at position 5; some real-valued ones have start + 20 + 1.
    assert len({tuple((start - start[0]).tolist()) for start in starts}) > 1


def test_dense_train_of_an_exact_fit_has_no_choice() -> None:
    assert torch.equal(dense_train(64, 16, 4), dense_test(64, 16, 4)[0])


@given(LENGTHS, FRAMES, STRIDES, VIEWS)
def test_dense_is_ordered_and_inside(L: int, T: int, stride: int, clips: int) -> None:
    generator = torch.Generator().manual_seed(L)
    for indices in (
        dense_test(L, T, stride, clips),
        dense_train(L, T, stride, generator=generator),
    ):
        assert indices.shape[-1] == T
        assert indices.min() >= 0
        assert indices.max() < L
        assert (indices.diff() >= 0).all()


# Uniform sampling


def test_uniform_takes_the_middle_of_each_segment() -> None:
    # Segments of 16/4 = 4 frames; one view stands at 4 / 2 * 1.
    assert uniform_test(17, 4).tolist() == [[2, 6, 10, 14]]
    # Three views at 4 / 4 * 1, 2, 3.
    assert uniform_test(17, 4, views=3).tolist() == [
        [1, 5, 9, 13],
        [2, 6, 10, 14],
        [3, 7, 11, 15],
    ]


def test_uniform_borders_round_halves_to_even() -> None:
    # Segments of 10 / 4 = 2.5: borders 0, 2.5, 5, 7.5 round to 0, 2, 5, 8; the view adds int(1.25).
    assert uniform_test(11, 4).tolist() == [[1, 3, 6, 9]]


def test_uniform_of_a_short_video() -> None:
    assert uniform_test(1, 4).tolist() == [[0, 0, 0, 0]]
    assert uniform_test(3, 4).tolist() == [[0, 0, 1, 2]]  # borders 0, 0.5, 1, 1.5, nothing added


def test_uniform_train_reaches_both_ends_of_every_segment() -> None:
    draws = torch.stack(
        [uniform_train(11, 4, generator=torch.Generator().manual_seed(s)) for s in range(200)]
    )
    seen = [set(column.tolist()) for column in draws.T]
    assert seen == [{0, 1, 2}, {2, 3, 4, 5}, {5, 6, 7, 8}, {8, 9, 10}]


@given(LENGTHS, FRAMES, VIEWS)
def test_uniform_is_ordered_and_inside(L: int, T: int, views: int) -> None:
    generator = torch.Generator().manual_seed(L)
    for indices in (uniform_test(L, T, views), uniform_train(L, T, generator=generator)):
        assert indices.shape[-1] == T
        assert indices.min() >= 0
        assert indices.max() < L
        assert (indices.diff() >= 0).all()


@pytest.mark.parametrize("bad", [{"num_frames": 0}, {"frames": 0}, {"stride": -1}, {"clips": 0}])
def test_dense_names_the_bad_argument(bad: dict[str, int]) -> None:
    sizes = {"num_frames": 10, "frames": 4, "stride": 2, "clips": 1} | bad
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got {bad[name]}"):
        dense_test(**sizes)


# Decoding


def _numbered(count: int) -> list[np.ndarray]:
    """Frames whose colour says which they are: red rises by 8, green falls by 8, blue is 60."""
    frames = np.empty((count, 48, 64, 3), np.uint8)
    frames[..., 0] = 8 * np.arange(count)[:, None, None]
    frames[..., 1] = 248 - frames[..., 0]
    frames[..., 2] = 60
    return list(frames)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "numbered.mp4", iter(_numbered(30)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("video") / "scene.mp4"
    return write_video(path, scene_frames(seconds=2, width=96, height=64)).read_bytes()


def test_a_video_comes_back(video: Path) -> None:
    assert count_frames(video) == 30
    frames = decode(video, range(30))
    assert frames.dtype == torch.uint8
    assert frames.shape == (30, 48, 64, 3)
    written = torch.from_numpy(np.stack(_numbered(30)))
    assert (frames.float() - written).abs().max() < 6  # neighbours are 8 apart


def test_indices_come_in_the_order_asked_for(video: Path) -> None:
    every = decode(video, range(30))
    assert torch.equal(decode(video, torch.tensor([20, 3, 3, 29])), every[[20, 3, 3, 29]])


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((0, -1, 1, 0), 1)])
def test_a_video_that_lies_is_turned(
    scene: bytes, tmp_path: Path, matrix: tuple[int, ...], turns: int
) -> None:
    path = tmp_path / "telephone.mp4"
    path.write_bytes(scene)
    lying = decode(path, [0, 9])
    a, b, c, d = (value << 16 for value in matrix)
    header = bytearray(scene)
    start = scene.index(b"tkhd") + 44  # of the matrix in the header of the track
    header[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(header)
    assert torch.equal(decode(path, [0, 9]), lying.rot90(turns, (1, 2)))


def test_indices_may_depend_on_the_length(video: Path) -> None:
    assert torch.equal(decode(video, lambda length: [length - 1, 0]), decode(video, [29, 0]))


def test_torchcodec_gives_the_same_frames(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if (decoder := video_module._torchcodec()) is None:
        pytest.skip("torchcodec is not installed, or does not load")
    fast = decoder(str(video), dimension_order="NHWC").get_frames_at([20, 3, 29]).data
    monkeypatch.setattr(video_module, "_torchcodec", lambda: None)
    assert torch.equal(fast, decode(video, [20, 3, 29]))


def test_what_torchcodec_cannot_do_is_left_to_pyav(
    video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no such stream")

    expected = decode(video, [20, 3])
    monkeypatch.setattr(video_module, "_torchcodec", lambda: refuse)
    assert torch.equal(decode(video, [20, 3]), expected)


def test_an_index_behind_the_end_gives_the_last_frame(video: Path) -> None:
    with pytest.warns(UserWarning, match=r"expected at least 101 frames, got 30"):
        frames = decode(video, [100, 5])
    assert torch.equal(frames, decode(video, [29, 5]))


@pytest.mark.parametrize("indices", [[], [3, -1]])
def test_bad_indices(video: Path, indices: list[int]) -> None:
    with pytest.raises(ValueError, match="indices: expected at least one and none negative"):
        decode(video, indices)


def test_a_name_that_is_not_utf8(video: Path, tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    Path(os.fsdecode(path)).write_bytes(video.read_bytes())
    assert count_frames(path) == 30
    assert torch.equal(decode(path, [7]), decode(video, [7]))


def test_the_scene_moves_and_is_the_same_every_time() -> None:
    first, second = (list(scene_frames(seconds=0.2, width=64, height=48)) for _ in range(2))
    assert len(first) == 6
    assert first[0].shape == (48, 64, 3)
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_no_frames_to_write(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frames: expected at least one"):
        write_video(tmp_path / "none.mp4", iter([]))


PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nnumbered.mp4\n#EXT-X-ENDLIST\n"


@pytest.mark.parametrize(
    ("name", "content", "came"),
    [
        ("text.mp4", b"not a video at all\n" * 50, "Invalid data"),
        ("text.txt", b"FFmpeg would draw this text\n" * 50, "not a video container"),
        ("list.m3u8", PLAYLIST, "not a video container"),
        ("empty.mp4", b"", "an empty file"),
        ("noise.mkv", bytes(range(256)) * 20, "Invalid data"),
    ],
)
def test_a_file_that_is_no_video(tmp_path: Path, name: str, content: bytes, came: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for read in (count_frames, lambda path: decode(path, [0])):
        with pytest.raises(VideoError, match="expected a video file") as error:
            read(path)
        assert name in str(error.value)
        assert came in str(error.value)


def test_no_file_and_a_directory(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match=r"gone\.mp4': no such file"):
        count_frames(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match=re.escape(f"{str(tmp_path)!r}: a directory")):
        decode(tmp_path, [0])
    with pytest.raises(VideoError, match="no such file"):  # and no address is opened
        count_frames("http://localhost/video.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match="no video stream"):
        count_frames(path)


def test_a_truncated_video_gives_what_still_decodes(scene: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(scene)
    whole = decode(path, range(60))
    path.write_bytes(scene[: len(scene) // 2])
    with pytest.warns(UserWarning, match=r"cut\.mp4': expected 60 frames from its header, got \d+"):
        count = count_frames(path)
    assert 5 < count < 55
    with pytest.warns(UserWarning, match=r"cut\.mp4': expected at least 60 frames"):
        frames = decode(path, range(60))
    assert torch.equal(frames[:5], whole[:5])
    assert torch.equal(frames[-1], frames[count])  # the last that decodes stands in


def test_a_video_truncated_before_its_first_frame(scene: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(scene[: scene.index(b"mdat") + 4])
    for read in (count_frames, lambda path: decode(path, [0])):
        with pytest.raises(VideoError, match="frame"):
            read(path)


@pytest.mark.filterwarnings("ignore:.*expected at least")
def test_damage_in_the_middle_still_gives_frames(scene: bytes, tmp_path: Path) -> None:
    path, rng = tmp_path / "damaged.mp4", np.random.default_rng(0)
    first = scene.index(b"mdat") + 2000
    for _ in range(10):
        damaged = bytearray(scene)
        start = rng.integers(first, len(scene) - 500)
        damaged[start : start + 500] = rng.bytes(500)
        path.write_bytes(damaged)
        assert decode(path, range(60)).shape == (60, 64, 96, 3)


def test_a_damaged_index_is_a_clear_error(scene: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    start = scene.index(b"moov")
    path.write_bytes(scene[:start] + bytes(200) + scene[start + 200 :])
    with pytest.raises(VideoError, match=r"expected a video file, got .*damaged\.mp4"):
        count_frames(path)
