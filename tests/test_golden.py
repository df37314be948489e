"""The golden file, its judge, and this project before it."""

import json
import random
import re
from functools import lru_cache

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import golden
import judge
import method
import task
from helpers import ROOT
from judge import Judge
from mistakes import READING, STEP, TEXTS, WAY_BACK, Mistake
from model import Prompt, classify, losses
from support import checkpoint
from support.files import read_safetensors
from train import lr_share, train_step

GOLDEN = task.read_golden()
METADATA = read_safetensors(task.GOLDEN)[1]
PORTING = (ROOT / "porting" / "porting.md").read_text(encoding="utf-8")

# ---- the file -------------------------------------------------------------------------------


def test_it_is_written_the_same_to_the_byte():
    assert golden.golden_bytes() == task.GOLDEN.read_bytes()


def test_no_two_axes_have_one_size():
    sizes = list(task.SIZE.values())
    sizes.append(task.POSITIONS)
    assert len(set(sizes)) == len(sizes) == 10


def test_the_rates_of_the_task_rise_and_fall():
    total = task.RECIPE["total"]
    warm = task.RECIPE["warm_up"]
    shares = [lr_share(step, total) for step in range(total)]
    assert shares[warm - 1] == max(shares)
    assert 1 < warm < task.RECIPE["steps"]


# ---- this project before the judge ----------------------------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """The small model, by way of a checkpoint's files"""
    folder = tmp_path_factory.mktemp("small")
    weights = {}
    for name, tensor in GOLDEN.items():
        if name.startswith("weights."):
            weights[name.removeprefix("weights.")] = tensor
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(METADATA["config"])
    with pytest.MonkeyPatch.context() as patch:
        # 37 rows are fewer than there are bytes: no tokenizer has so few.
        patch.setattr(checkpoint, "read_tokenizer", lambda *of_what: None)
        return checkpoint.open_checkpoint(folder).load()


def start_prompts():
    prompts = []
    for k in range(task.K):
        vectors = GOLDEN[f"prompt.{k}.vectors"]
        prompts.append(Prompt(vectors, GOLDEN[f"prompt.{k}.head"]))
    return prompts


def batch():
    return [GOLDEN[name] for name in ("ids", "lengths", "labels")]


def named(name, prompts):
    """{name: tensor} of what is trained"""
    tensors = {}
    for k, prompt in enumerate(prompts):
        tensors[f"{name}.{k}.vectors"] = prompt.vectors.detach().clone()
        tensors[f"{name}.{k}.head"] = prompt.head.detach().clone()
    return tensors


class Notes:
    """What blocks make on the way; the last block computes no more than the answers need."""

    def __init__(self, gpt2, monkeypatch):
        self.made = {}
        self.running = None  # "text" or "pack"
        for i, block in enumerate(gpt2.h[:-1]):
            self.watch_pass(monkeypatch, block, "text_pass", "text", i)
            self.watch_pass(monkeypatch, block, "prompt_pass", "pack", i)
            self.watch_module(block.attn.c_proj, f"{i}.attn")
            self.watch_module(block.mlp, f"{i}.mlp")

    def watch_pass(self, monkeypatch, block, method, run, i):
        right = getattr(block, method)

        def watched(*given):
            self.running = run
            result = right(*given)
            x = result[0] if run == "text" else result
            self.made.setdefault(f"{run}.{i}.x", x.detach())
            self.running = None
            return result

        monkeypatch.setattr(block, method, watched)

    def watch_module(self, module, name):
        def hook(module, given, result):
            if self.running:
                self.made.setdefault(f"{self.running}.{name}", result.detach())

        module.register_forward_hook(hook)


