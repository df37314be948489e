"""What a result looks like: score, answers, table, plot, tokens, attention."""

import csv
import io
import itertools
import json
import math
import os
import re
import statistics
import sys
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from data import LONGEST, clean, cut, readable, text_in
from evaluate import NO_ANSWER, Classifier, judge, probabilities, truth_of, wilson
from model import choose, load_prompt
from support import checks
from support.files import TABLES, damaged, lines_of, rows_of, write_file
from support.machine import cell, print_table, shown, to_json
from support.run import find_prompts


def say(args, found, sentence):
    """Print what was found: with --json itself, else the sentence on it."""
    print(to_json(found) if args.json else sentence, flush=True)


def refuse_existing(path):
    """Nothing is written over; this is said before the work."""
    if path and os.path.lexists(path):
        raise ValueError(f"{path} is there already; remove it, or name another file")


# ---- score ----------------------------------------------------------------------------------


def ensemble(args):
    """The files of RUN's prompts and of those of --with."""
    found = [path for run in (args.run, *args.others) for path in find_prompts(run, args.all)]
    return list(dict.fromkeys(found))


def score_verb(args):
    """Accuracy with interval, loss, confusion, precision and recall on a labelled split."""
    paths = ensemble(args)
    classifier = Classifier(paths, args)
    names = classifier.labels
    texts, labels, logits = classifier.answer_split(args)
    together = logits.mean(dim=0)  # (n, N)
    result = judge(together, labels) | {"prompt": " + ".join(map(str, paths))}
    result["alone"] = [judge(one, labels)["accuracy"] for one in logits]

    truth, said = truth_of(labels, together.shape[1]).tolist(), choose(together).tolist()
    sure = probabilities(together).amax(dim=1).tolist()  # (n,)
    wrong = [row for row in zip(sure, said, truth, texts) if row[1] != row[2]]
    errors = sorted(wrong, reverse=True)[: args.errors]
    if args.json:
        keys = "probability answer label text".split()
        return print(to_json(result | {"errors": [dict(zip(keys, row)) for row in errors]}))

    who = "together" if paths[1:] else paths[0]
    if paths[1:]:
        print_table(["prompt", "alone"], zip(paths, result["alone"]))
    print(
        f"{who} on {args.data or classifier.metadata['recipe'].get('data')} {args.split}: accuracy "
        f"{result['accuracy']:.4f} of {result['n']} texts, 95 % interval "
        f"{result['ci95'][0]:.3f} to {result['ci95'][1]:.3f}, "
        f"loss {result['loss']:.4f}, majority baseline {result['majority']:.4f}"
    )
    header = ["label", *(f"answered {name}" for name in names), "precision", "recall"]
    columns = [*zip(*result["confusion"]), result["precision"], result["recall"]]
    print_table(header, zip(names, *columns))
    if result["alarm"]:
        print(f"{'warning' if result['collapsed'] else 'note'}: {result['alarm']}")
    for share, answer, label, text in errors:
        print(f"{share:.3f} {names[answer]}, but it is {names[label]}: {shown(text)}")


# ---- predict --------------------------------------------------------------------------------


def predict_verb(args):
    """Label texts: arguments, a table, or lines of a file or of standard input as they come."""
    target, table = args.out or args.glue, Path(args.input or "").suffix in TABLES
    if args.texts and args.input:
        raise ValueError("predict takes texts or --input, not both")
    if (target or args.text_column) and not table:
        raise ValueError(
            "--out, --glue and --text-column need a table as --input: .tsv, .csv, .jsonl"
        )
    refuse_existing(target)
    stream = open(args.input, "rb") if args.input else sys.stdin.buffer
    classifier = Classifier(ensemble(args), args)
    if args.texts:
        print_answers(args, classifier.predict(args.texts))
    elif table:
        answer_table(args, classifier)
    else:
        done = 0
        for lines in lines_of(stream, LONGEST):
            print_answers(args, answer(classifier, [*map(readable, lines)], "line", done))
            done += len(lines)


def answer(classifier, lines, name, done=0):
    """[(text, why it cannot be answered, or None)] -> as `predict`, each in its place.

    What cannot be answered is told by its number, counted on from `done`.
    """
    for number, (_, problem) in enumerate(lines, done + 1):
        if problem:
            print(f"{name} {number} {problem}", file=sys.stderr)
    answered = iter(classifier.predict([text for text, problem in lines if not problem]))
    return [NO_ANSWER | {"text": t, "error": p} if p else next(answered) for t, p in lines]


