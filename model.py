"""GPT-2, and soft prompts that share one reading of a text.

A frozen GPT-2 reads a text.  A few trainable vectors, the soft prompt, stand right after the last
real token, and a linear head reads the last of them.  Attention is causal, so the text never sees a
prompt: its keys and values, the KV cache, are constants.  They are computed once, without gradient,
and any number of prompts attend to them side by side.  One text of three tokens, prompts a and b:

                      keys:  the text     pads    prompt a   prompt b
                             t0 t1 t2     .  .    a0 a1      b0 b1 b2
    queries    t1             x  x                                       GPT2.text_pass

               a0             x  x  x             x                      GPT2.prompt_pass
               a1             x  x  x             x  x
               b0             x  x  x                        x
               b1             x  x  x                        x  x
               b2             x  x  x                        x  x  x
    a1 -> ln_f -> head of a -> logits of a        b2 -> ln_f -> head of b -> logits of b

A vector's position is the length of the text plus its index in its own prompt: a0 and b0 both stand
at position 3.

Letters: B batch, T padded text, P tokens of one prompt, K prompts in a pack, S = sum of their P,
Q queries, C channels, H heads, D = C/H, L layers, V vocabulary, N labels.

From leaf to root: GPT2Config, Attention, attend, MLP, Block, GPT2, Prompt, prompt_mask, classify,
losses, choose.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2, by the names that they have in config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    layer_norm_epsilon: float = 1e-5


class Attention(nn.Module):
    """Multi-head causal self-attention, for a text or for prompts after a text."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = nn.Linear(C, 3 * C)  # queries, keys and values, in this order
        self.c_proj = nn.Linear(C, C)

    def project(self, x):
        """x (B, Q, C) -> queries, keys and values, each (B, H, Q, D): (3, B, H, Q, D)"""
        qkv = self.c_attn(x).unflatten(2, (3, self.n_head, -1))  # (B, Q, 3, H, D)
        return qkv.permute(2, 0, 3, 1, 4)

    def merge_heads(self, y):
        """y (B, H, Q, D) of all heads -> (B, Q, C), side by side and projected"""
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def text_pass(self, x):
        """A text x (B, T, C) attends to itself -> (B, T, C), and its kv (2, B, H, T, D)."""
        qkv = self.project(x)  # (3, B, H, T, D)
        q, k, v = qkv
        # is_causal aligns queries and keys at the top left: right here, where no key is older than
        # the first query.
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, T, D)
        return self.merge_heads(y), qkv[1:]

    def prompt_pass(self, x, kv, masks, last_only=False):
        """Prompts x (B, S, C), end to end, attend to a text and to themselves -> (B, S, C).

        kv: keys and values of the text, (2, B, H, T, D).  masks: of each prompt a bool
        (B, 1, P, T+P), True where a query may look.  Each prompt attends alone, so no prompt sees
        another, and memory grows with the number of prompts, not with its square.
        last_only: for each prompt's last vector alone, (B, K, C).
        """
        text_k, text_v = kv  # each (B, H, T, D)
        sizes = [mask.shape[2] for mask in masks]  # K x P
        parts = self.project(x).split(sizes, dim=3)  # K x (3, B, H, P, D)
        y = []
        for (q, k, v), mask in zip(parts, masks, strict=True):  # q, k, v (B, H, P, D)
            if last_only:
                q = q[:, :, -1:]  # (B, H, 1, D)
                mask = mask[:, :, -1:]  # (B, 1, 1, T+P)
            y.append(attend(q, k, v, mask, text_k, text_v))  # (B, H, Q, D)
        return self.merge_heads(torch.cat(y, dim=2))


