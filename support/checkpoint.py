"""A base model: found by its name, fetched, read in any form that people have, and identified.

A checkpoint is a folder with config.json, safetensors, and the files of a tokenizer.  Frameworks
write the same GPT-2 under many names: behind prefixes, in shards, beside the heads of other tasks,
with the tied table under either of its two names.  All of that is read here.  What cannot be read
is refused by its name, with the way out.  Nothing is ever unpickled.
"""

import functools
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from model import GPT2, GPT2Config
from support.files import damaged, open_at_once, open_safetensors, sha256
from support.hub import OFFICIAL, adapter_sentence, fetch, is_pickle, way_to_convert
from support.terminal import few, warn
from support.vocabulary import FILES as TOKENIZER_FILES
from support.vocabulary import read_object, read_tokenizer, refuse_stand_in

ROOT = Path(__file__).parent.parent
BUNDLED = "tiny"
HUB_ID = re.compile(r"[^/.\\][^/\\]*/[^/\\]+")
SIZES = 2**24 - 1  # the largest of the sizes in a config.json; layers have a limit of their own
LAYERS = 99

# transformers knows some sizes under a second name.
SECOND_NAMES = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
}
# The tanh form of GELU goes under all of these; plain "gelu" is the exact one, another function.
TANH_GELU = (
    "gelu_new",
    "gelu_fast",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "gelu_accurate",
)
# What these say is built in here; a GPT-2 for which one of them is otherwise is another model.
BUILT_IN = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
}

# The checkpoint stores these as (in, out), nn.Linear as (out, in).  attn.c_proj is square: loaded
# untransposed it passes every check of shapes and answers nonsense.
TRANSPOSED = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
# Mask buffers of older files; mind the dot: c_attn.bias is a weight.
MASKS = (".attn.bias", ".attn.masked_bias")
# Steps in the names of tensors that compilers and parallel wrappers put in.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
# (prefix of the body, name in the body)
IN_BODY = re.compile(r"((?:.*?\.)?)((?:wte|wpe|ln_f|h\.[0-9]+)\..+)", re.DOTALL)
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
QUANTIZED = (".SCB", ".weight_format", "qweight", "qzeros", ".scales", "absmax", "quant_map")

# What was hashed in this process, by the state of the files: {stats: {tensor: its digest}}.
DIGESTS = {}


@dataclass(frozen=True)
class Base:
    """What a prompt says of the model it was trained on."""

    base_model: str  # as it was asked for, or its whole path
    base_revision: str = ""  # its commit, where it was downloaded
    base_sha256: str = ""  # of all that it computes with: Checkpoint.base


# ---- names ----------------------------------------------------------------------------------


def resolve(name, asked=True):
    """What to call a base model from now on: tiny or an official name, a hub id, or a whole path.

    A known name never means a folder that happens to lie here: ./gpt2 does.  FileNotFoundError for
    what is none of these.  asked: a person named it; else a file did.
    """
    name = os.fspath(name)
    known = (BUNDLED, *OFFICIAL)
    here = Path(name)
    if name in known:
        if has_config(here) and not is_same(here, stored(name)):
            warn_once(f"{name} means the known model, not the folder here; for that write ./{name}")
        return name
    # A folder here counts before what was fetched: who has one means it.  Only that of a known
    # model goes by the name of that model, so that a run is the same wherever it is started.
    if name and has_config(here):
        for word in known:
            if is_same(here, stored(word)):
                return word
        return str(here.absolute())
    # What was fetched before, or put into weights/ by hand.
    inside = not here.is_absolute() and ".." not in here.parts
    if name and inside and has_config(stored(name)):
        return here.as_posix()
    if name and os.path.exists(here):
        raise FileNotFoundError(no_checkpoint(here))
    if HUB_ID.fullmatch(name):
        return name
    raise FileNotFoundError(no_model(name, asked))


def stored(name):
    """Where a model of this name lies, or is fetched to."""
    return ROOT / "weights" / name


def has_config(folder):
    return os.path.exists(folder / "config.json")


def is_same(folder, other):
    return os.path.exists(other) and folder.samefile(other)


@functools.cache
def warn_once(text):
    """Warn, but not again about the same."""
    warn(text)


