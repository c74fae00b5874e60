"""What is known of the models: sizes counted here, figures published by their authors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ZOO = "Sense-X/UniFormer and OpenGVLab/UniFormerV2, model zoo"
TPAMI = "UniFormer, TPAMI 2023 (arXiv 2201.09450)"


@dataclass(frozen=True)
class Published:
    """A figure of the authors.

    Args:
        dataset: what it was measured on, and with which head if not a classifier.
        scores: in percent, like ``{"top-1": 82.9}``.
        gflops: of all views and whatever head there is; a multiply and an addition count as one.
        views: frames x crops x clips.
        per_second: images or videos a second on an A100.
        source: where it is given.
    """

    dataset: str
    scores: Mapping[str, float]
    gflops: float | None = None
    views: str | None = None
    per_second: int | None = None
    source: str = ZOO


@dataclass(frozen=True)
class Facts:
    """A model in one of its published settings.

    Args:
        parameters: of all layers, those for training alone included, with the head of
            ``create_model``'s ``num_classes``; that of another dataset has others.
        input_size: of a sample without channels, ``(H, W)`` or ``(T, H, W)``.
        macs: multiply-accumulates of convolutions, linear layers and attention for one sample, as
            the reference backend runs it in evaluation.
        published: what the authors say of this setting.
        keywords: of ``create_model``, where the setting is not the default.
    """

    parameters: int
    input_size: tuple[int, ...]
    macs: int
    published: tuple[Published, ...]
    keywords: Mapping[str, Any] = field(default_factory=dict)


FACTS: dict[str, tuple[Facts, ...]] = {
    "uniformer_small": (
        Facts(
            21_545_256,
            (224, 224),
            3_631_774_208,
            (Published("ImageNet-1k", {"top-1": 82.9}, gflops=3.6),),
        ),
    ),
    "uniformer_small_plus": (
        Facts(
            24_032_552,
            (224, 224),
            4_201_033_472,
            (Published("ImageNet-1k", {"top-1": 83.4}, gflops=4.2),),
        ),
    ),
    "uniformer_small_plus_dim64": (
        Facts(
            24_032_552,
            (224, 224),
            4_201_033_472,
            (Published("ImageNet-1k", {"top-1": 83.4}, gflops=4.2),),
        ),
    ),
    "uniformer_base": (
        Facts(
            49_776_552,
            (224, 224),
            8_249_019_904,
            (Published("ImageNet-1k", {"top-1": 83.8}, gflops=8.3),),
        ),
    ),
    "uniformer_base_ls": (
        Facts(
            49_796_520,
            (224, 224),
            8_249_019_904,
            (Published("ImageNet-1k", {"top-1": 83.9}, gflops=8.3),),
        ),
    ),
    "uniformer_small_tl": (
        Facts(
            22_058_256,
            (224, 224),
            3_656_862_208,
            (Published("ImageNet-1k", {"top-1": 83.4}, gflops=3.6),),
        ),
        Facts(
            22_058_256,
            (384, 384),
            11_908_395_008,
            (Published("ImageNet-1k", {"top-1": 84.6}, gflops=11.9),),
        ),
    ),
    "uniformer_small_dim64_tl": (
        Facts(
            22_058_256,
            (224, 224),
            3_656_862_208,
            (Published("ImageNet-1k", {"top-1": 83.4}, gflops=3.6),),
        ),
    ),
    "uniformer_small_plus_tl": (
        Facts(
            24_545_552,
            (224, 224),
            4_226_121_472,
            (Published("ImageNet-1k", {"top-1": 83.9}, gflops=4.2),),
        ),
        Facts(
            24_545_552,
            (384, 384),
            13_721_403_392,
            (Published("ImageNet-1k", {"top-1": 84.9}, gflops=13.7),),
        ),
    ),
    "uniformer_small_plus_dim64_tl": (
        Facts(
            24_545_552,
            (224, 224),
            4_226_121_472,
            (Published("ImageNet-1k", {"top-1": 83.6}, gflops=4.2),),
        ),
    ),
    "uniformer_base_tl": (
        Facts(
            50_289_552,
            (224, 224),
            8_274_107_904,
            (Published("ImageNet-1k", {"top-1": 85.1}, gflops=8.3),),
        ),
        Facts(
            50_289_552,
            (384, 384),
            27_214_475_264,
            (Published("ImageNet-1k", {"top-1": 86.0}, gflops=27.2),),
        ),
    ),
    "uniformer_base_dim64_tl": (
        Facts(
            50_289_552,
            (224, 224),
            8_274_107_904,
            (Published("ImageNet-1k", {"top-1": 84.8}, gflops=8.3),),
        ),
    ),
    "uniformer_large_ls_tl": (
        Facts(
            100_103_888,
            (224, 224),
            19_714_345_088,
            (Published("ImageNet-1k", {"top-1": 85.6}, gflops=12.6),),
        ),
        Facts(
            100_103_888,
            (384, 384),
            62_764_162_048,
            (Published("ImageNet-1k", {"top-1": 86.3}, gflops=39.2),),
        ),
    ),
    "uniformer_xxs": (
        Facts(
            10_215_280,
            (128, 128),
            425_000_128,
            (Published("ImageNet-1k", {"top-1": 76.8}, gflops=0.43, per_second=12886),),
        ),
        Facts(
            10_215_280,
            (160, 160),
            657_496_896,
            (Published("ImageNet-1k", {"top-1": 79.1}, gflops=0.67, per_second=9382),),
        ),
        Facts(
            10_215_280,
            (192, 192),
            950_611_648,
            (Published("ImageNet-1k", {"top-1": 79.9}, gflops=0.96, per_second=5766),),
        ),
        Facts(
            10_215_280,
            (224, 224),
            1_298_853_696,
            (Published("ImageNet-1k", {"top-1": 80.6}, gflops=1.3, per_second=4446),),
        ),
    ),
    "uniformer_xs": (
        Facts(
            16_509_264,
            (192, 192),
            1_417_443_840,
            (Published("ImageNet-1k", {"top-1": 81.5}, gflops=1.4, per_second=4492),),
        ),
        Facts(
            16_509_264,
            (224, 224),
            1_931_484_160,
            (Published("ImageNet-1k", {"top-1": 82.0}, gflops=2.0, per_second=3506),),
        ),
    ),
    "uniformer_video_small": (
        Facts(
            21_400_400,
            (16, 224, 224),
            41_662_541_824,
            (
                Published(
                    "Kinetics-400", {"top-1": 80.8, "top-5": 94.7}, gflops=167, views="16x1x4"
                ),
                Published(
                    "Kinetics-400", {"top-1": 76.2, "top-5": 92.2}, gflops=42, views="16x1x1"
                ),
                Published(
                    "Kinetics-600", {"top-1": 82.8, "top-5": 95.8}, gflops=167, views="16x1x4"
                ),
                Published(
                    "Kinetics-600", {"top-1": 79.0, "top-5": 93.6}, gflops=42, views="16x1x1"
                ),
            ),
        ),
        Facts(
            21_400_400,
            (8, 224, 224),
            17_566_320_640,
            (Published("Kinetics-400", {"top-1": 78.4}, gflops=70, views="8x1x4"),),
        ),
        Facts(
            21_400_400,
            (32, 224, 224),
            109_445_300_224,
            (
                Published(
                    "Kinetics-400", {"top-1": 82.0, "top-5": 95.1}, gflops=438, views="32x1x4"
                ),
            ),
        ),
        Facts(
            21_284_462,
            (16, 224, 224),
            41_662_426_112,
            (
                Published(
                    "Something-Something V1",
                    {"top-1": 57.6, "top-5": 84.9},
                    gflops=125,
                    views="16x3x1",
                ),
                Published(
                    "Something-Something V2",
                    {"top-1": 69.4, "top-5": 92.1},
                    gflops=125,
                    views="16x3x1",
                ),
            ),
            {"num_classes": 174},
        ),
        Facts(
            21_284_462,
            (32, 224, 224),
            109_445_184_512,
            (
                Published("Something-Something V1", {"top-1": 59.9}, gflops=329, views="32x3x1"),
                Published("Something-Something V2", {"top-1": 70.4}, gflops=329, views="32x3x1"),
            ),
            {"num_classes": 174},
        ),
    ),
    "uniformer_video_base": (
        Facts(
            49_813_200,
            (16, 224, 224),
            96_553_881_600,
            (
                Published(
                    "Kinetics-400", {"top-1": 82.0, "top-5": 95.1}, gflops=387, views="16x1x4"
                ),
                Published(
                    "Kinetics-400", {"top-1": 78.1, "top-5": 92.8}, gflops=97, views="16x1x1"
                ),
                Published(
                    "Kinetics-600", {"top-1": 84.0, "top-5": 96.4}, gflops=387, views="16x1x4"
                ),
                Published(
                    "Kinetics-600", {"top-1": 80.3, "top-5": 94.5}, gflops=97, views="16x1x1"
                ),
            ),
        ),
        Facts(
            49_813_200,
            (8, 224, 224),
            40_134_080_512,
            (Published("Kinetics-400", {"top-1": 79.8}, gflops=161, views="8x1x4"),),
        ),
        Facts(
            49_813_200,
            (32, 224, 224),
            258_251_259_904,
            (
                Published(
                    "Kinetics-400", {"top-1": 82.9, "top-5": 95.4}, gflops=1036, views="32x1x4"
                ),
                Published(
                    "Kinetics-400", {"top-1": 83.0, "top-5": 95.4}, gflops=3108, views="32x3x4"
                ),
                Published(
                    "Kinetics-600",
                    {"top-1": 84.8, "top-5": 96.7},
                    gflops=1036,
                    views="32x1x4",
                    source=TPAMI,
                ),
                Published(
                    "Kinetics-600", {"top-1": 84.9, "top-5": 96.7}, gflops=3108, views="32x3x4"
                ),
            ),
        ),
        Facts(
            49_697_262,
            (16, 224, 224),
            96_553_765_888,
            (
                Published(
                    "Something-Something V1",
                    {"top-1": 58.8, "top-5": 86.5},
                    gflops=290,
                    views="16x3x1",
                ),
                Published(
                    "Something-Something V2",
                    {"top-1": 70.2, "top-5": 93.0},
                    gflops=290,
                    views="16x3x1",
                ),
            ),
            {"num_classes": 174},
        ),
        Facts(
            49_697_262,
            (32, 224, 224),
            258_251_144_192,
            (
                Published(
                    "Something-Something V1",
                    {"top-1": 61.0, "top-5": 87.6},
                    gflops=777,
                    views="32x3x1",
                ),
                Published(
                    "Something-Something V2",
                    {"top-1": 71.2, "top-5": 92.8},
                    gflops=777,
                    views="32x3x1",
                ),
            ),
            {"num_classes": 174},
        ),
    ),
    "uniformer_video_xxs": (
        Facts(
            9_833_896,
            (16, 160, 160),
            6_833_159_872,
            (
                Published(
                    "Kinetics-400", {"top-1": 75.1}, gflops=6.9, views="16x1x1", per_second=367
                ),
            ),
        ),
        Facts(
            9_840_616,
            (4, 128, 128),
            998_243_008,
            (
                Published(
                    "Kinetics-400", {"top-1": 63.2}, gflops=1.0, views="4x1x1", per_second=1878
                ),
            ),
            {"layer_scale_init": 0.1},
        ),
        Facts(
            9_840_616,
            (4, 160, 160),
            1_568_980_672,
            (
                Published(
                    "Kinetics-400", {"top-1": 65.8}, gflops=1.6, views="4x1x1", per_second=1384
                ),
            ),
            {"layer_scale_init": 0.1},
        ),
        Facts(
            9_840_616,
            (8, 128, 128),
            2_021_919_424,
            (
                Published(
                    "Kinetics-400", {"top-1": 68.3}, gflops=2.0, views="8x1x1", per_second=1125
                ),
            ),
            {"layer_scale_init": 0.1},
        ),
        Facts(
            9_833_896,
            (8, 160, 160),
            3_222_907_072,
            (
                Published(
                    "Kinetics-400", {"top-1": 71.4}, gflops=3.3, views="8x1x1", per_second=679
                ),
            ),
        ),
        Facts(
            9_833_896,
            (16, 128, 128),
            4_193_135_296,
            (
                Published(
                    "Kinetics-400", {"top-1": 73.3}, gflops=4.2, views="16x1x1", per_second=591
                ),
            ),
        ),
        Facts(
            9_833_896,
            (32, 160, 160),
            15_263_265_472,
            (
                Published(
                    "Kinetics-400", {"top-1": 77.9}, gflops=15.4, views="32x1x1", per_second=160
                ),
            ),
        ),
    ),
    "uniformer_video_xs": (
        Facts(
            16_099_552,
            (32, 192, 192),
            33_787_286_016,
            (
                Published(
                    "Kinetics-400", {"top-1": 78.6}, gflops=34.2, views="32x1x1", per_second=75
                ),
            ),
        ),
    ),
    "uniformer_dense_small": (
        Facts(
            21_033_280,
            (800, 1280),
            97_035_202_560,
            (Published("COCO, Mask R-CNN 1x", {"box AP": 45.6, "mask AP": 41.6}, gflops=269),),
            {"attention": "hybrid"},
        ),
    ),
    "uniformer_dense_base": (
        Facts(
            49_264_576,
            (800, 1280),
            225_169_510_400,
            (Published("COCO, Mask R-CNN 1x", {"box AP": 47.4, "mask AP": 43.1}, gflops=399),),
            {"attention": "hybrid"},
        ),
    ),
    "uniformer_dense_xxs": (
        Facts(
            9_317_168,
            (800, 1280),
            45_407_931_072,
            (Published("COCO, Mask R-CNN 1x", {"box AP": 42.8, "mask AP": 39.2}),),
        ),
    ),
    "uniformer_dense_xs": (
        Facts(
            15_483_136,
            (800, 1280),
            63_067_030_016,
            (Published("COCO, Mask R-CNN 1x", {"box AP": 44.6, "mask AP": 40.9}),),
        ),
    ),
    "uniformerv2_b16": (
        Facts(
            114_552_208,
            (8, 224, 224),
            148_104_622_080,
            (
                Published("Kinetics-400", {"top-1": 85.6}, views="8x3x4"),
                Published("Kinetics-600", {"top-1": 86.1}, views="8x3x4"),
                Published("Kinetics-700", {"top-1": 76.3}, views="8x3x4"),
            ),
            {"num_frames": 8, "local_mhra": "none"},
        ),
        Facts(
            162_992_814,
            (16, 224, 224),
            187_206_781_440,
            (
                Published("Something-Something V1", {"top-1": 56.8}, views="16x3x1"),
                Published("Something-Something V2", {"top-1": 69.5}, views="16x3x1"),
            ),
            {
                "num_frames": 16,
                "temporal_downsample": True,
                "num_classes": 174,
                "return_layers": range(4, 12),
            },
        ),
        Facts(
            162_992_814,
            (32, 224, 224),
            374_366_243_328,
            (
                Published("Something-Something V1", {"top-1": 59.4}, views="32x3x1"),
                Published("Something-Something V2", {"top-1": 70.7}, views="32x3x1"),
            ),
            {
                "num_frames": 32,
                "temporal_downsample": True,
                "num_classes": 174,
                "return_layers": range(4, 12),
            },
        ),
    ),
    "uniformerv2_l14": (
        Facts(
            354_099_600,
            (8, 224, 224),
            665_628_524_544,
            (
                Published("Kinetics-400", {"top-1": 88.8}, views="8x3x4"),
                Published("Kinetics-600", {"top-1": 89.0}, views="8x3x4"),
                Published("Kinetics-700", {"top-1": 80.8}, views="8x3x4"),
            ),
            {"num_frames": 8, "local_mhra": "none"},
        ),
        Facts(
            354_099_600,
            (16, 224, 224),
            1_331_214_696_448,
            (
                Published("Kinetics-400", {"top-1": 89.1}, views="16x3x4"),
                Published("Kinetics-600", {"top-1": 89.4}, views="16x3x4"),
                Published("Kinetics-700", {"top-1": 81.2}, views="16x3x4"),
            ),
            {"num_frames": 16, "local_mhra": "none"},
        ),
        Facts(
            354_099_600,
            (32, 224, 224),
            2_662_387_040_256,
            (
                Published("Kinetics-400", {"top-1": 89.3}, views="32x3x2"),
                Published("Kinetics-600", {"top-1": 89.5}, views="32x3x2"),
                Published("Kinetics-700", {"top-1": 81.5}, views="32x3x2"),
            ),
            {"num_frames": 32, "local_mhra": "none"},
        ),
        Facts(
            573_949_966,
            (16, 224, 224),
            858_197_178_368,
            (
                Published("Something-Something V1", {"top-1": 60.5}, views="16x3x1"),
                Published("Something-Something V2", {"top-1": 72.1}, views="16x3x1"),
            ),
            {
                "num_frames": 16,
                "temporal_downsample": True,
                "num_classes": 174,
                "return_layers": range(8, 24),
            },
        ),
        Facts(
            573_949_966,
            (32, 224, 224),
            1_716_226_406_400,
            (
                Published("Something-Something V1", {"top-1": 62.7}, views="32x3x1"),
                Published("Something-Something V2", {"top-1": 73.0}, views="32x3x1"),
            ),
            {
                "num_frames": 32,
                "temporal_downsample": True,
                "num_classes": 174,
                "return_layers": range(8, 24),
            },
        ),
    ),
    "uniformerv2_l14_336": (
        Facts(
            354_427_280,
            (32, 336, 336),
            6_267_810_758_656,
            (
                Published("Kinetics-400", {"top-1": 89.7}, views="32x3x2"),
                Published("Kinetics-600", {"top-1": 89.9}, views="32x3x2"),
                Published("Kinetics-700", {"top-1": 82.1}, views="32x3x2"),
            ),
            {"num_frames": 32, "local_mhra": "none"},
        ),
        Facts(
            354_427_280,
            (64, 336, 336),
            12_535_579_164_672,
            (
                Published("Kinetics-400", {"top-1": 90.0}, views="64x3x2"),
                Published("Kinetics-600", {"top-1": 90.1}, views="64x3x2"),
                Published("Kinetics-700", {"top-1": 82.7}, views="64x3x2"),
            ),
            {"num_frames": 64, "local_mhra": "none"},
        ),
        Facts(
            354_426_256,
            (8, 336, 336),
            1_566_984_454_144,
            (
                Published("Kinetics-400", {"top-1": 87.8}, views="8x1x3"),
                Published("Kinetics-600", {"top-1": 88.2}, views="8x1x3"),
                Published("Kinetics-700", {"top-1": 79.7}, views="8x1x3"),
            ),
            {"num_frames": 8, "frozen": True, "local_mhra": "none"},
        ),
    ),
}
"""Of every model its settings, the usual one first."""
