"""model.py against minimal.py, against transformers, and against itself in another arrangement.

Models are random, small, and in float64 where nothing else is said.
"""

import random
from dataclasses import fields

import pytest
import torch

from helpers import random_weights, sizes
from minimal import logits_of
from model import GPT2, GPT2Config, Prompt, choose, classify, losses, prompt_mask
from train import train_step

# Every dimension of these tests has a size of its own: K = 4, B = 3, T = 7, C = 10, H = 2, D = 5.
SIZES = (1, 2, 3, 5)  # K x P
N = 6
TEXTS = [[5, 280, 17, 99, 3, 250, 61], [290], [7, 8, 9, 10]]
LABELS = torch.tensor([1, 5, 0])
# Far from PyTorch's default: a LayerNorm that goes by that one is seen.
CONFIG = sizes(layer_norm_epsilon=1e-2)
WEIGHTS = random_weights(CONFIG)
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored as (in, out)


def gpt2_of(config, weights, dtype=torch.float64):
    """A frozen GPT2 with weights in the official layout."""
    known = {field.name: config[field.name] for field in fields(GPT2Config)}
    state = {}
    for name, tensor in weights.items():
        state[name] = tensor.t() if name.endswith(MATRICES) else tensor
    gpt2 = GPT2(GPT2Config(**known))
    gpt2.load_state_dict(state)
    return gpt2.to(dtype).requires_grad_(False)


def make_prompts(C=10, sizes=SIZES, N=N, dtype=torch.float64):
    """Random prompts, the same each time."""
    generator = torch.Generator().manual_seed(1)
    prompts = []
    for P in sizes:
        numbers = torch.randn(P + N, C, generator=generator, dtype=torch.float64)
        vectors, head = numbers.to(dtype).split([P, N])
        prompts.append(Prompt(vectors, head))
    return prompts


def pad(texts, T=None, pad_id=0):
    """Lists of ids -> ids (B, T), lengths (B,)"""
    lengths = torch.tensor([len(ids) for ids in texts])
    ids = torch.full((len(texts), T or max(lengths)), pad_id)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text)] = torch.tensor(text)
    return ids, lengths


def answers(gpt2, prompts, texts, T=None, pad_id=0):
    """Logits (K, B, N) by model.py"""
    ids, lengths = pad(texts, T, pad_id)
    return classify(gpt2, prompts, ids, lengths)


def by_minimal(config, weights, texts, prompts):
    """Logits (K, B, N) by minimal.py, with gradient"""
    weights = {name: tensor.double() for name, tensor in weights.items()}
    every = []
    for prompt in prompts:
        pair = (prompt.vectors, prompt.head)
        each = [logits_of(ids, *pair, weights, config) for ids in texts]
        every.append(torch.stack(each))
    return torch.stack(every)


def gradients(logits, labels, prompts):
    """Of the sum of all losses: those of each prompt's vectors and head"""
    trained = []
    for prompt in prompts:
        trained += [prompt.vectors, prompt.head]
    return torch.autograd.grad(losses(logits, labels).sum(), trained)


def distance(a, b):
    """The largest difference of two tensors"""
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def gpt2():
    return gpt2_of(CONFIG, WEIGHTS)


@pytest.fixture
def prompts():
    return make_prompts()


# ---- against minimal.py ---------------------------------------------------------------------


def test_a_pack_has_the_logits_of_minimal_py(gpt2, prompts):
    ours = answers(gpt2, prompts, TEXTS)
    truth = by_minimal(CONFIG, WEIGHTS, TEXTS, prompts)
    assert ours.shape == (4, 3, 6)
    assert truth.std() > 0.5
    assert distance(ours, truth) < 1e-12


def test_each_prompt_and_head_has_the_gradient_of_minimal_py(gpt2, prompts):
    ours = answers(gpt2, prompts, TEXTS)
    truth = by_minimal(CONFIG, WEIGHTS, TEXTS, prompts)
    ours = gradients(ours, LABELS, prompts)
    truth = gradients(truth, LABELS, prompts)
    for a, b in zip(ours, truth, strict=True):
        assert b.abs().max() > 1e-3
        assert distance(a, b) < 1e-12


def test_one_prompt_after_one_text_has_the_logits_of_minimal_py(gpt2, prompts):
    ours = answers(gpt2, prompts[2:3], TEXTS[:1])
    truth = by_minimal(CONFIG, WEIGHTS, TEXTS[:1], prompts[2:3])
    assert distance(ours, truth) < 1e-12