def no_model(name, asked):
    names = ", ".join([BUNDLED, *OFFICIAL])
    where = "name a folder, a hub id, or" if asked else "say by --model where it lies, or"
    return f"there is no model {name}: {where} {names}"


def no_checkpoint(path):
    """Why a path that is there is no checkpoint, and which one near it may be meant."""
    if not path.is_dir():
        return f"{path} is no folder; name the folder in which config.json and the weights lie"
    if (path / "adapter_config.json").exists():
        return adapter_sentence(path)
    found = sorted(config.parent.name for config in path.glob("*/config.json"))
    hint = f"; in it lies {', '.join(found):.200}: name that folder" if found else ""
    return f"{path} is a folder without config.json, so it is no checkpoint{hint}"


def open_checkpoint(name, asked=True):
    """The Checkpoint of this name, fetched where it is not here yet; ValueError or OSError.

    asked: a person named it; where a file did, only official ones are fetched.
    """
    name = resolve(name, asked)
    folder = stored(name)  # of a whole path, that path
    if not has_config(folder):
        repo, revision = OFFICIAL.get(name, (name, None))
        if not HUB_ID.fullmatch(repo) or not (asked or revision):
            raise FileNotFoundError(no_model(name, asked))
        fetch(repo, revision, folder, refuse_fetched)
    return Checkpoint(name, folder)


# ---- config.json ----------------------------------------------------------------------------


def refuse_fetched(folder, whole):
    """ValueError or OSError where what was fetched is no GPT-2, or lacks a part of its weights.

    whole: whether the weights have been fetched, too.
    """
    read_config(folder / "config.json")
    if whole:
        for path in weight_files(folder):
            refuse_other_files(path)


def read_config(path):
    """(GPT2Config, the whole dictionary) of a config.json.

    ValueError for a variant of GPT-2 that is not implemented.  The number of labels is never read
    here: the official gpt2-large and distilgpt2 say `"_num_labels": 1`, and whoever believes them
    trains a head that can only answer 0.
    """
    whole = read_object(path)
    with damaged(path, "is no config.json of a GPT-2 as it is read here"):
        kind = whole.get("model_type", "gpt2")
        if kind != "gpt2":
            raise ValueError(f"another kind of model: model_type {kind!r:.40}, not 'gpt2'")
        if whole.get("quantization_config"):
            raise ValueError("quantization_config: " + NOT_QUANTIZED)
        if whole.get("activation_function", "gelu_new") not in TANH_GELU:
            other = whole["activation_function"]
            raise ValueError(f"another GPT-2: activation_function {other!r:.40}, not 'gelu_new'")
        for key, wanted in BUILT_IN.items():
            if whole.get(key, wanted) is not wanted:
                raise ValueError(f"another GPT-2: {key} is {whole[key]!r:.40}, not {wanted}")
        sizes = {field.name: size_of(whole, field.name) for field in fields(GPT2Config)}
        C = sizes["n_embd"]
        inner = whole.get("n_inner")
        if inner is not None and (type(inner) is not int or inner != 4 * C):
            raise ValueError(f"another GPT-2: n_inner is {inner!r:.40}, not 4 n_embd")
        if C % sizes["n_head"]:
            raise ValueError(f"n_head {sizes['n_head']} does not divide n_embd {C}")
    return GPT2Config(**sizes), whole


NOT_QUANTIZED = (
    "weights that are quantized are not read; save the model in float32, float16 or bfloat16 "
    "(transformers: model.dequantize(), or load it without quantization, then save_pretrained)"
)


def size_of(whole, name):
    """One size of a config.json, under either of its names; strictly a number in its range."""
    second = SECOND_NAMES.get(name, name)
    default = 1e-5 if name == "layer_norm_epsilon" else None
    value = whole.get(name, whole.get(second, default))
    if name in whole and second in whole and whole[second] != value:
        raise ValueError(f"{name} and {second} are one size, but differ")
    if name == "layer_norm_epsilon":
        if type(value) in (int, float) and 0 < value < 1:
            return value
        raise ValueError(f"{name} is {value!r:.40}, not a number between 0 and 1")
    highest = LAYERS if name == "n_layer" else SIZES
    if type(value) is int and 1 <= value <= highest:
        return value
    raise ValueError(f"{name} is {value!r:.40}, not an integer from 1 to {highest}")


