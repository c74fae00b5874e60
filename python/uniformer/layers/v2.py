"""UniFormerV2's transformer and the blocks in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniformer_kernels.blocks import (
    Affine,
    Called,
    TemporalMHRA,
    global_uniblock,
    has_hooks,
    layer,
    local_uniblock,
    video_memory,
)

from .basic import MLP_RATIO, Foldable, depthwise, fold_norm
from .stage import Stage

FUSIONS = ("sequential", "parallel", "hierarchical_kv", "hierarchical_q")
LOCAL_MHRA = ("none", "single", "double")


class TemporalAggregator(Foldable):
    """Parameters of one LMHRA, which adds nothing at the start."""

    def __init__(self, dim: int, *, reduction: float) -> None:
        super().__init__()
        reduced = int(dim // reduction)
        self.pos_embed = nn.Sequential(
            nn.BatchNorm3d(dim),
            nn.Conv3d(dim, reduced, 1),
            nn.Conv3d(reduced, reduced, (3, 1, 1), padding=(1, 0, 0), groups=reduced),
            nn.Conv3d(reduced, dim, 1),
        )
        _zero(self.pos_embed[3])

    def layers(self) -> TemporalMHRA:
        """What ``local_uniblock`` takes, for its next call."""
        norm, pw1, dw, pw2 = self.pos_embed
        norm = norm and layer(norm, 3)
        return TemporalMHRA(norm, layer(pw1, 3), layer(dw, 3), layer(pw2, 3))

    def fold(self) -> None:
        """The norm becomes a part of the first pointwise convolution."""
        fold_norm(self.pos_embed, "0", self.pos_embed[1])


class LocalUniBlock(nn.Module):
    """Parameters of ``local_uniblock``, with two, one or no temporal aggregators."""

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        grid: tuple[int, int],
        local_mhra: str,
        dw_reduction: float,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.grid, self.drop_path = num_heads, grid, drop_path
        wanted = LOCAL_MHRA.index(local_mhra)
        for number in (1, 2):
            lmhra = TemporalAggregator(dim, reduction=dw_reduction) if number <= wanted else None
            self.register_module(f"lmhra{number}", lmhra)
        self.attn = nn.MultiheadAttention(dim, num_heads)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = VideoMlp(dim)
        self.ln_2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, T, 1 + HW, C]`` to the same."""
        in_proj, out_proj = _attention_layers(self.attn)
        c_fc, c_proj = _mlp_layers(self.mlp)
        return local_uniblock(
            x,
            grid=self.grid,
            lmhra1=self.lmhra1 and self.lmhra1.layers(),
            ln_1=layer(self.ln_1),
            in_proj=in_proj,
            out_proj=out_proj,
            lmhra2=self.lmhra2 and self.lmhra2.layers(),
            ln_2=layer(self.ln_2),
            c_fc=c_fc,
            c_proj=c_proj,
            num_heads=self.num_heads,
            drop_path=self.drop_path if self.training else 0.0,
        )