def attend(q, k, v, mask, text_k, text_v):
    """One prompt's q (B, H, Q, D), k, v (B, H, P, D), the text's (B, H, T, D) -> (B, H, Q, D)

    By hand, not by scaled_dot_product_attention: on a CPU with gradient this is 5 to 7 times faster
    in bfloat16, and equal to twice as fast in float32.  The text's keys are never joined with the
    prompt's, so the graph holds no copy of them.
    """
    T, D = text_k.shape[2:]
    scores = torch.cat([q @ text_k.mT, q @ k.mT], dim=3) * D**-0.5  # (B, H, Q, T+P)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=3)
    of_text = weights[..., :T] @ text_v  # (B, H, Q, D)
    of_prompt = weights[..., T:] @ v  # (B, H, Q, D)
    return of_text + of_prompt


class MLP(nn.Module):
    """Up four times, GELU, down."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C)
        self.c_proj = nn.Linear(4 * C, C)

    def forward(self, x):
        """x (B, Q, C) -> (B, Q, C), by way of (B, Q, 4C)"""
        # GPT-2 was trained with the tanh form of GELU.  The exact form is up to 5e-4 off, and
        # nothing would tell you.
        hidden = F.gelu(self.c_fc(x), approximate="tanh")  # (B, Q, 4C)
        return self.c_proj(hidden)


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of a residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def text_pass(self, x):
        """A text x (B, T, C) -> (B, T, C), and its kv (2, B, H, T, D)"""
        y, kv = self.attn.text_pass(self.ln_1(x))
        x = x + y
        return x + self.mlp(self.ln_2(x)), kv

    def prompt_pass(self, x, kv, masks, last_only=False):
        """Prompts x (B, S, C) -> (B, S, C), or (B, K, C); see Attention.prompt_pass"""
        y = self.attn.prompt_pass(self.ln_1(x), kv, masks, last_only)
        if last_only:
            # The residual stream of the last vectors alone, as their queries were.
            sizes = [mask.shape[2] for mask in masks]  # K x P
            own = x.split(sizes, dim=1)  # K x (B, P, C)
            x = torch.stack([part[:, -1] for part in own], dim=1)  # (B, K, C)
        x = x + y
        return x + self.mlp(self.ln_2(x))


def embedding(rows, C):
    """A table (rows, C) of zeros, to be loaded.

    nn.Embedding(rows, C) would draw random numbers, which on the meta device imports
    torch._dynamo: a second.
    """
    return nn.Embedding.from_pretrained(torch.zeros(rows, C))


class GPT2(nn.Module):
    """The frozen body.  Its module names are the official checkpoint's names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = embedding(config.vocab_size, config.n_embd)
        self.wpe = embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList()
        for _ in range(config.n_layer):
            self.h.append(Block(config))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    @torch.no_grad()
    def text_pass(self, ids):
        """Read texts: ids (B, T) int64 -> their kv (L, 2, B, H, T, D), without gradient.

        Pads stand to the right of a text, where causal attention keeps every real token from
        seeing them: there is no padding mask, and the pad id does not matter.
        """
        B, T = ids.shape
        L = self.config.n_layer
        H = self.config.n_head
        x = self.wte(ids) + self.wpe.weight[:T]  # (B, T, C)
        kv = x.new_empty(L, 2, B, H, T, x.shape[2] // H)  # (L, 2, B, H, T, D)
        for i in range(L - 1):
            x, layer_kv = self.h[i].text_pass(x)  # (B, T, C), (2, B, H, T, D)
            kv[i] = layer_kv
        # The last block's output for the text is never used, only its keys and values.
        last = self.h[-1]
        kv[-1] = last.attn.project(last.ln_1(x))[1:]
        return kv

    def prompt_pass(self, x, kv, masks):
        """Prompts after a text: embeddings x (B, S, C) -> hidden (B, K, C) at their last vectors.

        kv: what `text_pass` gave, (L, 2, B, H, T, D); masks: see Attention.prompt_pass.  It takes
        embeddings, not ids, because prompts are embeddings.
        """
        for block, layer_kv in zip(self.h[:-1], kv[:-1], strict=True):
            x = block.prompt_pass(x, layer_kv, masks)  # (B, S, C)
        hidden = self.h[-1].prompt_pass(x, kv[-1], masks, last_only=True)  # (B, K, C)
        return self.ln_f(hidden)


class Prompt(nn.Module):
    """All that is trained, saved together: the vectors of one prompt, and the head that reads the
    last of them."""

    def __init__(self, vectors, head):
        """vectors (P, C), head (N, C); both are copied, in their own dtype (float32 as a rule)"""
        super().__init__()
        self.vectors = nn.Parameter(vectors.detach().clone())
        self.head = nn.Parameter(head.detach().clone())


def prompt_mask(lengths, T, P):
    """Who may look at whom in one prompt: bool (B, 1, P, T+P), True where a query may look.

    lengths: how many of the T text tokens are real, int64 (B,).  A query sees these, itself and the
    vectors before it.  Length 2 of T = 4 and P = 3 (x = may look):

            t0 t1  .  .  a0 a1 a2
        a0   x  x         x
        a1   x  x         x  x
        a2   x  x         x  x  x
    """
    key = torch.arange(T + P, device=lengths.device)
    query = key[T:, None]  # (P, 1)
    real = key < lengths.view(-1, 1, 1, 1)  # (B, 1, 1, T+P)
    own = (key >= T) & (key <= query)  # (P, T+P)
    return real | own


def classify(gpt2, prompts, ids, lengths, kv=None):
    """Read each text once and let every prompt answer: logits (K, B, N) in the heads' dtype.

    ids: int64 (B, T), padded on the right with any ids; lengths: int64 (B,), at least 1.  All
    prompts must have the same number of labels N.  Where a text leaves a prompt too few positions,
    that prompt sees the text's first n_positions - P tokens, alone or in a pack.  Gradients reach
    the prompts and nothing else.  kv: what `gpt2.text_pass(ids)` gave before, to spare the reading.
    """
    B, T = ids.shape
    assert lengths.shape == (B,)
    # One column more or less would go unnoticed in an argmax: that is how .4908 came about.
    widths = {len(prompt.head) for prompt in prompts}
    assert len(widths) == 1, f"heads of unlike width: {widths}"

    if kv is None:
        kv = gpt2.text_pass(ids)  # (L, 2, B, H, T, D)

    # Every prompt right after the text: positions restart with each of them.
    x = []
    masks = []
    for prompt in prompts:
        P = len(prompt.vectors)
        seen = lengths.clamp(max=gpt2.config.n_positions - P)  # (B,)
        position = seen[:, None] + torch.arange(P, device=ids.device)  # (B, P)
        x.append(prompt.vectors + gpt2.wpe(position))  # (B, P, C)
        masks.append(prompt_mask(seen, T, P))  # (B, 1, P, T+P)
    x = torch.cat(x, dim=1).to(gpt2.wpe.weight.dtype)  # (B, S, C)
    hidden = gpt2.prompt_pass(x, kv, masks)  # (B, K, C)

    # Each head reads its own prompt's last vector, in float32 whatever the body is.
    heads = torch.stack([prompt.head for prompt in prompts])  # (K, N, C)
    return torch.einsum("bkc,knc->kbn", hidden.to(heads.dtype), heads)


def losses(logits, labels):
    """Mean loss of each prompt: logits (K, B, N), labels (B,) -> (K,).

    Cross entropy over N labels.  With N = 1 the label is a number, and the loss its squared error.
    """
    K, B, N = logits.shape
    if N == 1:
        return (logits.squeeze(2) - labels).square().mean(dim=1)
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(K), reduction="none")  # (K*B,)
    return each.view(K, B).mean(dim=1)


def choose(logits):
    """The label that logits (..., N) stand for: int64 (...); one column means 1 above 0.5"""
    if logits.shape[-1] == 1:
        return (logits.squeeze(-1) > 0.5).long()  # an argmax would be 0, whatever was learned
    return logits.argmax(dim=-1)
