"""model.py against minimal.py, against Hugging Face, and against itself in another arrangement."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
from checkpoints import TINY, mask_buffers, random_weights, sizes, write_checkpoint, write_shards
from safetensors.torch import load_file, save_file

import evaluate
import story
from data import Tokenizer
from minimal import logits_of
from model import GPT2Config, Prompt, choose, classify, load_gpt2, load_prompt, losses, prompt_mask, save_prompt
from support.files import weight_files
from train import train_step

SIZES, N = (1, 2, 3, 5), 2  # every dimension of these tests has a size of its own
TEXTS = [[5, 280, 17, 99, 3, 250, 61], [290], [7, 8, 9, 10]]  # B = 3, T = 7
LABELS = torch.tensor([1, 0, 1])
EPS = {"layer_norm_epsilon": 1e-2}  # far from PyTorch's default: a LayerNorm that goes by that one is seen


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The one of conftest.py with another eps: (folder, config, weights)."""
    config = sizes(**EPS)
    weights = random_weights(config)
    return write_checkpoint(tmp_path_factory.mktemp("random"), config, weights), config, weights


def make_prompts(C=10, sizes=SIZES, N=N, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
    return [Prompt(draw(P, C), draw(N, C)) for P in sizes]


def pad(texts, T=None, pad_id=0):
    lengths = torch.tensor([len(ids) for ids in texts])
    ids = torch.full((len(texts), T or int(lengths.max())), pad_id)
    for row, tokens in zip(ids, texts):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids, lengths


def minimal_logits(weights, config, texts, prompts):
    """(K, B, N) by minimal.py, with gradient"""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    each = [[logits_of(ids, p.vectors, p.head, weights, config) for ids in texts] for p in prompts]
    return torch.stack([torch.stack(logits) for logits in each])


def test_equals_minimal_py(checkpoint):
    """Logits, and the gradients of every prompt and head, to 1e-12."""
    folder, config, weights = checkpoint
    gpt2, prompts = load_gpt2(folder, torch.float64), make_prompts()
    ours, truth = classify(gpt2, prompts, *pad(TEXTS)), minimal_logits(weights, config, TEXTS, prompts)
    assert ours.shape == (4, 3, 2) and truth.std() > 0.5
    assert (ours - truth).abs().max() < 1e-12
    parameters = [tensor for p in prompts for tensor in (p.vectors, p.head)]
    for a, b in zip(
        torch.autograd.grad(losses(ours, LABELS).sum(), parameters),
        torch.autograd.grad(losses(truth, LABELS).sum(), parameters),
    ):
        assert b.abs().max() > 1e-3 and (a - b).abs().max() < 1e-12


def test_a_text_without_room_is_cut_for_each_prompt_alone(checkpoint):
    folder, config, weights = checkpoint
    gpt2, prompts, texts = load_gpt2(folder, torch.float64), make_prompts(), [list(range(40, 64)), [3]]
    ours = classify(gpt2, prompts, *pad(texts))  # 24 positions: the texts are cut to 23, 22, 21, 19
    assert (ours - minimal_logits(weights, config, texts, prompts)).abs().max() < 1e-12


def test_pads_pad_ids_and_neighbours_do_not_matter(checkpoint):
    gpt2, prompts = load_gpt2(checkpoint[0], torch.float64), make_prompts()
    plain = classify(gpt2, prompts, *pad(TEXTS))
    for ids, lengths in (pad(TEXTS, T=19), pad(TEXTS, T=19, pad_id=299)):
        assert (classify(gpt2, prompts, ids, lengths) - plain).abs().max() < 1e-12
    for i, text in enumerate(TEXTS):
        assert (classify(gpt2, prompts, *pad([text]))[:, 0] - plain[:, i]).abs().max() < 1e-12


def test_a_pack_equals_its_prompts_alone_also_after_three_steps(checkpoint):
    gpt2, pack, solo = load_gpt2(checkpoint[0], torch.float64), make_prompts(), make_prompts()
    optimizer = lambda prompts: torch.optim.AdamW([t for p in prompts for t in p.parameters()], lr=0.1)
    ids, lengths = pad(TEXTS)
    whole, alone = optimizer(pack), [optimizer([p]) for p in solo]
    before = classify(gpt2, pack, ids, lengths).detach()
    for _ in range(3):
        loss, *_ = train_step(gpt2, pack, whole, ids, lengths, LABELS)
        for k, (p, own) in enumerate(zip(solo, alone)):
            assert (train_step(gpt2, [p], own, ids, lengths, LABELS)[0] - loss[k]).abs() < 1e-12
    after = classify(gpt2, pack, ids, lengths)
    assert (after - before).abs().max() > 0.1  # something was learned
    for k, p in enumerate(solo):
        assert (classify(gpt2, [p], ids, lengths)[0] - after[k]).abs().max() < 1e-12


def test_only_prompts_and_heads_are_trained(checkpoint):
    gpt2, prompts = load_gpt2(checkpoint[0]), make_prompts(dtype=torch.float32)
    losses(classify(gpt2, prompts, *pad(TEXTS)), LABELS).sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in gpt2.parameters())
    assert [name for name, p in prompts[0].named_parameters() if p.grad is not None] == ["vectors", "head"]
    assert not gpt2.requires_grad_().read(pad(TEXTS)[0]).requires_grad  # whatever became of the body