def print_answers(args, found):
    """One line for each dictionary of Classifier.predict, or that there is no answer."""
    for row in found:
        share = cell(max(row["probabilities"] or [None]), ".3f")
        say(args, row, f"{cell(row['label_name'])}\t{share}\t{shown(row['text'])}")


def answer_table(args, classifier):
    """Answer the rows of --input by their column of texts, and print or write what comes out."""
    rows = [*rows_of(Path(args.input))]
    if not rows:
        raise ValueError(f"{args.input} has no rows")
    lines = [text_in(row, args.text_column) for _, row in rows]
    found = answer(classifier, lines, "row")
    if args.out or args.glue:
        beside = with_answer if args.out else for_glue
        table = [beside(number, row, its) for (number, row), its in zip(rows, found)]
        write_table(args, table)
    else:
        print_answers(args, found)


def with_answer(number, row, its):
    """A row of --input with its answer beside it."""
    name = "predicted_label" if "label" in row else "label"
    share = max(its["probabilities"] or [None])
    return row | {name: its["label_name"], "probability": share}


def for_glue(number, row, its):
    """A row of GLUE's test.tsv, columns index and sentence, as its server takes the answer."""
    index = str(row.get("index"))
    if "error" in its or not index.isdecimal():
        raise ValueError(
            f"--input, line {number}: GLUE's test files have a number in the column index and a "
            "text in the column sentence"
        )
    return {"index": index, "prediction": its["label"]}


def write_table(args, rows):
    """--out, a csv, or --glue, a tsv."""
    text, columns = io.StringIO(), dict.fromkeys(name for row in rows for name in row)
    path, dialect = args.out or args.glue, "excel" if args.out else "excel-tab"
    writer = csv.DictWriter(text, columns, dialect=dialect, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode(), replace=False)
    say(args, {"file": path, "n": len(rows)}, f"{len(rows):,} predictions in {path}")


# ---- table ----------------------------------------------------------------------------------

# Prompts that agree in these differ in the seed at most.
SAME = "model data train prompt_tokens lr batch_size epochs select_on head_lr steps max_examples".split()
COLUMNS = "model data train prompt_tokens batch_size lr seeds epoch selected accuracy sd ci95"
HEADER = "model,data,trained,tokens,batch,lr,seeds,epochs,selection,dev,sd,95 % interval"


def trained(runs):
    """The prompts of all runs, of each a dictionary of how it was trained and what it scored: both
    stand in its file."""
    rows = []
    for path in itertools.chain(*(find_prompts(run, every=True) for run in runs)):
        about = load_prompt(path)[1]
        with damaged(path, "goes without its scores; train it anew, to the end"):
            score = {key: json.loads(about[key]) for key in checks.FORM["scored"]["properties"]}
        row = checks.recipe_of(about["recipe"]) | score | {"model": about.get("base_model")}
        rows.append(checks.valid(path, row, "scored") | {"path": path})
    return rows


def grouped(rows, *names):
    """(what they say under names, the rows that say it) for all there is, as it comes first."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(map(row.get, names)), []).append(row)
    return groups.items()


def over_seeds(rows):
    """Rows that differ in the seed at most as one line: head alone first, then short prompts."""
    lines = []
    for key, group in grouped(rows, *SAME):
        line = dict(zip(SAME, key))
        n = group[0]["n"]
        for name in "selected", "accuracy", "untrained":
            line[name] = statistics.mean(row[name] for row in group)
        line |= {"seeds": len(group), "epoch": [row["epoch"] for row in group], "sd": None}
        if len(group) > 1:
            line["sd"] = statistics.stdev(row["accuracy"] for row in group)
        lines.append(line | {"n": n, "ci95": wilson(line["accuracy"] * n, n)})
    return sorted(lines, key=itemgetter("train", "prompt_tokens"))


def with_baselines(rows):
    """`over_seeds` of each model and data set, after what answers without reading, and without
    training, get: what the prompt, or the head, adds is the difference."""
    for (model, data), mine in grouped(rows, "model", "data"):
        for name in "majority", "untrained":
            level = statistics.mean(row[name] for row in mine)
            yield {"model": model, "data": data, "train": name, "accuracy": level}
        yield from over_seeds(mine)


def table_row(line):
    """A line of `with_baselines` as cells."""
    if "seeds" in line:  # else a baseline
        line = line | {
            "lr": str(line["lr"]),
            "epoch": f"{' '.join(map(str, line['epoch']))} of {line['epochs']}",
            "ci95": f"{line['ci95'][0]:.3f} to {line['ci95'][1]:.3f}",
        }
    return [line.get(name, "") for name in COLUMNS.split()]


def table_verb(args):
    """Accuracies beside the baselines, as Markdown; McNemar's test of exactly two prompts."""
    rows = trained(args.runs)
    best = []
    for pair, mine in grouped(rows, "model", "data"):
        top = max(mine, key=lambda row: (row["train"] != "head", row["selected"]))
        best.append([*pair, top["batch_size"], top["accuracy"], top["prompt_tokens"]])
    if args.json:
        print(*map(to_json, with_baselines(rows)), sep="\n")
    else:
        header = "model,data,batch size,best accuracy,token count"
        print_table(header.split(","), best, "pipe")
        print()
        print_table(HEADER.split(","), map(table_row, with_baselines(rows)), "pipe")
        print(
            "\nbest accuracy: on dev, of the prompt that is best on selection; selection, dev: means"
            "\nover seeds; sd: between them; interval: of the mean, from the number of dev texts"
        )
    if len(args.runs) == len(rows) == 2:
        compare(args, rows)


