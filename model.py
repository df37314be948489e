"""GPT-2, and prompts that ride on it.

A frozen GPT-2 reads a text.  A few trainable vectors, the soft prompt, stand right after the last
real token, and a linear head reads the last of them.  Attention is causal, so the text never sees a
prompt: its keys and values are constants.  They are computed once, without gradient, and any number
of prompts attend to them side by side.  One text of three tokens, two prompts a and b:

                      keys:  the text     pads    prompt a   prompt b
                             t0 t1 t2     .  .    a0 a1      b0 b1 b2
    queries    t1             x  x                                       the text pass, `GPT2.read`
               a0             x  x  x             x
               a1             x  x  x             x  x                  the prompt pass, `classify`:
               b0             x  x  x                        x          position = length + index
               b1             x  x  x                        x  x       within the prompt, so a0
               b2             x  x  x                        x  x  x    and b0 both stand at 3
    a1 -> ln_f -> head a -> logits of a           b2 -> ln_f -> head b -> logits of b

Letters: B batch, T padded text, P tokens of one prompt, K prompts in a pack, S = sum of their P,
Q queries, C channels, H heads, D = C/H, L layers, V vocabulary, N labels.

From leaf to root: Attention, MLP, Block, GPT2, Prompt, prompt_mask, classify, losses, choose; then
files: load_gpt2, save_prompt, load_prompt.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from support import checks, files


@dataclass(frozen=True)
class GPT2Config:
    """The sizes of a GPT-2, by the names they have in config.json."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    layer_norm_epsilon: float = 1e-5

    @classmethod
    def from_json(cls, path):
        """Read a config.json; ValueError for a GPT-2 variant that this file does not implement."""
        return cls(**checks.gpt2_sizes(path))


class Attention(nn.Module):
    """Multi-head causal self-attention: `read` for texts, `follow` for prompts after a text."""

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

    def join(self, y):
        """What the heads found, y (B, H, Q, D) -> (B, Q, C)"""
        return self.c_proj(y.transpose(1, 2).flatten(2))

    def read(self, x):
        """A text x (B, T, C) reads itself -> (B, T, C), and its keys and values (2, B, H, T, D)."""
        qkv = self.project(x)  # (3, B, H, T, D)
        # is_causal aligns queries and keys at the top left: right only where nothing is past.
        y = F.scaled_dot_product_attention(*qkv, is_causal=True)  # (B, H, T, D)
        return self.join(y), qkv[1:]

    def follow(self, x, text, masks, ends=False):
        """Prompts x (B, S, C), end to end, read a text and themselves -> (B, S, C).

        text: its keys and values (2, B, H, T, D).  masks: for each prompt a bool (B, 1, P, T+P),
        True where a query may look.  Each prompt attends alone, so no prompt sees another, and
        memory grows with S, not with S squared.  ends: ask for each prompt's last vector alone,
        (B, K, C).
        """
        sizes = [mask.shape[2] for mask in masks]
        q, k, v = (part.split(sizes, dim=2) for part in self.project(x))  # each K x (B, H, P, D)
        if ends:
            q = [its[:, :, -1:] for its in q]  # K x (B, H, 1, D)
            masks = [mask[:, :, -1:] for mask in masks]  # K x (B, 1, 1, T+P)
        y = [attend(*prompt, *text) for prompt in zip(q, k, v, masks)]
        return self.join(torch.cat(y, dim=2))


def attend(q, k, v, mask, text_k, text_v):
    """One prompt's q (B, H, Q, D), k, v (B, H, P, D), the text's (B, H, T, D) -> (B, H, Q, D)

    By hand: for few queries on a CPU several times faster than scaled_dot_product_attention.  The
    text's keys are never joined with the prompt's, so the graph holds no copy of them.
    """
    T, D = text_k.shape[2:]
    scores = torch.cat([q @ text_k.mT, q @ k.mT], dim=3) * D**-0.5  # (B, H, Q, T+P)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=3)
    return weights[..., :T] @ text_v + weights[..., T:] @ v


