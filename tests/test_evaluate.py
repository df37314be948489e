"""evaluate.py: its numbers against plain counting, its verbs from the command line."""

import io
import json
import math
import shutil
import sys

import pytest
import torch
from checkpoints import TINY, random_weights, sizes, write_checkpoint
from test_model import TEXTS, make_prompts, pad

import evaluate
import train
from model import classify, load_gpt2, load_prompt, save_prompt

ROOT = TINY.parent.parent
SHIPPED = ROOT / "weights/tiny/prompts/reviews-p10"


def ask(capsys, *argv):
    """Run evaluate.py -> (exit code, stdout, stderr)"""
    code = 0
    try:
        evaluate.main([*map(str, argv)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def test_answers_come_in_order_whatever_the_batch(checkpoint):
    gpt2, prompts = load_gpt2(checkpoint[0]), make_prompts(dtype=torch.float32)
    examples = [(ids, 0) for ids in TEXTS]
    truth = classify(gpt2, prompts, *pad(TEXTS))
    for size in (1, 2, 32):
        assert (evaluate.answers(gpt2, prompts, examples, size) - truth).abs().max() < 1e-5


def test_score_equals_plain_counting(checkpoint):
    gpt2, prompts = load_gpt2(checkpoint[0]), make_prompts(dtype=torch.float32)
    texts = [[i, i + 1, 2 * i] for i in range(1, 41)]
    examples = [(ids, i % 3 % 2) for i, ids in enumerate(texts)]
    for prompt, result in zip(prompts, evaluate.score(gpt2, prompts, examples, 7)):
        loss, table = 0.0, [[0, 0], [0, 0]]
        for ids, label in examples:
            logits = classify(gpt2, [prompt], *pad([ids]))[0, 0].tolist()
            loss += math.log(sum(math.exp(x) for x in logits)) - logits[label]
            table[label][logits[1] > logits[0]] += 1
        assert result["confusion"] == table and result["n"] == 40 and result["majority"] == 27 / 40
        assert result["accuracy"] == (table[0][0] + table[1][1]) / 40
        assert result["loss"] == pytest.approx(loss / 40, abs=1e-4)
        assert result["collapsed"] == (0 in (table[0][0] + table[1][0], table[0][1] + table[1][1]))


def test_a_prompt_that_answers_one_thing_is_called_collapsed(checkpoint):
    gpt2, (prompt,) = load_gpt2(checkpoint[0]), make_prompts(sizes=[2], dtype=torch.float32)
    prompt.head.data[1] = prompt.head.data[0]  # a tie: always label 0, as with a head of one column
    result = evaluate.score(gpt2, [prompt], [(ids, i % 2) for i, ids in enumerate(TEXTS)], 2)[0]
    assert result["collapsed"] and result["accuracy"] == result["majority"] == 2 / 3


def test_wilson():
    """The bounds solve (p - x)^2 = z^2 x (1 - x) / n, which is where Wilson's interval comes from."""
    for correct, n in ((0, 10), (7, 10), (759, 872), (5, 5)):
        for bound in evaluate.wilson(correct, n):
            assert (correct / n - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / n, abs=1e-12)
    low, high = evaluate.wilson(759, 872)
    assert (high - low) / 2 == pytest.approx(0.022, abs=5e-4)  # 872 texts: plus or minus 2.2 points


def test_the_shipped_prompt_predicts_and_scores_what_it_says(capsys):
    code, out, _ = ask(capsys, "score", SHIPPED, "--json", "--dtype", "float32")
    result = json.loads(out)
    assert code == 0 and result.keys() >= {
        "n", "accuracy", "ci95", "loss", "confusion", "majority", "collapsed", "prompt"}  # fmt: skip
    assert result["accuracy"] >= 0.78 and result["n"] == 399 and not result["collapsed"]
    said = load_prompt(SHIPPED / "prompt.safetensors")[1]
    assert abs(float(said["accuracy"]) - result["accuracy"]) < 0.01  # trained in bfloat16, asked in float32
    code, out, _ = ask(capsys, "predict", SHIPPED, "--json", "a delight from start to finish", "it never comes to life")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["label_name"] for line in lines] == ["positive", "negative"]
    for line in lines:
        assert line.keys() == {"text", "label", "label_name", "logits", "probabilities"}
        assert line["probabilities"] == pytest.approx(torch.tensor(line["logits"]).softmax(0).tolist())
        assert line["probabilities"][line["label"]] > 0.5


def test_arguments_a_file_and_standard_input_get_the_same_answers(capsys, monkeypatch, tmp_path):
    texts = ["great fun", "a mess , from start to finish", "🙂 fine"]
    (tmp_path / "in.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    by_arguments = ask(capsys, "predict", SHIPPED, *texts)
    assert by_arguments[1].count("\n") == 3 and ask(capsys, "predict", SHIPPED, "--input", tmp_path / "in.txt") == by_arguments
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(texts)))
    assert ask(capsys, "predict", SHIPPED) == by_arguments


