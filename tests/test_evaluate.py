"""evaluate.py: its numbers against plain counting, its verbs from the command line."""

import io
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from checkpoints import TINY, random_weights, sizes, write_checkpoint
from test_model import TEXTS, make_prompts, pad

import evaluate
import train
from model import classify, load_gpt2, load_prompt, save_prompt

ROOT = TINY.parent.parent
SHIPPED = ROOT / "weights/tiny/prompts/reviews-p10"
OTHER = ROOT / "weights/tiny/prompts/sst2-p10"


def ask(capsys, *argv):
    """Run evaluate.py -> (exit code, stdout, stderr)"""
    code = 0
    try:
        evaluate.main([*map(str, argv)])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def few(tmp_path):
    """A data set of 60 sentences to train on, and 60 others."""
    (tmp_path / "few").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        lines = (ROOT / "reviews" / name).read_text("utf-8").splitlines(keepends=True)[:61]
        (tmp_path / "few" / name).write_text("".join(lines), "utf-8")
    return tmp_path / "few"


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
        answered = [table[0][0] + table[1][0], table[0][1] + table[1][1]]
        assert result["collapsed"] == (0 in answered) == (result["alarm"] is not None)
        for i in (0, 1):
            assert result["precision"][i] == (table[i][i] / answered[i] if answered[i] else None)
            assert result["recall"][i] == table[i][i] / sum(table[i])


def test_a_prompt_that_answers_one_thing_is_called_collapsed(checkpoint):
    gpt2, (prompt,) = load_gpt2(checkpoint[0]), make_prompts(sizes=[2], dtype=torch.float32)
    prompt.head.data[1] = prompt.head.data[0]  # a tie: always label 0, as with a head of one column
    result = evaluate.score(gpt2, [prompt], [(ids, i % 2) for i, ids in enumerate(TEXTS)], 2)[0]
    assert result["collapsed"] and result["accuracy"] == result["majority"] == 2 / 3
    assert result["alarm"] == "0.6667 is the share of label 0: this model answers 0 for everything"