def test_what_was_read_before_is_not_read_again(checkpoint):
    """With keys and values at hand nobody looks at the ids: here they are those of other texts."""
    gpt2, prompts, (ids, lengths) = load_gpt2(checkpoint[0], torch.float64), make_prompts(), pad(TEXTS)
    past = gpt2.read(ids)
    assert past.shape == (3, 2, 3, 2, 7, 5)  # (L, 2, B, H, T, D)
    assert torch.equal(classify(gpt2, prompts, ids.flip(0), lengths, past), classify(gpt2, prompts, ids, lengths))


def test_a_prompt_is_a_copy_of_what_it_is_made_of():
    vectors, head = torch.ones(2, 3), torch.ones(2, 3)
    prompt = Prompt(vectors, head)
    vectors.zero_(), head.zero_()
    assert prompt.vectors.sum() == prompt.head.sum() == 6


def test_bfloat16_body_is_close_and_trainables_stay_float32(checkpoint):
    """8 bits of mantissa through 3 layers: 2**-8 an operation, a few per cent of the logits' scale."""
    prompts = make_prompts(dtype=torch.float32)
    exact = classify(load_gpt2(checkpoint[0]), prompts, *pad(TEXTS))
    rough = classify(load_gpt2(checkpoint[0], torch.bfloat16), prompts, *pad(TEXTS))
    assert rough.dtype == torch.float32 and prompts[0].vectors.dtype == torch.float32
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_prompt_mask_draws_the_picture_of_its_docstring():
    mask = prompt_mask(torch.tensor([2, 4]), 4, 3)
    assert mask.shape == (2, 1, 3, 7)
    drawn = [["".join(".x"[int(cell)] for cell in row) for row in text] for text in mask[:, 0]]
    assert drawn == [["xx..x..", "xx..xx.", "xx..xxx"], ["xxxxx..", "xxxxxx.", "xxxxxxx"]]


def test_losses_are_of_each_prompt_and_the_choice_is_the_largest():
    logits, labels = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([2, 0, 1, 1, 2])
    for own, loss, chosen in zip(logits, losses(logits, labels), choose(logits), strict=True):
        assert loss.item() == pytest.approx(-sum(row.log_softmax(0)[i].item() for row, i in zip(own, labels)) / 5, abs=1e-5)
        assert chosen.tolist() == [row.tolist().index(max(row)) for row in own]


