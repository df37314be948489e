"""The golden file, its judge, and this project before it."""

import json
import random
import re
from functools import lru_cache

import golden
import numpy as np
import pytest
import torch
from golden import Judge
from mistakes import READING, STEP, TEXTS, WAY_BACK, ask, steps
from safetensors.torch import save_file

from model import TRANSPOSED, Prompt, classify, load_gpt2, losses
from train import learning_rate, train_step

GIVEN = golden.read_golden()
PORTING = (golden.ROOT / "porting" / "porting.md").read_text(encoding="utf-8")


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

    def noted(method, name):  # the same, which notes what comes of the first run
        def run(*inputs):
            output = method(*inputs)
            made.setdefault(name, (output[0] if isinstance(output, tuple) else output).detach())
            return output

        return run

    for i, block in enumerate(gpt2.h[:-1]):  # the last block computes no more than the answers need
        block.attn.c_proj.register_forward_hook(note(f"{i}.attn", iter(["text", "pack"])))
        block.mlp.register_forward_hook(note(f"{i}.mlp", iter(["text", "pack"])))
        block.read, block.follow = noted(block.read, f"text.{i}.x"), noted(block.follow, f"pack.{i}.x")
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
        when = {0: "after1", recipe["steps"] - 1: "after"}.get(step)
        for k, prompt in enumerate(prompts if when else []):
            made |= {f"{when}.{k}.{part}": x.detach().clone() for part, x in vars(prompt)["_parameters"].items()}
    made["curve"] = torch.stack(curve)
    for name, tensor in gpt2.state_dict().items():
        made[f"weights.{name}"] = tensor.t() if name.endswith(TRANSPOSED) else tensor
    return {name: tensor.double() for name, tensor in made.items()}


def test_this_project_passes(tmp_path):
    judge = Judge(ours(tmp_path))
    assert judge.wrong == [] and {"text.0.x", "pack.1.mlp", "text.2.v", "logits", "curve", "after1.0.head"} <= {*judge.given}


CASE, BUNDLED = golden.case_of(GIVEN), golden.bundled_case()
KNOWN = READING + WAY_BACK + STEP + TEXTS


EARLY = {(part, change) for _, parts, change in READING for part in parts.split()}  # these need no training


@lru_cache(None)
def run(of_texts, *parts):
    """((name, tensor) of a run with these (part, wrong part), the error that ends it or None)"""
    made = []
    try:
        for name, tensor in ask(BUNDLED, dict(parts), only=()) if of_texts else steps(CASE, dict(parts)):
            made.append((name, tensor.detach()))
            if name == "loss" and {*parts} & EARLY:
                break
    except (IndexError, RuntimeError) as error:
        return made, error
    return made, None


def planted(*mistakes):
    """What a port in float32 with these mistakes makes, as far as it comes"""
    parts = [(part, change) for _, parts, change in mistakes for part in parts.split()]
    texts = [pair for pair in parts if pair[0] in ("clean", "encode")]
    small = [pair for pair in parts if pair not in texts]
    made = {name: x.float().double() for name, x in [*run(True, *texts)[0], *(run(False, *small)[0])]}
    curve = [made.pop(name) for name in [*made] if name.startswith("curve")]
    return made | {"curve": torch.stack(curve)} if curve else made


@pytest.fixture
def kept_runs(monkeypatch):
    """What the judge computes for each known mistake is kept, since it computes the same for all files"""

    def remembered(case, parts, **more):
        made, error = run(case is BUNDLED, *parts.items())
        yield from made
        if error:
            raise error

    for name in ("steps", "ask"):
        monkeypatch.setattr(golden, name, remembered)
    monkeypatch.setattr(golden, "case_of", lambda tensors: CASE)
    monkeypatch.setattr(golden, "bundled_case", lambda dtype=None: BUNDLED)
    monkeypatch.setattr(golden, "is_former", lambda judge: False)


def test_every_known_mistake_is_far_from_the_truth_and_none_is_taken_for_another(kept_runs):
    for mistake in KNOWN:
        judge = Judge(planted(mistake))
        assert judge.names == [mistake[0]], (mistake[0], judge.names, judge.first)
        assert not judge.error(judge.first) <= 4 * golden.tolerance(judge.first), mistake[0]


UNKNOWN = [  # of no list: (parts, wrong part)
    ("embed", lambda w, ids: w["wte.weight"][ids] + w["wpe.weight"].flip(0)[: ids.shape[1]]),
    ("gelu", lambda x: torch.nn.functional.silu(x)),
    ("scale", lambda C, H: 0.5),
    ("place", lambda vectors, rows: vectors + rows[:1]),
    ("pool", lambda x, ends: x[:, [max(end - 1, 0) for end in ends]]),
    ("loss", lambda logits, labels: torch.nn.functional.multi_margin_loss(logits[0], labels) + 0 * logits.sum((1, 2))),
    ("clip", lambda grads, norms, limit: [[g.sign() * limit for g in pair] for pair in grads]),
    ("rate", lambda t, warm, total: (t / total) ** 0.5),
    ("adam", lambda x, g, m, v, t, rate: (x - rate * g.sign(), m, v)),
]