def test_run_prompt_folder_and_file_name_a_prompt(capsys, tmp_path):
    for name, accuracy, held in (("a", 0.9, 0.6), ("b", 0.7, 0.8)):
        shutil.copytree(SHIPPED, tmp_path / "prompts" / name)
    rows = [{"folder": f"prompts/{name}", "accuracy": a, "selection": {"accuracy": s}} for name, a, s in (("a", 0.9, 0.6), ("b", 0.7, 0.8))]
    (tmp_path / "summary.json").write_text(json.dumps({"prompts": rows}))
    best = tmp_path / "prompts/b/prompt.safetensors"
    assert evaluate.find_prompt(tmp_path) == best  # by the selection split, never by dev
    assert evaluate.find_prompt(best.parent) == evaluate.find_prompt(best) == best


def test_regression_is_scored_by_a_threshold(tmp_path, capsys, monkeypatch):
    train.main(["--num-labels", "1", "--steps", "2", "--prompt-tokens", "1", "--out", str(tmp_path / "run")])
    code, out, _ = ask(capsys, "score", tmp_path / "run", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and sum(map(sum, result["confusion"])) == result["n"] == 399
    _, out, _ = ask(capsys, "predict", tmp_path / "run", "--json", "great fun")
    answer = json.loads(out)
    assert len(answer["logits"]) == 1 and answer["label"] == int(answer["logits"][0] > 0.5)


# ---- what is refused --------------------------------------------------------------------------


@pytest.fixture
def other_model(tmp_path):
    config = sizes(C=12, H=3)
    return write_checkpoint(tmp_path / "other", config, random_weights(config))


def changed(tmp_path, **metadata):
    prompt, old = load_prompt(SHIPPED / "prompt.safetensors")
    save_prompt(tmp_path / "p.safetensors", prompt, old | metadata)
    return tmp_path / "p.safetensors"


@pytest.mark.parametrize("argv,named", [
    (["score"], "RUN"), (["guess", SHIPPED], "guess"), (["predict", SHIPPED, "--colour"], "--colour"),
    (["score", SHIPPED, "more"], "more"), (["score", "nowhere"], "nowhere"), (["score", ROOT], "no finished run"),
    (["predict", SHIPPED, "  "], "text 1 is blank"), (["predict", SHIPPED, "--input", "absent.txt"], "absent.txt"),
    (["predict", SHIPPED, "--input", "x", "text"], "not both"), (["score", SHIPPED, "--split", "test"], "test.tsv"),
    (["score", SHIPPED, "--data", "absent"], "absent"), (["score", SHIPPED, "--model", "absent"], "absent"),
    (["score", SHIPPED, "--device", "warp"], "warp"), (["score", TINY / "model.safetensors"], "model.safetensors"),
    (["score", TINY / "config.json"], "config.json"),
])  # fmt: skip
def test_one_sentence_and_exit_2(capsys, argv, named):
    code, out, err = ask(capsys, *argv)
    assert code == 2 and named in err and not out and "Traceback" not in err


def test_a_prompt_of_another_model_or_rule_is_refused(capsys, tmp_path, other_model):
    code, _, err = ask(capsys, "score", SHIPPED, "--model", other_model)
    assert code == 2 and "trained on another model" in err
    code, _, err = ask(capsys, "score", changed(tmp_path, text_rule="lower"))
    assert code == 2 and "text rule" in err
    code, _, err = ask(capsys, "score", changed(tmp_path, base_sha256="0" * 64))
    assert code == 2 and "sha256" in err