class MLP(nn.Module):
    """Up four times, GELU, down."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C)
        self.c_proj = nn.Linear(4 * C, C)

    def forward(self, x):
        """x (B, Q, C) -> (B, Q, C), by way of (B, Q, 4C)"""
        # GPT-2 was trained with the tanh form; the exact one is up to 5e-4 off, and nothing breaks.
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of a residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def read(self, x):
        """A text x (B, T, C) -> (B, T, C), and its keys and values (2, B, H, T, D)."""
        y, keys_values = self.attn.read(self.ln_1(x))
        x = x + y
        return x + self.mlp(self.ln_2(x)), keys_values

    def follow(self, x, text, masks, ends=False):
        """Prompts x (B, S, C) -> (B, S, C), or (B, K, C) at their ends; see Attention.follow."""
        y = self.attn.follow(self.ln_1(x), text, masks, ends)
        if ends:
            sizes = [mask.shape[2] for mask in masks]
            x = torch.cat([its[:, -1:] for its in x.split(sizes, dim=1)], dim=1)  # (B, K, C)
        x = x + y
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """The frozen body.  Its module names are the official checkpoint's names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        # nn.Embedding(V, C) draws numbers, which on the meta device imports torch._dynamo: seconds.
        table = nn.Embedding.from_pretrained
        self.wte = table(torch.zeros(config.vocab_size, config.n_embd))
        self.wpe = table(torch.zeros(config.n_positions, config.n_embd))
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    @torch.no_grad()
    def read(self, ids):
        """The text pass: ids (B, T) int64 -> keys and values (L, 2, B, H, T, D), no gradient.

        Pads stand to the right of the text, where causal attention keeps every real token from
        seeing them: there is no padding mask, and the pad id does not matter.
        """
        (B, T), H = ids.shape, self.config.n_head
        x = self.wte(ids) + self.wpe.weight[:T]  # (B, T, C)
        text = x.new_empty(len(self.h), 2, B, H, T, x.shape[2] // H)  # (L, 2, B, H, T, D)
        for i, block in enumerate(self.h[:-1]):
            x, text[i] = block.read(x)
        # Nobody asks what the last block makes of the text: its keys and values are enough.
        last = self.h[-1]
        text[-1] = last.attn.project(last.ln_1(x))[1:]
        return text

    def follow(self, x, text, masks):
        """The prompt pass: embeddings x (B, S, C) after a text -> hidden (B, K, C) at their ends.

        text: what `read` gave, (L, 2, B, H, T, D); masks: see Attention.follow.  It takes
        embeddings, not ids, because prompts are embeddings.
        """
        for block, keys_values in zip(self.h[:-1], text):
            x = block.follow(x, keys_values, masks)  # (B, S, C)
        return self.ln_f(self.h[-1].follow(x, text[-1], masks, ends=True))


class Prompt(nn.Module):
    """Everything that is trained: the vectors of one prompt, and the head that reads the last."""

    def __init__(self, vectors, head):
        """vectors (P, C), head (N, C); both are copied, in their own dtype (float32 as a rule)."""
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


def classify(gpt2, prompts, ids, lengths, text=None):
    """Read each text once and let every prompt answer: logits (K, B, N) in the heads' dtype.

    ids: int64 (B, T), padded on the right with anything; lengths: int64 (B,), at least 1.  All
    prompts must have the same number of labels N.  Where a text leaves a prompt too few positions,
    that prompt sees the text's first n_positions - P tokens, alone or in a pack.  Gradients reach
    the prompts and nothing else.  text: what `gpt2.read(ids)` gave before, to spare the reading.
    """
    (B, T), K, N = ids.shape, len(prompts), len(prompts[0].head)
    assert lengths.shape == (B,)
    if text is None:
        text = gpt2.read(ids)  # (L, 2, B, H, T, D)
    x, masks = [], []
    for prompt in prompts:
        P = len(prompt.vectors)
        seen = lengths.clamp(max=gpt2.config.n_positions - P)  # (B,)
        # Positions restart with each prompt: in a pack, too, it stands right after the text.
        position = seen[:, None] + torch.arange(P, device=ids.device)  # (B, P)
        x.append(prompt.vectors + gpt2.wpe(position))  # (B, P, C)
        masks.append(prompt_mask(seen, T, P))  # (B, 1, P, T+P)
    x = torch.cat(x, dim=1).to(gpt2.wpe.weight.dtype)  # (B, S, C)
    hidden = gpt2.follow(x, text, masks)  # (B, K, C)

    heads = torch.stack([prompt.head for prompt in prompts])  # (K, N, C)
    logits = torch.einsum("bkc,knc->kbn", hidden.to(heads.dtype), heads)
    assert logits.shape == (K, B, N), "a head of another width would go unnoticed in an argmax"
    return logits


def losses(logits, labels):
    """Mean loss of each prompt: logits (K, B, N), labels (B,) -> (K,).

    Cross entropy over N labels; with N = 1 the label is a number, and the loss its squared error.
    """
    K, B, N = logits.shape
    if N == 1:
        return (logits.squeeze(2) - labels).square().mean(dim=1)
    each = F.cross_entropy(logits.flatten(0, 1), labels.repeat(K), reduction="none")  # (K*B,)
    return each.view(K, B).mean(dim=1)


def choose(logits):
    """The label that logits (..., N) stand for: int64 (...); one column means 1 above 0.5."""
    if logits.shape[-1] == 1:
        return (logits.squeeze(-1) > 0.5).long()  # an argmax would be 0, whatever was learned
    return logits.argmax(dim=-1)


# ---- files ----------------------------------------------------------------------------------

# The checkpoint stores these as (in, out), nn.Linear as (out, in).  attn.c_proj is square: loaded
# untransposed it passes every check of shapes and answers nonsense.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Mask buffers of older files (mind the dot: c_attn.bias is a weight), and what no classifier needs.
UNUSED = (".attn.bias", ".attn.masked_bias", "lm_head.weight")


def load_gpt2(folder, dtype=torch.float32, device="cpu"):
    """A frozen GPT2 in dtype on device, from a folder with config.json and official safetensors.

    Takes names with or without the prefix `transformer.`, one file or shards, float32, float16 or
    bfloat16.  ValueError or OSError, naming file and tensor, when anything is missing, left over,
    or of another shape.
    """
    with torch.device("meta"):
        gpt2 = GPT2(GPT2Config.from_json(Path(folder) / "config.json"))
    expected, state = gpt2.state_dict(), {}
    for path in files.weight_files(folder):
        for stored, tensor in files.each_tensor(path):
            name = stored.removeprefix("transformer.")
            if name.endswith(UNUSED):
                continue
            if name.endswith(TRANSPOSED):
                tensor = tensor.transpose(0, -1)
            checks.weight(path, stored, tensor, expected.pop(name, None))
            state[name] = tensor.to(device, dtype, copy=True)  # the file may go or change
    if expected:
        raise ValueError(f"{path} lacks {min(expected)} ({len(expected)} in all); fetch it again")
    gpt2.load_state_dict(state, assign=True)
    return gpt2.requires_grad_(False)


def save_prompt(path, prompt, metadata, write=files.write_file):
    """Write prompt.safetensors: `prompt` (P, C), `head.weight` (N, C), float32, and the metadata.

    metadata: str -> str, or anything JSON can hold; the format, the position rule and the two sizes
    are added here.  write(path, bytes): where it goes.
    """
    tensors = {"prompt": prompt.vectors.float(), "head.weight": prompt.head.float()}
    sizes = {"prompt_tokens": len(prompt.vectors), "num_labels": len(prompt.head)}
    metadata = metadata | checks.PROMPT_FORMAT | sizes
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    write(path, files.safetensors_bytes(tensors, text))


def load_prompt(path):
    """prompt.safetensors -> (Prompt on the CPU, metadata); ValueError if it is not one.

    Metadata values are strings, but labels and init_ids come as lists and recipe as a dictionary.
    """
    tensors, metadata = files.read_safetensors(path)
    metadata = checks.prompt_metadata(path, tensors, metadata)
    return Prompt(tensors["prompt"], tensors["head.weight"]), metadata
