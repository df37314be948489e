"""GPT-2, and prompts that ride on it.

A frozen GPT-2 reads a text.  A few trainable vectors, the prompt, stand right after the last real
token, and a linear head reads the last of them.  Attention is causal, so the text never sees a
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
Q queries, R queries whose answer is kept, C channels, H heads, D = C/H, L layers, V vocabulary,
N labels.

From leaf to root: GPT2Config, Attention, MLP, Block, GPT2, Prompt, prompt_mask, classify,
losses, choose; then files: load_gpt2, save_prompt, load_prompt.
"""

import json
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn


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
        """Read a config.json; ValueError for a GPT-2 variant that this file does not implement.

        The number of labels is never read here: the official gpt2-large and distilgpt2 say
        `"_num_labels": 1`, and whoever believes them trains a head that can only answer 0.
        """
        try:
            given = {**json.loads(Path(path).read_bytes())}
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is no JSON object ({error}); fetch it again") from None
        implemented = {
            "model_type": ("gpt2",),
            "activation_function": ("gelu_new",),
            "n_inner": (None, 4 * n if type(n := given.get("n_embd")) is int else None),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "reorder_and_upcast_attn": (False,),
            "add_cross_attention": (False,),
        }
        for key, values in implemented.items():
            if given.get(key, values[0]) not in values:
                raise ValueError(f"{path}: {key} = {given[key]!r:.40} is not implemented here")
        sizes = {field.name: given.get(field.name, field.default) for field in fields(cls)}
        for field in fields(cls):
            limit = {"n_layer": 100, "layer_norm_epsilon": 1}.get(field.name, 2**24)
            value = sizes[field.name]
            if type(value) is not field.type or not 0 < value < limit:
                raise ValueError(f"{path}: {field.name} is missing or no usable size")
        if sizes["n_embd"] % sizes["n_head"]:
            raise ValueError(f"{path}: n_head does not divide n_embd")
        return cls(**sizes)


class Attention(nn.Module):
    """Multi-head causal self-attention, for the text alone or for prompts after a text."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = nn.Linear(C, 3 * C)  # queries, keys and values, in this order
        self.c_proj = nn.Linear(C, C)

    def forward(self, x, past=None, masks=None, rows=slice(None)):
        """x (B, Q, C) -> (B, R, C) and this layer's keys and values, each (B, H, Q, D).

        Without a past, x is a text, and attention is causal.  With the keys and values (B, H, T, D)
        of a text as past, x is a pack of prompts, end to end, and masks has for each of them a bool
        (B, 1, P, T+P), True where a query may look; each prompt attends alone to the text and to
        itself.  rows: the R queries that are wanted, all or each prompt's last.
        """
        B, Q, C = x.shape
        H, D = self.n_head, C // self.n_head
        qkv = self.c_attn(x).view(B, Q, 3, H, D)  # (B, Q, 3C) -> (B, Q, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, Q, D)
        q = q[:, :, rows]  # (B, H, R, D)
        if past is None:
            # is_causal aligns queries and keys at the top left: right only where nothing is past.
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, H, R, D)
        else:
            sizes = [mask.shape[2] for mask in masks]
            asked = sizes if q.shape[2] == Q else [1] * len(sizes)  # queries of each prompt
            pack = zip(q.split(asked, 2), k.split(sizes, 2), v.split(sizes, 2), masks)
            y = torch.cat([self.attend(*prompt, *past) for prompt in pack], dim=2)  # (B, H, R, D)
        y = y.transpose(1, 2).flatten(2)  # (B, R, C)
        return self.c_proj(y), (k, v)

    @staticmethod
    def attend(q, k, v, mask, text_k, text_v):
        """One prompt's q (B, H, R, D), k, v (B, H, P, D), the text's (B, H, T, D) -> (B, H, R, D)

        By hand: for few queries on a CPU several times faster than scaled_dot_product_attention.
        The text's keys are never joined with the prompt's, so the graph holds no copy of them.
        """
        T, R, D = text_k.shape[2], q.shape[2], q.shape[3]
        scores = torch.cat([q @ text_k.mT, q @ k.mT], dim=3) * D**-0.5  # (B, H, R, T+P)
        weights = scores.masked_fill(~mask[:, :, -R:], float("-inf")).softmax(dim=3)
        return weights[..., :T] @ text_v + weights[..., T:] @ v  # (B, H, R, D)


class MLP(nn.Module):
    """Up four times, GELU, down."""

    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = nn.Linear(C, 4 * C)
        self.c_proj = nn.Linear(4 * C, C)

    def forward(self, x):
        """x (B, R, C) -> (B, R, C)"""
        # GPT-2 was trained with the tanh form; the exact one is up to 5e-4 off, and nothing breaks.
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))  # via (B, R, 4C)


class Block(nn.Module):
    """Attention, then MLP, each on a normalised copy of a residual stream."""

    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, past=None, masks=None, rows=slice(None)):
        """x (B, Q, C) -> (B, R, C) and the keys and values of all Q; arguments as in Attention."""
        y, keys_values = self.attn(self.ln_1(x), past, masks, rows)
        x = x[:, rows] + y  # (B, R, C)
        return x + self.mlp(self.ln_2(x)), keys_values


class GPT2(nn.Module):
    """The frozen body.  Its module names are the official checkpoint's names."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)

    def forward(self, x, past=None, masks=None, rows=slice(None)):
        """Embeddings x (B, Q, C) -> hidden (B, R, C) and L pairs of keys and values (B, H, Q, D).

        It takes embeddings, not ids, because prompts are embeddings.  past is what `read` gave for
        the text before x.  In the last block only the wanted rows are of use, and only they are
        computed.
        """
        keys_values = []
        for i, block in enumerate(self.h):
            wanted = rows if i == len(self.h) - 1 else slice(None)
            before = None if past is None else past[i]  # (2, B, H, T, D)
            x, pair = block(x, before, masks, wanted)
            keys_values.append(pair)
        return self.ln_f(x), keys_values

    @torch.no_grad()
    def read(self, ids):
        """The text pass: ids (B, T) int64 -> keys and values (L, 2, B, H, T, D), no gradient.

        Pads stand to the right of the text, where causal attention keeps every real token from
        seeing them: there is no padding mask, and the pad id does not matter.
        """
        B, T = ids.shape
        x = self.wte(ids) + self.wpe.weight[:T]  # (B, T, C)
        _, pairs = self(x, rows=slice(0))  # the last block's keys and values are all that is left
        return torch.stack([torch.stack(pair) for pair in pairs])


