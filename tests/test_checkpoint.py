"""support/checkpoint.py: a GPT-2 in every form that people have is read as transformers reads it.

What cannot be read is refused by its name, with the way out.
"""

import hashlib
import json
import os
import random
import re
import shutil
import string

import numpy as np
import pytest
import torch
import transformers
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from data import clean
from helpers import (
    SHARED,
    TINY,
    mask_buffers,
    random_weights,
    sizes,
    write_checkpoint,
    write_shards,
    write_unaligned,
)
from hostile import (
    CHANGES,
    EDITS,
    ODD,
    assembled,
    cases,
    change,
    mutate,
    numbers,
    parts,
    peak,
    plain_reading,
    read,
    spliced,
)
from model import GPT2Config, Prompt, classify
from servers import NOWHERE, hub, redirect, serve
from support.checkpoint import (
    BUNDLED,
    OFFICIAL,
    ROOT,
    Checkpoint,
    open_checkpoint,
    read_config,
    resolve,
    warn_once,
    weight_files,
)
from support.vocabulary import BYTE_OF, read_tokenizer

# ---- what transformers makes of the same files ----------------------------------------------

IDS = [[5, 280, 17, 99, 3, 250, 61], [290], [7, 8, 9, 10]]
EPS = {"layer_norm_epsilon": 1e-2}  # far from the default: who goes by that one is seen
ROWS = 2**24


def make_prompts(C, N=2):
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    return [Prompt(draw(P, C), draw(N, C)) for P in (1, 3)]


def our_logits(folder, dtype=torch.float32):
    """(K, B, N)"""
    gpt2 = open_checkpoint(folder).load(dtype)
    lengths = torch.tensor([len(ids) for ids in IDS])
    padded = torch.zeros(len(IDS), max(lengths), dtype=torch.int64)
    for row, ids in zip(padded, IDS, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return classify(gpt2, make_prompts(gpt2.config.n_embd), padded, lengths).detach()


@torch.no_grad()
def their_logits(folder):
    """(K, B, N), one text at a time, through the embeddings of transformers' own model"""
    theirs = transformers.GPT2Model.from_pretrained(folder, attn_implementation="eager")
    theirs = theirs.eval().float()
    prompts = make_prompts(theirs.config.n_embd)
    logits = torch.empty(len(prompts), len(IDS), 2)
    for k, prompt in enumerate(prompts):
        for b, ids in enumerate(IDS):
            x = torch.cat([theirs.wte.weight[ids], prompt.vectors])[None]
            hidden = theirs(inputs_embeds=x).last_hidden_state[0, -1]
            logits[k, b] = prompt.head @ hidden
    return logits


def assert_equal_logits(ours, theirs):
    assert theirs.std() > 0.5
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A random checkpoint in the official form: (folder, config, weights)."""
    config = sizes(**EPS)
    weights = random_weights(config)
    folder = write_checkpoint(tmp_path_factory.mktemp("plain"), config, weights)
    return folder, config, weights


@pytest.fixture(scope="module")
def truth(plain):
    """The logits of `plain`, by transformers."""
    return their_logits(plain[0])


@pytest.fixture
def copy(plain, tmp_path):
    """A copy of `plain` to spoil."""
    return shutil.copytree(plain[0], tmp_path / "m")


def store(folder, tensors):
    """Other weights in a checkpoint folder."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_json(path, **more):
    """Set keys of a JSON object in a file, or drop those that are None."""
    value = json.loads(path.read_text()) | more
    value = {key: item for key, item in value.items() if item is not None}
    path.write_text(json.dumps(value))


# ---- the forms of weights -------------------------------------------------------------------


@pytest.mark.parametrize("C,H,L", [(12, 3, 2), (20, 1, 1), (35, 5, 3)])
def test_the_official_form_equals_transformers(tmp_path, C, H, L):
    config = sizes(C, H, L, **EPS)
    folder = write_checkpoint(tmp_path, config, random_weights(config, seed=C))
    assert_equal_logits(our_logits(folder), their_logits(folder))


PREFIXES = [
    "",
    "transformer.",
    "module.",
    "module.transformer.",
    "_orig_mod.transformer.",
    "module._orig_mod.transformer.",
    "base_model.model.transformer.",
    "pretrained_model.transformer.",
    "model.transformer.",
    "model.",
    "_fsdp_wrapped_module.transformer.",
    "some.other.wrapper.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_what_wrappers_put_before_names_does_not_matter(plain, copy, truth, prefix):
    store(copy, {prefix + name: tensor for name, tensor in plain[2].items()})
    assert_equal_logits(our_logits(copy), truth)


@pytest.mark.parametrize("step", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_nor_does_what_they_put_into_names(plain, copy, truth, step):
    tensors = {}
    for name, tensor in plain[2].items():
        tensors[re.sub(r"^h\.(\d+)\.", rf"h.\1.{step}.", name)] = tensor
    store(copy, tensors)
    assert_equal_logits(our_logits(copy), truth)


def test_mask_buffers_of_older_files_are_skipped(plain, copy, truth, capsys):
    masks = mask_buffers(plain[1]) | {"h.0.attn.masked_bias": torch.tensor(-1e4)}
    store(copy, plain[2] | masks)
    assert_equal_logits(our_logits(copy), truth)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("prefix", ["", "transformer.", "module.transformer."])
def test_the_tied_table_is_read_under_its_other_name(plain, copy, truth, prefix):
    tensors = {prefix + name: tensor for name, tensor in plain[2].items()}
    table = tensors.pop(prefix + "wte.weight")
    store(copy, tensors | {prefix.replace("transformer.", "") + "lm_head.weight": table})
    assert_equal_logits(our_logits(copy), truth)


def test_the_table_as_safetensors_itself_saves_a_tied_model(plain, copy, truth):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(plain[0])
    save_model(theirs, copy / "model.safetensors")
    assert "transformer.wte.weight" not in load_file(copy / "model.safetensors")
    assert_equal_logits(our_logits(copy), truth)


def test_beside_an_untied_head_the_table_is_wte(plain, copy, truth):
    head = {"lm_head.weight": torch.randn(300, 10)}
    store(copy, plain[2] | head)
    edit_json(copy / "config.json", tie_word_embeddings=False)
    assert_equal_logits(our_logits(copy), truth)


def test_an_untied_head_is_no_table(plain, copy):
    tensors = dict(plain[2])
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    store(copy, tensors)
    edit_json(copy / "config.json", tie_word_embeddings=False)
    with pytest.raises(
        ValueError, match="m lacks wte.weight .*lm_head.weight .* only where .* tied"
    ):
        open_checkpoint(copy)


OTHER_TASKS = {
    "GPT2ForSequenceClassification": "score.weight",
    "GPT2ForTokenClassification": "classifier.bias",
    "GPT2ForQuestionAnswering": "qa_outputs.bias",
    "GPT2DoubleHeadsModel": "multiple_choice_head.summary.bias",
}


@pytest.mark.parametrize("kind", OTHER_TASKS)
def test_heads_of_other_tasks_are_passed_over_and_named(plain, tmp_path, truth, capsys, kind):
    theirs = getattr(transformers, kind).from_pretrained(plain[0])
    theirs.save_pretrained(tmp_path)
    shutil.copy(plain[0] / "merges.txt", tmp_path)
    capsys.readouterr()  # what transformers said
    assert_equal_logits(our_logits(tmp_path), truth)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "passed over" in said
    assert OTHER_TASKS[kind] in said


def test_a_head_for_reinforcement_learning_is_one_too(plain, copy, truth, capsys):
    tensors = {f"transformer.{name}": tensor for name, tensor in plain[2].items()}
    heads = {f"v_head.{i}.weight": torch.ones(1, 10) for i in range(9)}
    store(copy, tensors | heads)
    assert_equal_logits(our_logits(copy), truth)
    assert "v_head.3.weight and 5 more\n" in capsys.readouterr().err


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_shards_are_read(plain, copy, truth, prefix):
    write_shards(copy, {prefix + name: tensor for name, tensor in plain[2].items()})
    assert_equal_logits(our_logits(copy), truth)


def test_shards_of_transformers_are_read(plain, tmp_path, truth):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(plain[0])
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")
    shutil.copy(plain[0] / "merges.txt", tmp_path)
    assert len([*tmp_path.glob("model-*.safetensors")]) > 2
    assert_equal_logits(our_logits(tmp_path), truth)


DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_floating_point_dtype_is_read(plain, copy, dtype):
    dtype = getattr(torch, dtype)
    store(copy, {name: tensor.to(dtype) for name, tensor in plain[2].items()})
    edit_json(copy / "config.json", dtype=str(dtype).removeprefix("torch."))
    assert_equal_logits(our_logits(copy), their_logits(copy))


FORMS = ["plain", "prefixed", "buffers", "lm_head", "shards", "float16", "bfloat16"]


@pytest.mark.parametrize("form", FORMS)
def test_each_tensor_is_the_stored_one(plain, copy, form):
    """Exactly, in every dtype that may be asked for; four kinds of weights are transposed."""
    _, config, weights = plain
    tensors = dict(weights)
    if form.endswith("float16"):
        tensors = {name: tensor.to(getattr(torch, form)) for name, tensor in tensors.items()}
    truth = {name: tensor.double() for name, tensor in tensors.items()}
    if form == "buffers":
        tensors |= mask_buffers(config)
    if form == "prefixed":
        tensors = {f"transformer.{name}": tensor for name, tensor in tensors.items()}
    if form == "lm_head":
        tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    store(copy, tensors)
    if form == "shards":
        write_shards(copy, tensors)
    ours = open_checkpoint(copy).load(torch.float64).state_dict()
    assert ours.keys() == truth.keys()
    for name, tensor in ours.items():
        square = re.search(r"(c_attn|c_proj|c_fc)\.weight$", name)
        assert torch.equal(tensor, truth[name].t() if square else truth[name]), name
    for dtype in (torch.float32, torch.bfloat16):
        state = open_checkpoint(copy).load(dtype).state_dict()
        assert {tensor.dtype for tensor in state.values()} == {dtype}


def test_floats_may_begin_at_an_odd_place(plain, copy, truth):
    """As in the official files."""
    path = copy / "model.safetensors"
    write_unaligned(path, plain[2], path.stat().st_size + 13)
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert header % 4 != 0
    assert_equal_logits(our_logits(copy), truth)
    assert identity(copy) == identity(plain[0])


def test_nothing_of_a_loaded_model_is_trained(plain):
    gpt2 = open_checkpoint(plain[0]).load()
    assert not any(tensor.requires_grad for tensor in gpt2.parameters())


def test_no_cudnn_plan_is_made_for_each_length_of_texts(plain):
    torch.backends.cuda.enable_cudnn_sdp(True)
    open_checkpoint(plain[0]).load()
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_files_may_change_after_loading(copy, truth):
    gpt2 = open_checkpoint(copy).load()
    before = {name: tensor.clone() for name, tensor in gpt2.state_dict().items()}
    path = copy / "model.safetensors"
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * (path.stat().st_size // 2))
    for name, tensor in gpt2.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_memory_holds_one_model_and_a_tensor(tmp_path):
    """The file of 116 MB is never in memory as a whole beside its copy in bfloat16."""
    config = sizes(C=512, H=8, L=8, V=8192)
    folder = write_checkpoint(tmp_path, config, random_weights(config))
    size = (folder / "model.safetensors").stat().st_size
    opened = open_checkpoint(folder)
    table = 8192 * 512 * 4
    peak()
    before = peak()
    gpt2 = opened.load(torch.bfloat16)
    assert size > 110e6
    assert peak() - before < size / 2 + 2 * table + 16e6
    assert gpt2.wte.weight.dtype == torch.bfloat16


def test_shards_come_in_the_order_of_their_names(tmp_path):
    """The former fingerprint goes over them in this order; a file of all weights goes before."""
    names = [f"model-{i:05}-of-00012.safetensors" for i in range(1, 13)]
    places = {f"h.{i}.ln_1.bias": names[5 * i % 12] for i in range(24)}  # each of them twice
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    for name in names:
        (tmp_path / name).touch()
    assert weight_files(tmp_path) == [tmp_path / name for name in names]
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


# ---- config.json ----------------------------------------------------------------------------


def config_of(path):
    return read_config(path)[0]


WAYS = [
    {"n_inner": None},
    {"n_inner": 40},
    {"n_inner": 40, "_num_labels": 1, "n_ctx": 24, "scale_attn_weights": True},
    {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False},
    {"add_cross_attention": False, "id2label": {"0": "LABEL_0"}},
]
DROPPED = [
    [],
    ["layer_norm_epsilon"],
    ["model_type", "activation_function", "layer_norm_epsilon"],
]


@pytest.mark.parametrize("more", WAYS)
@pytest.mark.parametrize("without", DROPPED)
def test_one_config_is_written_in_several_ways(tmp_path, more, without):
    given = {key: item for key, item in (sizes() | more).items() if key not in without}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(given))
    assert config_of(path) == GPT2Config(300, 24, 10, 3, 2, 1e-5)


def test_the_largest_sizes_are_read(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sizes(L=99, V=2**24 - 1, **EPS)))
    assert config_of(path) == GPT2Config(2**24 - 1, 24, 10, 99, 2, 1e-2)


def test_sizes_go_under_second_names_as_in_transformers(plain, copy, truth):
    names = {
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
    }
    config = {names.get(key, key): item for key, item in plain[1].items()}
    (copy / "config.json").write_text(json.dumps(config))
    assert transformers.GPT2Config.from_pretrained(copy).n_embd == 10
    assert_equal_logits(our_logits(copy), truth)
    edit_json(copy / "config.json", n_head=5)
    with pytest.raises(ValueError, match="n_head and num_attention_heads are one size, but differ"):
        config_of(copy / "config.json")


def tanh_forms():
    """The names under which transformers has the tanh form of GELU, by what they compute."""
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    right = torch.nn.functional.gelu(x, approximate="tanh")
    names = []
    for name in transformers.activations.ACT2CLS:
        if "gelu" in name:
            act = transformers.activations.ACT2FN[name]
            if (act(x) - right).abs().max() < 1e-10:
                names.append(name)
    return names


@pytest.mark.parametrize("name", tanh_forms())
def test_the_same_activation_goes_under_many_names(copy, name):
    edit_json(copy / "config.json", activation_function=name)
    assert_equal_logits(our_logits(copy), their_logits(copy))


def test_there_are_five_such_names():
    assert len(tanh_forms()) == 5


OTHER_MODELS = [
    ("model_type", "gpt_neo", "another kind of model: model_type 'gpt_neo', not 'gpt2'"),
    ("model_type", "llama", "another kind of model: model_type 'llama', not 'gpt2'"),
    ("activation_function", "gelu", "another GPT-2: activation_function 'gelu', not 'gelu_new'"),
    ("activation_function", "relu", "another GPT-2: activation_function 'relu'"),
    ("activation_function", None, "another GPT-2: activation_function None"),
    ("scale_attn_weights", False, "another GPT-2: scale_attn_weights is False, not True"),
    ("scale_attn_weights", 1, "another GPT-2: scale_attn_weights is 1, not True"),
    ("scale_attn_by_inverse_layer_idx", True, "another GPT-2: scale_attn_by_inverse_layer_idx"),
    ("reorder_and_upcast_attn", True, "another GPT-2: reorder_and_upcast_attn is True"),
    ("add_cross_attention", True, "another GPT-2: add_cross_attention is True"),
    ("n_inner", 7, "another GPT-2: n_inner is 7, not 4 n_embd"),
    ("n_inner", 10, "another GPT-2: n_inner is 10, not 4 n_embd"),
    ("n_inner", 40.0, "another GPT-2: n_inner is 40.0"),
    ("n_head", 3, "n_head 3 does not divide n_embd 10"),
    ("n_embd", None, "n_embd is None, not an integer from 1 to 16777215"),
    ("n_layer", -1, "n_layer is -1, not an integer from 1 to 99"),
    ("n_layer", 100, "n_layer is 100"),
    ("n_layer", True, "n_layer is True"),
    ("vocab_size", "many", "vocab_size is 'many'"),
    ("vocab_size", 2**24, "vocab_size is 16777216"),
    ("n_positions", 0, "n_positions is 0"),
    ("n_positions", 24.0, "n_positions is 24.0"),
    ("layer_norm_epsilon", 1.0, "layer_norm_epsilon is 1.0, not a number between 0 and 1"),
    ("layer_norm_epsilon", 0.0, "layer_norm_epsilon is 0.0"),
    ("layer_norm_epsilon", 1, "layer_norm_epsilon is 1,"),
    ("quantization_config", {"bits": 4}, "quantized are not read; save the model in float32"),
]


@pytest.mark.parametrize("key,value,named", OTHER_MODELS)
def test_variants_are_refused_by_name(tmp_path, key, value, named):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sizes() | {key: value}))
    with pytest.raises(ValueError) as caught:
        config_of(path)
    assert named in str(caught.value)
    assert "config.json" in str(caught.value)