def passes(gpt2, monkeypatch):
    """The forward pass, the losses and the gradients"""
    notes = Notes(gpt2, monkeypatch)
    prompts = start_prompts()
    ids, lengths, labels = batch()
    logits = classify(gpt2, prompts, ids, lengths)
    loss = losses(logits, labels)
    loss.sum().backward()
    made = dict(notes.made)
    made["logits"] = logits.detach()
    made["loss"] = loss.detach()
    for i, (k, v) in enumerate(gpt2.text_pass(ids)):
        made[f"text.{i}.k"] = k
        made[f"text.{i}.v"] = v
    for k, prompt in enumerate(prompts):
        made[f"grad.{k}.vectors"] = prompt.vectors.grad
        made[f"grad.{k}.head"] = prompt.head.grad
    return made


def ten_steps(gpt2):
    """What is trained, and the curve"""
    recipe = task.RECIPE
    prompts = start_prompts()
    groups = []
    for lr, prompt in zip(recipe["lr"], prompts, strict=True):
        groups.append({"params": [prompt.vectors], "peak": lr})
        groups.append({"params": [prompt.head], "peak": recipe["head_lr"]})
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    made = {}
    curve = []
    for step in range(recipe["steps"]):
        share = lr_share(step, recipe["total"])
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        loss, _, _ = train_step(gpt2, prompts, optimizer, *batch())
        curve.append(loss)
        if step == 0:
            made |= named("after1", prompts)
    made |= named("after", prompts)
    made["curve"] = torch.stack(curve)
    return made


def weights_of(gpt2):
    """Written back as a checkpoint has them"""
    made = {}
    for name, tensor in gpt2.state_dict().items():
        if name.endswith(checkpoint.TRANSPOSED):
            tensor = tensor.t()
        made[f"weights.{name}"] = tensor
    return made


def test_this_project_passes(gpt2, monkeypatch):
    made = passes(gpt2, monkeypatch) | ten_steps(gpt2) | weights_of(gpt2)
    found = Judge({name: tensor.double() for name, tensor in made.items()})
    assert found.wrong == []
    some = {"text.0.x", "pack.1.mlp", "text.2.v", "logits", "curve", "after1.0.head"}
    assert some <= set(found.given)
    assert len(found.given) == len(made)


# ---- known mistakes -------------------------------------------------------------------------

CASE = task.case_of(GOLDEN)
BUNDLED = task.bundled_case()
KNOWN = READING + WAY_BACK + STEP + TEXTS


def changes_of(some):
    """The (part, wrong part) of some mistakes"""
    changes = []
    for mistake in some:
        changes += mistake.changes().items()
    return changes


EARLY = set(changes_of(READING))  # these need no training


@lru_cache(None)
def run(of_texts, *changes):
    """([(name, tensor)] of a run with these changes, the error that ends it or None)"""
    made = []
    if of_texts:
        steps = method.ask(BUNDLED, dict(changes), only=())
    else:
        steps = method.steps(CASE, dict(changes))
    try:
        for name, tensor in steps:
            made.append((name, tensor.detach()))
            if name == "loss" and EARLY & set(changes):
                break
    except (IndexError, RuntimeError) as error:
        return made, error
    return made, None


def planted(*some):
    """What a port in float32 with these mistakes makes, as far as it comes"""
    of_texts = []
    of_numbers = []
    for change in changes_of(some):
        if change[0] in ("clean", "encode"):
            of_texts.append(change)
        else:
            of_numbers.append(change)
    made = {}
    curve = []
    for name, tensor in run(True, *of_texts)[0] + run(False, *of_numbers)[0]:
        tensor = tensor.float().double()
        if name.startswith("curve"):
            curve.append(tensor)
        else:
            made[name] = tensor
    if curve:
        made["curve"] = torch.stack(curve)
    return made


@pytest.fixture
def kept_runs(monkeypatch):
    """What the judge computes for each known mistake is kept: it is the same for all files"""

    def kept(case, changes, **more):
        made, error = run(case is BUNDLED, *changes.items())
        yield from made
        if error:
            raise error

    monkeypatch.setattr(judge, "steps", kept)
    monkeypatch.setattr(judge, "ask", kept)
    monkeypatch.setattr(judge, "case_of", lambda tensors: CASE)
    monkeypatch.setattr(judge, "bundled_case", lambda dtype=None: BUNDLED)
    monkeypatch.setattr(judge, "is_former", lambda found: False)