# ---- where the tensors lie ------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """Where a tensor lies, and what the header of its file says of it."""

    path: Path
    name: str  # in the file
    dtype: str  # as safetensors calls it
    shape: list[int]


def weight_files(folder):
    """The safetensors files of a checkpoint folder, in order: model.safetensors, or its shards."""
    whole = folder / "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if os.path.exists(whole):
        return [whole]
    if not os.path.exists(index):
        raise FileNotFoundError(no_weights(folder))
    listed = read_object(index)
    with damaged(index, "does not list the shards of a checkpoint; fetch it again"):
        names = sorted(set(listed["weight_map"].values()))
        if not names or not all(re.fullmatch(r"[\w-][\w.-]*", name) for name in names):
            raise ValueError("it names none, or one that is in another folder")
    for name in names:
        if not os.path.exists(folder / name):
            raise FileNotFoundError(f"{folder} lacks {name}, which {index.name} lists; fetch it")
    return [folder / name for name in names]


def no_weights(folder):
    """What a folder has in place of weights that can be read, and how to come by them."""
    if (folder / "adapter_config.json").exists():
        return adapter_sentence(folder)
    if (folder / "model.safetensors").is_symlink():
        return f"{folder / 'model.safetensors'} is a link to nothing; fetch the folder again"
    names = sorted(os.listdir(folder))
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return (
            f"{folder} has no model.safetensors, but {', '.join(others):.200}; if that is the "
            "model, give it this name"
        )
    others = [name for name in names if is_pickle(name)]
    if others:
        return (
            f"{folder} has {', '.join(others):.200} and no model.safetensors, and "
            f"{way_to_convert(folder)}"
        )
    return f"{folder} has no weights (model.safetensors); fetch the folder again"


def refuse_other_files(path):
    """ValueError where a file of weights is none, by its first bytes."""
    with open(path, "rb", opener=open_at_once) as file:
        begin = file.read(200)
    refuse_stand_in(path, begin)
    if begin.startswith((b"PK\x03\x04", b"\x80\x02")):
        raise ValueError(
            f"{path} is PyTorch's pickle under another name, and {way_to_convert(path.parent)}"
        )


def find_tensors(folder, config, tied):
    """{name in model.py: Place} of a whole body; ValueError where it is none.

    tied: whether lm_head.weight may stand for wte.weight.  Whatever is beside the body is passed
    over, and named in a line.
    """
    shapes = stored_shapes(config)
    places = places_of(folder)

    # What stands before most names of a GPT-2 is what its wrapper put there.
    prefixes = Counter()
    for name in places:
        if match := IN_BODY.fullmatch(name):
            prefixes[match[1]] += match[2] in shapes
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""

    # Within the body nothing may be that is not known: it would be another GPT-2.  Beside it there
    # are heads of other tasks, whatever they are called.
    found = {}
    tables = []  # what may be the tied table
    heads = []
    for name, place in places.items():
        match = IN_BODY.fullmatch(name)
        if match and match[2] in shapes:
            if match[1] != prefix:
                raise ValueError(
                    f"{place.path}: {place.name!r:.99} is another {match[2]}, where the body has "
                    f"the prefix {prefix!r:.60}; two models in one file are not read"
                )
            found[match[2]] = place
        elif match and match[1] == prefix:
            if not name.endswith(MASKS):
                raise ValueError(f"{place.path}: {unknown_tensor(place.name)}")
        elif name.split(".")[-2:] == ["lm_head", "weight"]:
            tables.append(place)
        else:
            heads.append(place.name)
    # Of two tensors that are one, safetensors keeps the one whose name it met first.
    if "wte.weight" not in found and len(tables) == 1 and tied:
        found["wte.weight"] = tables[0]
    missing = [name for name in shapes if name not in found]
    if missing:
        raise ValueError(who_lacks(folder, prefix, missing))
    for name, place in found.items():
        refuse_misfit(place, shapes[name])
    if heads:
        some = few(sorted(heads), 4)
        warn_once(f"{folder}: passed over, because no prompt needs it: {some:.300}")
    return found