def test_precision_and_recall_of_a_label_that_is_never_answered_or_never_there():
    result = evaluate.tally(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 2, 2, 1]), 3)
    assert result["confusion"] == [[1, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert (result["precision"], result["recall"]) == ([0.5, 0.5, None], [1.0, 1.0, 0.0])
    result = evaluate.tally(torch.tensor([1, 1]), torch.tensor([0, 1]), 3)
    assert result["recall"] == [0.0, 1.0, None] and result["collapsed"] and "label 1" in result["alarm"]


def test_the_alarm_names_a_head_of_one_column():
    """Its argmax would be 0 for all; the threshold reads it, and the sentence says both."""
    labels = torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    result = evaluate.judge(torch.tensor([[0.1], [0.9], [0.6], [0.7], [0.2]]), labels)
    assert result["confusion"] == [[1, 1], [1, 2]] and result["accuracy"] == 0.6 and not result["collapsed"]
    assert result["loss"] == pytest.approx((0.01 + 0.01 + 0.16 + 0.49 + 0.64) / 5)
    assert "one column" in result["alarm"] and "score 0.4000, the share of label 0" in result["alarm"]
    stuck = evaluate.judge(torch.full((5, 1), 0.8), labels)
    assert stuck["alarm"].startswith("0.6000 is the share of label 1: this model answers 1 for everything; the head")


def test_mcnemar_equals_the_enumerated_binomial():
    """All 2**m ways in which m disagreements can fall, each as likely as the next if the prompts are equal."""
    for b, c, both, neither in ((0, 5, 3, 1), (2, 6, 0, 0), (4, 4, 2, 2), (0, 0, 3, 0), (7, 3, 1, 5)):
        first = torch.tensor([True] * b + [False] * c + [True] * both + [False] * neither)
        second = torch.tensor([False] * b + [True] * c + [True] * both + [False] * neither)
        ways = [sum(way) for way in itertools.product((0, 1), repeat=b + c)]
        p = sum(abs(2 * k - (b + c)) >= abs(b - c) for k in ways) / len(ways)
        assert evaluate.mcnemar(first, second) == {"n": b + c + both + neither, "only_right": [b, c], "p": pytest.approx(p)}
    huge = evaluate.mcnemar(torch.tensor([True] * 800 + [False] * 750), torch.tensor([False] * 800 + [True] * 750))
    z = 49 / math.sqrt(1550)  # the normal approximation, with its continuity correction
    assert huge["p"] == pytest.approx(math.erfc(z / math.sqrt(2)), abs=1e-3)


def test_probabilities_and_log_odds_against_the_plain_definition():
    logits = torch.tensor([[0.3, -1.2, 2.0], [0.0, 0.1, 0.2]])
    for row, shares in zip(logits.tolist(), evaluate.probabilities(logits).tolist()):
        whole = sum(math.exp(x) for x in row)
        assert shares == pytest.approx([math.exp(x) / whole for x in row])
    for label in range(3):
        shares = evaluate.probabilities(logits)[:, label]
        assert torch.allclose(evaluate.log_odds(logits, label), (shares / (1 - shares)).log(), atol=1e-6)
    assert torch.allclose(evaluate.log_odds(logits[:, :2], 1), logits[:, 1] - logits[:, 0])
    one = torch.tensor([[0.2], [1.3]])
    assert evaluate.probabilities(one).tolist() == [pytest.approx([0.8, 0.2]), [0.0, 1.0]]
    assert torch.allclose(evaluate.log_odds(one, 0), torch.tensor([0.3, -0.8]))


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
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\r\n".join(texts).encode())))
    assert ask(capsys, "predict", SHIPPED) == by_arguments


def test_run_prompt_folder_and_file_name_a_prompt(capsys, tmp_path):
    for name, accuracy, held in (("a", 0.9, 0.6), ("b", 0.7, 0.8)):
        shutil.copytree(SHIPPED, tmp_path / "prompts" / name)
    rows = [{"folder": f"prompts/{name}", "accuracy": a, "selection": {"accuracy": s}} for name, a, s in (("a", 0.9, 0.6), ("b", 0.7, 0.8))]
    (tmp_path / "summary.json").write_text(json.dumps({"prompts": rows, "baselines": {}}))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {}}))
    best, other = (tmp_path / f"prompts/{name}/prompt.safetensors" for name in "ba")
    assert evaluate.find_prompts(tmp_path) == [best]  # by the selection split, never by dev
    assert evaluate.find_prompts(best.parent) == evaluate.find_prompts(best) == [best]
    assert evaluate.find_prompts(tmp_path, every=True) == [best, other]


def test_regression_is_scored_by_a_threshold(tmp_path, capsys, few):
    train.main(["--num-labels", "1", "--steps", "2", "--prompt-tokens", "1", "--data", str(few), "--select-on", "dev",
                "--out", str(tmp_path / "run")])  # fmt: skip
    code, out, _ = ask(capsys, "score", tmp_path / "run", "--json")
    result = json.loads(out.splitlines()[-1])
    assert code == 0 and sum(map(sum, result["confusion"])) == result["n"] == 60
    assert "one column" in result["alarm"]
    _, out, _ = ask(capsys, "predict", tmp_path / "run", "--json", "great fun")
    answer = json.loads(out)
    assert len(answer["logits"]) == 1 and answer["label"] == int(answer["logits"][0] > 0.5)


# ---- several prompts ---------------------------------------------------------------------------


def test_prompts_together_answer_by_the_mean_of_their_logits(capsys):
    texts = ["great fun", "a mess , from start to finish", "fine"]
    alone = [[json.loads(line)["logits"] for line in ask(capsys, "predict", run, "--json", *texts)[1].splitlines()]
             for run in (SHIPPED, OTHER)]  # fmt: skip
    code, out, _ = ask(capsys, "predict", SHIPPED, "--json", *texts, "--with", OTHER)
    assert code == 0
    for line, a, b in zip(out.splitlines(), *alone, strict=True):
        assert json.loads(line)["logits"] == pytest.approx([(x + y) / 2 for x, y in zip(a, b)], abs=1e-5)
    assert ask(capsys, "predict", SHIPPED, *texts, "--with", SHIPPED) == ask(capsys, "predict", SHIPPED, *texts)