def mcnemar(first, second):
    """Do two prompts differ?  first, second: bool (n,), where each is right -> a dictionary.

    Where both are right, or both wrong, says nothing; if they were equally good, each would win
    half of the rest: p is the exact two-sided binomial probability of a split as uneven as this.
    """
    wins = [int((first > second).sum()), int((second > first).sum())]
    tails = sum(math.comb(sum(wins), k) for k in range(min(wins) + 1))
    return {"n": len(first), "only_right": wins, "p": min(1.0, 2 * tails / 2 ** sum(wins))}


def compare(args, rows):
    """Print McNemar's test of two prompts, which both answer the split."""
    right, seen, paths = [], [], [str(row["path"]) for row in rows]
    for path in paths:
        texts, labels, (logits,) = Classifier([path], args).answer_split(args)
        truth = truth_of(labels, logits.shape[1])  # (n,)
        right.append(choose(logits) == truth)  # (n,)
        seen.append((texts, truth.tolist()))
    if seen[0] != seen[1]:
        return sys.stderr.write(
            "no McNemar's test: the two have different data; name one with --data\n"
        )
    test = mcnemar(*right) | {"prompts": paths}
    sentence = (
        f"\nMcNemar's test, {test['n']} texts: {test['only_right'][0]} only the first gets right, "
        f"{test['only_right'][1]} only the second; p = {test['p']:.4f}, exact and two-sided"
    )
    say(args, {"mcnemar": test}, sentence)


# ---- pictures -------------------------------------------------------------------------------

STYLES = {"majority": ":", "untrained": "-.", "head": "x--", "prompt+head": "o-"}


def new_figure(path):
    """An empty figure for a picture at path, if one can be made there."""
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {path} should end in .png, .svg or .pdf")
    refuse_existing(path)
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install -e '.[plot]'") from None
    rcParams["text.parse_math"] = False  # a dollar in a text is a dollar
    return Figure(dpi=200, layout="constrained")


def save_figure(args, figure):
    """Write the picture, and say so."""
    data = io.BytesIO()
    figure.savefig(data, format=Path(args.out).suffix[1:])
    write_file(args.out, data.getvalue(), replace=False)
    say(args, {"file": args.out}, f"see {args.out}")


def curve_of(row):
    """What a prompt scored on selection after epoch 1, 2, ..., where its run's log tells it."""
    folder = row["path"].absolute().parent
    log = folder / "../../metrics.jsonl"
    mine = {"prompt": folder.name, "split": row.get("select_on")}
    lines = rows_of(log) if log.exists() else []
    points = [checks.valid(log, point, "point") for _, point in lines]
    return [point for point in points if mine.items() <= point.items()]


def titled(*names):
    """A model and a data set, by the last part of each path."""
    return " on ".join(Path(str(name)).name for name in names)


def plot_lengths(axes, rows):
    """Accuracy on dev against prompt length, for each model and data set, and their baselines."""
    for (model, data, train), lines in grouped(with_baselines(rows), "model", "data", "train"):
        name = f"{train}, {titled(model, data)}"
        if train in ("majority", "untrained"):
            axes.axhline(lines[0]["accuracy"], linestyle=STYLES[train], color="grey", label=name)
            continue
        best = [
            max(same, key=itemgetter("selected")) for _, same in grouped(lines, "prompt_tokens")
        ]
        columns = [(line["prompt_tokens"], line["accuracy"], *line["ci95"]) for line in best]
        x, y, low, high = np.transpose(columns)
        x *= 1.03 ** len(axes.containers)  # intervals stand side by side
        ends = (y - low, high - y)
        axes.errorbar(x, y, ends, fmt=STYLES[train], capsize=3, alpha=0.8, label=name)
    lengths = sorted({row["prompt_tokens"] for row in rows})
    axes.set_xscale("log")
    axes.set_xticks(lengths, map(str, lengths))
    axes.minorticks_off()
    axes.set(xlabel="prompt tokens P", ylabel="mean accuracy on dev", title="95 % intervals")


