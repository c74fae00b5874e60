"""The hourglass blocks of the lightweight models, which keep importances in global variables.

The official blocks take and return a score token and a map; in their Python module the variable
``global_attn`` has the importance of every token, a number in front of the first block, and
``token_indices`` where the tokens stand, which these blocks need not know.
"""

from __future__ import annotations

import inspect
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import hourglass_block, pool_importance
from . import structure as s
from .family import Family
from .probe import Inputs, Random
from .swap import Swapped, untouched
from .uniformer import is_transformer, transformer_declines, transformer_layers

_IMPORTANCE, _POSITIONS = "global_attn", "token_indices"


class HourglassForward(Swapped):
    _accelerated_as = "hourglass_block"

    def __init_subclass__(cls) -> None:
        """The generated class gets at the variables as its original does: compilers follow that."""
        super().__init_subclass__()
        state = inspect.unwrap(cls._accelerated_from.forward).__globals__
        cls._accelerated_importance = staticmethod(FunctionType(_importance.__code__, state))
        cls._accelerated_remember = staticmethod(FunctionType(_remember.__code__, state))

    def forward(self, score_token: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        importance = self._accelerated_importance()
        if not s.is_map(x, self.pos_embed) or not untouched(self):
            if isinstance(importance, Tensor):
                # It is concatenated with the tokens, whose dtype must stay.
                self._accelerated_remember(importance.to(x.dtype))
            return super().forward(score_token, x)
        maps, wide = s.channels_last(x), torch.promote_types(x.dtype, torch.float32)
        y, score_token, importance = hourglass_block(
            maps,
            score_token,
            importance.to(wide) if isinstance(importance, Tensor) else None,
            **transformer_layers(self),
            keep=self.prune_ratio,
            trade_off=self.attn.trade_off,
            gamma_1=getattr(self, "gamma_1", None),
            gamma_2=getattr(self, "gamma_2", None),
            drop_path=s.drop_path_rate(self),
        )
        if self.prune_ratio != 1 and getattr(self, "downsample", False):
            importance = pool_importance(importance, maps.shape[1:4])
        self._accelerated_remember(importance)
        return score_token, s.channels_first(y, x.dim())


def _importance() -> Tensor | int:
    return global_attn


def _remember(importance: Tensor) -> None:
    global global_attn
    global_attn = importance


def _looks_alike(m: nn.Module) -> bool:
    return is_transformer(m) and hasattr(m, "prune_ratio")


def _declines(m: nn.Module) -> str | None:
    state = getattr(s.forward_of(m), "__globals__", {})
    if missing := [name for name in (_IMPORTANCE, _POSITIONS) if name not in state]:
        return f"expected a global variable {missing[0]} beside its class"
    rates = {"prune_ratio": m.prune_ratio, "attn.trade_off": s.part(m, "attn.trade_off")}
    for name, value in rates.items():
        if not isinstance(value, (int, float)):
            return f"{name}: expected a number, got {value!r}"
    if getattr(m, "gamma_3", None) is not None:
        return "gamma_3: hourglass blocks have two layer scales"
    return transformer_declines(m)


def _blocks(m: nn.Module, random: Random) -> Inputs:
    """Score token, map and importance; in front of a block that keeps all there may be none."""
    C = s.channels_of(m.pos_embed)
    sizes = s.shapes((2, C, 2, 4, 6), like=m.pos_embed)
    tokens = torch.Size(sizes[2:]).numel()
    inputs = random.normal(2, 1, C), random.normal(*sizes)
    yield *inputs, random.uniform(2, tokens)
    if m.prune_ratio == 1:
        yield *inputs, 0


def _run(block: nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The block between global variables of our own."""
    score_token, x, importance = (t.clone() if isinstance(t, Tensor) else t for t in inputs)
    state = s.forward_of(block).__globals__
    before = {name: state[name] for name in (_IMPORTANCE, _POSITIONS)}
    tokens = x.shape[2:].numel()
    state.update({_IMPORTANCE: importance, _POSITIONS: torch.arange(tokens).expand(len(x), tokens)})
    try:
        return *block(score_token, x), state[_IMPORTANCE]
    finally:
        state.update(before)


FAMILIES = [Family("blocks", _looks_alike, _declines, HourglassForward, _blocks, _run)]
