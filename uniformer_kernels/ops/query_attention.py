"""Attention of one query per sample over normalised tokens, without their keys and values.

With a single query it is cheaper to bring the query to the tokens than the tokens to the query:
``q · W_k ŷ = (W_kᵀ q) · ŷ`` for every head, and ``Σ p W_v ŷ = W_v Σ p ŷ``. The key's bias adds the
same to every score and cancels in the softmax, as LayerNorm's bias does; its weight goes to the
query's side and behind the sum. Two products of a few rows with the tokens are left.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import _extension, checks, reference, triton
from ..backends import Implementation, Operator, always
from ..kernels import kernels, register_fake
from ..once import once_differentiable

_NAME = "query_attention"
_MAX_HEADS = 32  # whose rows one Triton program holds


class _NormalisedPooling(torch.autograd.Function):
    """``softmax(rows ŷᵀ) ŷ``, where ``ŷ`` is a token less its mean, over its deviation.

    ``rows`` is ``[B, R, C]`` and ``tokens`` ``[B, N, C]``; float32, or float64, inside. After the
    pooled ``[B, R, C]`` comes what backward needs, nothing of the tokens' size.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(rows: Tensor, tokens: Tensor, eps: float, backend: str) -> tuple[Tensor, ...]:
        return _pooling(backend, rows).normalised_pooling(rows, tokens, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        rows, tokens, _, ctx.backend = inputs
        ctx.save_for_backward(rows, tokens, *output)
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dpooled: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if dpooled is None:  # nothing depends on the result
            return (None,) * len(ctx.needs_input_grad)
        want_rows, want_tokens, *_ = ctx.needs_input_grad
        rows, *_ = ctx.saved_tensors
        drows, dtokens = _pooling(ctx.backend, rows).normalised_pooling_backward(
            dpooled, *ctx.saved_tensors, want_tokens
        )
        return drows if want_rows else None, dtokens if want_tokens else None, None, None


class _Composed:
    """The pooling in PyTorch, for float64, and where nothing is compiled.

    The deviations scale the ``[B, R, N]`` matrices. The means do not go the same way, as large
    ones would cancel badly.
    """

    @staticmethod
    def normalised_pooling(rows: Tensor, tokens: Tensor, eps: float) -> tuple[Tensor, ...]:
        centred = _centred(tokens, rows.dtype)
        variance = torch.linalg.vector_norm(centred, dim=-1).square() / tokens.shape[2]
        inverse = (variance + eps).rsqrt().unsqueeze(1)
        scores = (rows @ centred.mT).mul_(inverse)
        pooled = (scores.softmax(-1) * inverse) @ centred
        return pooled, scores, inverse

    @staticmethod
    def normalised_pooling_backward(
        dpooled: Tensor,
        rows: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        scores: Tensor,
        inverse: Tensor,
        want_tokens: bool,
    ) -> tuple[Tensor, Tensor | None]:
        centred = _centred(tokens, rows.dtype)
        p = scores.softmax(-1)
        dp = (dpooled @ centred.mT).mul_(inverse)
        dscores = p * (dp - (p * dp).sum(-1, keepdim=True))
        drows = (dscores * inverse) @ centred
        if not want_tokens:
            return drows, None
        # ŷ gets pᵀ dpooled + dscoresᵀ rows, and LayerNorm's backward takes off its mean, which
        # centring the rows does, and its part along ŷ, whose length is:
        along = (p * dp + dscores * scores).sum(1, keepdim=True) / tokens.shape[2]
        sides = torch.cat([dpooled, rows], 1)
        sides = sides - sides.mean(-1, keepdim=True)
        dtokens = (torch.cat([p, dscores], 1) * inverse).mT @ sides
        dtokens.addcmul_(centred, (along * inverse.square()).mT, value=-1)
        return drows, dtokens.to(tokens.dtype)


def _centred(tokens: Tensor, dtype: torch.dtype) -> Tensor:
    return tokens - tokens.mean(-1, keepdim=True, dtype=dtype)


def _pooling(backend: str, rows: Tensor) -> Any:
    """Who pools these rows."""
    compiled = backend != "cpu" or (_extension.missing is None and rows.dtype == torch.float32)
    return kernels(backend) if compiled else _Composed


def _projected(
    backend: str,
    query: Tensor,
    memory: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    num_heads: int,
    *,
    eps: float = 1e-5,
) -> Tensor:
    dtype = torch.promote_types(query.dtype, torch.float32)
    weights = in_proj_weight.to(dtype).unflatten(0, (3, num_heads, -1))  # [3, heads, d, C]
    biases = in_proj_bias.to(dtype).unflatten(0, (3, num_heads, 1, -1))
    norm_weight, norm_bias = norm_weight.to(dtype), norm_bias.to(dtype)

    q = query.to(dtype).squeeze(1) @ weights[0].mT + biases[0]  # [heads, B, d]
    rows = (q @ weights[1]).transpose(0, 1) * (norm_weight * q.shape[2] ** -0.5)
    pooled = _NormalisedPooling.apply(rows, memory, eps, backend)[0] * norm_weight + norm_bias
    y = pooled.transpose(0, 1) @ weights[2].mT + biases[2]
    return y.transpose(0, 1).reshape(query.shape).to(query.dtype)


def _pooled(backend: str, query: Tensor, *args: Any, **options: Any) -> Tensor:
    with checks.without_autocast(query):  # scores keep their precision
        return _projected(backend, query, *args, **options)


def _cpu_declines(query: Tensor, *_: Any, **__: Any) -> str | None:
    return None if query.device.type == "cpu" else f"query is on {query.device}"


def _triton_declines(
    query: Tensor,
    memory: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    num_heads: int,
    **_: Any,
) -> str | None:
    if num_heads > _MAX_HEADS:
        return f"num_heads is {num_heads}, expected at most {_MAX_HEADS}"
    return triton.declines(query, "query")


@register_fake("normalised_pooling")
def _fake(rows: Tensor, tokens: Tensor, eps: float) -> tuple[Tensor, ...]:
    statistics = [rows.new_empty(tokens.shape[:2]) for _ in range(2)]
    return rows.new_empty(rows.shape), rows.new_empty(rows.shape[:2]), *statistics


@register_fake("normalised_pooling_backward")
def _fake_backward(
    dpooled: Tensor,
    rows: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    lse: Tensor,
    mean: Tensor,
    rstd: Tensor,
    want_tokens: bool,
) -> tuple[Tensor, Tensor]:
    return rows.new_empty(rows.shape), tokens.new_empty(tokens.shape if want_tokens else 0)


_query_attention = Operator(
    _NAME,
    cpu=Implementation(partial(_pooled, "cpu"), _cpu_declines),
    triton=Implementation(partial(_pooled, "triton"), _triton_declines),
    reference=Implementation(reference.query_attention, always),
)


def query_attention(
    query: Tensor,
    memory: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    num_heads: int,
    *,
    eps: float = 1e-5,
) -> Tensor:
    """Let one query per sample attend to normalised tokens (UniFormerV2, cross MHRA)::

        y = layer_norm(memory)
        multi_head_attention(query W_qᵀ + b_q, y W_kᵀ + b_k, y W_vᵀ + b_v)

    Args:
        query: ``[B, 1, C]``.
        memory: ``[B, N, C]``, at least one token.
        norm_weight: ``[C]``, LayerNorm's.
        norm_bias: ``[C]``.
        in_proj_weight: ``[3C, C]``, rows ``[W_q | W_k | W_v]``, each head after head, as
            ``nn.MultiheadAttention`` keeps it.
        in_proj_bias: ``[3C]``.
        num_heads: heads; ``C`` is a multiple of it.
        eps: LayerNorm's.

    Returns:
        ``[B, 1, C]`` in ``query``'s dtype, before the output projection; statistics, scores and
        sums are float32 (float64 for float64).

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    checks.shape(_NAME, "query", query, ["B", 1, "C"])
    B, _, C = query.shape
    checks.shape(_NAME, "memory", memory, [B, "N", C])
    if memory.shape[1] == 0:
        raise ValueError(f"{_NAME}: memory: expected N of at least 1, got {list(memory.shape)}")
    checks.shape(_NAME, "norm_weight", norm_weight, [C])
    checks.shape(_NAME, "norm_bias", norm_bias, [C])
    checks.shape(_NAME, "in_proj_weight", in_proj_weight, [3 * C, C])
    checks.shape(_NAME, "in_proj_bias", in_proj_bias, [3 * C])
    if num_heads < 1 or C % num_heads:
        raise ValueError(
            f"{_NAME}: num_heads: expected a divisor of C for query [B, 1, C], "
            f"got {num_heads} with query {list(query.shape)}"
        )
    checks.floating(_NAME, "query", query)
    tensors = checks.autocast(query, memory, norm_weight, norm_bias, in_proj_weight, in_proj_bias)
    query, memory, norm_weight, norm_bias, in_proj_weight, in_proj_bias = tensors
    checks.alike(
        _NAME,
        ("query", query),
        memory=memory,
        norm_weight=norm_weight,
        norm_bias=norm_bias,
        in_proj_weight=in_proj_weight,
        in_proj_bias=in_proj_bias,
    )
    return _query_attention(*tensors, num_heads, eps=eps)