def plot_epochs(axes, rows, key):
    """Accuracy or loss on selection after each epoch, a curve for each prompt; its choice is marked."""
    for i, ((P, train), mine) in enumerate(grouped(rows, "prompt_tokens", "train")):
        label = f"P = {P}, {train}"
        for row in mine:
            axes.plot(
                range(1, len(row["curve"]) + 1),
                [point[key] for point in row["curve"]],
                STYLES[train],
                color=f"C{i}",
                linewidth=1,
                markevery=[row["epoch"] - 1],
                label=label,
            )
            label = None  # the legend names it once
    axes.set(xlabel="epoch (chosen ones marked)", ylabel=f"{key} on selection")
    axes.locator_params("x", integer=True, min_n_ticks=1)


def plot_verb(args):
    """Accuracy against prompt length, and the learning curves beside it."""
    if not args.out:
        raise ValueError("plot needs --out, a picture to write: .png, .svg or .pdf")
    figure, rows = new_figure(args.out), sorted(trained(args.runs), key=itemgetter("prompt_tokens"))
    for row in rows:
        row["curve"] = curve_of(row)
    groups = grouped([row for row in rows if row["curve"]], "model", "data")
    panels = 1 + 2 * len(groups)
    figure.set_size_inches(4.8 * panels, 4)
    figure.subplots(1, panels)
    left, *others = figure.axes
    plot_lengths(left, rows)
    wanted = itertools.product(groups, ("accuracy", "loss"))
    for axes, ((pair, mine), key) in zip(others, wanted):
        plot_epochs(axes, mine, key)
        axes.set_title(titled(*pair))
    for axes in figure.axes:
        axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save_figure(args, figure)


# ---- looking inside -------------------------------------------------------------------------


def tokens_verb(args):
    """The tokens nearest to each vector of the prompt, and how far it has moved."""
    classifier = Classifier(find_prompts(args.run), args)
    (prompt,), tokenizer = classifier.prompts, classifier.tokenizer
    # Some checkpoints pad V with rows that are no token's.
    table = classifier.gpt2.wte.weight[: tokenizer.size].float()  # (V, C)
    ids = classifier.metadata["init_ids"]
    known = len(ids) == len(prompt.vectors) and max(ids) < len(table)  # none with --init FILE
    found, rows = [], []
    for i, vector in enumerate(prompt.vectors.detach()):
        began = moved = None
        if known:
            began = tokenizer.decode([ids[i]])
            moved = (vector - table[ids[i]]).norm().item()
        cosines, best = torch.cosine_similarity(vector[None], table).topk(5)
        nearest = [*zip(map(tokenizer.decode, best[:, None].tolist()), cosines.tolist())]
        its = {"vector": i, "began": began, "moved": moved, "norm": vector.norm().item()}
        found.append(its | {"nearest": nearest})
        lengths = [cell(its[key], ".2f") for key in ("moved", "norm")]
        words = [f"{word!r} {cosine:.2f}" for word, cosine in nearest]
        rows.append([i, began and repr(began), *lengths, *words])
    if args.json:
        return print(*map(to_json, found), sep="\n")
    print_table(["vector", "began as", "moved", "norm", "nearest", *[""] * 4], rows)
    print(
        "moved: distance from the vector of the token it began as; tokens have a median norm of "
        f"{table.norm(dim=1).median():.2f}.\nNeighbours need not explain a prompt: it may do its "
        "work beside unrelated words (arXiv 2112.08348)"
    )


