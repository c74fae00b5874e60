"""The dense models as backbones of Hugging Face's transformers: UperNet, Mask2Former and others.

Importing this module registers them with ``AutoConfig`` and ``AutoBackbone``::

    from transformers import UperNetConfig, UperNetForSemanticSegmentation
    from uniformer.transformers import UniFormerBackboneConfig

    backbone = UniFormerBackboneConfig(architecture="uniformer_dense_small")
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone))
    uniformer.load_checkpoint(model.backbone.model, "uniformer_small_in1k.pth")
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

try:
    from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
    from transformers.modeling_outputs import BackboneOutput
except ImportError as error:
    raise ImportError(
        "this needs transformers 5.23 or newer: pip install 'uniformer-kernels[transformers]'"
    ) from error

from .models.base import DenseBackbone
from .registry import create_model, list_models

STAGES = ["stage1", "stage2", "stage3", "stage4"]


class UniFormerBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """What a dense model is.

    Args:
        architecture: one of ``list_models("uniformer_dense_*")``.
        keywords: of ``create_model``, like ``{"attention": "hybrid"}``.
        out_features, out_indices: the maps, of ``"stage1"`` to ``"stage4"`` or 0 to 3, in this
            order; all four by default.
        **rest: of every configuration.

    Raises:
        ValueError: there is no such architecture, or no such stage.
    """

    model_type = "uniformer_dense"

    def __init__(
        self,
        architecture: str = "uniformer_dense_small",
        keywords: dict[str, Any] | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **rest: Any,
    ) -> None:
        super().__init__(**rest)
        if architecture not in (dense := list_models("uniformer_dense_*")):
            raise ValueError(
                f"architecture: expected one of {', '.join(dense)}, got {architecture!r}"
            )
        self.architecture, self.keywords = architecture, dict(keywords or {})
        self.stage_names = STAGES
        if out_features is None and out_indices is None:
            out_features = STAGES
        self.set_output_features_output_indices(out_features, out_indices)


class UniFormerBackbone(BackboneMixin, PreTrainedModel):
    """A dense model, ``self.model``, whose maps are those of ``config.out_features``.

    Raises:
        TypeError, ValueError: what ``create_model`` raises for the keywords.
    """

    config_class = UniFormerBackboneConfig
    base_model_prefix = "model"
    main_input_name = "pixel_values"
    has_attentions = False

    def __init__(self, config: UniFormerBackboneConfig) -> None:
        super().__init__(config)
        self.model = create_model(config.architecture, **config.keywords)
        self.num_features = self.model.feature_info.channels()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As the model initialises itself: transformers builds on the meta device.

        Only functions of ``nn.init`` leave alone what a checkpoint has filled.
        """
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            super()._init_weights(module)  # reset_parameters would clear the running statistics
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
        elif isinstance(module, DenseBackbone) and hasattr(module, "cls_token"):
            nn.init.zeros_(module.cls_token)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **_: Any,
    ) -> BackboneOutput | tuple[Tensor, ...]:
        """Images ``[B, 3, H, W]`` to the maps ``[B, C, H', W']`` of the stages asked for.

        ``output_hidden_states`` adds those of all four stages; there are no attentions to give.
        """
        indices = [index % len(STAGES) for index in self.config.out_indices]
        stages = list(range(len(STAGES))) if output_hidden_states else indices
        _, outputs = self.model.forward_intermediates(pixel_values, stages)
        maps = dict(zip(stages, outputs, strict=True))
        output = BackboneOutput(
            feature_maps=tuple(maps[index] for index in indices),
            hidden_states=tuple(maps.values()) if output_hidden_states else None,
        )
        return output if return_dict is not False else output.to_tuple()


AutoConfig.register(UniFormerBackboneConfig.model_type, UniFormerBackboneConfig)
AutoBackbone.register(UniFormerBackboneConfig, UniFormerBackbone)