@pytest.mark.parametrize("name", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
def test_a_size_that_is_missing_is_named(tmp_path, name):
    config = sizes()
    del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"config.json .*{name} is None"):
        config_of(tmp_path / "config.json")


@pytest.mark.parametrize("text", ["{", "null", "5", '"{}"', '[["n_embd", 10]]', "[" * 10**5])
def test_what_is_no_json_object_is_no_config(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ValueError, match="config.json is no JSON object; fetch it again"):
        open_checkpoint(copy)


# ---- tokens and their ids -------------------------------------------------------------------

NASTY = [
    "it's we'll they've I'd you're I'm can't DON'T won'tn't",
    "🙂👩‍👩‍👧 naïve café Ünïcödé ﬁ",
    "a  b   c    \n\n d\t\te",
    "日本語のテスト жизнь прекрасна مرحبا שלום हिन्दी",
    "3.14159 1,000,000 ½ ² Ⅷ",
    "!!! ... -- ``quoted'' (x) #$%&",
    "   ",
    "\u00a0\u2003wide\u200bspaces\u3000",
    "\x00\x7f\x80\xff",
    "tabs\tand\r\nlines\r",
    "x" * 300,
    "'s 's'S 'LL",
    "".join(map(chr, range(256))),
    "end  ",
    " \n",
]


def reviews():
    """Every text of the bundled data."""
    texts = []
    for split in ("train", "dev"):
        lines = (ROOT / "reviews" / f"{split}.tsv").read_text(encoding="utf-8").split("\n")
        texts += [line.split("\t")[0] for line in lines[1:] if line]
    return texts


def odd_texts(number=100):
    """NASTY, and random ones: words of reviews among letters of all kinds, signs and spaces."""
    draw = random.Random(0)
    words = " ".join(reviews()).split()
    others = string.printable + "éßñ漢字かな한글абвξψ🙂👩\u200d\u00a0\u3000½²٣"
    texts = list(NASTY)
    while len(texts) < number:
        pieces = []
        for _ in range(draw.randint(1, 12)):
            pieces.append(draw.choice(words) if draw.random() < 0.5 else draw.choice(others))
            pieces.append(draw.choice(["", " ", " ", "  ", "\n"]))
        texts.append("".join(pieces))
    return texts


def assert_equal_ids(folder, theirs, texts=None):
    """theirs: a function, text -> ids"""
    ours = read_tokenizer(folder, ROWS)
    for text in texts or odd_texts():
        ids = ours.encode(text)
        assert ids == theirs(text), text
        assert ours.decode(ids) == text
        assert max(ids, default=0) < ours.size
    return ours


def by_transformers(folder):
    """text -> ids, by the tokenizer that transformers finds in a folder"""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text)["input_ids"]


def by_tokenizers(path):
    """text -> ids, by a tokenizer.json"""
    tokenizer = Tokenizer.from_file(str(path))
    return lambda text: tokenizer.encode(text).ids


def official_folders():
    yield pytest.param(TINY, id="tiny")
    folder = SHARED / "gpt2-tokenizer"
    why = "GPT-2's own tokenizer is not beside this checkout"
    mark = pytest.mark.skipif(not folder.exists(), reason=why)
    yield pytest.param(folder, id="gpt2", marks=mark)


