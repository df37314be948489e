"""What a result looks like: score, table, plot, tokens, attention, a file for GLUE's server."""

import io
import json
import math
import os
import re
import statistics
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from data import clean
from evaluate import Classifier, truth_of, wilson
from model import choose, load_prompt
from support import checks
from support.files import damaged, rows_of, write_file
from support.machine import cell, print_table, shown, to_json
from support.run import find_prompts, read_run


def say(args, found, sentence):
    """Print what was found: with --json itself, else the sentence on it."""
    print(to_json(found) if args.json else sentence, flush=True)


# ---- score ----------------------------------------------------------------------------------


def print_score(args, result, errors, paths, classifier):
    """What `score` says to a person."""
    who = paths[0]
    names = classifier.labels
    if len(paths) > 1:
        who = "together"
        print_table(["prompt", "alone"], zip(paths, result["alone"]))
    print(
        f"{who} on {args.data or classifier.metadata['recipe']['data']} {args.split}: accuracy "
        f"{result['accuracy']:.4f} of {result['n']} texts, 95 % interval "
        f"{result['ci95'][0]:.3f} to {result['ci95'][1]:.3f}, "
        f"loss {result['loss']:.4f}, majority baseline {result['majority']:.4f}"
    )
    header = ["label", *(f"answered {name}" for name in names), "precision", "recall"]
    columns = [*zip(*result["confusion"]), result["precision"], result["recall"]]
    print_table(header, zip(names, *columns))
    if result["alarm"]:
        print(f"{'warning' if result['collapsed'] else 'note'}: {result['alarm']}")
    for error in errors:
        print(
            f"{error['probability']:.3f} {names[error['answer']]}, "
            f"but it is {names[error['label']]}: {shown(error['text'])}"
        )


def print_answers(args, found):
    """One line for each dictionary of Classifier.predict, or that there is no answer."""
    for row in found:
        name = row["label_name"] or "-"
        shares = row["probabilities"]
        share = f"{max(shares):.3f}" if shares else "-"
        say(args, row, f"{name}\t{share}\t{shown(row['text'])}")


def glue_file(args, classifier):
    """GLUE's test.tsv, columns index and sentence -> the file that its server takes."""
    if Path(args.glue).exists() and os.path.samefile(args.glue, args.input):
        raise ValueError(f"--glue {args.glue} is the --input; name another file")
    indices, texts = [], []
    for number, row in rows_of(Path(args.input)):
        index = str(row.get("index"))
        text = clean(str(row.get("sentence") or ""))
        if not (index.isdecimal() and text):
            raise ValueError(
                f"{args.input}, line {number}: GLUE's test files have a number in the column index "
                "and a text in the column sentence"
            )
        indices.append(index)
        texts.append(text)
    if not texts:
        raise ValueError(f"{args.input} has no rows")
    lines = "index\tprediction\n"
    for index, answer in zip(indices, classifier.predict(texts)):
        lines += f"{index}\t{answer['label']}\n"
    write_file(args.glue, lines.encode(), rb"\Aindex\tprediction\n(\d+\t\d+\n)*\Z")
    say(args, {"file": args.glue, "n": len(texts)}, f"{len(texts):,} predictions in {args.glue}")


# ---- table ----------------------------------------------------------------------------------

# Prompts that agree in these differ in the seed at most.
SAME = ("model", "data", "train", "prompt_tokens", "lr", "batch_size", "epochs", "select_on")
SAME += ("head_lr", "steps", "max_examples")
COLUMNS = "model data train prompt_tokens batch_size lr seeds epoch selected accuracy sd ci95 gain"
HEADER = "model,data,trained,tokens,batch,lr,seeds,epochs,selection,dev,sd,95 % interval,gain"


def trained(runs):
    """The prompts of all runs: of each a dictionary of how it was trained and what it scored.

    A single prompt says it in its metadata, but for its score on selection and the baselines.
    """
    rows = []
    for run in map(Path, runs):
        if (run / "summary.json").is_file():
            rows += read_run(run)
            continue
        (path,) = find_prompts(run)
        about = load_prompt(path)[1]
        recipe = about["recipe"]
        row = {"train": "prompt+head"} | {key: recipe[key] for key in checks.RECIPE.keys() & recipe}
        row |= {"model": about.get("base_model"), "path": path, "run": run}
        for key in ("accuracy", "n", "prompt_tokens"):
            with damaged(path, f"goes without its {key}; train it anew"):
                row[key] = checks.typed(path, json.loads(about[key]), checks.PROMPT[key])
        rows.append(row)
    return rows


