"""Packed weights: a frozen body's matrices, laid out once as the CPU's product wants them.

torch lays a weight out anew for every product, and in float32 asks a library that on some CPUs
leaves half of their instructions unused.  Frozen weights can be laid out once, by the operators
that torch itself uses when it compiles: one copy for the way there, y = x W', and one for the way
back, dx = dy W.  These are the same products: in bfloat16 the same bits, in float32 the same but
for the order in which sums are rounded.  Where torch or the hardware lacks the operators, the body
stays as it is.
"""

import torch
from torch import nn

ROWS = 320  # of x, for which the layout is chosen; any other number is right, too


class Product(torch.autograd.Function):
    """x (.., in) times a packed weight -> (.., out); a gradient goes to x alone."""

    @staticmethod
    def forward(context, x, there, back, bias):
        context.back = back
        return multiply(x, there, bias)

    @staticmethod
    def backward(context, gradient):
        return multiply(gradient.contiguous(), context.back, None), None, None, None


def multiply(x, weight, bias):
    """x (.., in) times a packed weight, plus a bias -> (.., out)"""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class PackedLinear(nn.Module):
    """What a frozen nn.Linear computes."""

    def __init__(self, linear, with_gradient):
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        weight = linear.weight.detach()  # (out, in)
        self.bias = linear.bias.detach()
        self.there = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS)
        self.back = None
        if with_gradient:
            turned = weight.t().contiguous()  # (in, out)
            self.back = torch.ops.mkldnn._reorder_linear_weight(turned, ROWS)

    def forward(self, x):
        """x (.., in) -> (.., out)"""
        if x.requires_grad and torch.is_grad_enabled():
            return Product.apply(x, self.there, self.back, self.bias)
        return multiply(x, self.there, self.bias)


def pack(gpt2, with_gradient):
    """Replace the linear maps of a frozen GPT2 by packed ones, one by one, where that works.

    with_gradient: whether prompts will be trained through them, which takes a second copy.
    """
    if not can_pack(gpt2.wte.weight):
        return
    for block in gpt2.h:
        for part in (block.attn, block.mlp):
            for name, linear in list(part.named_children()):
                setattr(part, name, PackedLinear(linear, with_gradient))


def can_pack(like):
    """Whether this torch multiplies packed weights of a tensor's kind on this CPU, by trying it."""
    if like.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    linear = nn.Linear(16, 16, dtype=like.dtype).requires_grad_(False)
    x = torch.ones(2, 16, dtype=like.dtype, requires_grad=True)
    try:
        layer = PackedLinear(linear, with_gradient=True)
        Product.apply(x, layer.there, layer.back, layer.bias).sum().backward()
    except (RuntimeError, AttributeError, TypeError):  # as the operators are not meant for users
        return False
    return True
