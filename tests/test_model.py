"""model.py against the oracle, against Hugging Face, and against itself in another arrangement."""

import json

import oracle
import pytest
import torch
from checkpoints import mask_buffers, random_weights, sizes, write_checkpoint
from safetensors.torch import save_file

from model import GPT2Config, Prompt, choose, classify, load_gpt2, load_prompt, losses, prompt_mask, save_prompt
from train import train_step

SIZES, N = (1, 2, 3, 5), 2  # every dimension of these tests has a size of its own
TEXTS = [[5, 280, 17, 99, 3, 250, 61], [290], [7, 8, 9, 10]]  # B = 3, T = 7
LABELS = torch.tensor([1, 0, 1])


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


def oracle_logits(weights, config, texts, prompts):
    """(K, B, N) by the oracle, with gradient"""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    H, eps = config["n_head"], config["layer_norm_epsilon"]
    return torch.stack([
        torch.stack([oracle.logits(weights, H, eps, ids, p.vectors, p.head) for ids in texts]) for p in prompts
    ])  # fmt: skip



def test_equals_the_oracle(checkpoint):
    """Logits, and the gradients of every prompt and head, to 1e-12."""
    folder, config, weights = checkpoint
    gpt2, prompts = load_gpt2(folder, torch.float64), make_prompts()
    ours, truth = classify(gpt2, prompts, *pad(TEXTS)), oracle_logits(weights, config, TEXTS, prompts)
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
    assert (ours - oracle_logits(weights, config, texts, prompts)).abs().max() < 1e-12


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
    assert not any(k.requires_grad or v.requires_grad for k, v in gpt2.read(pad(TEXTS)[0]))


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
    assert ["".join(".x"[int(cell)] for cell in row) for row in mask[0, 0]] == ["xx..x..", "xx..xx.", "xx..xxx"]


def test_one_column_is_a_regression():
    logits = torch.tensor([[[0.2], [0.9]]])  # (K, B, N) = (1, 2, 1)
    assert choose(logits).tolist() == [[0, 1]]
    assert losses(logits, torch.tensor([0.0, 1.0])).tolist() == pytest.approx([(0.04 + 0.01) / 2])


# ---- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("C,H,L", [(12, 3, 2), (20, 1, 1), (35, 5, 3)])
def test_equals_hugging_face_in_float32(tmp_path, C, H, L):
    """To 1e-5 of the logits' scale: an independent reading of the same file, square c_proj included."""
    transformers = pytest.importorskip("transformers")
    config = sizes(C, H, L)
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


def test_an_untransposed_square_matrix_is_seen(checkpoint, tmp_path):
    """It has the right shape, so only values can tell: the comparison above does."""
    _, config, weights = checkpoint
    wrong = {k: v.t().contiguous() if k == "h.1.attn.c_proj.weight" else v for k, v in weights.items()}
    gpt2, prompts = load_gpt2(write_checkpoint(tmp_path, config, wrong), torch.float64), make_prompts()
    ours = classify(gpt2, prompts, *pad(TEXTS))
    assert (ours - oracle_logits(weights, config, TEXTS, prompts)).abs().max() > 0.01


def write_shards(folder, weights):
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    (folder / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("form", ["prefixed", "buffers", "lm_head", "shards", "float16", "bfloat16"])
def test_every_form_of_the_official_format_loads(checkpoint, tmp_path, form):
    _, config, weights = checkpoint
    stored = dict(weights)
    if form == "prefixed":
        stored = {f"transformer.{name}": tensor for name, tensor in weights.items()}
    if form == "buffers":
        stored |= mask_buffers(config) | {"h.0.attn.masked_bias": torch.tensor(-1e4)}
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


@pytest.mark.parametrize("key,value", [
    ("model_type", "gpt_neo"), ("activation_function", "gelu"), ("n_inner", 7), ("scale_attn_weights", False),
    ("scale_attn_by_inverse_layer_idx", True), ("reorder_and_upcast_attn", True), ("add_cross_attention", True),
    ("n_head", 3), ("n_embd", None), ("n_layer", -1), ("vocab_size", "many"), ("n_layer", 10**9),
])  # fmt: skip
def test_variants_are_refused_by_name(tmp_path, key, value):
    (tmp_path / "config.json").write_text(json.dumps(sizes() | {key: value}))
    with pytest.raises(ValueError, match=key) as caught:
        GPT2Config.from_json(tmp_path / "config.json")
    assert "config.json" in str(caught.value)


def break_json(folder, weights):
    (folder / "config.json").write_text("{")


def break_size(folder, weights):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def replace(**tensors):
    def change(folder, weights):
        stored = {k: v for k, v in (weights | tensors).items() if v is not None}
        save_file(stored, folder / "model.safetensors")

    return change


@pytest.mark.parametrize("change,named", [
    (break_json, "config.json"), (break_size, "model.safetensors"),
    (lambda folder, _: (folder / "model.safetensors").unlink(), "model.safetensors"),
    (replace(**{"h.1.ln_2.bias": None}), "h.1.ln_2.bias"), (replace(**{"score.weight": torch.ones(1)}), "score.weight"),
    (replace(**{"wpe.weight": torch.ones(9, 10)}), "wpe.weight"),
    (replace(**{"ln_f.bias": torch.ones(10, dtype=torch.int32)}), "ln_f.bias"),
])  # fmt: skip
def test_damaged_checkpoints_are_refused_by_name(checkpoint, tmp_path, change, named):
    _, config, weights = checkpoint
    folder = write_checkpoint(tmp_path, config, weights)
    change(folder, weights)
    with pytest.raises((ValueError, OSError), match=named):
        load_gpt2(folder)


METADATA = {"labels": ["no", "yes"], "init_ids": [4, 5], "recipe": {"lr": 0.1}, "base_model": "tiny"}


def test_a_saved_prompt_loads_as_it_was_in_equal_bytes(tmp_path):
    prompt = make_prompts(dtype=torch.float32)[1]
    for name in "ab":
        save_prompt(tmp_path / name, prompt, METADATA)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded, metadata = load_prompt(tmp_path / "a")
    assert torch.equal(loaded.vectors, prompt.vectors) and torch.equal(loaded.head, prompt.head)
    assert metadata.items() >= (METADATA | {"prompt_tokens": "2", "num_labels": "2", "format": "prompt-training/1"}).items()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_other_files_are_no_prompts(tmp_path):
    tensors = {"prompt": torch.ones(2, 3), "head.weight": torch.ones(2, 4)}
    good = {"format": "prompt-training/1", "position_rule": "after-text", "init_ids": "[]", "recipe": "{}"}
    for metadata in ({}, good | {"position_rule": "before-text"}, good | {"labels": '["a", "b"]'}, good):
        save_file(tensors, tmp_path / "p.safetensors", metadata=metadata)
        with pytest.raises(ValueError, match="p.safetensors"):
            load_prompt(tmp_path / "p.safetensors")