def grouped(rows, *names):
    """(what they say under names, the rows that say it) for all there is, as it comes first."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(map(row.get, names)), []).append(row)
    return groups.items()


def mean_of(rows, key):
    """The mean of what rows say under key, None where none does."""
    known = [row[key] for row in rows if row.get(key) is not None]
    return statistics.mean(known) if known else None


def over_seeds(rows):
    """Rows that differ in the seed at most as one line: head alone first, then short prompts."""
    lines = []
    for key, group in grouped(rows, *SAME):
        line = dict(zip(SAME, key))
        n = group[0]["n"]
        for name in ("selected", "accuracy", "untrained"):
            line[name] = mean_of(group, name)
        line |= {"seeds": len(group), "epoch": [row.get("epoch") for row in group], "sd": None}
        if len(group) > 1:
            line["sd"] = statistics.stdev(row["accuracy"] for row in group)
        lines.append(line | {"n": n, "ci95": wilson(line["accuracy"] * n, n)})
    return sorted(lines, key=itemgetter("train", "prompt_tokens"))


def selection_score(row):
    """What a choice goes by: the score on selection, so that dev chooses nothing it then judges."""
    return row["accuracy"] if row.get("selected") is None else row["selected"]


def with_gains(rows):
    """Baselines and `over_seeds` of each model and data set, each with its gain over the best of
    what stands below it: for the head alone majority and untrained, for prompts the head, too."""
    for (model, data), mine in grouped(rows, "model", "data"):
        lines = []
        for name in ("majority", "untrained"):
            if level := mean_of(mine, name):
                lines.append({"model": model, "data": data, "train": name, "accuracy": level})
        for line in over_seeds(mine):
            below = [other for other in lines if other["train"] != line["train"]]
            best = max(below, key=itemgetter("accuracy"), default=None)
            gain = best and line["accuracy"] - best["accuracy"]
            lines.append(line | {"gain": gain, "over": best and best["train"]})
        yield from lines


def table_row(line):
    """A line of `with_gains` as cells."""
    cells = dict(line)
    if "seeds" in line:  # else a baseline
        cells |= {
            "lr": str(line["lr"]),
            "epoch": f"{' '.join(map(str, line['epoch']))} of {line['epochs']}",
            "ci95": "{:.3f} to {:.3f}".format(*line["ci95"]),
            "gain": f"{line['gain']:+.4f} over {line['over']}" if line["over"] else "-",
        }
    return [cells.get(name, "") for name in COLUMNS.split()]


def table_verb(args):
    """The post's table, the table of all that was trained, and McNemar's test of exactly two."""
    rows = trained(args.runs)
    best = []
    for pair, mine in grouped(rows, "model", "data"):
        top = max(mine, key=lambda row: (row["train"] != "head", selection_score(row)))
        best.append([*pair, top.get("batch_size"), top["accuracy"], top["prompt_tokens"]])
    if args.json:
        print(*map(to_json, with_gains(rows)), sep="\n")
    else:
        header = "model,data,batch size,best accuracy,token count"
        print_table(header.split(","), best, markdown=True)
        print()
        print_table(HEADER.split(","), map(table_row, with_gains(rows)), markdown=True)
        print(
            "\nbest accuracy: on dev, of the prompt that is best on selection; selection, dev: "
            "means over\nseeds; sd: between them; interval: of the mean, from the number of dev "
            "texts"
        )
    if len(args.runs) == len(rows) == 2:
        compare(args, [str(row["path"]) for row in rows])


def mcnemar(first, second):
    """Do two prompts differ?  first, second: bool (n,), where each is right -> a dictionary.

    Where both are right, or both wrong, says nothing; if they were equally good, each would win
    half of the rest: p is the exact two-sided binomial probability of a split as uneven as this.
    """
    wins = [int((first > second).sum()), int((second > first).sum())]
    tails = sum(math.comb(sum(wins), k) for k in range(min(wins) + 1))
    return {"n": len(first), "only_right": wins, "p": min(1.0, 2 * tails / 2 ** sum(wins))}


def compare(args, paths):
    """Print McNemar's test of two prompts, which both answer the split."""
    right, seen = [], []
    for path in paths:
        texts, labels, (logits,) = Classifier([path], args).answer_split(args.data, args.split)
        truth = truth_of(labels, logits.shape[1])  # (n,)
        right.append(choose(logits) == truth)  # (n,)
        seen.append((texts, truth.tolist()))
    if seen[0] != seen[1]:
        raise ValueError("the two were trained on different data; name one for both with --data")
    test = mcnemar(*right) | {"prompts": paths}
    sentence = (
        f"\nMcNemar's test, {test['n']} texts: {test['only_right'][0]} only the first gets right, "
        f"{test['only_right'][1]} only the second; p = {test['p']:.4f}, exact and two-sided"
    )
    say(args, {"mcnemar": test}, sentence)


# ---- pictures -------------------------------------------------------------------------------

STYLES = {"majority": ":", "untrained": "-.", "head": "x--", "prompt+head": "o-"}