def test_a_score_together_comes_beside_the_scores_alone(capsys, few):
    _, out, _ = ask(capsys, "score", SHIPPED, "--with", OTHER, "--json", "--data", few)
    both = json.loads(out)
    alone = [json.loads(ask(capsys, "score", run, "--json", "--data", few)[1]) for run in (SHIPPED, OTHER)]
    assert both["alone"] == [one["accuracy"] for one in alone] and both["loss"] < max(one["loss"] for one in alone)
    assert both["prompt"] == " + ".join(one["prompt"] for one in alone)


def test_the_surest_mistakes(capsys, few):
    _, out, _ = ask(capsys, "score", SHIPPED, "--json", "--errors", "100", "--data", few)
    result = json.loads(out)
    errors = result["errors"]
    assert len(errors) == round((1 - result["accuracy"]) * 60) > 5  # every one of them, and nothing else
    assert [error["probability"] for error in errors] == sorted((e["probability"] for e in errors), reverse=True)
    rows = dict(line.rsplit("\t", 1) for line in (few / "dev.tsv").read_text("utf-8").splitlines()[1:])
    assert all(error["label"] == int(rows[error["text"]]) != error["answer"] for error in errors)
    _, out, _ = ask(capsys, "score", SHIPPED, "--errors", "1", "--data", few)
    assert out.splitlines()[-1].endswith(errors[0]["text"]) and "but it is" in out


# ---- many texts ---------------------------------------------------------------------------------


def test_lines_that_cannot_be_answered_keep_their_place(capsys, tmp_path):
    lines = [b"\xef\xbb\xbfgreat fun", b"", b"caf\xe9 noir", b"a\tmess", b" " * 9, b"x" * (evaluate.LONGEST + 1), b"fine"]
    (tmp_path / "in.txt").write_bytes(b"\n".join(lines))
    code, out, err = ask(capsys, "predict", SHIPPED, "--json", "--input", tmp_path / "in.txt")
    found = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["text"] for row in found[:5]] == ["great fun", "", "caf\ufffd noir", "a\tmess", ""]
    assert [row.get("error") for row in found] == [
        None, "is blank", "is not UTF-8", None, "is blank", "is longer than 262,144 bytes", None]  # fmt: skip
    for row in (found[1], found[2], found[5]):
        assert [row[key] for key in ("label", "label_name", "logits", "probabilities")] == [None] * 4
    assert re.findall(r"line (\d+) is", err) == ["2", "3", "5", "6"]
    _, plain, _ = ask(capsys, "predict", SHIPPED, "--input", tmp_path / "in.txt")
    columns = [line.split("\t", 2) for line in plain.split("\n")[:-1]]
    assert [row[:2] == ["-", "-"] for row in columns] == ["error" in row for row in found]
    assert columns[3][2] == "a\tmess" and columns[0][0] == found[0]["label_name"]


def test_pieces_of_a_stream_make_whole_lines():
    """However a pipe cuts them; and a line without end is not kept."""
    text = "".join(f"line {i} é\n" for i in range(50)).encode() + b"the last"
    for size in (1, 2, 3, 7, 1000):
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        stream = SimpleNamespace(read1=lambda _, left=iter([*pieces, b""]): next(left))
        assert [line for lines in evaluate.lines_of(stream, 4) for line in lines] == text.split(b"\n")

    endless = SimpleNamespace(read1=lambda _, left=iter([b"x" * 2**16] * 100 + [b"\nok\n", b""]): next(left))
    first, second = [line for lines in evaluate.lines_of(endless, 4) for line in lines]
    assert evaluate.LONGEST < len(first) < evaluate.LONGEST + 2**17 and second == b"ok"


def start(*argv, **more):
    command = [sys.executable, "evaluate.py", *map(str, argv)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes | more)


def test_a_pipe_that_trickles_is_answered_as_it_goes():
    with start("predict", SHIPPED, stdin=subprocess.PIPE) as program:
        for text in (b"great fun", b"a mess"):
            program.stdin.write(text + b"\n")
            program.stdin.flush()
            assert program.stdout.readline().endswith(text + b"\n")  # although the pipe stays open
        program.stdin.close()
        assert program.wait(60) == 0 and program.stdout.read() == b"" == program.stderr.read()