def stored_shapes(config):
    """{name in model.py: shape in the file} of all tensors of a body."""
    with torch.device("meta"):
        gpt2 = GPT2(config)
    shapes = {}
    for name, tensor in gpt2.state_dict().items():
        size = list(tensor.shape)
        shapes[name] = size[::-1] if name.endswith(TRANSPOSED) else size
    return shapes


def places_of(folder):
    """{name without what wrappers put in: Place} of all tensors of a folder."""
    found = []
    for path in weight_files(folder):
        refuse_other_files(path)
        with open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118
                header = file.get_slice(name)
                found.append(Place(path, name, header.get_dtype(), header.get_shape()))
    places = {}
    for place in found:
        steps = [step for step in place.name.split(".") if step not in WRAPPERS]
        plain = ".".join(steps)
        if plain in places:
            raise ValueError(f"{place.path}: {place.name!r:.99} is there twice; fetch it again")
        places[plain] = place
    return places


def unknown_tensor(name):
    """Why a tensor within the body is refused."""
    if "lora_" in name or ".base_layer." in name:
        return (
            f"{name!r:.99} belongs to an adapter; merge it into the model first (peft: "
            "model.merge_and_unload(), then save_pretrained)"
        )
    if name.endswith(QUANTIZED):
        return f"{name!r:.99}: {NOT_QUANTIZED}"
    return (
        f"{name!r:.99} has no place in a GPT-2 of these sizes: config.json wants no (other) "
        "tensor of this name; is it another model's?"
    )


def who_lacks(folder, prefix, missing):
    """The sentence about tensors that are not there: who should have had the first of them."""
    first = min(missing)
    count = f"({len(missing)} in all)"
    # An index says which shard should have had it: to blame the last one read would mislead.
    index = folder / "model.safetensors.index.json"
    if not os.path.exists(folder / "model.safetensors") and os.path.exists(index):
        for name, shard in read_object(index)["weight_map"].items():
            match = IN_BODY.fullmatch(name)
            if match and match[2] == first:
                return f"{folder / shard} lacks {name} {count}, which {index.name} places there"
    hint = ""
    if first == "wte.weight":
        hint = "; lm_head.weight takes its place only where it is one table and tied to it"
    return f"{folder} lacks {prefix}{first} {count}: fetch it again, or see config.json{hint}"


def refuse_misfit(place, shape):
    """A tensor of the body has to have its shape, in floats."""
    what = f"{place.path}: {place.name!r:.99} is {FLOATS.get(place.dtype, place.dtype)}"
    if place.dtype not in FLOATS:
        raise ValueError(f"{what}, not floating-point: {NOT_QUANTIZED}")
    if place.shape != shape:
        raise ValueError(f"{what} {place.shape}, but config.json wants {shape}")


# ---- the checkpoint -------------------------------------------------------------------------