class Prompt(nn.Module):
    """Everything that is trained: the vectors of one prompt, and the head that reads the last."""

    def __init__(self, vectors, head):
        """vectors (P, C), head (N, C); both are copied, in their own dtype (float32 as a rule)."""
        super().__init__()
        assert vectors.dim() == head.dim() == 2 and vectors.shape[1] == head.shape[1]
        self.vectors = nn.Parameter(vectors.detach().clone())
        self.head = nn.Parameter(head.detach().clone())


def prompt_mask(lengths, T, P):
    """Who may look at whom in one prompt: bool (B, 1, P, T+P), True where a query may look.

    lengths: how many of the T text tokens are real, int64 (B,).  A query sees these, itself and the
    vectors before it, so no row is empty.  Length 2 of T = 4 and P = 3 (x = may look):

            t0 t1  .  .  a0 a1 a2
        a0   x  x         x
        a1   x  x         x  x
        a2   x  x         x  x  x
    """
    B, device = len(lengths), lengths.device
    text = torch.arange(T, device=device) < lengths.view(B, 1, 1, 1)  # (B, 1, 1, T)
    own = torch.ones(P, P, dtype=torch.bool, device=device).tril()  # (P, P)
    return torch.cat([text.expand(B, 1, P, T), own.expand(B, 1, P, P)], dim=3)


def classify(gpt2, prompts, ids, lengths, past=None):
    """Read each text once and let every prompt answer: logits (K, B, N) in the heads' dtype.

    ids: int64 (B, T), padded on the right with anything; lengths: int64 (B,), at least 1.  All
    prompts must have the same number of labels N.  Where a text leaves a prompt too few positions,
    that prompt sees the text's first n_positions - P tokens, alone or in a pack.  Gradients reach
    the prompts and nothing else.  past: what `gpt2.read(ids)` gave before, to spare the reading.
    """
    (B, T), K, N = ids.shape, len(prompts), len(prompts[0].head)
    assert lengths.shape == (B,) and lengths.device == ids.device
    past = gpt2.read(ids) if past is None else past  # (L, 2, B, H, T, D)

    x, masks, ends = [], [], []
    for prompt in prompts:
        P, C = prompt.vectors.shape
        seen = lengths.clamp(max=gpt2.config.n_positions - P)  # (B,)
        # Positions restart with each prompt: in a pack, too, it stands right after the text.
        position = seen[:, None] + torch.arange(P, device=ids.device)  # (B, P)
        x.append(prompt.vectors + gpt2.wpe(position))  # (B, P, C)
        masks.append(prompt_mask(seen, T, P))
        ends.append(P - 1 + (ends[-1] + 1 if ends else 0))
    x = torch.cat(x, dim=1).to(gpt2.wpe.weight.dtype)  # (B, S, C)
    hidden, _ = gpt2(x, past, masks, rows=ends)  # (B, K, C)
    assert hidden.shape == (B, K, C)

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
    """The label that logits (..., N) stand for: int64 (...).

    With one column that is 1 above 0.5: the argmax of one column is 0, whatever was learned.
    """
    return (logits.squeeze(-1) > 0.5).long() if logits.shape[-1] == 1 else logits.argmax(dim=-1)