def new_figure(path, panels, height=4):
    """A figure with panels side by side, for a picture at path, if one can be made there."""
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {path} should end in .png, .svg or .pdf")
    try:
        from matplotlib import rcParams
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install -e '.[plot]'") from None
    rcParams["text.parse_math"] = False  # a dollar in a text is a dollar
    figure = Figure(figsize=(4.8 * panels, height), dpi=200, layout="constrained")
    figure.subplots(1, panels)
    return figure


def save_figure(args, figure):
    """Write the picture, and say so."""
    data, kind = io.BytesIO(), Path(args.out).suffix[1:]
    mark = "prompt-training-picture/1"
    figure.savefig(data, format=kind, metadata={"Software" if kind == "png" else "Creator": mark})
    write_file(args.out, data.getvalue(), mark.encode())
    say(args, {"file": args.out}, f"see {args.out}")


def curve_of(row):
    """A prompt's accuracy on selection after epoch 1, 2, ..., where a log tells it."""
    log = row["run"] / "metrics.jsonl"
    if not log.exists():
        return []
    mine = {"prompt": row.get("name"), "split": row.get("select_on")}
    points = [checks.typed(log, point, checks.POINT) for _, point in rows_of(log)]
    return [point["accuracy"] for point in points if mine.items() <= point.items()]


def plot_lengths(axes, rows):
    """Accuracy on dev against prompt length, for each model and data set, and their baselines."""
    for (model, data, train), lines in grouped(with_gains(rows), "model", "data", "train"):
        name = f"{train}, {Path(str(model)).name} on {Path(str(data)).name}"
        if train in ("majority", "untrained"):
            axes.axhline(lines[0]["accuracy"], linestyle=STYLES[train], color="grey", label=name)
            continue
        best = [max(same, key=selection_score) for _, same in grouped(lines, "prompt_tokens")]
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


def plot_epochs(axes, rows):
    """Accuracy on selection after each epoch, a curve for each prompt; its choice is marked."""
    for i, ((P, train), mine) in enumerate(grouped(rows, "prompt_tokens", "train")):
        label = f"P = {P}, {train}"
        for row in mine:
            axes.plot(
                range(1, len(row["curve"]) + 1),
                row["curve"],
                STYLES[train],
                color=f"C{i}",
                linewidth=1,
                markevery=[row["epoch"] - 1],
                label=label,
            )
            label = None  # the legend names it once
    axes.set(xlabel="epoch (chosen ones marked)", ylabel="accuracy on selection")
    axes.locator_params("x", integer=True, min_n_ticks=1)