def test_no_false_name_is_given_where_a_known_mistake_meets_an_unknown_one(kept_runs):
    draw = random.Random(0)
    for parts, change in UNKNOWN:
        assert Judge(planted(("unknown", parts, change))).names == []
        for known in draw.sample([one for one in KNOWN if not {*one[1].split()} & {*parts.split()}], 2):
            assert {*Judge(planted(known, ("unknown", parts, change))).names} <= {known[0]}, (known[0], parts)


def test_two_known_mistakes_are_both_named(kept_runs):
    named = {sentence: (sentence, *rest) for sentence, *rest in KNOWN}
    for pair in (("LayerNorm has no bias", "scores are not scaled"), ("nothing is clipped", "the rates do not warm up")):
        assert {*Judge(planted(*(named[sentence] for sentence in pair))).names} == {*pair}


def test_it_never_crashes_on_a_part_of_the_names_one_of_them_damaged():
    draw = random.Random(1)
    damage = [lambda x: x + 1, lambda x: x * float("nan"), lambda x: x * 3, lambda x: x[:-1], lambda x: x[None],
              lambda x: x * 0, lambda x: x.flatten(), lambda x: x[..., :0], lambda x: x.sum(), lambda x: x + float("inf")]  # fmt: skip
    for _ in range(15):
        names = draw.sample([*GIVEN], draw.choice([1, 2, 5, 20, len(GIVEN)]))
        theirs, name = {name: GIVEN[name].double() for name in names}, draw.choice(names)
        theirs[name] = draw.choice(damage)(theirs[name])
        judge = Judge(theirs)
        assert judge.first in (None, name) and judge.names in ([], ["the gradients have the wrong sign"]), (name, judge.names)


def test_porting_md_knows_all_that_the_judge_says_and_judges():
    text = " ".join(PORTING.split())
    for sentence in [*(sentence for sentence, _, _ in KNOWN), golden.FORMER, golden.LATE]:
        assert f'"{sentence}"' in text, sentence
    for pattern, (step, *_) in golden.GROUPS.items():
        assert f"**{step}. " in text, pattern
    for name in GIVEN:
        forms = [re.sub(r"\.\d+", letter, name) for letter in (".i", ".k")]
        assert name.startswith("weights.") or any(form in text for form in forms), name


def test_porting_md_has_the_tolerances_of_the_file():
    table = PORTING.split("| allowed | tensors |")[1].split("\n\n")[0]
    told = {}
    for numbers, names in re.findall(r"^\| ([\d., ]+) \| (.*) \|$", table, flags=re.M):
        numbers, names = numbers.split(", "), re.findall("`([^`]+)`", names)
        told |= dict(zip(names, map(float, numbers * len(names) if len(numbers) == 1 else numbers)))
    with golden.open_safetensors(golden.GOLDEN) as file:
        allowed = json.loads(file.metadata()["tolerances"])
    assert allowed == golden.tolerances(GIVEN) and told == {name: value for name, value in allowed.items() if value}


def verdict(capsys, path, *flags):
    with pytest.raises(SystemExit) as exit:
        golden.main(["compare", str(path), *flags])
    out, err = capsys.readouterr()
    return exit.value.code, out, err


def test_a_right_tensor_passes_and_a_wrong_one_does_not(tmp_path, capsys):
    right = {"logits": GIVEN["logits"], "pack.mask": GIVEN["pack.mask"], "mine": torch.ones(1)}
    save_file(right, tmp_path / "right.safetensors")
    code, out, _ = verdict(capsys, tmp_path / "right.safetensors")
    assert code == 0 and "all 2 agree" in out and "inference: 2 agree; 39 of 41 are not given" in out and "name: mine" in out
    wrong = {name: tensor.numpy() for name, tensor in (right | {"logits": GIVEN["logits"].clone()}).items()}
    wrong["logits"][3, 2, 1] += 1e-3
    np.savez(tmp_path / "wrong.npz", **wrong)
    code, out, _ = verdict(capsys, tmp_path / "wrong.npz")
    assert code == 1 and out.count("DIFF  <- the first") == 1 and "no mistake known here" in out
    assert "1 of 2 differ, first logits: step 9 of porting.md" in out
    assert "only where k is 3\n" in out and "only where b is 2\n" in out and "prompt's own head" in out
    assert verdict(capsys, tmp_path / "wrong.npz", "--tolerance", "0.002")[0] == 0
    assert verdict(capsys, tmp_path / "wrong.npz", "--only", "training")[0] == 2