def test_every_known_mistake_is_named_and_none_is_taken_for_another(kept_runs):
    for mistake in KNOWN:
        found = Judge(planted(mistake))
        assert found.names == [mistake.sentence], found.first


def first_error(made):
    """The first tensor that differs, and by how much"""
    for name, right in GOLDEN.items():
        if name in made:
            error = judge.distance(name, right, made[name], GOLDEN)
            if not error <= task.tolerance(name):  # nor NaN
                return name, error


def test_every_known_mistake_is_far_from_the_truth():
    for mistake in KNOWN:
        name, error = first_error(planted(mistake))
        assert not error <= 4 * task.tolerance(name), mistake.sentence


def test_there_are_no_fewer_known_mistakes():
    counts = [len(READING), len(WAY_BACK), len(STEP), len(TEXTS)]
    assert counts == [66, 29, 62, 34]
    assert len({mistake.sentence for mistake in KNOWN}) == 145


# ---- other mistakes -------------------------------------------------------------------------

UNKNOWN = []


def unknown(part):
    """A decorator: the function under it is a mistake of no list"""

    def keep(wrong):
        UNKNOWN.append(Mistake("unknown", (part,), wrong))
        return wrong

    return keep


@unknown("embed")
def positions_backwards(w, ids):
    rows = w["wpe.weight"].flip(0)[: ids.shape[1]]
    return w["wte.weight"][ids] + rows


unknown("gelu")(torch.nn.functional.silu)


@unknown("scale")
def half(C, H):
    return 0.5


@unknown("place")
def one_row_for_all(vectors, rows):
    return vectors + rows[:1]


@unknown("pool")
def one_vector_early(x, ends):
    return x[:, [max(end - 1, 0) for end in ends]]


@unknown("loss")
def margin(logits, labels):
    one = torch.nn.functional.multi_margin_loss(logits[0], labels)
    return one + 0 * logits.sum((1, 2))


@unknown("clip")
def signs(grads, norms, limit):
    return [[g.sign() * limit for g in pair] for pair in grads]


@unknown("rate")
def root(t, warm, total):
    return (t / total) ** 0.5


@unknown("adam")
def step_of_signs(x, g, m, v, t, rate):
    return x - rate * g.sign(), m, v


@pytest.mark.parametrize("mistake", UNKNOWN, ids=[one.parts[0] for one in UNKNOWN])
def test_an_unknown_mistake_goes_without_a_name(kept_runs, mistake):
    assert Judge(planted(mistake)).names == []


def meetings():
    """Each unknown mistake with two known ones, of other parts"""
    draw = random.Random(0)
    pairs = []
    for mistake in UNKNOWN:
        others = [one for one in KNOWN if mistake.parts[0] not in one.parts]
        for known in draw.sample(others, 2):
            pairs.append((known, mistake))
    return pairs


@pytest.mark.parametrize("known,mistake", meetings(), ids=range(18))
def test_no_false_name_is_given_where_a_known_one_meets_an_unknown(kept_runs, known, mistake):
    names = Judge(planted(known, mistake)).names
    assert names in ([], [known.sentence])


PAIRS = [
    {"LayerNorm has no bias", "scores are not scaled"},
    {"nothing is clipped", "the rates do not warm up"},
]


@pytest.mark.parametrize("pair", PAIRS, ids=range(2))
def test_two_known_mistakes_are_both_named(kept_runs, pair):
    both = [mistake for mistake in KNOWN if mistake.sentence in pair]
    assert len(both) == 2
    assert set(Judge(planted(*both)).names) == pair


def test_answers_to_the_former_format_are_known():
    case = task.case_of(task.draw_former())
    made = {name: tensor.detach().double() for name, tensor in method.steps(case)}
    for name in ("text.embed", "text.1.k", "hidden", "logits", "loss", "grad.2.head"):
        assert Judge({name: made[name]}).names == [judge.FORMER]