@contextmanager
def open_safetensors(path):
    """safetensors.safe_open on the CPU, memory-mapped, with errors that name the file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no whole safetensors file ({str(error)[:200]!r})") from None


def weight_files(folder):
    """The safetensors files of a checkpoint folder, in order: model.safetensors, or its shards."""
    folder = Path(folder)
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return [folder / "model.safetensors"]
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if names and all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names):  # in this folder
            return [folder / name for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"{index} does not list the shards of a checkpoint; fetch it again")


# The checkpoint stores these as (in, out), nn.Linear as (out, in).  attn.c_proj is square: loaded
# untransposed it passes every check of shapes and answers nonsense.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
FLOATS = ("F64", "F32", "F16", "BF16")


def load_gpt2(folder, dtype=torch.float32, device="cpu"):
    """A frozen GPT2 in dtype on device, from a folder with config.json and official safetensors.

    Takes names with or without the prefix `transformer.`, one file or shards, float32, float16 or
    bfloat16.  Weights are mapped from the file; those already in dtype are not copied.  ValueError
    or OSError, naming file and tensor, when anything is missing, left over, or of another shape.
    """
    config = GPT2Config.from_json(Path(folder) / "config.json")
    with torch.device("meta"):
        gpt2 = GPT2(config)
    expected = {name: list(tensor.shape) for name, tensor in gpt2.state_dict().items()}
    state = {}
    for path in weight_files(folder):
        with open_safetensors(path) as file:
            names = sorted(file.keys(), reverse=True)  # wte, the largest, while memory is empty
        for stored in names:
            name = stored.removeprefix("transformer.")
            if name.endswith((".attn.bias", ".attn.masked_bias")) or name == "lm_head.weight":
                continue  # mask buffers of older files (mind the dot: c_attn.bias is a weight)
            with open_safetensors(path) as file:  # anew, so that the last one leaves memory
                part, flip = file.get_slice(stored), name.endswith(TRANSPOSED)
                kind, shape = part.get_dtype(), part.get_shape()
                wanted = expected.pop(name, None)
                if flip and wanted:
                    wanted.reverse()
                if kind not in FLOATS or shape != wanted:
                    wanted = wanted or "no (other) tensor of this name"
                    raise ValueError(
                        f"{path}: {stored!r} is {kind} {shape}, but config.json wants {wanted}"
                    )
                tensor = file.get_tensor(stored)
                state[name] = (tensor.t() if flip else tensor).to(device, dtype)
            del part, tensor
    if expected:
        raise ValueError(f"{path} lacks {min(expected)} ({len(expected)} in all); fetch it again")
    gpt2.load_state_dict(state, strict=True, assign=True)
    return gpt2.requires_grad_(False)


def write_file(path, data):
    """Write bytes so that path holds all of them or what it held before: new file, sync, rename."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk does not say itself which file it was
        raise


def safetensors_bytes(tensors, metadata):
    """A safetensors file as bytes, the same for the same content: the library shuffles metadata."""
    data = safetensors.torch.save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned
    return len(header).to_bytes(8, "little") + header + data[end:]


PROMPT_FORMAT = {"format": "prompt-training/1", "position_rule": "after-text"}


def save_prompt(path, prompt, metadata):
    """Write prompt.safetensors: `prompt` (P, C), `head.weight` (N, C), float32, and the metadata.

    metadata: str -> str, or anything JSON can hold; the format, the position rule and the two sizes
    are added here.
    """
    tensors = {"prompt": prompt.vectors, "head.weight": prompt.head}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in tensors.items()}
    sizes = {"prompt_tokens": len(prompt.vectors), "num_labels": len(prompt.head)}
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata | sizes).items()}
    write_file(path, safetensors_bytes(tensors, text | PROMPT_FORMAT))


def load_prompt(path):
    """prompt.safetensors -> (Prompt on the CPU, metadata); ValueError if it is not one.

    Metadata values are strings, but labels and init_ids come as lists and recipe as a dictionary.
    """
    with open_safetensors(path) as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    for key, value in PROMPT_FORMAT.items():
        if metadata.get(key) != value:
            raise ValueError(f"{path} is no prompt of ours: its {key} is not {value!r}")
    try:
        metadata |= {key: json.loads(metadata[key]) for key in ("labels", "init_ids", "recipe")}
        labels, ids, recipe = (metadata[key] for key in ("labels", "init_ids", "recipe"))
        (P, C), (N, same) = tensors["prompt"].shape, tensors["head.weight"].shape
        whole = C == same and P * N * C > 0 and len(tensors) == 2
        whole &= [type(value) for value in (labels, ids, recipe)] == [list, list, dict]
        whole &= len(labels) == max(N, 2) and all(map(str.isprintable, labels))
        whole &= all(type(i) is int and 0 <= i < 2**24 for i in ids)
        whole &= type(recipe.get("data", "")) is str
        whole &= all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors.values())
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise ValueError(f"{path} lacks a finite prompt (P, C), head.weight (N, C) or metadata")
    return Prompt(tensors["prompt"], tensors["head.weight"]), metadata