def test_a_broken_pipe_ends_quietly(tmp_path):
    (tmp_path / "in.txt").write_text("great fun\n" * 20000)  # more than a pipe holds
    with start("predict", SHIPPED, "--batch-size", 4, "--input", tmp_path / "in.txt") as program:
        assert program.stdout.readline().endswith(b"great fun\n")
        program.stdout.close()
        assert program.wait(60) == 141 and program.stderr.read() == b""


def test_glue_takes_the_file(capsys, tmp_path):
    texts = ["great fun ", "a mess ", "fine "]
    (tmp_path / "test.tsv").write_text("index\tsentence\n" + "".join(f"{i}\t{text}\n" for i, text in enumerate(texts)))
    code, out, _ = ask(capsys, "predict", SHIPPED, "--input", tmp_path / "test.tsv", "--glue", tmp_path / "SST-2.tsv")
    assert code == 0 and out == f"3 predictions in {tmp_path / 'SST-2.tsv'}\n"
    labels = [json.loads(line)["label"] for line in ask(capsys, "predict", SHIPPED, "--json", *texts)[1].splitlines()]
    assert (tmp_path / "SST-2.tsv").read_text() == "index\tprediction\n" + "".join(f"{i}\t{x}\n" for i, x in enumerate(labels))
    for rows, named in (("index\tsentence\n0\t \n", "line 2"), ("sentence\tlabel\nx\t1\n", "line 2"), ("index\tsentence\n", "no rows")):
        (tmp_path / "test.tsv").write_text(rows)
        code, _, err = ask(capsys, "predict", SHIPPED, "--input", tmp_path / "test.tsv", "--glue", tmp_path / "x.tsv")
        assert code == 2 and named in err and not (tmp_path / "x.tsv").exists()


# ---- tables and pictures --------------------------------------------------------------------------