DAMAGE = {
    "add one": lambda x: x + 1,
    "nan": lambda x: x * float("nan"),
    "times three": lambda x: x * 3,
    "a row less": lambda x: x[:-1],
    "an axis more": lambda x: x[None],
    "zero": lambda x: x * 0,
    "flat": lambda x: x.flatten(),
    "empty": lambda x: x[..., :0],
    "a number": lambda x: x.sum(),
    "infinite": lambda x: x + float("inf"),
}


@pytest.mark.parametrize("seed", range(15))
def test_it_never_crashes_on_a_part_of_the_names_one_of_them_damaged(seed):
    draw = random.Random(seed)
    number = draw.choice([1, 2, 5, 20, len(GOLDEN)])
    names = draw.sample(list(GOLDEN), number)
    theirs = {name: GOLDEN[name].double() for name in names}
    name = draw.choice(names)
    damage = draw.choice(list(DAMAGE.values()))
    theirs[name] = damage(theirs[name])
    found = Judge(theirs)
    assert found.first in (None, name)
    assert found.names in ([], ["the gradients have the wrong sign"])


# ---- porting.md -----------------------------------------------------------------------------


def test_porting_md_knows_all_that_the_judge_says():
    text = " ".join(PORTING.split())
    sentences = [mistake.sentence for mistake in KNOWN]
    for sentence in [*sentences, judge.FORMER, judge.LATE]:
        assert f'"{sentence}"' in text, sentence


def test_porting_md_has_every_step_that_the_judge_names():
    for group in task.GROUPS:
        assert f"**{group.step}. " in PORTING, group.pattern


def test_porting_md_has_every_name():
    for name in GOLDEN:
        forms = [re.sub(r"\.\d+", letter, name) for letter in (".i", ".k")]
        is_told = any(form in PORTING for form in forms)
        assert name.startswith("weights.") or is_told, name


def told_tolerances():
    """{pattern: number} of the table of porting.md"""
    table = PORTING.split("| allowed | tensors |")[1].split("\n\n")[0]
    told = {}
    for numbers, names in re.findall(r"^\| ([\d., ]+) \| (.*) \|$", table, flags=re.M):
        numbers = [float(number) for number in numbers.split(", ")]
        names = re.findall("`([^`]+)`", names)
        if len(numbers) == 1:
            numbers *= len(names)
        told |= dict(zip(names, numbers, strict=True))
    return told


def test_porting_md_has_the_tolerances_of_the_file():
    allowed = json.loads(METADATA["tolerances"])
    assert allowed == task.tolerances(GOLDEN)
    rounded = {name: value for name, value in allowed.items() if value}
    assert told_tolerances() == rounded


# ---- the command ----------------------------------------------------------------------------


@pytest.fixture
def verdict(capsys):
    """compare, with some flags -> (exit code, stdout, stderr)"""

    def ask(path, *flags):
        with pytest.raises(SystemExit) as stop:
            golden.main(["compare", str(path), *flags])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return ask


def test_right_tensors_pass(tmp_path, verdict):
    path = tmp_path / "right.safetensors"
    right = {name: GOLDEN[name] for name in ("logits", "pack.mask")}
    save_file(right | {"mine": torch.ones(1)}, path)
    code, out, _ = verdict(path)
    assert code == 0
    assert "all 2 agree" in out
    assert "inference: 2 agree; 39 of 41 are not given" in out
    assert "not judged, since porting.md has no such name: mine" in out


@pytest.fixture
def one_wrong(tmp_path):
    """An npz in which one logit is wrong, by 0.001"""
    logits = GOLDEN["logits"].clone()
    logits[3, 2, 1] += 1e-3
    path = tmp_path / "wrong.npz"
    np.savez(path, logits=logits.numpy(), **{"pack.mask": GOLDEN["pack.mask"].numpy()})
    return path


