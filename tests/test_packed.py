"""support/packed.py: packed weights make the same products, and where there are none all stays."""

import copy
import platform

import pytest
import torch
from torch import nn

from helpers import random_weights, sizes, write_checkpoint
from model import Prompt, classify
from support import packed
from support.checkpoint import open_checkpoint
from support.packed import PackedLinear, can_pack, pack

needs_float32 = pytest.mark.skipif(
    not can_pack(torch.zeros(1)), reason="this torch or CPU packs no float32"
)
needs_bfloat16 = pytest.mark.skipif(
    not can_pack(torch.zeros(1, dtype=torch.bfloat16)), reason="this torch or CPU packs no bfloat16"
)
IDS = torch.randint(300, (5, 9), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([9, 1, 4, 7, 2])


@pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available(),
    reason="oneDNN is not to be expected here",
)
def test_where_it_is_to_be_expected_weights_are_packed():
    """Or all else here would be skipped, and nobody would miss it."""
    assert can_pack(torch.zeros(1))
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        assert can_pack(torch.zeros(1, dtype=torch.bfloat16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = sizes(C=32, H=4)
    return write_checkpoint(tmp_path_factory.mktemp("packed"), config, random_weights(config))


def body(folder, dtype):
    return open_checkpoint(folder).load(dtype)


def new_prompt(seed):
    generator = torch.Generator().manual_seed(seed)
    return Prompt(torch.randn(3, 32, generator=generator), torch.randn(2, 32, generator=generator))


def answers(gpt2):
    """Logits (2, B, 2) of two prompts, and the gradient of the first one's vectors (3, 32)."""
    prompts = [new_prompt(1), new_prompt(2)]
    logits = classify(gpt2, prompts, IDS, LENGTHS)
    logits.square().sum().backward()
    return logits.detach(), prompts[0].vectors.grad


def packed_copy(gpt2, with_gradient=True):
    other = copy.deepcopy(gpt2)
    pack(other, with_gradient)
    return other


def is_packed(gpt2):
    kinds = set()
    for block in gpt2.h:
        for part in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
            kinds.add(type(part))
    assert len(kinds) == 1
    return kinds == {PackedLinear}


@needs_bfloat16
def test_in_bfloat16_the_bits_are_the_same(folder):
    gpt2 = body(folder, torch.bfloat16)
    other = packed_copy(gpt2)
    assert is_packed(other)
    assert not is_packed(gpt2)
    assert torch.equal(gpt2.text_pass(IDS), other.text_pass(IDS))
    for plain, same in zip(answers(gpt2), answers(other), strict=True):
        assert torch.equal(plain, same)


@needs_float32
def test_in_float32_only_rounding_differs(folder):
    """It is as near to the answers in float64 as plain weights are, but for a factor."""
    truth = answers(body(folder, torch.float64))
    gpt2 = body(folder, torch.float32)
    other = packed_copy(gpt2)
    assert is_packed(other)
    for right, plain, near in zip(truth, answers(gpt2), answers(other), strict=True):
        scale = right.abs().max()
        assert (near - right).abs().max() <= 2e-5 * scale
        assert (plain - right).abs().max() <= 2e-5 * scale


@needs_float32
def test_without_gradient_there_is_one_copy_alone(folder):
    gpt2 = packed_copy(body(folder, torch.float32), with_gradient=False)
    assert is_packed(gpt2)
    assert gpt2.h[0].mlp.c_fc.back is None
    with torch.no_grad():
        logits = classify(gpt2, [new_prompt(1)], IDS, LENGTHS)
    assert logits.isfinite().all()


@needs_float32
def test_the_plain_weights_are_let_go(folder):
    gpt2 = packed_copy(body(folder, torch.float32))
    names = [name for name, _ in gpt2.named_parameters()]
    assert names
    assert not [name for name in names if "c_" in name]


@needs_float32
def test_any_number_of_rows_is_right(folder):
    linear = nn.Linear(24, 40).requires_grad_(False)
    layer = PackedLinear(linear, with_gradient=True)
    for shape in [(1, 24), (3, 5, 24), (700, 24), (2, 0, 24)]:
        x = torch.randn(shape)
        assert torch.allclose(layer(x), linear(x), atol=1e-5)


def test_a_dtype_that_has_no_such_product_stays(folder):
    assert not is_packed(packed_copy(body(folder, torch.float64)))


def test_another_device_stays():
    assert not can_pack(torch.zeros(1, device="meta"))


@pytest.mark.parametrize("error", [RuntimeError, AttributeError, TypeError])
def test_a_torch_without_the_operators_computes_as_it_always_did(folder, monkeypatch, error):
    def fail(*args):
        raise error("no such operator")

    gpt2 = body(folder, torch.float32)
    monkeypatch.setattr(packed, "multiply", fail)
    other = packed_copy(gpt2)
    assert not is_packed(other)
    for plain, same in zip(answers(gpt2), answers(other), strict=True):
        assert torch.equal(plain, same)