def test_a_text_without_room_is_cut_for_each_prompt_alone(gpt2, prompts):
    """Of 24 positions the prompts leave the long text 23, 22, 21 and 19."""
    texts = [list(range(40, 64)), [3]]
    ours = answers(gpt2, prompts, texts)
    truth = by_minimal(CONFIG, WEIGHTS, texts, prompts)
    assert distance(ours, truth) < 1e-12


def test_a_cut_text_has_the_gradient_of_minimal_py(gpt2, prompts):
    texts = [list(range(40, 64)), [3], [4, 5]]
    ours = answers(gpt2, prompts, texts)
    truth = by_minimal(CONFIG, WEIGHTS, texts, prompts)
    ours = gradients(ours, LABELS, prompts)
    truth = gradients(truth, LABELS, prompts)
    for a, b in zip(ours, truth, strict=True):
        assert distance(a, b) < 1e-12


def odd_case(seed):
    """A model of odd sizes, with texts, labels and prompts for it"""
    draw = random.Random(seed).randint
    H = draw(1, 3)
    C = H * draw(1, 4)
    n = draw(2, 9)
    V = draw(1, 9)
    config = sizes(C=C, H=H, L=draw(1, 3), V=V, n_positions=n)
    config["layer_norm_epsilon"] = 10.0 ** -draw(1, 8)
    N = draw(2, 5)
    prompts = make_prompts(C, [draw(1, n - 1) for _ in range(draw(1, 3))], N)
    texts = []
    for _ in range(draw(1, 3)):
        texts.append([draw(0, V - 1) for _ in range(draw(1, n))])
    labels = torch.tensor([draw(0, N - 1) for _ in texts])
    return config, prompts, texts, labels


@pytest.mark.parametrize("part", range(5))
def test_a_thousand_models_of_odd_sizes_are_those_of_minimal_py(part):
    """Prompts from one vector to all positions but one, texts from one token to all positions."""
    for seed in range(200 * part, 200 * part + 200):
        config, prompts, texts, labels = odd_case(seed)
        weights = random_weights(config, seed)
        gpt2 = gpt2_of(config, weights)
        ours = answers(gpt2, prompts, texts, T=config["n_positions"])
        truth = by_minimal(config, weights, texts, prompts)
        scale = 1 + truth.abs().max()
        assert distance(ours, truth) < 1e-11 * scale, seed
        ours = gradients(ours, labels, prompts)
        truth = gradients(truth, labels, prompts)
        for a, b in zip(ours, truth, strict=True):
            assert distance(a, b) < 1e-10 * (1 + b.abs().max()), seed


# ---- against transformers -------------------------------------------------------------------


@torch.no_grad()
def by_transformers(config, weights, texts, prompts):
    """Logits (K, B, N) by their GPT2Model, one text and one prompt at a time"""
    transformers = pytest.importorskip("transformers")
    # Dropout is off, as everywhere here.
    their_config = transformers.GPT2Config(**config, attn_implementation="eager")
    theirs = transformers.GPT2Model(their_config).eval()
    theirs.load_state_dict(weights)
    logits = torch.empty(len(prompts), len(texts), N)
    for k, prompt in enumerate(prompts):
        for b, ids in enumerate(texts):
            x = torch.cat([theirs.wte.weight[ids], prompt.vectors])[None]
            hidden = theirs(inputs_embeds=x).last_hidden_state[0, -1]
            logits[k, b] = prompt.head @ hidden
    return logits


@pytest.mark.parametrize("C,H,L", [(12, 3, 2), (20, 1, 1), (35, 5, 3)])
def test_it_answers_as_transformers_do(C, H, L):
    """In float32, to 1e-5 of the logits' scale; the square attn.c_proj included."""
    config = sizes(C, H, L, layer_norm_epsilon=1e-2)
    weights = random_weights(config, seed=C)
    prompts = make_prompts(C, dtype=torch.float32)
    ours = answers(gpt2_of(config, weights, torch.float32), prompts, TEXTS)
    truth = by_transformers(config, weights, TEXTS, prompts)
    assert truth.std() > 0.5
    assert distance(ours, truth) < 1e-5 * truth.abs().max()