def all_texts():
    """The bundled texts, and SST-2 where it lies about."""
    texts = reviews() + NASTY
    for split in ("train", "dev"):
        path = SHARED / "SST-2" / f"{split}.tsv"
        if path.exists():
            texts += path.read_text(encoding="utf-8").split("\n")
    return texts


@pytest.mark.parametrize("folder", [*official_folders()])
def test_the_official_tokenizer_equals_transformers(folder):
    paths = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    theirs = transformers.GPT2Tokenizer(**paths)
    texts = all_texts()
    known = dict(zip(texts, theirs(texts)["input_ids"], strict=True))
    ours = assert_equal_ids(folder, known.get, texts)
    size = len(json.loads((folder / "vocab.json").read_text()))
    assert ours.size == size == ours.end_of_text + 1
    assert ours.ordinary_ids() == list(range(256, ours.end_of_text))


@pytest.mark.parametrize("folder", [*official_folders()])
def test_without_vocab_json_the_order_of_merges_gives_the_ids(folder, tmp_path):
    shutil.copy(folder / "merges.txt", tmp_path)
    alone = read_tokenizer(tmp_path, ROWS)
    whole = read_tokenizer(folder, ROWS)
    assert alone.ids == whole.ids
    assert alone.end_of_text == whole.end_of_text
    assert alone.size == whole.size


def trained(special, size=400, lower=False):
    """A tokenizer that Hugging Face's own trainer makes: special tokens have the first ids."""
    tokenizer = ByteLevelBPETokenizer(lowercase=lower)
    how = {"vocab_size": size, "min_frequency": 2, "show_progress": False}
    tokenizer.train_from_iterator(reviews(), special_tokens=special, **how)
    return tokenizer


FIVE = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


@pytest.mark.parametrize("special", [[], ["<|endoftext|>"], FIVE])
@pytest.mark.parametrize("form", ["vocab.json", "tokenizer.json", "both"])
def test_special_tokens_may_come_first(tmp_path, special, form):
    tokenizer = trained(special)
    if form != "tokenizer.json":
        tokenizer.save_model(str(tmp_path))
    if form != "vocab.json":
        tokenizer.save(str(tmp_path / "tokenizer.json"))
    ours = assert_equal_ids(tmp_path, lambda text: tokenizer.encode(text).ids)
    assert ours.end_of_text == (0 if special == ["<|endoftext|>"] else None)
    assert ours.ordinary_ids() == list(range(256 + len(special), 400))


def test_a_tokenizer_trained_like_another_is_read(tmp_path):
    first = transformers.AutoTokenizer.from_pretrained(TINY)
    first.train_new_from_iterator([reviews()], 500).save_pretrained(tmp_path)
    ours = assert_equal_ids(tmp_path, by_transformers(tmp_path))
    assert ours.end_of_text == 0


def test_what_transformers_5_writes_is_read(tmp_path):
    """One tokenizer.json, and no merges.txt."""
    transformers.AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    assert not (tmp_path / "merges.txt").exists()
    ours = assert_equal_ids(tmp_path, by_transformers(tmp_path))
    assert (ours.size, ours.end_of_text) == (8192, 8191)


def test_merges_of_older_tokenizer_json_are_texts(tmp_path):
    trained([]).save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"] = [" ".join(pair) for pair in whole["model"]["merges"]]
    path.write_text(json.dumps(whole))
    assert_equal_ids(tmp_path, by_tokenizers(path))


ADDED = ["filmz", "<extra>", "a fine", "filmic", "film"]


def test_added_tokens_have_their_own_ids(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    tokenizer.add_tokens(ADDED)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    texts = ["a film<extra>ed, a fine filmic filmz.", "jazz filmzz \n filmed zzz<extra>"]
    ours = assert_equal_ids(tmp_path, by_transformers(tmp_path), texts + odd_texts() + reviews())
    assert sorted(ours.added) == sorted(ADDED)
    assert ours.special["[PAD]"] == ours.size - 1
    assert ours.encode("[PAD]") == read_tokenizer(TINY, ROWS).encode("[PAD]")


def older_files(folder):
    """Tokens that were added to vocab.json, as transformers 4 wrote them."""
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(TINY / name, folder)
    (folder / "added_tokens.json").write_text('{"filmq": 8192, "[PAD]": 8193}')
    (folder / "special_tokens_map.json").write_text('{"pad_token": {"content": "[PAD]"}}')


def test_added_tokens_of_older_files_are_read(tmp_path):
    older_files(tmp_path)
    ours = read_tokenizer(tmp_path, ROWS)
    theirs = transformers.AutoTokenizer.from_pretrained(TINY)
    theirs.add_tokens(["filmq"])
    for text in reviews()[:200]:
        text = text.replace("film", "filmq")
        assert ours.encode(text) == theirs(text)["input_ids"]
    assert ours.special["[PAD]"] == 8193
    listed = {"8192": {"content": "zz", "special": False}}
    config = {"added_tokens_decoder": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_tokenizer(tmp_path, ROWS).encode("zz") == [8192]


def test_special_tokens_in_a_text_are_ordinary_characters(tmp_path):
    trained(["<|endoftext|>"]).save(str(tmp_path / "tokenizer.json"))
    ours = read_tokenizer(tmp_path, ROWS)
    ids = ours.encode("a<|endoftext|>b")
    assert len(ids) > 5
    assert ours.end_of_text not in ids
    assert ours.decode(ids) == "a<|endoftext|>b"
    assert ours.decode([0]) == "<|endoftext|>"
    assert ours.decode([10**6]) == ""


def shuffled_ids(tokenizer):
    """The vocabulary of a tokenizer with ids in an order that has nothing to do with merges."""
    vocab = tokenizer.get_vocab()
    ids = random.Random(0).sample(range(len(vocab)), len(vocab))
    return dict(zip(vocab, ids, strict=True))


def test_ids_need_not_rise_with_the_merges(tmp_path):
    tokenizer = trained([])
    tokenizer.save_model(str(tmp_path))
    (tmp_path / "vocab.json").write_text(json.dumps(shuffled_ids(tokenizer)))
    paths = [str(tmp_path / name) for name in ("vocab.json", "merges.txt")]
    theirs = ByteLevelBPETokenizer(*paths)
    ours = assert_equal_ids(tmp_path, lambda text: theirs.encode(text).ids)
    assert not ours.in_order


def test_a_special_token_may_be_what_a_merge_makes(tmp_path):
    """Then it has the first id, and not that of its merge."""
    trained(["in"]).save_model(str(tmp_path))
    paths = [str(tmp_path / name) for name in ("vocab.json", "merges.txt")]
    theirs = ByteLevelBPETokenizer(*paths)
    texts = odd_texts() + ["in", "within"]
    ours = assert_equal_ids(tmp_path, lambda text: theirs.encode(text).ids, texts)
    assert ours.encode("in") == [0]
    assert not ours.in_order


MERGES = "Ġ t\nh e"
WAYS_OF_LINES = {
    "first line and last end": "#version: 0.2\n{}\n",
    "neither": "{}",
    "no first line": "{}\n",
    "byte order mark": "\ufeff#version: 0.2\n{}\n",
}


@pytest.mark.parametrize("form", WAYS_OF_LINES.values(), ids=WAYS_OF_LINES)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_merges_may_be_written_in_several_ways(tmp_path, form, end):
    text = form.format(MERGES).replace("\n", end)
    (tmp_path / "merges.txt").write_bytes(text.encode())
    ours = read_tokenizer(tmp_path, ROWS)
    assert (ours.encode(" the"), ours.size, ours.end_of_text) == ([256, 257], 259, 258)


def test_a_checkout_with_the_line_ends_of_windows_is_the_same(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "tiny")
    for name in ("merges.txt", "vocab.json", "config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    ours = open_checkpoint(folder)
    bundled = open_checkpoint("tiny")
    assert ours.base.base_sha256 == bundled.base.base_sha256
    for text in odd_texts():
        assert ours.tokenizer.encode(text) == bundled.tokenizer.encode(text)


BROKEN = ["Ġt h e", "justone", "日 本", "Ġ t", "zz qq", "", "#version: 0.2", "Ġ"]


@pytest.mark.parametrize("line", BROKEN)
@pytest.mark.parametrize("first", ["", "#version: 0.2\n"])
def test_a_broken_merge_is_named_by_line(tmp_path, line, first):
    text = f"{first}Ġ t\n{line}\nh e\n"
    (tmp_path / "merges.txt").write_text(text, encoding="utf-8")
    number = 3 if first else 2
    with pytest.raises(ValueError, match=f"merges.txt, line {number}: .*no two known tokens"):
        read_tokenizer(tmp_path, ROWS)


def test_a_broken_merge_of_tokenizer_json_is_named_by_number(tmp_path):
    trained([]).save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    whole["model"]["merges"][4] = ["zz", "qq"]
    path.write_text(json.dumps(whole))
    with pytest.raises(ValueError, match="tokenizer.json, merge 5: 'zz qq' merges no two known"):
        read_tokenizer(tmp_path, ROWS)


def random_merges(draw):
    """Merges of few letters in any order: some are as a trainer makes them, most are not quite."""
    tokens = list("abc")
    merges = []
    for _ in range(draw.randint(2, 40)):
        left = draw.choice(tokens)
        right = draw.choice(tokens)
        if left + right not in tokens and len(merges) < 9:
            merges.append((left, right))
            tokens.append(left + right)
    return merges


def test_an_order_of_merges_that_we_would_read_otherwise_is_refused(tmp_path):
    """tiktoken knows no pairs: against Hugging Face's BPE, 600 orders, 40 texts each."""
    draw = random.Random(0)
    refused = 0
    for _ in range(600):
        merges = random_merges(draw)
        text = "".join(f"{left} {right}\n" for left, right in merges)
        (tmp_path / "merges.txt").write_text(text)
        try:
            ours = read_tokenizer(tmp_path, ROWS)
        except ValueError as error:
            assert "can never be reached, because an earlier merge" in str(error)
            refused += 1
            continue
        vocab = {character: number for number, character in enumerate(BYTE_OF)}
        for left, right in merges:
            vocab[left + right] = len(vocab)
        theirs = Tokenizer(models.BPE(vocab=vocab, merges=merges))
        for _ in range(40):
            text = "".join(draw.choices("abc", k=draw.randint(1, 25)))
            assert ours.encode(text) == theirs.encode(text).ids, (merges, text)
    assert 100 < refused < 400


def test_of_equal_letters_the_first_two_are_joined(tmp_path):
    """So a, then aa, never stand side by side, but aa, then a, do."""
    (tmp_path / "merges.txt").write_text("a a\naa a\n")
    assert read_tokenizer(tmp_path, ROWS).encode("aaaaa") == [256, 257]
    (tmp_path / "merges.txt").write_text("a a\na aa\n")
    with pytest.raises(ValueError, match="merges.txt, line 2: 'a aa' can never be reached"):
        read_tokenizer(tmp_path, ROWS)


# ---- what tokenizes otherwise ---------------------------------------------------------------


def odd_pipeline(name):
    """(a trained tokenizer with one rule that is another than GPT-2's, words of the refusal)"""
    tokenizer = trained([])._tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = name
    if name == "Lowercase":
        tokenizer.normalizer = normalizers.Lowercase()
    elif name == "NFC":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC()])
    elif name == "Whitespace":
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    elif name == "Sequence":
        steps = [pre_tokenizers.Digits(individual_digits=True), byte_level]
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    elif name == "add_prefix_space":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif name == "use_regex":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    elif name == "pre-tokenizer that is missing":
        tokenizer.pre_tokenizer = None
    elif name == "TemplateProcessing":
        how = {"single": "<s> $A", "special_tokens": [("<s>", 0)]}
        tokenizer.post_processor = processors.TemplateProcessing(**how)
    elif name == "RobertaProcessing":
        tokenizer.post_processor = processors.RobertaProcessing(("<s>", 0), ("</s>", 1))
    else:
        setattr(tokenizer.model, name, {"dropout": 0.5}.get(name, True))
    return tokenizer, words


RULES = [
    "Lowercase",
    "NFC",
    "Whitespace",
    "Sequence",
    "add_prefix_space",
    "use_regex",
    "pre-tokenizer that is missing",
    "TemplateProcessing",
    "RobertaProcessing",
    "dropout",
    "byte_fallback",
    "ignore_merges",
]


@pytest.mark.parametrize("name", RULES)
def test_another_rule_of_tokenizing_is_refused_by_its_name(tmp_path, name):
    tokenizer, words = odd_pipeline(name)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    said = "tokenizer.json .*it tokenizes otherwise than GPT-2, which is not implemented: "
    with pytest.raises(ValueError, match=f"{said}.*{words}"):
        read_tokenizer(tmp_path, ROWS)


@pytest.mark.parametrize("model", [models.WordPiece({"a": 0}), models.Unigram([("a", 0.0)])])
def test_another_kind_of_tokenizer_is_refused_by_its_name(tmp_path, model):
    Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="a model of type '(WordPiece|Unigram)'|no tokenizer.json"):
        read_tokenizer(tmp_path, ROWS)