def test_one_column_is_a_regression():
    """Its answer is 1 above one half, and one half is not above."""
    logits = torch.tensor([[[0.2], [0.9], [0.5]], [[0.0], [-3.0], [0.6]]])  # (K, B, N) = (2, 3, 1)
    assert choose(logits).tolist() == [[0, 1, 0], [0, 0, 1]] and choose(logits).dtype == torch.int64
    truth = [(0.04 + 0.01 + 0.25) / 3, (0 + 16 + 0.16) / 3]
    assert losses(logits, torch.tensor([0.0, 1.0, 1.0])).tolist() == pytest.approx(truth)


# ---- the story of a text --------------------------------------------------------------------------


REVIEWS = TINY / "prompts" / "reviews-p10" / "prompt.safetensors"


def logits_in(out):
    """The two that the story prints"""
    return torch.tensor([float(number) for number in re.search(r"logits +(\S+) +(\S+),", out).groups()])


@pytest.fixture(scope="module")
def answer():
    """What `predict --json` says of "great fun" in float32: the logits"""
    return torch.tensor(evaluate.load(REVIEWS, device="cpu", dtype="float32").predict(["great fun"])[0]["logits"])


def test_the_story_ends_as_predict_does(capsys):
    """To the digits shown, on one screen."""
    told = subprocess.run([sys.executable, "porting/story.py", "great fun"], cwd=TINY.parent.parent, capture_output=True, text=True, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= 100
    evaluate.main(["predict", str(REVIEWS), "great fun", "--json", "--dtype", "float32", "--device", "cpu"])
    said = json.loads(capsys.readouterr().out)
    assert (logits_in(told.stdout) - torch.tensor(said["logits"])).abs().max() < 2e-5
    shares = re.search(r"probabilities +(\S+) +(\S+)", told.stdout).groups()
    assert list(map(float, shares)) == pytest.approx(said["probabilities"], abs=6e-4)
    gpt2, prompt = load_gpt2(TINY, torch.float64), load_prompt(REVIEWS)[0].double()
    ids, lengths = pad([Tokenizer(TINY / "merges.txt").encode("great fun")])
    for label in (0, 1):
        loss = losses(classify(gpt2, [prompt], ids, lengths), torch.tensor([label])).sum()
        of_vectors, of_head = torch.autograd.grad(loss, (prompt.vectors, prompt.head))
        truth = [loss.item(), of_head.norm().item(), of_vectors.norm().item(), *of_vectors.norm(dim=1).tolist()]
        assert list(map(float, lines[label - 2].split())) == pytest.approx([label, *truth], abs=6e-4)


@pytest.mark.parametrize("name,change", [
    ("model.safetensors", lambda t: t["wpe.weight"].copy_(t["wpe.weight"].roll(1, 0))),
    ("model.safetensors", lambda t: t["h.3.attn.c_proj.weight"].copy_(t["h.3.attn.c_proj.weight"].t().clone())),
    ("model.safetensors", lambda t: t["h.5.ln_2.bias"][7].add_(0.1)),
    ("prompt.safetensors", lambda t: t["prompt"][9, 0].add_(0.1)),
    ("prompt.safetensors", lambda t: t["prompt"].copy_(t["prompt"].flip(0))),
    ("prompt.safetensors", lambda t: t["head.weight"].copy_(t["head.weight"].flip(0))),
    ("merges.txt", None), ("", None),
])  # fmt: skip
def test_one_changed_thing_changes_the_story(tmp_path, capsys, answer, name, change):
    """The last of these changes nothing, so that the others are seen for what they are."""
    shutil.copytree(TINY, tmp_path, dirs_exist_ok=True)
    shutil.copy(REVIEWS, tmp_path)
    if change:
        tensors = load_file(tmp_path / name)
        change(tensors)
        save_file(tensors, tmp_path / name)
    elif name:
        lines = (tmp_path / name).read_text("utf-8").split("\n")
        lines[240], lines[241] = lines[241], lines[240]  # "reat", of id 496, is made in the latter
        (tmp_path / name).write_text("\n".join(lines), "utf-8")
    story.tell("great fun", tmp_path, tmp_path / "prompt.safetensors")
    assert ((logits_in(capsys.readouterr().out) - answer).abs().max() > 1e-4) == bool(name)


@pytest.mark.parametrize("text", ["it's 1999 , they'LL SAY", " naïve 電影 🎬 ²Ⅷ\u00ad\u00a0. ", "a\n\n  b\t c_d--", "<|endoftext|>", "x " * 300])
def test_the_story_has_the_tokens_of_the_tokenizer(capsys, monkeypatch, text):
    monkeypatch.chdir(TINY.parent.parent)
    story.tell(text)
    ids = re.findall(r" \(id (\d+)\)", capsys.readouterr().out.splitlines()[0])
    assert list(map(int, ids)) == Tokenizer(TINY / "merges.txt").encode(text.strip())[:118]


# ---- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("C,H,L", [(12, 3, 2), (20, 1, 1), (35, 5, 3)])
def test_equals_hugging_face_in_float32(tmp_path, C, H, L):
    """To 1e-5 of the logits' scale: an independent reading of the same file, square c_proj included."""
    transformers = pytest.importorskip("transformers")
    config = sizes(C, H, L, **EPS)
    weights = random_weights(config, seed=C)
    folder = write_checkpoint(tmp_path, config, weights)
    theirs = transformers.GPT2Model.from_pretrained(folder, attn_implementation="eager").eval()
    prompts = make_prompts(C, dtype=torch.float32)
    ours = classify(load_gpt2(folder), prompts, *pad(TEXTS))
    truth = torch.empty_like(ours)
    with torch.no_grad():
        for k, p in enumerate(prompts):
            for b, ids in enumerate(TEXTS):
                x = torch.cat([theirs.wte.weight[ids], p.vectors])[None]
                truth[k, b] = p.head @ theirs(inputs_embeds=x).last_hidden_state[0, -1]
    assert (ours - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.mark.parametrize("form", ["prefixed", "buffers", "prefixed buffers", "lm_head", "shards", "float16", "bfloat16"])
def test_every_form_of_the_official_format_loads(checkpoint, tmp_path, form):
    _, config, weights = checkpoint
    stored = dict(weights)
    if form.endswith("buffers"):
        stored |= mask_buffers(config) | {"h.0.attn.masked_bias": torch.tensor(-1e4)}
    if form.startswith("prefixed"):
        stored = {f"transformer.{name}": tensor for name, tensor in stored.items()}
    if form == "lm_head":
        stored["lm_head.weight"] = weights["wte.weight"].clone()
    if form.startswith(("float", "bfloat")):
        stored = {name: tensor.to(getattr(torch, form)) for name, tensor in weights.items()}
    folder = write_checkpoint(tmp_path, config, stored)
    if form == "shards":
        write_shards(folder, stored)
    ours = load_gpt2(folder, torch.float64).state_dict()
    assert len(ours) == len(weights)
    for name, tensor in ours.items():
        flip = name.split(".", 2)[-1] in {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"}
        truth = stored.get(name, stored.get(f"transformer.{name}")).double()
        assert torch.equal(tensor, truth.t() if flip else truth), name
    for dtype in (torch.float32, torch.bfloat16):
        assert {tensor.dtype for tensor in load_gpt2(folder, dtype).state_dict().values()} == {dtype}


def test_shards_come_in_the_order_of_their_names(tmp_path):
    """The fingerprint of a model goes over them in this order; a file of all weights goes before."""
    names = [f"model-{i:05}-of-00012.safetensors" for i in range(1, 13)]
    weight_map = {f"h.{i}.ln_1.bias": names[5 * i % 12] for i in range(24)}  # each of them twice
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert weight_files(tmp_path) == [tmp_path / name for name in names]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]


@pytest.mark.parametrize("more", [
    {"n_inner": None}, {"n_inner": 40}, {"n_inner": 40, "_num_labels": 1, "n_ctx": 24, "scale_attn_weights": True},
    {"scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "add_cross_attention": False},
])  # fmt: skip
def test_official_variants_of_the_config_are_read(tmp_path, more):
    """Its writers said one thing in several ways, or left it out."""
    for without in ([], ["layer_norm_epsilon"], ["model_type", "activation_function", "layer_norm_epsilon"]):
        given = {key: value for key, value in (sizes() | more).items() if key not in without}
        (tmp_path / "config.json").write_text(json.dumps(given))
        assert GPT2Config.from_json(tmp_path / "config.json") == GPT2Config(300, 24, 10, 3, 2, 1e-5)
    (tmp_path / "config.json").write_text(json.dumps(sizes(L=99, V=2**24 - 1, **EPS)))  # the largest
    assert GPT2Config.from_json(tmp_path / "config.json") == GPT2Config(2**24 - 1, 24, 10, 99, 2, 1e-2)


@pytest.mark.parametrize("key,value", [
    ("model_type", "gpt_neo"), ("activation_function", "gelu"), ("n_inner", 7), ("scale_attn_weights", False),
    ("scale_attn_by_inverse_layer_idx", True), ("reorder_and_upcast_attn", True), ("add_cross_attention", True),
    ("n_head", 3), ("n_embd", None), ("n_layer", -1), ("vocab_size", "many"), ("n_layer", 100), ("n_layer", True),
    ("n_inner", 10), ("vocab_size", 2**24), ("n_positions", 0), ("n_positions", 24.0), ("layer_norm_epsilon", 1.0),
    ("layer_norm_epsilon", 0.0), ("layer_norm_epsilon", 1),
])  # fmt: skip
def test_variants_are_refused_by_name(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(sizes() | {key: value}))
    with pytest.raises(ValueError, match=key) as caught:
        GPT2Config.from_json(tmp_path / "config.json")
    assert "config.json" in str(caught.value)


def break_size(folder, weights):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def replace(**tensors):
    def change(folder, weights):
        stored = {k: v for k, v in (weights | tensors).items() if v is not None}
        save_file(stored, folder / "model.safetensors")

    return change


@pytest.mark.parametrize("change,named", [
    *[(lambda folder, _, text=text: (folder / "config.json").write_text(text), "config.json is no JSON object")
      for text in ("{", "", "null", "5", '"{}"', '[["n_embd", 10]]')],
    (break_size, "model.safetensors"),
    (lambda folder, _: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (replace(**{"h.1.ln_2.bias": None}), "h.1.ln_2.bias"), (replace(**{"score.weight": torch.ones(1)}), "score.weight"),
    (replace(**{"wpe.weight": torch.ones(9, 10)}), "wpe.weight"),
    (replace(**{"transformer.wte.weight": torch.ones(300, 10)}), "wte.weight' .* no .other. tensor of this name"),
    (replace(**{"ln_f.bias": torch.ones(10, dtype=torch.int32)}), "ln_f.bias"),
])  # fmt: skip
def test_damaged_checkpoints_are_refused_by_name(checkpoint, tmp_path, change, named):
    _, config, weights = checkpoint
    folder = write_checkpoint(tmp_path, config, weights)
    change(folder, weights)
    with pytest.raises((ValueError, OSError), match=named):
        load_gpt2(folder)


METADATA = {"labels": ["no", "yes"], "init_ids": [4, 5], "recipe": {"lr": 0.1}, "base_model": "tiny"}
RULES = {"format": "prompt-training/1", "position_rule": "after-text"}
ADDED = {"prompt_tokens": "3", "num_labels": "2"} | RULES


def test_a_saved_prompt_loads_as_it_was_in_equal_bytes(tmp_path):
    """Whatever it was made in, and with the order of the metadata's keys, and what they said of the format, of no matter."""
    prompt = make_prompts(dtype=torch.float32)[2]
    doubled, turned = Prompt(prompt.vectors.double(), prompt.head.double()), dict(reversed(METADATA.items()))
    for name, each, metadata in (("a", prompt, METADATA), ("b", doubled, turned | dict.fromkeys(ADDED, "else"))):
        save_prompt(tmp_path / name, each, metadata)
    content = (tmp_path / "a").read_bytes()
    assert content == (tmp_path / "b").read_bytes() and int.from_bytes(content[:8], "little") % 8 == 0
    loaded, metadata = load_prompt(tmp_path / "a")
    assert torch.equal(loaded.vectors, prompt.vectors) and torch.equal(loaded.head, prompt.head)
    assert metadata == METADATA | ADDED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_full_disk_leaves_the_prompt_that_was_there(tmp_path, monkeypatch):
    """The bytes reach the disk before they take the place of the old ones, and what does not is taken away."""
    prompts, path = make_prompts(dtype=torch.float32), tmp_path / "p.safetensors"
    save_prompt(path, prompts[0], METADATA)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="p.safetensors'"):
        save_prompt(path, prompts[1], METADATA)
    assert path.read_bytes() == before and [*tmp_path.iterdir()] == [path]


PARTS = {"prompt": torch.ones(2, 3), "head.weight": torch.ones(2, 3)}
OTHERS = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.float8_e4m3fn, torch.bool)
TEXTUAL = {"labels": '["no", "yes"]', "init_ids": "[]", "recipe": "{}"} | RULES


@pytest.mark.parametrize("change,reason", [
    ({}, None), ({"more": "x"}, None), ({"head.weight": torch.ones(1, 3)}, None),  # a regression names two labels, too
    *[({key: None}, key if key in ADDED else "lacks") for key in TEXTUAL],
    ({"position_rule": "before-text"}, "its position_rule is not 'after-text'"), ({"format": "prompt-training/2"}, "format"),
    ({"labels": '["a", "b", "c"]'}, "lacks"), ({"labels": '["a"]'}, "lacks"), ({"labels": '["a", "\\u001b"]'}, "lacks"),
    ({"recipe": '{"data": 5}'}, "lacks"), ({"init_ids": "[true]"}, "lacks"), ({"init_ids": "[16777216]"}, "lacks"),
    ({"prompt": None}, "lacks"), ({"head.weight": None}, "lacks"), ({"other": torch.ones(1)}, "lacks"),
    ({"head.weight": torch.ones(2, 4)}, "lacks"), ({"prompt": torch.ones(0, 3)}, "lacks"), ({"prompt": torch.ones(3)}, "lacks"),
    *[({"labels": labels}, "lacks") for labels in ("no", '"no"', '{"a": 1, "b": 2}', "[1, 2]", '["\\ud800", "b"]')],
    *[({"init_ids": ids}, "lacks") for ids in ("", "{}", '["1"]', "[-1]", "[1.0]")], ({"recipe": "[1]"}, "lacks"),
    *[({"prompt": torch.ones(2, 3).to(dtype)}, "lacks") for dtype in OTHERS],
    *[({name: torch.full((2, 3), value)}, "lacks") for name in PARTS for value in (torch.inf, torch.nan)],
])  # fmt: skip
def test_a_file_that_differs_in_one_thing_is_no_prompt(tmp_path, change, reason):
    whole = {key: value for key, value in (PARTS | TEXTUAL | change).items() if value is not None}
    tensors = {key: value for key, value in whole.items() if torch.is_tensor(value)}
    save_file(tensors, tmp_path / "p.safetensors", metadata={key: whole[key] for key in whole.keys() - tensors.keys()})
    if reason is None:
        assert load_prompt(tmp_path / "p.safetensors")[1]["labels"] == ["no", "yes"]
    else:
        with pytest.raises(ValueError, match=f"p.safetensors.* {reason}"):
            load_prompt(tmp_path / "p.safetensors")