def write_run(folder, model="tiny", train="prompt+head", curve=(0.6, 0.8, 0.7), **prompts):
    """A finished run with made-up scores: name=(tokens, seed, dev accuracy, selection accuracy, untrained)."""
    settings = {"model": model, "data": "reviews", "train": train, "batch_size": 16, "epochs": 3, "select_on": "hold-out"}
    rows, log = [], []
    for name, (P, seed, accuracy, selected, untrained) in prompts.items():
        rows.append({"name": name, "prompt_tokens": P, "seed": seed, "lr": 0.03, "epoch": 2, "folder": f"prompts/{name}", "n": 400,
                     "accuracy": accuracy, "selection": {"split": "hold-out", "accuracy": selected}, "untrained": untrained})  # fmt: skip
        shutil.copytree(SHIPPED, folder / "prompts" / name)
        log += [{"epoch": i, "prompt": name, "split": "hold-out", "accuracy": share} for i, share in enumerate(curve, 1)]
    (folder / "run.json").write_text(json.dumps({"settings": settings | {"prompt_tokens": [1, 5], "lr": [0.03]}}))
    (folder / "summary.json").write_text(json.dumps({"prompts": rows, "baselines": {"majority": 0.52, "untrained": 0.5}}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return folder


@pytest.fixture
def runs(tmp_path):
    full = write_run(tmp_path / "full", a=(1, 0, 0.70, 0.71, 0.50), b=(1, 1, 0.74, 0.69, 0.48), c=(5, 0, 0.80, 0.66, 0.49))
    return full, write_run(tmp_path / "head", train="head", d=(5, 0, 0.60, 0.65, 0.52))


def test_the_table_against_plain_counting(capsys, runs):
    code, out, _ = ask(capsys, "table", *runs, "--json")
    majority, untrained, head, one, five = map(json.loads, out.splitlines())
    assert code == 0 and (majority["train"], majority["accuracy"]) == ("majority", 0.52)
    assert untrained["accuracy"] == pytest.approx((0.50 + 0.48 + 0.49 + 0.52) / 4)
    assert head["train"] == "head" and head["gain"] == pytest.approx(0.60 - 0.52) and head["over"] == "majority"
    assert one["accuracy"] == pytest.approx(0.72) and one["sd"] == pytest.approx(math.sqrt(2 * 0.02**2))
    assert one["selected"] == pytest.approx(0.70) and one["gain"] == pytest.approx(0.72 - 0.60) and one["seeds"] == 2
    assert one["ci95"] == evaluate.wilson(0.72 * 400, 400) and one["epoch"] == [2, 2] and one["epochs"] == 3
    assert five["prompt_tokens"] == 5 and five["sd"] is None and five["gain"] == pytest.approx(0.80 - 0.60)
    _, out, _ = ask(capsys, "table", *runs)
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert cells[0] == ["model", "data", "batch size", "best accuracy", "token count"]
    assert cells[2] == ["tiny", "reviews", "16", "0.7000", "1"]  # best on selection; on dev it is not
    assert cells[8] == ["tiny", "reviews", "prompt+head", "1", "16", "0.03", "2", "2 2 of 3", "0.7000", "0.7200", "0.0283",
                        "{:.3f} to {:.3f}".format(*one["ci95"]), "+0.1200 over head"]  # fmt: skip


def test_two_prompts_are_compared_on_the_split_that_both_answer(capsys, few, tmp_path):
    code, out, _ = ask(capsys, "table", SHIPPED, OTHER, "--data", few, "--json")
    test = json.loads(out.splitlines()[-1])["mcnemar"]
    wrong = []
    for run in (SHIPPED, OTHER):
        result = json.loads(ask(capsys, "score", run, "--data", few, "--json", "--errors", "100")[1])
        wrong.append({error["text"] for error in result["errors"]})
    assert code == 0 and test["only_right"] == [len(wrong[1] - wrong[0]), len(wrong[0] - wrong[1])] != [0, 0]
    other = changed(tmp_path, recipe={"data": str(few), "train": "prompt+head"})
    assert "McNemar's test, 60 texts: 0 only the first" in ask(capsys, "table", other, other)[1]
    assert "McNemar" not in ask(capsys, "table", other)[1]
    code, out, err = ask(capsys, "table", other, SHIPPED)
    assert code == 2 and "different data" in err and "--data" in err and out  # the table itself is there


def test_plots(capsys, runs, tmp_path):
    pytest.importorskip("matplotlib")
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        assert ask(capsys, "plot", *runs, SHIPPED, "--out", tmp_path / name)[:2] == (0, f"see {tmp_path / name}\n")
        assert (tmp_path / name).read_bytes().startswith(start)


def drawn(monkeypatch, capsys, *argv):
    """The figure that a command would write"""
    kept = []
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "save_figure", lambda args, figure: kept.append(figure))
        assert ask(capsys, *argv)[0] == 0
    return kept[0]


def test_what_a_plot_shows(capsys, runs, monkeypatch):
    pytest.importorskip("matplotlib")
    left, right = drawn(monkeypatch, capsys, "plot", *runs, "--out", "x.png").axes
    bars = {box.get_label(): box for box in left.containers}
    assert list(bars) == ["tiny", "tiny, head only"] and "reviews" in left.get_title()
    assert bars["tiny"].lines[0].get_xydata().tolist() == [[1, pytest.approx(0.72)], [5, 0.80]]
    low, high = evaluate.wilson(320, 400)
    assert bars["tiny"].lines[2][0].get_segments()[1].tolist() == [[5, pytest.approx(low)], [5, pytest.approx(high)]]
    levels = {line.get_label(): line.get_ydata()[0] for line in left.lines}
    assert levels["majority"] == 0.52 and levels["untrained"] == pytest.approx(0.4975)
    curves = [line.get_xydata().tolist() for line in right.lines]
    assert curves[::2] == [[[1, 0.6], [2, 0.8], [3, 0.7]]] * 4 and curves[1::2] == [[[2, 0.8]]] * 4
    labels = [text.get_text() for text in right.get_legend().get_texts()]
    assert labels == ["P = 1", "P = 5", "P = 5, head only"]


def test_without_matplotlib_one_sentence(capsys, runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = ask(capsys, "plot", *runs, "--out", "x.png")
    assert code == 2 and "pip install" in err and err.count("\n") == 1


# ---- looking inside ---------------------------------------------------------------------------------


def test_attention_weights_equal_those_of_transformers(checkpoint):
    """One eager pass over text and prompt; `output_attentions` shows the last position's row."""
    transformers = pytest.importorskip("transformers")
    folder, config, _ = checkpoint
    gpt2, model = load_gpt2(folder), transformers.GPT2Model.from_pretrained(folder, attn_implementation="eager").eval()
    for prompt, ids in zip(make_prompts(dtype=torch.float32), TEXTS):
        x = torch.cat([model.wte.weight[ids], prompt.vectors])[None]  # (1, T+P, C)
        with torch.no_grad():
            truth = torch.stack(model(inputs_embeds=x, output_attentions=True).attentions)[:, 0, :, -1]  # (L, H, T+P)
        weights = evaluate.attention_weights(gpt2, prompt, torch.tensor(ids))
        assert weights.shape == (config["n_layer"], config["n_head"], len(ids) + len(prompt.vectors))
        assert (weights - truth).abs().max() < 1e-6
    assert not any(block.attn._forward_hooks for block in gpt2.h)


def test_attention_and_occlusion_of_words(capsys):
    text = "an  unrefreshing , café-like mess\tof\nthings"
    code, out, _ = ask(capsys, "attention", SHIPPED, text, "--json")
    found = json.loads(out)
    assert code == 0 and found["words"] == text.split()
    assert sum(found["attention"][0]) + found["to_prompt"][0] == pytest.approx(1, abs=1e-5)
    cut = ["unrefreshing , café-like mess\tof\nthings", "an  , café-like mess\tof\nthings", "an  unrefreshing café-like mess\tof\nthings"]
    logits = [json.loads(line)["logits"] for line in ask(capsys, "predict", SHIPPED, "--json", text, *cut)[1].splitlines()]
    odds = [row[found["label"]] - row[1 - found["label"]] for row in logits]
    assert found["occlusion"][:3] == pytest.approx([odds[0] - part for part in odds[1:]], abs=1e-4)

    assert json.loads(ask(capsys, "attention", SHIPPED, "fun", "--json")[1])["occlusion"] == [None]

    _, out, _ = ask(capsys, "attention", SHIPPED, text, "--json", "--heads", "--layer", "2")
    heads = json.loads(out)
    assert len(heads["attention"]) == 4
    gpt2, tokenizer, (prompt,), _ = evaluate.open_prompts(evaluate.parse_args(["tokens", str(SHIPPED)]), [SHIPPED / "prompt.safetensors"])
    weights = evaluate.attention_weights(gpt2, prompt, torch.tensor(tokenizer.encode(text)))[1]  # (H, T+P)
    first = len(tokenizer.encode("an"))
    assert [row[0] for row in heads["attention"]] == pytest.approx(weights[:, :first].sum(dim=1).tolist(), abs=1e-6)
    assert heads["to_prompt"] == pytest.approx(weights[:, -10:].sum(dim=1).tolist(), abs=1e-6)


def test_attention_is_coloured_on_a_terminal_alone(capsys, monkeypatch):
    _, plain, _ = ask(capsys, "attention", SHIPPED, "great fun")
    assert "\x1b" not in plain and [line.split()[0] for line in plain.splitlines()[1:4]] == ["word", "great", "fun"]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    _, coloured, _ = ask(capsys, "attention", SHIPPED, "great fun")
    assert coloured.count("\x1b[0m") == 4
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in ask(capsys, "attention", SHIPPED, "great fun")[1]
    assert evaluate.shade(["a", "b", "c"], [1.0, 0.0, -2.0]).count("48;2;255;255;255m b ") == 1  # nothing is white


def test_the_picture_of_attention(capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    found = json.loads(ask(capsys, "attention", SHIPPED, "great fun", "--json")[1])
    panels = drawn(monkeypatch, capsys, "attention", SHIPPED, "great fun", "--out", "x.svg").axes
    shown = [[bar.get_width() for bar in axes.patches] for axes in panels]
    assert shown == [pytest.approx(found["attention"][0]), pytest.approx(found["occlusion"])]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["great", "fun"]


def test_tokens_beside_each_vector(capsys):
    _, out, _ = ask(capsys, "tokens", SHIPPED, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    prompt, metadata = load_prompt(SHIPPED / "prompt.safetensors")
    gpt2 = load_gpt2(TINY)
    decode = evaluate.Tokenizer(TINY / "merges.txt").decode
    for i, (row, vector) in enumerate(zip(rows, prompt.vectors.detach(), strict=True)):
        cosines = torch.cosine_similarity(vector[None], gpt2.wte.weight)  # (V,)
        best = cosines.sort(descending=True)
        assert row["nearest"] == [[decode([int(id)]), pytest.approx(cosine.item(), abs=1e-5)]
                                  for id, cosine in zip(best.indices[:5], best.values[:5])]  # fmt: skip
        start = metadata["init_ids"][i]
        assert row["began"] == decode([start]) and row["vector"] == i
        assert row["moved"] == pytest.approx((vector - gpt2.wte.weight[start]).square().sum().sqrt().item(), abs=1e-4)
    _, out, _ = ask(capsys, "tokens", SHIPPED)
    assert "2112.08348" in out and len(out.splitlines()) == 1 + 10 + 2


def test_vectors_that_came_from_a_file_began_as_no_token(capsys, tmp_path):
    _, out, _ = ask(capsys, "tokens", changed(tmp_path, init_ids=[]))
    assert out.splitlines()[1].split()[1:3] == ["-", "-"]


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
    (["predict", SHIPPED, "a\udce9"], "text 1 is not UTF-8"), (["predict", SHIPPED, "--glue", "x.tsv"], "--input"),
    (["attention", SHIPPED, " "], "blank"), (["attention", SHIPPED, "x", "--layer", "9"], "--layer 9"), (["attention", SHIPPED, "x", "--out", "x.doc"], "x.doc"),
    (["plot", SHIPPED], "--out"), (["plot", SHIPPED, "--out", "x.txt"], ".png"), (["table", "nowhere"], "nowhere"),
    (["score", SHIPPED, "--errors", "-1"], "--errors"),
])  # fmt: skip
def test_one_sentence_and_exit_2(capsys, argv, named):
    code, out, err = ask(capsys, *argv)
    assert code == 2 and named in err and "Traceback" not in err and not out


@pytest.mark.parametrize("name,text", [
    ("summary.json", "{"), ("summary.json", "[]"), ("summary.json", '{"prompts": [{}], "baselines": {}}'), ("run.json", "null"),
])  # fmt: skip
def test_a_damaged_run_is_named(capsys, tmp_path, name, text):
    run = write_run(tmp_path / "run", a=(1, 0, 0.7, 0.7, 0.5))
    (run / name).write_text(text)
    for verb in ("score", "table"):
        code, out, err = ask(capsys, verb, run)
        assert code == 2 and str(run) in err and "damaged" in err and not out


def test_a_prompt_without_its_accuracy_is_in_no_table(capsys, tmp_path):
    prompt, metadata = load_prompt(SHIPPED / "prompt.safetensors")
    save_prompt(tmp_path / "p.safetensors", prompt, {key: value for key, value in metadata.items() if key != "accuracy"})
    code, out, err = ask(capsys, "table", tmp_path / "p.safetensors")
    assert code == 2 and "p.safetensors goes without its accuracy" in err and not out
    assert ask(capsys, "predict", tmp_path / "p.safetensors", "great fun")[0] == 0


def test_prompts_that_cannot_answer_together_are_refused(capsys, tmp_path, other_model):
    code, _, err = ask(capsys, "score", SHIPPED, "--with", changed(tmp_path, labels=["0", "1"]))
    assert code == 2 and "other labels" in err
    code, _, err = ask(capsys, "predict", SHIPPED, "text", "--with", changed(tmp_path, base_sha256="0" * 64))
    assert code == 2 and "trained on another model" in err


def test_a_prompt_of_another_model_or_rule_is_refused(capsys, tmp_path, other_model):
    code, _, err = ask(capsys, "score", SHIPPED, "--model", other_model)
    assert code == 2 and "trained on another model" in err
    code, _, err = ask(capsys, "score", changed(tmp_path, text_rule="lower"))
    assert code == 2 and "text rule" in err
    code, _, err = ask(capsys, "score", changed(tmp_path, base_sha256="0" * 64))
    assert code == 2 and "sha256" in err
