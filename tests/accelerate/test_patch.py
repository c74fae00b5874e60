"""Classes whose later instances are accelerated."""

from __future__ import annotations

import inspect
from types import ModuleType

import pytest
import torch
from torch import nn

from uniformer_kernels import patch, restore

from .models import official
from .models.official import CBlock, SABlock, UniFormer


def accelerated(module: nn.Module) -> bool:
    """Whether any part of a module has lost its forward."""
    return any(
        type(m) is not getattr(type(m), "_accelerated_from", type(m)) for m in module.modules()
    )


def test_a_block() -> None:
    before = CBlock(16)
    with patch(CBlock):
        during = CBlock(16)
    after = CBlock(16)
    assert [accelerated(m) for m in (before, during, after)] == [False, True, False]
    assert isinstance(during, CBlock)
    restore(during)
    assert type(during) is CBlock
    x = torch.randn(2, 16, 3, 4, 5)
    during.load_state_dict(before.state_dict())
    assert torch.equal(during(x), before(x))


def test_a_python_module_patches_all_its_classes() -> None:
    with patch(official):
        model = UniFormer()
    kinds = {getattr(type(m), "_accelerated_as", None) for m in model.modules()}
    assert {"local_block", "global_block", "patch_stem"} <= kinds
    assert not accelerated(UniFormer())
    assert "__init__" in vars(CBlock)
    assert next(iter(inspect.signature(CBlock).parameters)) == "dim"


def test_a_model_is_accelerated_as_a_whole() -> None:
    with patch(UniFormer, blocks=False, attention=False):
        model = UniFormer()
    kinds = {getattr(type(m), "_accelerated_as", None) for m in model.modules()}
    assert kinds == {None, "depthwise_conv3d"}


def test_until_it_is_removed() -> None:
    handle = patch(CBlock, SABlock)
    assert accelerated(CBlock(16))
    assert accelerated(SABlock(16))
    handle.remove()
    handle.remove()
    assert not accelerated(CBlock(16))
    assert not accelerated(SABlock(16))


def test_constructors_are_the_same_objects_afterwards() -> None:
    class Inherits(CBlock):
        pass

    before = CBlock.__init__
    with patch(CBlock, Inherits):
        assert accelerated(Inherits(16))
    assert CBlock.__init__ is before
    assert "__init__" not in vars(Inherits)


def test_a_subclass_is_a_class_of_its_own() -> None:
    class Wider(CBlock):
        def __init__(self, dim: int) -> None:
            super().__init__(dim)
            self.conv1 = nn.Conv3d(dim, dim, 1, bias=False)

    with patch(CBlock):
        assert not accelerated(Wider(16))
    with patch(CBlock, Wider):
        assert accelerated(Wider(16))


def test_twice_is_once() -> None:
    with patch(CBlock):
        inner = patch(CBlock)
        assert inner.classes == ()
        inner.remove()
        assert accelerated(CBlock(16))
    assert not accelerated(CBlock(16))


def test_an_error_in_the_with_undoes_it() -> None:
    with pytest.raises(KeyError), patch(CBlock):
        raise KeyError
    assert not accelerated(CBlock(16))


@pytest.mark.parametrize("target", ["CBlock", CBlock(4), int, None])
def test_what_is_no_target(target: object) -> None:
    with pytest.raises(TypeError, match="targets: expected a class of modules or a Python module"):
        patch(CBlock, target)
    assert not accelerated(CBlock(16))


def test_no_targets() -> None:
    with pytest.raises(ValueError, match="targets: expected classes or Python modules, got none"):
        patch()
    with pytest.raises(ValueError, match="expected classes of modules in empty, got none"):
        patch(ModuleType("empty"))