# ---- against itself in another arrangement --------------------------------------------------


def test_pads_do_not_matter(gpt2, prompts):
    plain = answers(gpt2, prompts, TEXTS)
    wide = answers(gpt2, prompts, TEXTS, T=19)
    assert distance(wide, plain) < 1e-12


def test_the_pad_id_does_not_matter(gpt2, prompts):
    plain = answers(gpt2, prompts, TEXTS)
    other = answers(gpt2, prompts, TEXTS, T=19, pad_id=299)
    assert distance(other, plain) < 1e-12


def test_neighbours_in_a_batch_do_not_matter(gpt2, prompts):
    together = answers(gpt2, prompts, TEXTS)
    for i, text in enumerate(TEXTS):
        alone = answers(gpt2, prompts, [text])
        assert distance(alone[:, 0], together[:, i]) < 1e-12


def test_neighbours_in_a_pack_do_not_matter(gpt2, prompts):
    pack = answers(gpt2, prompts, TEXTS)
    for k, prompt in enumerate(prompts):
        alone = answers(gpt2, [prompt], TEXTS)
        assert distance(alone[0], pack[k]) < 1e-12


def optimizer_of(prompts):
    tensors = []
    for prompt in prompts:
        tensors += prompt.parameters()
    return torch.optim.AdamW(tensors, lr=0.1)


def trained(gpt2, prompts, steps=3):
    """Train prompts in place -> their losses in every step, (steps, K)"""
    optimizer = optimizer_of(prompts)
    ids, lengths = pad(TEXTS)
    curve = []
    for _ in range(steps):
        loss, _, _ = train_step(gpt2, prompts, optimizer, ids, lengths, LABELS)
        curve.append(loss)
    return torch.stack(curve)


def test_a_pack_is_trained_as_its_prompts_alone(gpt2):
    pack = make_prompts()
    before = answers(gpt2, pack, TEXTS).detach()
    curve = trained(gpt2, pack)
    after = answers(gpt2, pack, TEXTS).detach()
    assert distance(after, before) > 0.1  # something was learned
    for k, prompt in enumerate(make_prompts()):
        own_curve = trained(gpt2, [prompt])
        assert distance(own_curve[:, 0], curve[:, k]) < 1e-12
        alone = answers(gpt2, [prompt], TEXTS)
        assert distance(alone[0], after[k]) < 1e-12


# ---- what is read before the prompts --------------------------------------------------------


def test_kept_keys_and_values_are_one_tensor_for_all_layers(gpt2):
    ids, _ = pad(TEXTS)
    assert gpt2.text_pass(ids).shape == (3, 2, 3, 2, 7, 5)  # (L, 2, B, H, T, D)


def test_what_was_read_before_is_not_read_again(gpt2, prompts):
    """With keys and values at hand nobody looks at the ids: here they are those of other texts."""
    ids, lengths = pad(TEXTS)
    kv = gpt2.text_pass(ids)
    kept = classify(gpt2, prompts, ids.flip(0), lengths, kv)
    fresh = classify(gpt2, prompts, ids, lengths)
    assert torch.equal(kept, fresh)


def test_reading_a_text_has_no_gradient(gpt2):
    """Whatever became of the body."""
    ids, _ = pad(TEXTS)
    other = gpt2_of(CONFIG, WEIGHTS).requires_grad_()
    assert not other.text_pass(ids).requires_grad


# ---- what is trained ------------------------------------------------------------------------


def test_gradients_reach_prompts_and_heads_alone(gpt2, prompts):
    logits = answers(gpt2, prompts, TEXTS)
    losses(logits, LABELS).sum().backward()
    for parameter in gpt2.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    for prompt in prompts:
        reached = [name for name, p in prompt.named_parameters() if p.grad is not None]
        assert reached == ["vectors", "head"]


def test_a_prompt_is_a_copy_of_what_it_is_made_of():
    vectors = torch.ones(2, 3)
    head = torch.ones(4, 3)
    prompt = Prompt(vectors, head)
    vectors.zero_()
    head.zero_()
    assert prompt.vectors.sum() == 6
    assert prompt.head.sum() == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_trained_is_float32_whatever_the_body_is(dtype):
    body = gpt2_of(CONFIG, WEIGHTS, dtype)
    prompts = make_prompts(dtype=torch.float32)
    assert answers(body, prompts, TEXTS).dtype == torch.float32
    trained(body, prompts)
    assert body.wte.weight.dtype == dtype
    for prompt in prompts:
        for tensor in prompt.parameters():
            assert tensor.dtype == tensor.grad.dtype == torch.float32