@torch.no_grad()
def attention_weights(gpt2, prompt, ids):
    """What the prompt's last vector attends to: T ids -> shares (L, H, T+P), float32 on the CPU.

    One causal pass over text and prompt, the plain form of what model.py does in two.
    """
    x = torch.cat([gpt2.wte.weight[ids], prompt.vectors])  # (T+P, C)
    x = (x + gpt2.wpe.weight[: len(x)])[None].type_as(gpt2.wpe.weight)  # (1, T+P, C)
    scores = []
    for block in gpt2.h:
        q, k, _ = block.attn.project(block.ln_1(x))  # each (1, H, T+P, D)
        scores.append(q[:, :, -1:] @ k.mT)  # (1, H, 1, T+P)
        x, _ = block.read(x)
    scores = torch.cat(scores).squeeze(2).float() * q.shape[3] ** -0.5  # (L, H, T+P)
    return scores.softmax(dim=2).cpu()


def words_of(classifier, text):
    """As much of a text as leaves the prompt room -> its words, each with the white space before
    it, and what the prompt's last vector attends to: shares (L, H, W+1), the last its own.

    Attention goes to tokens.  No token reaches from one word into the next.
    """
    (prompt,), tokenizer = classifier.prompts, classifier.tokenizer
    P = len(prompt.vectors)
    ids = tokenizer.encode(text)[: classifier.gpt2.config.n_positions - P]
    words = re.findall(r"\s*\S+", tokenizer.bpe.decode(ids, errors="ignore"))
    if not words:
        raise ValueError("the text is blank")
    sizes = [len(tokenizer.encode(word)) for word in words[:-1]]
    sizes += [len(ids) - sum(sizes), P]  # the last word may have been cut
    weights = attention_weights(classifier.gpt2, prompt, ids)  # (L, H, T+P)
    return words, torch.stack([part.sum(dim=2) for part in weights.split(sizes, dim=2)], dim=2)


def occlusion(classifier, words):
    """The label of a text, its log-odds, and what these lose without each word, as a dictionary.

    occlusion is [None] where no text is left.
    """
    text = "".join(words)
    without = [clean("".join(words[:i] + words[i + 1 :])) for i in range(len(words))]
    logits = classifier.logits([(one, 0) for one in (text, *without) if one])[0]  # (W+1, N)
    label = int(choose(logits[0]))
    odds = probabilities(logits.double())[:, label].logit(eps=1e-12)  # (W+1,)
    return {
        "text": text,
        "label": label,
        "label_name": classifier.labels[label],
        "log_odds": odds[0].item(),
        "words": text.split(),
        "occlusion": (odds[0] - odds[1:]).tolist() or [None],
    }


def attention_verb(args):
    """What the prompt's last vector attends to; what the answer loses without each word.

    A person sees the mean of all layers and heads; --json tells all of them.
    """
    figure = args.out and new_figure(args.out)
    classifier = Classifier(find_prompts(args.run), args)
    words, shares = words_of(classifier, clean(args.text))  # (L, H, W+1)
    *mean, own = shares.mean(dim=(0, 1)).tolist()
    found = occlusion(classifier, words)
    found |= {"attention": mean, "to_prompt": own, "layers": shares.tolist()}
    told = f"log-odds of {found['label_name']} lost without the word"
    rows = [*zip(found["words"], found["occlusion"], mean), ("(the prompt)", None, own)]
    if args.out:
        draw_words(figure, rows, told)
        return save_figure(args, figure)
    if args.json:
        return print(to_json(found))
    print(
        f"{found['label_name']}, log-odds {found['log_odds']:.2f}; attention of the prompt's last "
        f"vector, mean of {len(shares)} layers"
    )
    table = [(word, cell(lost, "+.3f"), cell(share, ".3f")) for word, lost, share in rows]
    print_table(["word", "occlusion", "attention"], table)
    print(
        f"occlusion: {told}.  What is attended to need not be what decides,\n"
        "and GPT-2 often attends to a first token, whatever it is"
    )


def draw_words(figure, rows, told):
    """Bars of occlusion and attention; rows: (word, occlusion, attention).  A long text wraps."""
    rows = [(shown(word), lost or 0.0, share) for word, lost, share in rows]
    pieces = cut(rows, max(30, math.ceil(len(rows) / 3)))
    figure.set_size_inches(7.2 * len(pieces), 1.5 + len(pieces[0]) / 4)
    figure.subplots(1, 2 * len(pieces))
    for i, axes in enumerate(figure.axes):
        names, *widths = zip(*pieces[i // 2])
        axes.sharex(figure.axes[i % 2])
        axes.barh(range(len(names)), widths[i % 2], tick_label=names)
        axes.invert_yaxis()
        axes.set(xlabel=(told, "attention")[i % 2])


VERBS = {
    "score": score_verb,
    "predict": predict_verb,
    "table": table_verb,
    "plot": plot_verb,
    "tokens": tokens_verb,
    "attention": attention_verb,
}
