"""Models need none of the libraries that data need; what does need one says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
for name in ("av", "PIL", "sklearn", "tqdm", "torchcodec"):
    sys.modules[name] = None

import uniformer.bench
from uniformer import create_model
from uniformer.data import Augment, count_frames, motion
from uniformer.data.frames import decode_images

create_model("uniformer_video_xxs")
Augment(32, rand_augment=None)
for call in (
    lambda: count_frames("a.mp4"),
    lambda: Augment(32),
    lambda: decode_images(".", [0], template="{}.jpg"),
    lambda: motion(sys.argv[1], split="val"),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_libraries_are_asked_for_when_they_are_needed(tmp_path: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    needs = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert needs == [
        "videos need PyAV",
        "RandAugment needs Pillow",
        "folders of frames need Pillow",
        "the motion task needs PyAV, scikit-learn and tqdm",
    ]