def plot_verb(args):
    """Accuracy against prompt length, and the learning curves beside it."""
    if not args.out:
        raise ValueError("plot needs --out, a picture to write: .png, .svg or .pdf")
    rows = sorted(trained(args.runs), key=itemgetter("prompt_tokens"))
    for row in rows:
        row["curve"] = curve_of(row)
    groups = grouped([row for row in rows if row["curve"]], "model", "data")
    figure = new_figure(args.out, 1 + len(groups))
    left, *others = figure.axes
    plot_lengths(left, rows)
    for axes, ((model, data), mine) in zip(others, groups):
        plot_epochs(axes, mine)
        axes.set_title(f"{Path(str(model)).name} on {Path(str(data)).name}")
    for axes in figure.axes:
        axes.legend(fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save_figure(args, figure)


# ---- looking inside -------------------------------------------------------------------------


def tokens_verb(args):
    """The tokens nearest to each vector of the prompt, and how far it has moved."""
    classifier = Classifier(find_prompts(args.run), args)
    (prompt,) = classifier.prompts
    decode = classifier.tokenizer.decode
    # Some checkpoints pad V with rows that are no token's.
    table = classifier.gpt2.wte.weight[: classifier.tokenizer.size].float()  # (V, C)
    ids = classifier.metadata["init_ids"]  # none with --init FILE
    known = len(ids) == len(prompt.vectors) and max(ids) < len(table)
    found, cells = [], []
    for i, vector in enumerate(prompt.vectors.detach()):
        began = moved = None
        if known:
            began = decode([ids[i]])
            moved = (vector - table[ids[i]]).norm().item()
        norm = vector.norm().item()
        best = torch.cosine_similarity(vector[None], table).topk(5)
        nearest = [*zip(map(decode, best.indices[:, None].tolist()), best.values.tolist())]
        found.append(dict(vector=i, began=began, moved=moved, norm=norm, nearest=nearest))
        words = [f"{word!r} {cosine:.2f}" for word, cosine in nearest]
        began = repr(began) if began else "-"
        cells.append([i, began, cell(moved, ".2f"), cell(norm, ".2f"), *words])
    if args.json:
        return print(*map(to_json, found), sep="\n")
    print_table(["vector", "began as", "moved", "norm", "nearest", *[""] * 4], cells)
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


def seen(classifier, text):
    """As much of a text as leaves the prompt room: what lies behind is not looked at."""
    starts = classifier.tokenizer.bpe.decode_with_offsets(classifier.tokenizer.encode(text))[1]
    room = classifier.gpt2.config.n_positions - len(classifier.prompts[0].vectors)
    return text[: starts[room]] if len(starts) > room else text


def attention_of_words(classifier, text, spans):
    """Shares of each word and, last, of the prompt itself: (L, H, W+1).

    Attention goes to tokens; each belongs to the word that ends after its first character.
    """
    (prompt,) = classifier.prompts
    tokenizer = classifier.tokenizer
    P = len(prompt.vectors)
    ids = tokenizer.encode(text)[: classifier.gpt2.config.n_positions - P]
    starts = tokenizer.bpe.decode_with_offsets(ids)[1] + [len(text)] * P  # of T+P tokens
    words = np.searchsorted([end for _, end in spans], starts, side="right")  # (T+P,)
    weights = attention_weights(classifier.gpt2, prompt, ids)  # (L, H, T+P)
    return weights @ torch.eye(len(spans) + 1)[words]


def log_odds(logits, label):
    """How far logits (n, N) are for label and against the others: (n,); of two, the difference."""
    if logits.shape[1] == 1:
        return (2 * label - 1) * (logits[:, 0] - 0.5)
    others = logits.clone()
    others[:, label] = -math.inf
    return logits[:, label] - others.logsumexp(dim=1)


def occlusion(classifier, text, spans):
    """The label of a text, its log-odds, and what these lose without each word, as a dictionary.

    occlusion is [None] where no text is left.
    """
    without = [clean(text[:start] + text[end:].lstrip()) for start, end in spans]
    logits = classifier.logits([(one, 0) for one in (text, *without) if one])[0]  # (W+1, N)
    label = int(choose(logits[0]))
    odds = log_odds(logits, label)  # (W+1,)
    return {
        "text": text,
        "label": label,
        "label_name": classifier.labels[label],
        "log_odds": odds[0].item(),
        "words": text.split(),
        "occlusion": (odds[0] - odds[1:]).tolist() or [None],
    }


def attention_verb(args):
    """What the prompt's last vector attends to, beside what the answer loses without each word."""
    classifier = Classifier(find_prompts(args.run), args)
    text = seen(classifier, clean(args.text))
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    if not spans:
        raise ValueError("the text is blank")
    figure = args.out and new_figure(args.out, 2, 1 + len(spans) / 4)
    shares = attention_of_words(classifier, text, spans)  # (L, H, W+1)
    layer = f"in layer {args.layer}" if args.layer else f"mean of {len(shares)} layers"
    if args.layer and args.layer > len(shares):
        raise ValueError(f"--layer {args.layer}: this model has {len(shares)} layers")
    shares = shares[args.layer - 1] if args.layer else shares.mean(dim=0)  # (H, W+1)
    heads = [f"head {i + 1}" for i in range(len(shares))]
    if not args.heads:
        shares = shares.mean(dim=0, keepdim=True)  # (1, W+1)
        heads = ["attention"]
    found = occlusion(classifier, text, spans)
    found |= {"attention": shares[:, :-1].tolist(), "to_prompt": shares[:, -1].tolist()}
    unit = "log-odds" if len(classifier.prompts[0].head) > 1 else "distance from 0.5"
    told = f"{unit} of {found['label_name']} lost without the word"
    if args.out:
        draw_words(figure, found, f"attention, {layer}", told)
        return save_figure(args, figure)
    if args.json:
        return print(to_json(found))
    print(
        f"{found['label_name']}, {unit} {found['log_odds']:.2f}; attention of the prompt's last "
        f"vector, {layer}"
    )
    lost = [cell(x, "+.3f") for x in (*found["occlusion"], None)]
    columns = [map("{:.3f}".format, row) for row in shares.tolist()]
    rows = zip([*found["words"], "(the prompt)"], lost, *columns)
    print_table(["word", "occlusion", *heads], rows)
    print(
        f"occlusion: {told}.  What is attended to need not be what decides,\n"
        "and GPT-2 often attends to a first token, whatever it is"
    )


def draw_words(figure, found, *titles):
    """Two panels of a bar for each word: attention, the mean of heads, and occlusion."""
    lost = [x or 0.0 for x in found["occlusion"]]
    shares = np.mean(found["attention"], axis=0)
    for axes, title, widths in zip(figure.axes, titles, (shares, lost)):
        axes.barh(range(len(lost)), widths, tick_label=[*map(shown, found["words"])])
        axes.invert_yaxis()
        axes.set(xlabel=title)


VERBS = {"table": table_verb, "plot": plot_verb, "tokens": tokens_verb, "attention": attention_verb}