class Checkpoint:
    """A base model whose files have been found, and found to be a GPT-2.

    .name, .folder, .config (GPT2Config), .tokenizer (Tokenizer).  The weights stay where they
    are until `load`.
    """

    def __init__(self, name, folder):
        self.name = name
        self.folder = Path(folder)
        config_path = self.folder / "config.json"
        # Looked at before the files are read: what changes in between counts as changed.
        self.stats = stats_of(self.folder)
        self.config, whole = read_config(config_path)
        end_id = whole.get("eos_token_id")
        self.tokenizer = read_tokenizer(
            self.folder, self.config.vocab_size, end_id if type(end_id) is int else None
        )
        tied = whole.get("tie_word_embeddings", True) is True
        self.places = find_tensors(self.folder, self.config, tied)
        self.digests = DIGESTS.get(self.stats)

    def load(self, dtype=torch.float32, device="cpu"):
        """A frozen GPT2 in dtype on device.  The files may go or change afterwards.

        One tensor after the other is read, hashed and copied, so that memory never holds a second
        model.  ValueError for a tensor that is not finite.
        """
        # On a GPU it would make a plan for each length of texts.
        torch.backends.cuda.enable_cudnn_sdp(False)
        with torch.device("meta"):
            gpt2 = GPT2(self.config)
        state = {}
        for name, tensor in self.each_tensor():
            if name.endswith(TRANSPOSED):
                tensor = tensor.t()
            state[name] = tensor.to(device, dtype, copy=True)
        gpt2.load_state_dict(state, assign=True)
        return gpt2.requires_grad_(False)

    def each_tensor(self):
        """(name in model.py, tensor as stored) of the body; each leaves memory in its turn.

        The table of tokens is the largest, and comes first, while memory is empty.  When all have
        been read, their digests are known, for this process and the state that the files are in.
        """
        digests = {}
        for name in sorted(self.places, reverse=True):
            place = self.places[name]
            # Opened anew: what was read leaves memory with its mapping.
            with open_safetensors(place.path) as file:
                tensor = file.get_tensor(place.name)
            if list(tensor.shape) != place.shape:
                raise ValueError(f"{place.path} has changed while it was read; run again")
            if not tensor.sum(dtype=torch.float32).isfinite():
                raise ValueError(
                    f"{place.path}: {place.name!r:.99} holds NaN or infinity; fetch it again"
                )
            if self.digests is None:
                digests[name] = digest_of(name, tensor)
            yield name, tensor
        if self.digests is None:
            self.digests = digests
            if stats_of(self.folder) == self.stats:
                DIGESTS[self.stats] = digests

    @property
    def base(self):
        """What identifies this model: one hash of all that it computes with.

        That is the sizes, the tokens with their ids, and the tensors under the names of model.py,
        in their own dtype.  In which files and under which names they lie does not matter.
        """
        if self.digests is None:
            for _ in self.each_tensor():
                pass
        # Sorted, so that neither the order in a file nor the shards matter.
        parts = [json.dumps(asdict(self.config), sort_keys=True), digest_of_tokens(self.tokenizer)]
        parts += [self.digests[name] for name in sorted(self.digests)]
        hashed = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        path = self.folder / "revision"
        revision = path.read_text(errors="replace")[:80] if path.is_file() else ""
        return Base(self.name, revision, hashed)

    def accepts(self, hashed):
        """Whether a prompt with this base_sha256 was trained on this model."""
        return hashed == self.base.base_sha256 or hashed == self.former_sha256()

    def former_sha256(self):
        """The hash of older prompts: over the bytes of weights and merges.txt, and the sizes.

        None where it would say too little.  Ids came from the order of the merges alone then, so
        where they are others a prompt of that time was trained on other tokens.
        """
        merges = self.folder / "merges.txt"
        tokenizer = self.tokenizer
        official = tokenizer.ids == list(range(len(tokenizer.ids))) and not tokenizer.added
        if not merges.exists() or not official:
            return None
        sizes = json.dumps(asdict(self.config), sort_keys=True)
        parts = [sha256(*weight_files(self.folder)), sha256(merges), sizes]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def refuse_changes(self):
        """ValueError where the files hold another model than the one that was opened."""
        stats = stats_of(self.folder)
        if stats == self.stats:
            return
        now = Checkpoint(self.name, self.folder)
        if self.digests is None or now.base.base_sha256 != self.base.base_sha256:
            raise ValueError(
                f"{self.folder} holds another model than when this began; put the former one back, "
                "or begin anew"
            )
        self.stats = stats


def stats_of(folder):
    """What changes whenever one of the files of a checkpoint does."""
    names = ["config.json", *TOKENIZER_FILES, "model.safetensors.index.json"]
    paths = [folder / name for name in names] + weight_files(folder)
    stats = [str(folder.absolute())]
    for path in paths:
        if path.exists():
            stat = path.stat()
            stats.append((path.name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(stats)


def digest_of(name, tensor):
    """A tensor in a line: its name, dtype, shape, and the hash of its bytes as they are stored."""
    content = tensor.contiguous().view(-1).view(torch.uint8).numpy()
    return f"{name} {tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()}"


def digest_of_tokens(tokenizer):
    """The hash of what makes ids of a text: tokens in the order of their merges, with their ids."""
    lines = [
        f"{token.hex()} {number}"
        for token, number in zip(tokenizer.tokens, tokenizer.ids, strict=True)
    ]
    lines += [f"+ {text!r} {number}" for text, number in sorted(tokenizer.added.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