def test_a_bfloat16_body_is_close():
    """8 bits of mantissa through 3 layers: 2**-8 an operation, some per cent of the scale."""
    prompts = make_prompts(dtype=torch.float32)
    exact = answers(gpt2_of(CONFIG, WEIGHTS, torch.float32), prompts, TEXTS)
    rough = answers(gpt2_of(CONFIG, WEIGHTS, torch.bfloat16), prompts, TEXTS)
    assert 0 < distance(rough, exact) < 0.05 * exact.abs().max()


def test_heads_read_in_float32_what_a_bfloat16_body_made():
    """Else logits would be multiples of bfloat16's steps, of which few differ."""
    prompts = make_prompts(dtype=torch.float32)
    logits = answers(gpt2_of(CONFIG, WEIGHTS, torch.bfloat16), prompts, TEXTS)
    assert not torch.equal(logits, logits.bfloat16().float())


# ---- heads of unlike width ------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 7])
def test_a_head_of_another_width_in_a_pack_is_refused(gpt2, prompts, width):
    """One column more or less would go unnoticed in an argmax."""
    other = make_prompts(N=width)[0]
    with pytest.raises(AssertionError, match="heads of unlike width"):
        answers(gpt2, [*prompts, other], TEXTS)


def test_a_pack_of_heads_of_one_column_answers(gpt2):
    prompts = make_prompts(N=1)
    ours = answers(gpt2, prompts, TEXTS)
    assert ours.shape == (4, 3, 1)
    assert distance(ours, by_minimal(CONFIG, WEIGHTS, TEXTS, prompts)) < 1e-12


def test_lengths_of_another_batch_are_refused(gpt2, prompts):
    ids, lengths = pad(TEXTS)
    with pytest.raises(AssertionError):
        classify(gpt2, prompts, ids, lengths[:2])


# ---- masks, losses, choices -----------------------------------------------------------------


def test_prompt_mask_draws_the_picture_of_its_docstring():
    mask = prompt_mask(torch.tensor([2, 4]), 4, 3)
    assert mask.shape == (2, 1, 3, 7)
    assert mask.dtype == torch.bool
    drawn = []
    for row in mask.flatten(0, 2).tolist():
        drawn.append("".join("x" if cell else "." for cell in row))
    short = ["xx..x..", "xx..xx.", "xx..xxx"]
    whole = ["xxxxx..", "xxxxxx.", "xxxxxxx"]
    assert drawn == short + whole


@pytest.fixture
def logits():
    """(K, B, N) = (4, 5, 3)"""
    return torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))


def test_losses_are_the_mean_cross_entropy_of_each_prompt(logits):
    labels = [2, 0, 1, 1, 2]
    found = losses(logits, torch.tensor(labels))
    assert found.shape == (4,)
    for own, loss in zip(logits, found, strict=True):
        each = []
        for row, label in zip(own, labels, strict=True):
            each.append(-row.log_softmax(0)[label].item())
        assert loss.item() == pytest.approx(sum(each) / 5, abs=1e-5)


def test_the_choice_is_the_label_of_the_largest(logits):
    chosen = choose(logits)
    assert chosen.shape == (4, 5)
    assert chosen.dtype == torch.int64
    for row, label in zip(logits.flatten(0, 1).tolist(), chosen.flatten().tolist(), strict=True):
        assert label == row.index(max(row))


# (K, B, N) = (2, 3, 1)
ONE_COLUMN = torch.tensor([[[0.2], [0.9], [0.5]], [[0.0], [-3.0], [0.6]]])


def test_one_column_means_label_1_above_one_half():
    """One half is not above."""
    chosen = choose(ONE_COLUMN)
    assert chosen.tolist() == [[0, 1, 0], [0, 0, 1]]
    assert chosen.dtype == torch.int64


def test_the_loss_of_one_column_is_the_mean_squared_error():
    labels = torch.tensor([0.0, 1.0, 1.0])
    first = (0.04 + 0.01 + 0.25) / 3
    second = (0 + 16 + 0.16) / 3
    assert losses(ONE_COLUMN, labels).tolist() == pytest.approx([first, second])