def test_a_wrong_tensor_does_not_pass(one_wrong, verdict):
    code, out, _ = verdict(one_wrong)
    assert code == 1
    assert out.count("DIFF  <- the first") == 1
    assert "1 of 2 differ, first logits: step 9 of porting.md" in out
    assert "no mistake known here" in out


def test_it_says_where_a_tensor_is_wrong_and_of_what_it_is_made(one_wrong, verdict):
    _, out, _ = verdict(one_wrong)
    assert "only where k is 3\n" in out
    assert "only where b is 2\n" in out
    assert "prompt's own head" in out


def test_a_tolerance_lets_an_error_pass(one_wrong, verdict):
    assert verdict(one_wrong, "--tolerance", "0.002")[0] == 0


def test_a_level_of_which_nothing_is_given_is_not_judged(one_wrong, verdict):
    assert verdict(one_wrong, "--only", "training")[0] == 2


def write_json(path, made):
    path.write_text(json.dumps(made))
    return path


def test_numbers_as_float16_has_them_pass_with_a_tolerance(tmp_path, verdict):
    made = {}
    for name, tensor in GOLDEN.items():
        if task.group(name).level == "inference":
            made[name] = tensor.half().tolist()
    path = write_json(tmp_path / "made.json", made)
    code, out, _ = verdict(path, "--only", "inference", "--tolerance", "0.01")
    assert code == 0
    assert "inference: complete" in out
    assert verdict(path)[0] == 1


def test_ids_have_no_tolerance(tmp_path, verdict):
    made = {"tokens.1": (GOLDEN["tokens.1"] + 1).tolist()}
    path = write_json(tmp_path / "ids.json", made)
    assert verdict(path, "--tolerance", "9")[0] == 1


# ---- numbers as other languages print them --------------------------------------------------


def nine_digits(x):
    return f"{x:.9g}"


def shortest(x):
    return str(np.float32(x))


def six_digits(x):
    return f"{x:.6g}"


def printed(form):
    """All floats of the file as a port may write them in JSON; form: how a number is printed"""

    def again(found):
        return form(float(found[0]))

    made = {}
    for name, tensor in GOLDEN.items():
        if tensor.is_floating_point():
            text = re.sub(r"[-+.e\d]+", again, json.dumps(tensor.tolist()))
            made[name] = json.loads(text)
    return made


@pytest.mark.parametrize("form", [nine_digits, shortest, repr])
def test_float32_in_json_may_have_no_more_digits_than_it_needs(tmp_path, verdict, form):
    """As C, Rust, Go and JavaScript print it"""
    made = printed(form)
    for name in ("pack.mask", "ids"):
        made[name] = GOLDEN[name].tolist()
    code, out, _ = verdict(write_json(tmp_path / "made.json", made))
    assert code == 0
    assert "DIFF" not in out


@pytest.mark.parametrize("form", [nine_digits, shortest, repr])
@pytest.mark.parametrize("name,i", [("half.float32", 8), ("weights.ln_f.bias", 3)])
def test_a_number_that_is_one_float32_off_is_another(tmp_path, verdict, form, name, i):
    made = printed(form)
    made[name][i] = np.nextafter(np.float32(made[name][i]), np.float32(9)).item()
    code, out, _ = verdict(write_json(tmp_path / "made.json", made))
    assert code == 1
    assert re.search(rf"^{name} .*DIFF  <- the first$", out, flags=re.M)


def test_too_few_digits_are_a_difference(tmp_path, verdict):
    made = printed(six_digits)
    code, out, _ = verdict(write_json(tmp_path / "made.json", made))
    assert code == 1
    assert re.search("^half.float32 .*DIFF", out, flags=re.M)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float64])
def test_a_mask_may_be_numbers_or_booleans(tmp_path, verdict, dtype):
    made = {"pack.mask": GOLDEN["pack.mask"].to(dtype).tolist()}
    assert verdict(write_json(tmp_path / "made.json", made))[0] == 0