def test_levels_json_and_float16(tmp_path, capsys):
    """Logits as float16 has them pass with a tolerance, ids do not change with it"""
    made = {name: tensor.half().tolist() for name, tensor in GIVEN.items() if golden.group(name)[2] == "inference"}
    (tmp_path / "made.json").write_text(json.dumps(made))
    code, out, _ = verdict(capsys, tmp_path / "made.json", "--only", "inference", "--tolerance", "0.01")
    assert code == 0 and "inference: complete" in out and verdict(capsys, tmp_path / "made.json")[0] == 1
    (tmp_path / "ids.json").write_text(json.dumps({"tokens.1": (GIVEN["tokens.1"] + 1).tolist()}))
    assert verdict(capsys, tmp_path / "ids.json", "--tolerance", "9")[0] == 1


def printed(form):
    """All tensors of the file as a port may write them in JSON; form: how a number is printed"""
    return {name: json.loads(re.sub(r"[-+.e\d]+", lambda found: form(float(found[0])), json.dumps(tensor.tolist())))
            for name, tensor in GIVEN.items() if tensor.is_floating_point()}  # fmt: skip


@pytest.mark.parametrize("form", [lambda x: f"{x:.9g}", lambda x: str(np.float32(x)), lambda x: repr(x)])
def test_float32_in_json_may_have_no_more_digits_than_it_needs(tmp_path, capsys, form):
    """As C, Rust, Go and JavaScript print it; a number that is one float32 off is another number"""
    made = printed(form) | {"pack.mask": GIVEN["pack.mask"].tolist(), "ids": GIVEN["ids"].tolist()}
    (tmp_path / "made.json").write_text(json.dumps(made))
    code, out, _ = verdict(capsys, tmp_path / "made.json")
    assert code == 0 and "DIFF" not in out
    for name, i in (("half.float32", 8), ("weights.ln_f.bias", 3)):
        other = GIVEN[name].tolist()
        other[i] = np.nextafter(np.float32(other[i]), np.float32(9)).item()
        (tmp_path / "other.json").write_text(json.dumps(made | {name: other}))
        code, out, _ = verdict(capsys, tmp_path / "other.json")
        assert code == 1 and re.search(rf"^{name} .*DIFF  <- the first$", out, flags=re.M)


def test_too_few_digits_are_a_difference(tmp_path, capsys):
    (tmp_path / "made.json").write_text(json.dumps(printed(lambda x: f"{x:.6g}")))
    code, out, _ = verdict(capsys, tmp_path / "made.json")
    assert code == 1 and re.search("^half.float32 .*DIFF", out, flags=re.M)


def test_a_mask_may_be_numbers_or_booleans(tmp_path, capsys):
    for mask in (GIVEN["pack.mask"].tolist(), GIVEN["pack.mask"].int().tolist(), GIVEN["pack.mask"].double().tolist()):
        (tmp_path / "made.json").write_text(json.dumps({"pack.mask": mask}))
        assert verdict(capsys, tmp_path / "made.json")[0] == 0


def test_answers_to_the_former_format_are_known():
    case = golden.case_of(golden.draw(7, 24, (7, 1, 4), former=True))
    made = {name: tensor.detach().double() for name, tensor in steps(case)}
    for name in ("text.embed", "text.1.k", "hidden", "logits", "loss", "grad.2.head"):
        assert Judge({name: made[name]}).names == [golden.FORMER]


@pytest.mark.parametrize("name,change,said", [
    ("text.0.k", lambda k: k.transpose(1, 2), "axes have to be put in the order (0, 2, 1, 3)"),
    ("weights.h.0.attn.c_proj.weight", lambda w: w.T, "axes have to be put in the order (1, 0)"),
    ("weights.wte.weight", lambda w: torch.cat([w, w[:27]]), "its shape is 64 x 10, not 37 x 10"),
    ("pack.0.attn", lambda y: y * float("nan"), "330 of its 330 numbers are NaN"),
    ("pack.0.attn", lambda y: torch.cat([y[:, :5], y[:, 5:] / 0 * 0], 1), "these are whole rows"),
    ("grad.hidden", lambda g: 3 * g, "it is exactly 3 times what it should be: B?"), ("curve", lambda x: x * 0, "are 0"),
    ("curve", lambda x: torch.cat([x[1:], x[-1:]]), golden.LATE),
])  # fmt: skip
def test_what_it_says_of_other_differences(tmp_path, capsys, name, change, said):
    save_file({"loss": GIVEN["loss"], name: change(GIVEN[name]).contiguous()}, tmp_path / "theirs.safetensors")
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
    lambda path: save_file({"ids": GIVEN["ids"]}, path), lambda path: path.write_text('{"logits": [[1], [2, 3]]}'),
    lambda path: path.write_text("[" * 9999), lambda path: path.write_text('{"logits": ' + "[" * 9999),
])  # fmt: skip
def test_what_can_not_be_judged_is_one_sentence_and_exit_code_2(tmp_path, capsys, write):
    write(tmp_path / "theirs")
    code, out, err = verdict(capsys, tmp_path / "theirs")
    assert code == 2 and out == "" and err.count("\n") == 1 and str(tmp_path / "theirs") in err