class GlobalUniBlock(nn.Module):
    """Parameters of ``global_uniblock``, which adds nothing to the query at the start."""

    def __init__(
        self, dim: int, *, num_heads: int, dropout: float = 0.0, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.num_heads, self.drop_path = num_heads, drop_path
        self.attn = nn.MultiheadAttention(dim, num_heads)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = VideoMlp(dim, dropout)
        self.ln_2 = nn.LayerNorm(dim)
        self.ln_3 = nn.LayerNorm(dim)
        nn.init.xavier_uniform_(self.mlp.c_fc.weight)
        _zero(self.attn.out_proj)
        _zero(self.mlp.c_proj)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """``[B, 1, C]`` and ``[B, N, C]`` to ``[B, 1, C]``."""
        in_proj, out_proj = _attention_layers(self.attn)
        c_fc, c_proj = _mlp_layers(self.mlp)
        return global_uniblock(
            query,
            memory,
            ln_1=layer(self.ln_1),
            ln_3=layer(self.ln_3),
            in_proj=in_proj,
            out_proj=out_proj,
            ln_2=layer(self.ln_2),
            c_fc=c_fc,
            c_proj=c_proj,
            num_heads=self.num_heads,
            dropout=self.mlp.dropout if self.training else 0.0,
            drop_path=self.drop_path if self.training else 0.0,
        )


class VideoTransformer(nn.Module):
    """Local UniBlocks, and global ones that gather a video token from the outputs of some.

    Args:
        dim: channels.
        depth: local UniBlocks.
        num_heads: heads of every attention.
        grid: ``(H, W)`` of a frame's patches.
        return_layers: local UniBlocks, from 0, whose output a global one takes.
        fusion: how the global UniBlocks work together, one of ``FUSIONS``.
        balanced: whether the video token is mixed with the frames' class tokens.
        local_mhra: temporal aggregators of a local UniBlock, one of ``LOCAL_MHRA``.
        dw_reduction: factor by which they have fewer channels.
        num_classes: outputs of the classifier; 0 for none.
        dropout: rate in front of the classifier and inside the global UniBlocks.
        backbone_drop_path_rate: of the last local UniBlock; it rises evenly from 0 at the first.
        drop_path_rate: the same for the global ones.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        num_heads: int,
        grid: tuple[int, int],
        return_layers: Sequence[int],
        fusion: str,
        balanced: bool,
        local_mhra: str,
        dw_reduction: float,
        num_classes: int,
        dropout: float,
        backbone_drop_path_rate: float,
        drop_path_rate: float,
    ) -> None:
        super().__init__()
        self.grid, self.return_layers, self.fusion = grid, tuple(return_layers), fusion
        gathered = len(self.return_layers)
        queries = 1 if fusion == "sequential" else gathered
        self.temporal_cls_token = nn.Parameter(torch.zeros(queries, 1, dim))
        self.register_parameter("balance", nn.Parameter(torch.zeros(dim)) if balanced else None)
        self.resblocks = Stage(
            *(
                LocalUniBlock(
                    dim,
                    num_heads=num_heads,
                    grid=grid,
                    local_mhra=local_mhra,
                    dw_reduction=dw_reduction,
                    drop_path=rate,
                )
                for rate in _rising(backbone_drop_path_rate, depth)
            )
        )
        self.dpe = nn.ModuleList(depthwise(dim, 3, ndim=3) for _ in range(gathered))
        for dpe in self.dpe:
            nn.init.zeros_(dpe.bias)
        self.dec = nn.ModuleList(
            GlobalUniBlock(dim, num_heads=num_heads, dropout=dropout, drop_path=rate)
            for rate in _rising(drop_path_rate, gathered)
        )
        if fusion == "parallel":
            self.fuse = nn.Linear(gathered * dim, dim)
        classifier = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.proj = nn.Sequential(nn.LayerNorm(dim), nn.Dropout(dropout), classifier)

    def forward(self, x: Tensor, layers: Collection[int] = ()) -> tuple[Tensor, dict[int, Tensor]]:
        """``[B, T, 1 + HW, C]`` to ``[B, C]``, what ``proj`` classifies; outputs of ``layers``."""
        tokens: list[Tensor] = []
        outputs = {}
        for index, block in enumerate(self.resblocks.calls()):
            x = block(x)
            if index in layers:
                outputs[index] = x
            if index in self.return_layers:
                tokens.append(self._gather(x, tokens))
        video = self.fuse(torch.cat(tokens, 2)) if self.fusion == "parallel" else tokens[-1]
        if self.balance is None:
            return video.squeeze(1), outputs
        share = self.balance.sigmoid()
        return (1 - share) * video.squeeze(1) + share * x[:, :, 0].mean(1), outputs

    def _gather(self, x: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """The next video token, from the clip's tokens and the video tokens so far."""
        number = len(tokens)
        memory = video_memory(x, grid=self.grid, dpe=layer(self.dpe[number], 3))
        if self.fusion == "sequential" and tokens:
            return self.dec[number](tokens[-1], memory)
        query = self.temporal_cls_token[number].expand(x.shape[0], 1, -1)
        if self.fusion == "hierarchical_q" and tokens:
            query = query + tokens[-1]
        elif self.fusion == "hierarchical_kv" and tokens:
            memory = torch.cat([tokens[-1], memory], 1)
        return self.dec[number](query, memory)


def _zero(layer: nn.Module) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class VideoMlp(nn.ModuleDict):
    """The two layers of a feed-forward with a QuickGELU between, and dropout behind that.

    Blocks take them out of it, and call it as a whole only where it has hooks.
    """

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        hidden = MLP_RATIO * dim
        super().__init__({"c_fc": nn.Linear(dim, hidden), "c_proj": nn.Linear(hidden, dim)})
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to the same."""
        x = self.c_fc(x)
        x = F.dropout(x * (1.702 * x).sigmoid(), self.dropout, self.training)
        return self.c_proj(x)


def _mlp_layers(mlp: nn.Module) -> tuple[Affine | Called, Affine | Called | None]:
    """The layers of the feed-forward as blocks take them: it alone where it has to be called."""
    if has_hooks(mlp) or type(mlp).forward is not VideoMlp.forward:
        return Called(mlp), None
    return layer(mlp.c_fc), layer(mlp.c_proj)


def _attention_layers(attention: nn.Module) -> tuple[Affine | Called, Affine | None]:
    """The same of an attention. PyTorch's never calls its output projection, which has no say."""
    if has_hooks(attention) or type(attention).forward is not nn.MultiheadAttention.forward:
        return Called(partial(_attend, attention)), None
    in_proj = Affine(attention.in_proj_weight, attention.in_proj_bias)
    return in_proj, Affine.of(attention.out_proj)


def _attend(attention: nn.Module, query: Tensor, memory: Tensor | None = None) -> Tensor:
    """``[B, N, C]`` to the same, by a module that takes tokens first."""
    query = query.transpose(0, 1)
    memory = query if memory is None else memory.transpose(0, 1)
    return attention(query, memory, memory, need_weights=False)[0].transpose(0, 1)


def _rising(rate: float, count: int) -> list[float]:
    """From 0 to ``rate`` in even steps; a single one is 0."""
    return [rate * index / max(count - 1, 1) for index in range(count)]