# ---- hints ----------------------------------------------------------------------------------


def heads_last(k):
    return k.transpose(1, 2)


def transposed(w):
    return w.T


def more_rows(w):
    return torch.cat([w, w[:27]])


def not_numbers(y):
    return y * float("nan")


def rows_of_nan(y):
    y = y.clone()
    y[:, 5:] = float("nan")
    return y


def tripled(g):
    return 3 * g


def zeros(x):
    return x * 0


def one_late(x):
    return torch.cat([x[1:], x[-1:]])


HINTS = [
    ("text.0.k", heads_last, "axes have to be put in the order (0, 2, 1, 3)"),
    ("weights.h.0.attn.c_proj.weight", transposed, "axes have to be put in the order (1, 0)"),
    ("weights.wte.weight", more_rows, "its shape is 64 x 10, not 37 x 10"),
    ("pack.0.attn", not_numbers, "330 of its 330 numbers are NaN"),
    ("pack.0.attn", rows_of_nan, "these are whole rows"),
    ("grad.hidden", tripled, "it is exactly 3 times what it should be: B?"),
    ("curve", zeros, "are 0"),
    ("curve", one_late, judge.LATE),
]


@pytest.mark.parametrize("name,change,said", HINTS)
def test_what_it_says_of_other_differences(tmp_path, verdict, name, change, said):
    path = tmp_path / "theirs.safetensors"
    theirs = change(GOLDEN[name]).contiguous()
    save_file({"loss": GOLDEN["loss"], name: theirs}, path)
    code, out, _ = verdict(path)
    assert code == 1
    assert said in out


def test_pads_do_not_count(tmp_path, verdict):
    theirs = GOLDEN["text.1.v"].clone()
    theirs[1, :, 1:] = float("nan")  # this text has one token
    path = tmp_path / "theirs.safetensors"
    save_file({"text.1.v": theirs}, path)
    assert verdict(path)[0] == 0


def test_a_name_does_not_speak_to_the_terminal(tmp_path, verdict):
    made = {"loss": GOLDEN["loss"].tolist(), "a\x1b[31m": 1}
    _, out, _ = verdict(write_json(tmp_path / "made.json", made))
    assert "\\x1b[31m" in out
    assert "\x1b" not in out


# ---- what can not be judged -----------------------------------------------------------------


def npz(**arrays):
    """A writer of such a file"""

    def write(path):
        with path.open("wb") as file:
            np.savez(file, **arrays)

    return write


def text(content):
    """A writer of such a file"""

    def write(path):
        path.write_text(content)

    return write


def only_the_task(path):
    save_file({"ids": GOLDEN["ids"]}, path)


def half_a_file(path):
    save_file({"logits": GOLDEN["logits"]}, path)
    path.write_bytes(path.read_bytes()[:-9])


def half_an_archive(path):
    npz(logits=np.ones(999))(path)
    path.write_bytes(path.read_bytes()[:-99])


def folder(path):
    path.mkdir()


def nothing(path):
    """There is no file"""


NO_ANSWERS = {
    "empty": text(""),
    "no archive": text("PK\3\4 and no more"),
    "half an archive": half_an_archive,
    "half a file": half_a_file,
    "a number alone": text('{"a": 1}'),
    "another name": npz(other=np.ones(2)),
    "objects": npz(logits=[{}]),
    "letters": npz(logits=["a"]),
    "a folder": folder,
    "nothing": nothing,
    "the task": only_the_task,
    "ragged": text('{"logits": [[1], [2, 3]]}'),
    "a list": text("[" * 9999),
    "too deep": text('{"logits": ' + "[" * 9999),
}


@pytest.mark.parametrize("write", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_can_not_be_judged_is_one_sentence_and_exit_code_2(tmp_path, verdict, write):
    path = tmp_path / "theirs"
    write(path)
    code, out, err = verdict(path)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert str(path) in err
