"""The golden file, its judge, and this project before it."""

import json
import re
from itertools import combinations

import golden
import numpy as np
import pytest
import torch
from pitfalls import PITFALLS, TEXTS, ask, steps
from safetensors.torch import save_file

from model import TRANSPOSED, Prompt, classify, load_gpt2, losses
from train import learning_rate, train_step

GIVEN = golden.read_golden()
PORTING = (golden.ROOT / "PORTING.md").read_text(encoding="utf-8")


def test_it_is_written_the_same_to_the_byte():
    assert golden.golden_bytes() == golden.GOLDEN.read_bytes()


def test_no_two_axes_have_one_size_and_the_rates_rise_and_fall():
    sizes = (golden.B, golden.K, golden.T, golden.H, golden.C // golden.H, golden.C, golden.N, sum(golden.SIZES))
    assert len({*sizes, golden.V, golden.POSITIONS}) == len(sizes) + 2
    total, warm = golden.RECIPE["total"], golden.RECIPE["warm_up"]
    shares = [learning_rate(step, total) for step in range(total)]
    assert shares[warm - 1] == max(shares) and 1 < warm < golden.RECIPE["steps"]


def ours(folder):
    """All that model.py and train.py can show of the task, in float32"""
    weights = {name[8:]: tensor for name, tensor in GIVEN.items() if name.startswith("weights.")}
    save_file(weights, folder / "model.safetensors")
    with golden.open_safetensors(golden.GOLDEN) as file:
        (folder / "config.json").write_text(file.metadata()["config"])
    gpt2 = load_gpt2(folder)
    prompts = [Prompt(GIVEN[f"prompt.{k}.vectors"], GIVEN[f"prompt.{k}.head"]) for k in range(golden.K)]
    batch, made = [GIVEN[name] for name in ("ids", "lengths", "labels")], {}

    def note(name, runs):  # a hook that notes the first run as the texts', the second as the prompts'
        def hook(module, inputs, output):
            run = next(runs, None)
            if run:
                made[f"{run}.{name}"] = (output[0] if isinstance(output, tuple) else output).detach()

        return hook

    for i, block in enumerate(gpt2.h[:-1]):  # the last block computes no more than the answers need
        block.attn.register_forward_hook(note(f"{i}.attn", iter(["text", "pack"])))
        block.mlp.register_forward_hook(note(f"{i}.mlp", iter(["text", "pack"])))
    logits = classify(gpt2, prompts, *batch[:2])
    loss = losses(logits, batch[2])
    made |= {"logits": logits.detach(), "loss": loss.detach()}
    loss.sum().backward()
    for i, (k, v) in enumerate(gpt2.read(batch[0])):
        made |= {f"text.{i}.k": k, f"text.{i}.v": v}
    for k, prompt in enumerate(prompts):
        made |= {f"grad.{k}.vectors": prompt.vectors.grad.clone(), f"grad.{k}.head": prompt.head.grad.clone()}

    recipe, curve = golden.RECIPE, []
    rates = [rate for lr in recipe["lr"] for rate in (lr, recipe["head_lr"])]
    groups = [{"params": [tensor]} for prompt in prompts for tensor in (prompt.vectors, prompt.head)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    for step in range(recipe["steps"]):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * learning_rate(step, recipe["total"])
        curve.append(train_step(gpt2, prompts, optimizer, *batch)[0])
    made["curve"] = torch.stack(curve)
    for k, prompt in enumerate(prompts):
        made |= {f"after.{k}.vectors": prompt.vectors.detach(), f"after.{k}.head": prompt.head.detach()}
    for name, tensor in gpt2.state_dict().items():
        made[f"weights.{name}"] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    return {name: tensor.double() for name, tensor in made.items()}


def test_this_project_passes(tmp_path):
    errors, wrong, _ = golden.judge(ours(tmp_path))
    assert wrong == [] and errors.keys() >= {"text.0.mlp", "pack.1.mlp", "text.2.v", "logits", "curve", "after.3.head"}


def test_every_pitfall_is_far_from_the_truth_and_from_every_other():
    case, bundled, seen = golden.case_of(GIVEN), golden.bundled_case(), []
    for sentence, part, wrong in PITFALLS:
        cuts = part in TEXTS or part == "seen"  # nothing is cut in the small task
        for name, tensor in ask(bundled, {part: wrong}) if cuts else steps(case, {part: wrong}):
            tensor = tensor.detach().double()
            error = golden.distance(name, GIVEN[name], tensor, GIVEN)
            if error > golden.tolerance(name):
                break
        assert error > 10 * golden.tolerance(name), sentence
        seen.append((sentence, name, tensor))
    for (a, name, tensor), (b, same, rival) in combinations(seen, 2):
        if a != b and name == same:
            assert golden.distance(name, tensor, rival, GIVEN) > golden.tolerance(name), (a, b)


def test_porting_md_knows_all_that_the_judge_says_and_judges():
    text = " ".join(PORTING.split())
    for sentence, _, _ in PITFALLS:
        assert f'"{sentence}"' in text, sentence
    for pattern, (step, _) in golden.GROUPS.items():
        assert f"`{pattern}`" in text and f"**{step}. " in text, pattern
    for name in GIVEN:
        forms = [re.sub(r"\.\d", letter, name) for letter in (".i", ".k")]
        assert name.startswith("weights.") or any(form in text for form in forms), name


def verdict(capsys, path):
    with pytest.raises(SystemExit) as exit:
        golden.main(["compare", str(path)])
    out, err = capsys.readouterr()
    return exit.value.code, out, err


def test_a_right_tensor_passes_and_a_wrong_one_does_not(tmp_path, capsys):
    right = {"logits": GIVEN["logits"], "pack.mask": GIVEN["pack.mask"], "mine": torch.ones(1)}
    save_file(right, tmp_path / "right.safetensors")
    code, out, _ = verdict(capsys, tmp_path / "right.safetensors")
    assert code == 0 and "all 2 agree; 54 of the answer's 56 are not given" in out and "no such name: mine" in out
    wrong = {name: tensor.numpy() for name, tensor in (right | {"logits": GIVEN["logits"].clone()}).items()}
    wrong["logits"][3, 2, 1] += 1e-3
    np.savez(tmp_path / "wrong.npz", **wrong)
    code, out, _ = verdict(capsys, tmp_path / "wrong.npz")
    assert code == 1 and out.count("DIFF  <- the first") == 1
    assert "1 of 2 differ, first logits: step 9 of PORTING.md" in out and "no mistake known here" in out


@pytest.mark.parametrize("name,change,said", [
    ("text.0.k", lambda k: k.transpose(1, 2), "axes have to be put in the order (0, 2, 1, 3)"),
    ("weights.h.0.attn.c_proj.weight", lambda w: w.T, "axes have to be put in the order (1, 0)"),
    ("weights.wte.weight", lambda w: torch.cat([w, w[:27]]), "its shape is 64 x 10, not 37 x 10"),
    ("pack.0.attn", lambda y: y * float("nan"), "it holds NaN"),
])  # fmt: skip
def test_what_it_says_of_other_differences(tmp_path, capsys, name, change, said):
    save_file({name: change(GIVEN[name]).contiguous()}, tmp_path / "theirs.safetensors")
    code, out, _ = verdict(capsys, tmp_path / "theirs.safetensors")
    assert code == 1 and said in out


def test_pads_do_not_count(tmp_path, capsys):
    theirs = GIVEN["text.1.v"].clone()
    theirs[1, :, 1:] = float("nan")  # this text has one token
    save_file({"text.1.v": theirs}, tmp_path / "theirs.safetensors")
    assert verdict(capsys, tmp_path / "theirs.safetensors")[0] == 0


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("write", [
    nothing, lambda path: path.write_bytes(b"PK\3\4 and no more"), lambda path: path.write_text(json.dumps({"a": 1})),
    lambda path: np.savez(path.open("wb"), other=np.ones(2)), lambda path: np.savez(path.open("wb"), logits=[{}]),
    lambda path: np.savez(path.open("wb"), logits=["a"]), lambda path: path.mkdir(), lambda path: None,
])  # fmt: skip
def test_what_can_not_be_judged_is_one_sentence_and_exit_code_2(tmp_path, capsys, write):
    write(tmp_path / "theirs")
    code, out, err = verdict(capsys, tmp_path / "theirs")
    assert code == 2 and out == "" and err.count("\n") == 1 and str(tmp_path / "theirs") in err