def test_one_step_in_a_sequence_is_that_step(tmp_path):
    tokenizer = trained([])._tokenizer
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer = normalizers.Sequence([])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([byte_level])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel()])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_equal_ids(tmp_path, by_tokenizers(tmp_path / "tokenizer.json"))


def test_truncation_and_padding_of_whoever_saved_last_do_not_matter(tmp_path):
    tokenizer = trained([])._tokenizer
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=30)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert_equal_ids(tmp_path, lambda text: trained_plain.encode(text).ids)


trained_plain = trained([])


@pytest.mark.parametrize("flag", ["add_prefix_space", "add_bos_token", "add_eos_token"])
def test_tokenizer_config_may_ask_for_more(copy, flag):
    (copy / "tokenizer_config.json").write_text(json.dumps({flag: False}))
    open_checkpoint(copy)
    (copy / "tokenizer_config.json").write_text(json.dumps({flag: True}))
    with pytest.raises(
        ValueError, match=f"tokenizer_config.json says {flag}: .*otherwise than GPT-2"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("way", ["lstrip", "rstrip", "single_word"])
def test_added_tokens_that_take_in_more_are_refused(tmp_path, way):
    older_files(tmp_path)
    listed = {"8192": {"content": "zz", "special": False, way: True}}
    config = {"added_tokens_decoder": listed}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'zz' takes in what stands around it"):
        read_tokenizer(tmp_path, ROWS)


def test_two_files_that_disagree_are_refused(tmp_path):
    trained([]).save_model(str(tmp_path))
    trained(["<s>"]).save(str(tmp_path / "tokenizer.json"))
    said = r"merges.txt \(with vocab.json\) and .*tokenizer.json say different merges or ids; keep"
    with pytest.raises(ValueError, match=said):
        read_tokenizer(tmp_path, ROWS)


def test_ids_that_disagree_are_refused_where_merges_are_equal(tmp_path):
    trained([], 400).save_model(str(tmp_path))
    trained(["<s>"], 401).save(str(tmp_path / "tokenizer.json"))
    whole = json.loads((tmp_path / "tokenizer.json").read_text())
    lines = (tmp_path / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    assert [" ".join(pair) for pair in whole["model"]["merges"]] == lines
    with pytest.raises(ValueError, match="say different merges or ids"):
        read_tokenizer(tmp_path, ROWS)


def test_merges_that_disagree_are_refused_too(tmp_path):
    trained([], 300).save_model(str(tmp_path))
    (tmp_path / "vocab.json").unlink()
    trained([], 310).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="say different merges or ids"):
        read_tokenizer(tmp_path, ROWS)


def test_merges_beside_tokenizer_json_take_their_ids_from_there(tmp_path):
    tokenizer = trained(FIVE)
    tokenizer.save_model(str(tmp_path))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.json").unlink()
    assert_equal_ids(tmp_path, lambda text: tokenizer.encode(text).ids)


def test_merges_alone_are_refused_where_config_json_contradicts_their_order(copy):
    for allowed in (299, 50256, None, -1, True):
        edit_json(copy / "config.json", eos_token_id=allowed)
        open_checkpoint(copy)
    edit_json(copy / "config.json", eos_token_id=0)
    said = r"merges.txt alone does not say the ids: .* is 299, by config.json \(eos_token_id\) 0"
    with pytest.raises(ValueError, match=f"{said}; put vocab.json or tokenizer.json beside it"):
        open_checkpoint(copy)


VOCABS = [
    ({"!": 5}, "two tokens have one id"),
    ({"!": True}, "'!' has the id True"),
    ({"!": 1.0}, "'!' has the id 1.0"),
    ({"!": -1}, "'!' has the id -1"),
    ({"!": 2**24}, "'!' has the id 16777216"),
    ({"!": "0"}, "'!' has the id '0'"),
    ({"!": None}, "vocab.json has no id for '!', a token of merges.txt"),
    ({"Ġa": None}, "vocab.json has no id for 'Ġa', a token of merges.txt"),
    ({"!": 8192}, "vocab.json has the token id 8192, but config.json has 8192 tokens"),
    ({"<|endoftext|>": 8192}, "vocab.json has the token id 8192, but config.json has 8192"),
]


@pytest.mark.parametrize("more,named", VOCABS)
def test_a_vocab_json_that_is_none_is_refused(tmp_path, more, named):
    for name in ("merges.txt", "vocab.json"):
        shutil.copy(TINY / name, tmp_path)
    edit_json(tmp_path / "vocab.json", **more)
    with pytest.raises(ValueError) as caught:
        read_tokenizer(tmp_path, 8192)
    assert named in str(caught.value)
    assert str(tmp_path / "vocab.json") in str(caught.value)


def test_more_tokens_than_the_model_has_are_refused(copy):
    edit_json(copy / "config.json", vocab_size=299)
    with pytest.raises(ValueError, match="merges.txt makes 300 tokens, but config.json has 299"):
        open_checkpoint(copy)


def test_a_table_may_have_rows_that_are_no_tokens(plain, copy):
    table = torch.cat([plain[2]["wte.weight"], torch.ones(4, 10)])
    store(copy, plain[2] | {"wte.weight": table})
    edit_json(copy / "config.json", vocab_size=304)
    assert open_checkpoint(copy).tokenizer.size == 300
    assert open_checkpoint(copy).load().wte.weight.shape == (304, 10)


def test_a_folder_without_a_tokenizer_says_so(copy):
    (copy / "merges.txt").unlink()
    with pytest.raises(OSError, match="has neither merges.txt nor tokenizer.json, which say its"):
        open_checkpoint(copy)
    shutil.copy(TINY / "vocab.json", copy)
    with pytest.raises(OSError, match="vocab.json alone is not enough"):
        open_checkpoint(copy)


# ---- what cannot be read is called by its name ----------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
STAND_INS = {
    "pointer": (POINTER, "is a pointer of Git LFS, not the file itself; run `git lfs pull`"),
    "page": (b"\n<!DOCTYPE html><html>", "is a web page, not the file itself; download the file"),
    "other page": (b"<html lang=en>", "is a web page, not the file itself; download the file"),
    "nothing": (b"", "is empty; fetch it again"),
}
PLACES = ["model.safetensors", "merges.txt", "config.json", "vocab.json", "tokenizer.json"]
PLACES += ["model.safetensors.index.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("kind", STAND_INS)
def test_what_lies_in_place_of_a_file_is_called_by_its_name(copy, kind, name):
    content, said = STAND_INS[kind]
    if name == "model.safetensors.index.json":
        (copy / "model.safetensors").unlink()
    (copy / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_checkpoint(copy)
    assert f"{copy / name} {said}" in str(caught.value)


def test_a_shard_that_is_a_pointer_is_named(plain, copy):
    write_shards(copy, plain[2])
    (copy / "model-00002-of-00005.safetensors").write_bytes(POINTER)
    with pytest.raises(
        ValueError, match="model-00002-of-00005.safetensors is a pointer of Git LFS"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.ckpt", "weights.pt", "tf_model.h5"])
def test_weights_in_another_format_are_named_with_the_way_out(copy, name):
    (copy / "model.safetensors").rename(copy / name)
    said = f"has {name} and no model.safetensors, and what may hold code is never opened here; "
    with pytest.raises(OSError, match=f"{said}convert it once, in Python: .*save_pretrained"):
        open_checkpoint(copy)


def test_the_way_to_convert_works(plain, copy, truth, monkeypatch):
    torch.save(transformers.GPT2LMHeadModel.from_pretrained(copy).state_dict(), copy / "x")
    (copy / "x").rename(copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    transformers.AutoTokenizer.from_pretrained(TINY).save_pretrained(copy)
    shutil.copy(plain[0] / "merges.txt", copy)
    for path in copy.glob("tokenizer*.json"):
        path.unlink()
    vocab = read_tokenizer(copy, ROWS)
    spelled = dict(zip(vocab.tokens, vocab.ids, strict=True))
    letters = {byte: character for character, byte in BYTE_OF.items()}
    ids = {"".join(map(letters.get, token)): number for token, number in spelled.items()}
    (copy / "vocab.json").write_text(json.dumps(ids | {"<|endoftext|>": 299}))
    with pytest.raises(OSError) as caught:
        open_checkpoint(copy)
    code = re.search("in Python: (.*); then name the folder converted", str(caught.value))[1]
    monkeypatch.chdir(copy)
    exec(code, {})
    assert_equal_logits(our_logits("converted"), truth)
    converted = open_checkpoint("converted").tokenizer
    for text in odd_texts():
        assert converted.encode(text) == vocab.encode(text)


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\x80\x02\x8a"])
def test_a_pickle_under_another_name_is_never_opened(copy, begin):
    (copy / "model.safetensors").write_bytes(begin + bytes(200))
    with pytest.raises(
        ValueError, match="is PyTorch's pickle under another name, .*convert it once"
    ):
        open_checkpoint(copy)


def test_safetensors_under_another_name_are_named(copy):
    (copy / "model.safetensors").rename(copy / "gpt2.safetensors")
    with pytest.raises(OSError, match="no model.safetensors, but gpt2.safetensors; .*this name"):
        open_checkpoint(copy)


def test_a_link_to_nothing_says_so(copy):
    (copy / "model.safetensors").unlink()
    os.symlink(copy / "gone", copy / "model.safetensors")
    with pytest.raises(OSError, match="model.safetensors is a link to nothing; fetch"):
        open_checkpoint(copy)


def test_links_as_in_the_cache_of_the_hub_are_read(copy, tmp_path, truth):
    (tmp_path / "snapshot").mkdir()
    for path in copy.iterdir():
        os.symlink(path, tmp_path / "snapshot" / path.name)
    assert_equal_logits(our_logits(tmp_path / "snapshot"), truth)


def test_a_folder_without_weights_says_so(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(OSError, match="m has no weights .model.safetensors.; fetch the folder"):
        open_checkpoint(copy)


@pytest.mark.parametrize("lacking", ["config.json", "model.safetensors"])
def test_an_adapter_is_no_model(copy, lacking):
    (copy / "adapter_config.json").write_text("{}")
    open_checkpoint(copy)  # a whole model beside it is one
    (copy / lacking).unlink()
    with pytest.raises(OSError, match="m is an adapter .*merge it into its base model first"):
        open_checkpoint(copy)


NO_FLOATS = [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", NO_FLOATS)
def test_weights_that_are_no_floats_are_named_with_the_way_out(plain, copy, dtype):
    name = "h.0.attn.c_attn.weight"
    store(copy, plain[2] | {name: plain[2][name].to(dtype)})
    said = f"model.safetensors: '{name}' is .*, not floating-point: .*quantized"
    with pytest.raises(ValueError, match=f"{said} .*float32, float16 or bfloat16"):
        open_checkpoint(copy)


BODIES = [
    ("h.0.attn.c_attn.SCB", "quantized are not read; save the model in float32"),
    ("h.0.attn.c_attn.qweight", "quantized are not read; save the model in float32"),
    ("h.0.attn.c_attn.lora_A.default.weight", "belongs to an adapter; merge it into the model"),
    ("h.0.attn.c_attn.base_layer.weight", "belongs to an adapter; merge it into the model"),
    ("h.0.crossattention.c_attn.weight", "has no place in a GPT-2 of these sizes"),
    ("h.3.ln_1.weight", "has no place in a GPT-2 of these sizes"),
    ("h.3.attn.c_attn.bias", "has no place in a GPT-2 of these sizes"),
    ("wte.more", "config.json wants no (other) tensor of this name"),
]


@pytest.mark.parametrize("name,said", BODIES)
@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_what_a_gpt2_has_not_in_its_body_is_named(plain, copy, name, said, prefix):
    tensors = plain[2] | {name: torch.ones(1)}
    store(copy, {prefix + key: tensor for key, tensor in tensors.items()})
    with pytest.raises(ValueError) as caught:
        open_checkpoint(copy)
    assert f"model.safetensors: '{prefix}{name}'" in str(caught.value)
    assert said in str(caught.value)


def test_two_models_in_one_file_are_refused(plain, copy):
    more = {"transformer.wte.weight": torch.ones(300, 10)}
    store(copy, plain[2] | more)
    with pytest.raises(ValueError, match="'transformer.wte.weight' is another wte.weight"):
        open_checkpoint(copy)
    store(copy, plain[2] | {"module.wte.weight": torch.ones(300, 10)})
    with pytest.raises(ValueError, match="wte.weight' is there twice; fetch it again"):
        open_checkpoint(copy)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def test_a_tensor_that_lacks_is_blamed_on_the_folder(plain, copy):
    store(copy, without(plain[2], "h.1.ln_2.bias", "ln_f.weight"))
    with pytest.raises(ValueError, match=r"m lacks h.1.ln_2.bias \(2 in all\): fetch it again"):
        open_checkpoint(copy)


def test_or_on_the_shard_that_should_have_had_it(plain, copy):
    write_shards(copy, plain[2])
    path = copy / "model-00002-of-00005.safetensors"
    tensors = load_file(path)
    name = min(tensors)
    save_file(without(tensors, name), path)
    said = rf"model-00002-of-00005.safetensors lacks {name} \(1 in all\), which .*index.json places"
    with pytest.raises(ValueError, match=said):
        open_checkpoint(copy)


def test_a_shard_that_lacks_is_named(plain, copy):
    write_shards(copy, plain[2])
    (copy / "model-00004-of-00005.safetensors").unlink()
    with pytest.raises(OSError, match="m lacks model-00004-of-00005.safetensors, which model"):
        open_checkpoint(copy)


INDEXES = ["{", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../x"}}', '{"weight_map": [1]}']


@pytest.mark.parametrize("text", INDEXES)
def test_an_index_that_leads_nowhere_is_refused(copy, text):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="model.safetensors.index.json (does not list|is no JSON)"):
        open_checkpoint(copy)


def test_another_shape_is_named(plain, copy):
    tensors = {f"transformer.{name}": tensor for name, tensor in plain[2].items()}
    store(copy, tensors | {"transformer.wpe.weight": torch.ones(9, 10)})
    said = r"'transformer.wpe.weight' is float32 \[9, 10\], but config.json wants \[24, 10\]"
    with pytest.raises(ValueError, match=f"model.safetensors: {said}"):
        open_checkpoint(copy)


def test_a_weight_that_was_transposed_is_named(plain, copy):
    name = "h.1.mlp.c_fc.weight"
    store(copy, plain[2] | {name: plain[2][name].t().contiguous()})
    with pytest.raises(
        ValueError, match=r"is float32 \[40, 10\], but config.json wants \[10, 40\]"
    ):
        open_checkpoint(copy)


@pytest.mark.parametrize("name", ["wte.weight", "h.2.mlp.c_fc.bias", "ln_f.weight"])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_weights_that_are_no_numbers_are_named(plain, copy, name, value):
    spoilt = plain[2][name].clone()
    spoilt.view(-1)[-1] = float(value)
    store(copy, plain[2] | {name: spoilt})
    with pytest.raises(ValueError, match=f"'{name}' holds NaN or infinity; fetch it again"):
        open_checkpoint(copy).load()
    with pytest.raises(ValueError, match=f"'{name}' holds NaN or infinity; fetch it again"):
        assert open_checkpoint(copy).base


def test_half_a_file_is_named(copy):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="model.safetensors is no whole safetensors file"):
        open_checkpoint(copy)


def test_a_pipe_is_no_file_of_weights(copy):
    (copy / "model.safetensors").unlink()
    os.mkfifo(copy / "model.safetensors")
    with pytest.raises(
        ValueError, match="model.safetensors is empty|is a folder, a pipe or a device"
    ):
        open_checkpoint(copy)


# ---- one identity ---------------------------------------------------------------------------


def identity(folder):
    return open_checkpoint(folder).base.base_sha256


def prefixed(folder, weights):
    store(folder, {f"module.transformer.{name}": tensor for name, tensor in weights.items()})


def with_others(folder, weights):
    masks = mask_buffers(sizes())
    store(folder, weights | masks | {"score.weight": torch.ones(2, 10)})


def tied_under_the_other_name(folder, weights):
    tensors = dict(weights)
    tensors["lm_head.weight"] = tensors.pop("wte.weight")
    store(folder, tensors)


def padded_header(folder, weights):
    header, body = parts(folder / "model.safetensors")
    text = json.dumps(header).encode() + b" " * 4096
    (folder / "model.safetensors").write_bytes(assembled(text, body))


def saved_by_transformers(folder, weights):
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
    theirs.save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()


def with_line_ends_of_windows(folder, weights):
    path = folder / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


def with_more_in_config(folder, weights):
    edit_json(folder / "config.json", id2label={"0": "A"}, activation_function="gelu_fast")


def with_tokenizer_json(folder, weights):
    vocab = {character: number for number, character in enumerate(BYTE_OF)}
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    for left, right in merges:
        vocab[left + right] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "merges.txt").unlink()


SAME = [
    write_shards,
    prefixed,
    with_others,
    tied_under_the_other_name,
    padded_header,
    saved_by_transformers,
    with_line_ends_of_windows,
    with_more_in_config,
    with_tokenizer_json,
]


@pytest.mark.parametrize("change_it", SAME)
def test_the_same_model_in_other_files_is_the_same_model(plain, copy, change_it):
    change_it(copy, plain[2])
    assert identity(copy) == identity(plain[0])
    assert open_checkpoint(copy).accepts(identity(plain[0]))


def in_another_dtype(folder, weights):
    store(folder, {name: tensor.half() for name, tensor in weights.items()})


def one_bit(folder, weights):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def two_biases_exchanged(folder, weights):
    names = ["h.0.ln_1.bias", "h.0.ln_2.bias"]
    store(folder, weights | {names[0]: weights[names[1]], names[1]: weights[names[0]]})


def other_merges(folder, weights):
    path = folder / "merges.txt"
    lines = path.read_text(encoding="utf-8").split("\n")
    lines[-2] = "x q"
    path.write_text("\n".join(lines), encoding="utf-8")


def other_ids(folder, weights):
    with_tokenizer_json(folder, weights)
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    vocab = whole["model"]["vocab"]
    vocab["!"], vocab['"'] = vocab['"'], vocab["!"]
    path.write_text(json.dumps(whole))


def an_added_token(folder, weights):
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (folder / name).write_text("{}")
    vocab = {character: number for number, character in enumerate(BYTE_OF)}
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    for line in lines:
        vocab[line.replace(" ", "")] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "added_tokens.json").write_text('{"film": 299}')


def other_eps(folder, weights):
    edit_json(folder / "config.json", layer_norm_epsilon=1e-5)


def other_heads(folder, weights):
    edit_json(folder / "config.json", n_head=5)


OTHERS = [
    in_another_dtype,
    one_bit,
    two_biases_exchanged,
    other_merges,
    other_ids,
    an_added_token,
    other_eps,
    other_heads,
]


@pytest.mark.parametrize("change_it", OTHERS)
def test_another_model_is_another(plain, copy, change_it):
    change_it(copy, plain[2])
    assert identity(copy) != identity(plain[0])
    assert not open_checkpoint(copy).accepts(identity(plain[0]))


def test_equal_bytes_of_another_dtype_are_another_model(plain, copy):
    in_another_dtype(copy, plain[2])
    before = identity(copy)
    header, body = parts(copy / "model.safetensors")
    text = json.dumps(header).replace('"F16"', '"BF16"').encode()
    (copy / "model.safetensors").write_bytes(assembled(text, body))
    assert identity(copy) != before


def former_hash(folder):
    """What older prompts say of their base model, written anew."""
    config = json.loads((folder / "config.json").read_text())
    names = ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "layer_norm_epsilon"]
    shards = sorted(folder.glob("model*.safetensors"))
    weights = hashlib.sha256(b"".join(path.read_bytes() for path in shards)).hexdigest()
    merges = hashlib.sha256((folder / "merges.txt").read_bytes()).hexdigest()
    config = json.dumps({name: config[name] for name in names}, sort_keys=True)
    return hashlib.sha256("\n".join([weights, merges, config]).encode()).hexdigest()


def test_stamps_of_older_prompts_are_accepted_on_their_files(plain, copy):
    former = former_hash(copy)
    assert open_checkpoint(copy).accepts(former)
    one_bit(copy, plain[2])
    assert not open_checkpoint(copy).accepts(former)
    write_shards(copy, plain[2])
    assert not open_checkpoint(copy).accepts(former)
    assert open_checkpoint(copy).accepts(former_hash(copy))


def test_the_stamp_of_the_bundled_prompts_is_accepted():
    stamp = "2d3d18ace17aa4e1271014c7a5d6eb3e2af13cce6764f6910a57fc3b47c8d21a"
    assert open_checkpoint("tiny").accepts(stamp)
    assert not open_checkpoint("tiny").accepts("0" * 64)


def test_older_stamps_are_not_accepted_where_ids_were_misread(plain, copy):
    """Formerly ids came from the order of merges, whatever vocab.json said."""
    ids = {character: number + 1 for number, character in enumerate(BYTE_OF)}
    lines = (copy / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
    for line in lines:
        ids[line.replace(" ", "")] = len(ids) + 1
    (copy / "vocab.json").write_text(json.dumps(ids | {"<|endoftext|>": 0}))
    opened = open_checkpoint(copy)
    assert opened.tokenizer.end_of_text == 0
    assert not opened.accepts(former_hash(copy))


def test_a_base_says_name_commit_and_hash(copy):
    (copy / "revision").write_text("2" * 40)
    base = open_checkpoint(copy).base
    assert base.base_model == str(copy)
    assert base.base_revision == "2" * 40
    assert re.fullmatch("[0-9a-f]{64}", base.base_sha256)
    assert open_checkpoint("tiny").base.base_model == "tiny"
    assert open_checkpoint("tiny").base.base_revision == ""


def test_files_are_read_once_in_a_process(copy, monkeypatch):
    read_tensors = []
    each_tensor = Checkpoint.each_tensor

    def counted(self):
        read_tensors.append(self.folder)
        return each_tensor(self)

    monkeypatch.setattr(Checkpoint, "each_tensor", counted)
    opened = open_checkpoint(copy)
    opened.load()
    first = opened.base
    assert open_checkpoint(copy).base == first
    assert len(read_tensors) == 1
    one_bit(copy, None)
    assert open_checkpoint(copy).base != first
    assert len(read_tensors) == 2


def test_a_load_hashes_the_same_as_a_look(plain, copy):
    opened = open_checkpoint(copy)
    opened.load(torch.bfloat16)
    assert opened.base.base_sha256 == identity(plain[0])


def test_the_hash_is_of_what_was_loaded(copy):
    """Files that change afterwards do not change what was read."""
    opened = open_checkpoint(copy)
    opened.load()
    one_bit(copy, None)
    before = opened.base.base_sha256
    assert identity(copy) != before


def test_changed_files_are_noticed(plain, copy):
    opened = open_checkpoint(copy)
    opened.load()
    opened.refuse_changes()
    shutil.copy(copy / "merges.txt", copy / "x")
    os.replace(copy / "x", copy / "merges.txt")
    opened.refuse_changes()  # another file of the same content
    prefixed(copy, plain[2])
    opened.refuse_changes()  # the same model in other bytes
    one_bit(copy, plain[2])
    with pytest.raises(ValueError, match="m holds another model than when this began"):
        opened.refuse_changes()


# ---- names ----------------------------------------------------------------------------------


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A checkout that has nothing in weights/, no network, and an empty working folder."""
    redirect(monkeypatch, tmp_path / "root", models=NOWHERE)
    warn_once.cache_clear()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_known_words_stay_and_folders_become_whole_paths(elsewhere, plain):
    shutil.copytree(plain[0], "m")
    assert [resolve(name) for name in (BUNDLED, *OFFICIAL)] == [BUNDLED, *OFFICIAL]
    assert resolve("m") == resolve("./m") == resolve("m/") == str(elsewhere / "m")
    assert resolve(elsewhere / "m") == str(elsewhere / "m")
    assert resolve("someone/small") == "someone/small"


@pytest.mark.parametrize("name", ["gpt2", "tiny"])
def test_a_known_word_never_means_a_folder_here(elsewhere, plain, capsys, name):
    shutil.copytree(plain[0], name)
    assert resolve(name) == name
    said = f"warning: {name} means the known model, not the folder here; for that write ./{name}\n"
    assert capsys.readouterr().err == said
    assert resolve(f"./{name}") == str(elsewhere / name)
    shutil.copytree(plain[0], elsewhere.parent / "root" / "weights" / name)
    assert open_checkpoint(name).folder == elsewhere.parent / "root" / "weights" / name
    assert open_checkpoint(f"./{name}").folder == elsewhere / name


def test_the_path_of_a_known_model_is_that_model(monkeypatch):
    monkeypatch.chdir(ROOT)
    for path in ("weights/tiny", "weights/tiny/", TINY, os.path.relpath(TINY)):
        assert resolve(path) == "tiny"
    monkeypatch.chdir(ROOT / "weights")
    assert resolve("tiny") == resolve("tiny/") == resolve("./tiny") == "tiny"


def test_what_lies_in_weights_has_its_name_there(elsewhere, plain):
    weights = elsewhere.parent / "root" / "weights"
    for name in ("mine", "someone/small"):
        shutil.copytree(plain[0], weights / name)
        assert resolve(name) == name
        assert open_checkpoint(name, asked=False).folder == weights / name
    shutil.copytree(plain[0], "mine")
    assert resolve("mine") == str(elsewhere / "mine")
    assert open_checkpoint("mine").folder == elsewhere / "mine"


NO_MODELS = ["nothing", "../etc", "/no/where", "/nowhere", "a/b/c", "", ".", "./x", "../x"]
NO_MODELS += ["weights", "x/..", "x/../..", "x/.", "x/y\0", f"x/{'y' * 300}", "~/m", "a\\b"]


@pytest.mark.parametrize("name", NO_MODELS)
@pytest.mark.parametrize("asked", [True, False])
def test_what_is_no_model_is_refused_before_any_network(elsewhere, name, asked):
    """None leads out of the folder, and nothing is made."""
    (elsewhere / "weights").mkdir()
    ways = [
        "there is no model .*: name a folder, a hub id, or tiny, gpt2, ",
        "there is no model .*: say by --model where it lies, or tiny, gpt2, ",
        "without config.json",
        "could not fetch [x~]/.*Repo id",
    ]
    with pytest.raises(OSError, match="|".join(ways)) as caught:
        open_checkpoint(name, asked)
    assert len(str(caught.value).splitlines()) == 1
    assert [path.name for path in elsewhere.parent.rglob("*")] in (
        ["here", "weights"],
        ["here", "root", "weights"],
    )


def test_a_file_in_place_of_its_folder_is_told_so(copy):
    with pytest.raises(OSError, match="config.json is no folder; name the folder in which"):
        open_checkpoint(copy / "config.json")


def test_a_folder_with_a_checkpoint_in_it_points_there(copy):
    with pytest.raises(
        OSError, match="is a folder without config.json, .*; in it lies m: name that"
    ):
        open_checkpoint(copy.parent)


def test_no_file_starts_a_download_but_of_official_models(elsewhere):
    for name in ("someone/small", "openai-community/gpt2", "a/b "):
        with pytest.raises(OSError, match="there is no model .*: say by --model where it lies"):
            open_checkpoint(name, asked=False)
    with pytest.raises(OSError, match="could not fetch openai-community/gpt2"):
        open_checkpoint("gpt2", asked=False)


# ---- downloads ------------------------------------------------------------------------------

UNWANTED = {"pytorch_model.bin": b"no pickle", "README.md": b"#", "onnx/config.json": b"{}"}


def content_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(plain):
    """The files of a checkpoint, as bytes."""
    return content_of(plain[0])


@pytest.fixture
def sharded(plain, copy):
    """The same in shards."""
    write_shards(copy, plain[2])
    return content_of(copy)


@pytest.fixture
def by_trainer(plain, copy):
    """The same with the tokenizer of transformers 5."""
    with_tokenizer_json(copy, plain[2])
    (copy / "tokenizer_config.json").write_text("{}")
    return content_of(copy)


ASKED = ["gpt2", "someone/small-gpt2", "someone/large-gpt2", "someone/new-gpt2"]


@pytest.mark.parametrize("name", ASKED)
def test_checkpoints_come_from_the_hub_whole_and_once(
    elsewhere, monkeypatch, name, whole, sharded, by_trainer
):
    """At the pinned revision, from which the branch has gone on; or else at the branch's own."""
    wanted = {"someone/large-gpt2": sharded, "someone/new-gpt2": by_trainer}.get(name, whole)
    repo, revision = OFFICIAL.get(name, (name, "2" * 40))
    others = dict.fromkeys(wanted, b"of another revision")
    branch = "3" * 40 if name == "gpt2" else revision
    offered = hub(repo, {revision: wanted | UNWANTED, "3" * 40: others}, branch)
    root = elsewhere.parent / "root"
    with serve(offered) as (address, asked):
        redirect(monkeypatch, root, models=address)
        opened = open_checkpoint(name)
        before = len(asked)
        assert open_checkpoint(name).base == opened.base
        assert len(asked) == before
    assert opened.folder == root / "weights" / name
    assert opened.name == name
    assert opened.base.base_revision == revision
    assert content_of(opened.folder) == wanted | {"revision": revision.encode()}
    assert not any(unwanted in path for path in asked for unwanted in UNWANTED)
    assert [path.name for path in opened.folder.parent.iterdir()] == [name.split("/")[-1]]


def test_a_fetch_that_was_cut_off_goes_on_from_there(elsewhere, monkeypatch, whole):
    """What came whole is not fetched again, and no folder has the name before all has come."""
    repo, revision = OFFICIAL["gpt2"]
    weights = f"/{repo}/resolve/{revision}/model.safetensors"
    cut = [weights]
    root = elsewhere.parent / "root"
    with serve(hub(repo, {revision: whole}, revision), cut) as (address, asked):
        redirect(monkeypatch, root, models=address)
        said = f"could not fetch {repo} .*: check the network and run again, it resumes"
        with pytest.raises(OSError, match=said):
            open_checkpoint("gpt2")
        assert not (root / "weights/gpt2").exists()
        cut.clear()
        asked.clear()
        found = content_of(open_checkpoint("gpt2").folder)
    assert found == whole | {"revision": revision.encode()}
    files = [line.split(" from ")[0] for line in asked if line.startswith(f"GET /{repo}")]
    assert files == [f"GET {weights}"]
    assert [path.name for path in (root / "weights").iterdir()] == ["gpt2"]


def test_folders_of_others_are_left_alone(elsewhere, monkeypatch, whole):
    """Whatever lies where a download in part would lie; and one of ours for another commit."""
    repo, revision = OFFICIAL["gpt2"]
    weights = elsewhere.parent / "root" / "weights"
    for name, mark in (("gpt2.part", None), ("gpt2.part.2", f"{repo} {'3' * 40}\n")):
        (weights / name).mkdir(parents=True)
        (weights / name / "config.json").write_text("mine")
        if mark:
            (weights / name / ".prompt-training").write_text(mark)
    os.symlink(weights / "gpt2.part", weights / "gpt2.part.3")
    with serve(hub(repo, {revision: whole}, revision)) as (address, _):
        redirect(monkeypatch, weights.parent, models=address)
        open_checkpoint("gpt2")
    for name in ("gpt2.part", "gpt2.part.2"):
        assert (weights / name / "config.json").read_text() == "mine"
    names = sorted(path.name for path in weights.iterdir())
    assert names == ["gpt2", "gpt2.part", "gpt2.part.2", "gpt2.part.3"]


def test_a_folder_of_the_same_name_is_not_replaced(elsewhere, monkeypatch, whole):
    repo, revision = OFFICIAL["gpt2"]
    folder = elsewhere.parent / "root" / "weights" / "gpt2"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("mine")
    with serve(hub(repo, {revision: whole}, revision)) as (address, _):
        redirect(monkeypatch, elsewhere.parent / "root", models=address)
        with pytest.raises(OSError, match="has come whole, but .*gpt2 is there already; move"):
            open_checkpoint("gpt2")
    assert content_of(folder) == {"mine": b"mine"}


@pytest.mark.parametrize("answer", ["no network", "not there"])
def test_a_failed_fetch_names_the_way_out(elsewhere, monkeypatch, whole, answer):
    repo, revision = OFFICIAL["gpt2"]
    with serve({}) as (address, _):
        models_at = NOWHERE if answer == "no network" else address
        redirect(monkeypatch, elsewhere.parent / "root", models=models_at)
        with pytest.raises(OSError) as caught:
            open_checkpoint("gpt2")
    folder = re.escape(str(elsewhere.parent / "root"))
    wayout = rf"could not fetch {repo} \(.+\): check the network and run again, .*"
    wayout += "HF_HUB_DISABLE_XET=1.* put config.json, model.safetensors, and tokenizer.json or "
    wayout += f"merges.txt and vocab.json, of https://huggingface.co/{repo} into {folder}.weights"
    assert re.fullmatch(wayout + ".gpt2", str(caught.value))
    assert not (elsewhere.parent / "root/weights/gpt2").exists()


LACKING = {
    "config.json": "on the hub has no config.json, so it is no GPT-2",
    "merges.txt": "on the hub has no merges.txt and no tokenizer.json, so it is no GPT-2",
    "model.safetensors": "on the hub has no model.safetensors but pytorch_model.bin, .*convert it",
}


@pytest.mark.parametrize("name", LACKING)
def test_a_repository_that_is_not_whole_is_refused_before_it_is_fetched(
    elsewhere, monkeypatch, whole, name
):
    offered = {file: data for file, data in (whole | UNWANTED).items() if file != name}
    with serve(hub("someone/gpt", {"2" * 40: offered}, "2" * 40)) as (address, asked):
        redirect(monkeypatch, elsewhere.parent / "root", models=address)
        with pytest.raises(OSError, match=f"someone/gpt {LACKING[name]}"):
            open_checkpoint("someone/gpt")
    assert not any("resolve" in line for line in asked)
    assert not (elsewhere.parent / "root").exists()


def test_an_adapter_on_the_hub_is_no_model(elsewhere, monkeypatch):
    offered = {"adapter_config.json": b"{}", "adapter_model.safetensors": b""}
    with serve(hub("someone/lora", {"2" * 40: offered}, "2" * 40)) as (address, _):
        redirect(monkeypatch, elsewhere.parent / "root", models=address)
        with pytest.raises(OSError, match="someone/lora is an adapter .*merge it into its base"):
            open_checkpoint("someone/lora")


def test_the_weights_of_another_kind_of_model_are_not_fetched(elsewhere, monkeypatch, whole):
    offered = whole | {"config.json": b'{"model_type": "llama"}'}
    with serve(hub("someone/llama", {"2" * 40: offered}, "2" * 40)) as (address, asked):
        redirect(monkeypatch, elsewhere.parent / "root", models=address)
        with pytest.raises(ValueError, match="another kind of model: model_type 'llama'"):
            open_checkpoint("someone/llama")
    assert not any("model.safetensors" in line for line in asked)
    assert not (elsewhere.parent / "root/weights/someone/llama").exists()


SPOILT = {
    "model-00003-of-00005.safetensors": (None, "lacks model-00003-of-00005.safetensors"),
    "model-00002-of-00005.safetensors": (POINTER, "is a pointer of Git LFS"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_shards_that_did_not_come_are_not_kept_as_if_whole(elsewhere, monkeypatch, sharded, name):
    data, said = SPOILT[name]
    offered = {file: content for file, content in sharded.items() if file != name}
    if data:
        offered[name] = data
    with serve(hub("someone/gpt", {"2" * 40: offered}, "2" * 40)) as (address, _):
        redirect(monkeypatch, elsewhere.parent / "root", models=address)
        for _ in range(2):
            with pytest.raises((OSError, ValueError), match=said):
                open_checkpoint("someone/gpt")
    assert not (elsewhere.parent / "root/weights/someone/gpt").exists()


# ---- hostile files --------------------------------------------------------------------------

MEMORY = 64 * 2**20  # bytes that a test may need above what the process had before it
CONFIG = sizes(C=4, H=2, L=1, V=300, n_positions=8)
WEIGHTS = random_weights(CONFIG)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small checkpoint.  It is loaded once, so that the memory of libraries is not counted."""
    folder = write_checkpoint(tmp_path_factory.mktemp("hostile") / "good", CONFIG, WEIGHTS)
    open_checkpoint(folder).load()
    cases(1, text=st.text())(lambda text: None)()  # hypothesis builds a table of all characters
    return folder


@pytest.fixture(scope="module")
def bad(good):
    """A copy of it, to spoil again and again."""
    return shutil.copytree(good, good.with_name("bad"))


@pytest.fixture
def bounded(request, good):
    """A test may need no more than MEMORY, nor run fewer cases than it says."""
    peak()
    before = peak()
    yield
    assert peak() - before < MEMORY
    test = request.function
    assert getattr(test, "ran", 0) >= getattr(test, "asked", 0)


def restored(bad, good):
    """The folder to spoil, with every file as it was."""
    for path in bad.iterdir():
        path.unlink()
    for path in good.iterdir():
        (bad / path.name).write_bytes(path.read_bytes())
    return bad


def load(folder):
    return open_checkpoint(folder).load()


def check_config(path):
    """An accepted config.json is all right by a strict reading, and its sizes alone are taken."""
    config = read(config_of, path, naming="config.json")
    if config is None:
        return None
    given = json.loads(path.read_bytes())
    for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
        assert type(given[name]) is int
        assert 0 < given[name] < 2**24
        assert getattr(config, name) == given[name]
    assert config.n_layer < 100
    assert config.n_embd % config.n_head == 0
    assert 0 < config.layer_norm_epsilon < 1
    assert given.get("model_type", "gpt2") == "gpt2"
    assert "gelu_" in given.get("activation_function", "gelu_new")
    assert given.get("n_inner") in (None, 4 * config.n_embd)
    assert given.get("scale_attn_weights", True) is True
    for key in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn"):
        assert not given.get(key)
    assert not given.get("add_cross_attention")
    return config


@pytest.mark.usefixtures("bounded")
@cases(150, edits=EDITS)
def test_config_bytes(good, bad, edits):
    path = restored(bad, good) / "config.json"
    path.write_bytes(mutate(json.dumps(CONFIG, indent=2).encode(), edits))
    check_config(path)


KEYS = [*CONFIG, "n_inner", "scale_attn_weights", "add_cross_attention", "eos_token_id"]
KEYS += ["hidden_size", "quantization_config", "tie_word_embeddings"]


@pytest.mark.usefixtures("bounded")
@cases(250, key=st.sampled_from(KEYS), odd=ODD)
def test_config_values(good, bad, key, odd):
    """Sizes that are accepted cost nothing before the weights are seen to be others."""
    path = restored(bad, good) / "config.json"
    path.write_bytes(spliced(CONFIG, key, odd))
    config = check_config(path)
    gpt2 = read(load, bad, naming=str(bad))
    if gpt2:
        assert gpt2.config == config
        accepted = (config.vocab_size, config.n_positions, config.n_embd, config.n_layer)
        assert accepted == (300, 8, 4, 1)


TEXTS = ["the film is good, isn't it?", "  a\t\tb\r\n\0", "日本 naïve 🙂 'S", "<|endoftext|>"]


def tokenizer_of(folder):
    return read_tokenizer(folder, 300)


def check_tokenizer(tokenizer, text):
    for each in [*TEXTS, text]:
        ids = tokenizer.encode(each)
        assert tokenizer.decode(ids) == each
        assert all(0 <= number < tokenizer.size for number in ids)
        assert tokenizer.end_of_text not in ids


@pytest.mark.usefixtures("bounded")
@cases(200, edits=EDITS, text=st.text(max_size=20))
def test_merges(good, bad, edits, text):
    """Any merges.txt that is read makes each text into known ids that tell it again."""
    path = restored(bad, good) / "merges.txt"
    path.write_bytes(mutate((good / "merges.txt").read_bytes(), edits))
    tokenizer = read(tokenizer_of, bad, naming="merges.txt")
    if tokenizer:
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        assert 256 < tokenizer.size <= 257 + len(lines)
        assert tokenizer.end_of_text == tokenizer.size - 1
        check_tokenizer(tokenizer, text)


@pytest.fixture(scope="module")
def good_json(good, tmp_path_factory):
    """The tokenizer of the small checkpoint as a tokenizer.json with an added token."""
    folder = shutil.copytree(good, tmp_path_factory.mktemp("json") / "m")
    with_tokenizer_json(folder, None)
    return json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.usefixtures("bounded")
@cases(150, edits=EDITS, text=st.text(max_size=20))
def test_tokenizer_json_bytes(good, bad, good_json, edits, text):
    path = restored(bad, good) / "tokenizer.json"
    (bad / "merges.txt").unlink()
    path.write_bytes(mutate(json.dumps(good_json, ensure_ascii=False).encode(), edits))
    tokenizer = read(tokenizer_of, bad, naming="tokenizer.json")
    if tokenizer and not tokenizer.added:
        check_tokenizer(tokenizer, text)


JSON_KEYS = ["added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model"]


@pytest.mark.usefixtures("bounded")
@cases(150, key=st.sampled_from(JSON_KEYS), odd=ODD, inner=st.booleans())
def test_tokenizer_json_values(good, bad, good_json, key, odd, inner):
    path = restored(bad, good) / "tokenizer.json"
    (bad / "merges.txt").unlink()
    if inner:
        key = {"normalizer": "vocab", "pre_tokenizer": "merges"}.get(key, "type")
        model = spliced(good_json["model"], key, odd).decode("utf-8", "surrogatepass")
        path.write_bytes(spliced(good_json, "model", model))
    else:
        path.write_bytes(spliced(good_json, key, odd))
    tokenizer = read(tokenizer_of, bad, naming="tokenizer.json")
    if tokenizer:
        check_tokenizer(tokenizer, "a")


@pytest.mark.usefixtures("bounded")
@cases(100, edits=EDITS)
def test_vocab_json_bytes(good, bad, good_json, edits):
    path = restored(bad, good) / "vocab.json"
    text = json.dumps(good_json["model"]["vocab"], ensure_ascii=False)
    path.write_bytes(mutate(text.encode(), edits))
    tokenizer = read(tokenizer_of, bad, naming="vocab.json")
    if tokenizer:
        check_tokenizer(tokenizer, "a")


@pytest.mark.parametrize("space", [" ", "\n", "\u3000", "a"])
def test_the_longest_texts_are_tokenized(good, space):
    """On a million spaces in a row the tokenizer's library panics; `clean` lets none through."""
    tokenizer = read_tokenizer(good, ROWS)
    text = "a" + space * (2**18 - 2) + "b"
    assert tokenizer.decode(tokenizer.encode(clean(text))) == text


def check_weights(folder):
    """A checkpoint that loads holds what a plain reading of its files finds."""
    gpt2 = read(load, folder, naming=str(folder))
    if gpt2 is None:
        return
    found = {}
    for path in weight_files(folder):
        assert path.parent == folder
        for name, entry in plain_reading(path)[1].items():
            found[name.removeprefix("transformer.")] = entry
    if "wte.weight" not in found:
        found["wte.weight"] = found["lm_head.weight"]
    loaded = gpt2.state_dict()
    assert loaded.keys() == WEIGHTS.keys() <= found.keys()
    for name, tensor in loaded.items():
        flip = WEIGHTS[name].dim() == 2 and name.startswith("h.")
        truth = numbers(*found[name])
        assert truth.shape == tuple(WEIGHTS[name].shape)
        np.testing.assert_array_equal(tensor.numpy(), truth.T if flip else truth)


@pytest.mark.usefixtures("bounded")
@cases(150, edits=EDITS, in_header=st.booleans())
def test_weights_bytes(good, bad, edits, in_header):
    content = (good / "model.safetensors").read_bytes()
    _, body = parts(good / "model.safetensors")
    reach = len(content) - len(body) if in_header else len(content)
    path = restored(bad, good) / "model.safetensors"
    path.write_bytes(mutate(content, edits, reach))
    check_weights(bad)


NAMES = st.sampled_from(sorted(WEIGHTS))


@pytest.mark.usefixtures("bounded")
@cases(250, name=NAMES, other=NAMES, what=CHANGES)
def test_weights_header(good, bad, name, other, what):
    header, body = parts(good / "model.safetensors")
    path = restored(bad, good) / "model.safetensors"
    path.write_bytes(assembled(*change(header, body, name, other, *what)))
    check_weights(bad)


CLAIMED = [0, 1, 10**8 - 1, 10**8, 2**40, 2**63, 2**64 - 1]


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("claimed", CLAIMED)
def test_a_header_of_any_claimed_size(good, bad, claimed):
    path = restored(bad, good) / "model.safetensors"
    for rest in (b"", b"{}", b" " * 100):
        path.write_bytes(claimed.to_bytes(8, "little") + rest)
        assert read(load, bad, naming="model.safetensors") is None


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merges.txt", "vocab.json"])
def test_a_folder_in_place_of_a_file_is_named(copy, name):
    (copy / name).unlink(missing_ok=True)
    (copy / name).mkdir()
    assert read(load, copy, naming=str(copy / name)) is None


SHARD_NAMES = [
    *("../good/model.safetensors", "/etc/passwd", "..", ".", "", "a\0b", "a/b", "\ud800"),
    *("shard", "none", "x" * 300, "..\\x", "bad\n", "config.json"),
]
WHERE = st.sampled_from(["weight_map", "tensor", "name"])
SHARD = st.sampled_from(SHARD_NAMES)


@pytest.mark.usefixtures("bounded")
@cases(100, odd=ODD, where=WHERE, edits=EDITS, name=SHARD)
def test_shards(good, bad, odd, where, edits, name):
    """A list of shards leads to no file outside its folder."""
    (restored(bad, good) / "model.safetensors").rename(bad / "shard")
    listed = {each: "shard" for each in WEIGHTS}
    if where == "weight_map":
        index = spliced({}, "weight_map", odd)
    elif where == "tensor":
        text = json.dumps({"weight_map": listed | {"wte.weight": name}})
        index = mutate(text.encode(), edits[:1])
    else:
        index = json.dumps({"weight_map": {"wte.weight": name}}).encode()
    (bad / "model.safetensors.index.json").write_bytes(index)
    files = read(weight_files, bad, naming=str(bad))
    for path in files or []:
        assert path.parent == bad
        assert path.name not in ("", ".", "..")
    check_weights(bad)


def test_a_long_file_of_merges_costs_little(copy):
    for size in (50, 15):
        (copy / "merges.txt").write_bytes(b"a" * size * 10**6 + b" b\n")
        peak()
        before = peak()
        assert read(load, copy, naming="merges.txt") is None
        assert peak() - before < 80e6
