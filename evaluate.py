"""Ask a trained prompt, one verb a question.

    python evaluate.py score     RUN                 is it good?  accuracy, interval, confusion
    python evaluate.py score     RUN --errors 5      and where is it most wrong?
    python evaluate.py predict   RUN "a delight from start to finish"
    python evaluate.py predict   RUN --input reviews.txt --json > answers.jsonl
    python evaluate.py predict   RUN --input test.tsv --glue SST-2.tsv
    python evaluate.py table     RUN ...             better than nothing, than the other one?
    python evaluate.py plot      RUN ... --out results.png
    python evaluate.py tokens    RUN                 what has become of its vectors?
    python evaluate.py attention RUN "a fine film"   what does it look at?

RUN is a run folder (its best prompt answers), a prompt folder in it, or a prompt.safetensors.  More
prompts (score and predict: --with RUN, --all) answer together, by their mean logits.
"""

import argparse
import bisect
import codecs
import contextlib
import functools
import io
import json
import math
import os
import re
import statistics
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm

from data import (LONGEST, TEXT_RULE, Tokenizer, checkpoint_folder, clean, collate, fingerprint,
                  read_split, rows_of)  # fmt: skip
from model import (choose, classify, load_gpt2, load_prompt, losses, weight_files,
                   write_file)  # fmt: skip


# ---- several processes ----------------------------------------------------------------------


def processes():
    """(which, of how many) processes that torchrun started; (0, 1) without it."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def add_up(tensors):
    """Replace each tensor by its sum over all processes: one message, however many tensors."""
    if processes()[1] == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    try:
        dist.all_reduce(flat)
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise OSError(f"another process ended, so this one does too ({reason})") from None
    for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
        tensor.copy_(part.view_as(tensor))


# ---- numbers --------------------------------------------------------------------------------


@torch.no_grad()
def answers(gpt2, prompts, examples, batch_size):
    """Logits of every prompt for every example, float32 (K, n, N) on the CPU, in their order.

    examples: [(ids, label)].  Near-equal lengths are read together; processes share the batches.
    """
    device, (rank, world) = gpt2.wte.weight.device, processes()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    logits = torch.zeros(len(prompts), len(examples), len(prompts[0].head), device=device)
    for start in range(rank * batch_size, len(order), world * batch_size):
        chosen = order[start : start + batch_size]
        ids, lengths, _ = collate([examples[i] for i in chosen])
        batch = classify(gpt2, prompts, ids.to(device), lengths.to(device))  # (K, B, N)
        logits[:, chosen] = batch.float()
    add_up([logits])  # each is a zero in all processes but one
    return logits.cpu()


def wilson(correct, n, z=1.96):
    """Wilson's 95 % interval of a share, [low, high]: honest also near 0 and 1."""
    p, spread = correct / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def tally(chosen, truth, classes):
    """What chosen labels (n,) are worth against the true ones (n,): counts, shares, an alarm."""
    n = len(truth)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)  # row: true label, column: answer
    confusion.index_put_((truth, chosen), torch.tensor(1), accumulate=True)
    right, answered, there = confusion.diag(), confusion.sum(dim=0), confusion.sum(dim=1)
    correct, usual = int(right.sum()), int(answered.argmax())
    collapsed = int(answered[usual]) == n > 1
    alarm = (f"{correct / n:.4f} is the share of label {usual}: this model answers {usual} for "
             "everything")  # fmt: skip
    shares = [[r / w if w else None for r, w in zip(right.tolist(), whole.tolist())]
              for whole in (answered, there)]  # fmt: skip
    return {
        "n": n,
        "accuracy": correct / n,
        "ci95": wilson(correct, n),
        "confusion": confusion.tolist(),
        "precision": shares[0],
        "recall": shares[1],
        "majority": int(there.max()) / n,
        "collapsed": collapsed,
        "alarm": alarm if collapsed else None,
    }  # fmt: skip


def truth_of(labels, N):
    """What labels (n,) are for prompts of N labels: themselves, or, as numbers, 1 above 0.5."""
    return labels if N > 1 else choose(labels[:, None])


def judge(logits, labels):
    """`tally` and loss of the logits (n, N) of one prompt, or of several together."""
    n, N = logits.shape
    truth = truth_of(labels, N)  # (n,)
    result = tally(choose(logits), truth, max(N, 2))
    if N == 1:
        zeros = 1 - truth.float().mean()
        notes = [result["alarm"], "the head has one column, trained on the squared error: answers "
                 "are 1 above 0.5; an argmax of one column would answer 0 for everything and score "
                 f"{zeros:.4f}, the share of label 0"]  # fmt: skip
        result["alarm"] = "; ".join(filter(None, notes))
    return result | {"loss": losses(logits[None], labels).item()}


def score(gpt2, prompts, examples, batch_size):
    """What each prompt is worth on labelled examples: a list of K dictionaries.

    n, accuracy, ci95, loss, confusion (row: true label, column: answer), precision and recall of
    each label, majority (the share of the commonest label: what an answer without reading gets),
    collapsed (one answer for all texts) and alarm (a sentence on what is wrong with it, or None).
    """
    labels = torch.tensor([label for _, label in examples])  # (n,)
    return [judge(logits, labels) for logits in answers(gpt2, prompts, examples, batch_size)]


def probabilities(logits):
    """(n, N) -> (n, N or 2): softmax, but one column is itself the share of label 1."""
    if logits.shape[1] == 1:
        return torch.cat([1 - logits, logits], dim=1).clamp(0, 1)
    return logits.softmax(dim=1)


def log_odds(logits, label):
    """How far logits (n, N) are for label and against the others: (n,); of two, the difference."""
    if logits.shape[1] == 1:
        return (2 * label - 1) * (logits[:, 0] - 0.5)
    others = [column for column in range(logits.shape[1]) if column != label]
    return logits[:, label] - logits[:, others].logsumexp(dim=1)


def mcnemar(first, second):
    """Do two prompts differ?  first, second: bool (n,), where each is right -> a dictionary.

    Where both are right, or both wrong, says nothing; if they were equally good, each would win
    half of the rest: p is the exact two-sided binomial probability of a split as uneven as this.
    """
    wins = [int((first & ~second).sum()), int((second & ~first).sum())]
    tails = sum(math.comb(sum(wins), k) for k in range(min(wins) + 1))
    return {"n": len(first), "only_right": wins, "p": min(1.0, 2 * tails / 2 ** sum(wins))}


@torch.no_grad()
def attention_weights(gpt2, prompt, ids):
    """What the prompt's last position attends to: ids (T,) int64 -> shares (L, H, T+P), float32.

    Computed anew from what goes into each Attention and the keys it gives back, so that model.py
    need not know that anybody asks.
    """
    layers = []

    def look(attention, inputs, output):
        x, past = inputs[:2]  # (1, P, C)
        if past is None:  # the text reads itself
            return
        C, H = x.shape[2], attention.n_head
        q = attention.c_attn(x[:, -1])[:, :C].view(1, H, 1, C // H)  # (1, H, 1, D)
        k = torch.cat([past[0], output[1][0]], dim=2)  # (1, H, T+P, D)
        scores = (q @ k.mT).float() * (C // H) ** -0.5  # (1, H, 1, T+P), all of which it may see
        layers.append(scores.softmax(dim=3)[0, :, 0].cpu())  # (H, T+P)

    hooks = [block.attn.register_forward_hook(look) for block in gpt2.h]
    try:
        classify(gpt2, [prompt], ids[None], torch.tensor([len(ids)], device=ids.device))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(layers)


# ---- what both programs share ---------------------------------------------------------------


def one_sentence(main):
    """Let main end in exit code 2 and one sentence on stderr when the user can mend the cause."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            result = main(argv)
            sys.stdout.flush()
            return result
        except BrokenPipeError:  # whoever reads has read enough, as with `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # no more to say at exit
            sys.exit(128 + 13)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            message = place + (error.strerror or str(error))
        except ValueError as error:
            message = str(error)
        except torch.OutOfMemoryError:
            message = "the device has too little memory; try a smaller --batch-size"
        except KeyboardInterrupt:
            sys.exit(130)
        shown = "".join(c if c.isprintable() else " " for c in message)  # nothing for a terminal
        print("error: " + " ".join(shown.split()), file=sys.stderr)
        sys.exit(2)

    return wrapped


def device_of(text):
    """argparse type: a device that is there."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise argparse.ArgumentTypeError(f"this machine has no device {text}; try cpu") from None
    return torch.device(text)


def count(text):
    """argparse type: a whole number, 1 or more."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 1 or more")
    return int(text)


def add_machine_flags(parser):
    """The flags that say how to compute, the same for both programs."""
    add, best = parser.add_argument, "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=device_of, default=best, help="cpu, cuda, cuda:1, mps (%(default)s)")
    add("--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="of the frozen "
        "model; auto is bfloat16 where the hardware multiplies it fast")  # fmt: skip
    add("--batch-size", type=count, default=16, help="texts read at once (%(default)s)")


def body_dtype(name, device):
    """The frozen body's dtype.  Prompts, heads, losses and Adam's state are always float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        flags = cpuinfo.read_text() if device.type == "cpu" and cpuinfo.exists() else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if fast else torch.float32


def open_base(args, folder):
    """(gpt2, tokenizer) of a checkpoint folder, as --device and --dtype say."""
    gpt2 = load_gpt2(folder, body_dtype(args.dtype, args.device), args.device)
    tokenizer = Tokenizer(folder / "merges.txt")
    if tokenizer.size > gpt2.config.vocab_size:
        raise ValueError(f"{folder}: merges.txt makes {tokenizer.size} tokens, but config.json has "
                         f"{gpt2.config.vocab_size}")  # fmt: skip
    return gpt2, tokenizer


def encode(tokenizer, pairs, positions, longest):
    """[(text, label)] -> [(ids, label)], telling how many texts leave a prompt too little room."""
    examples = [(tokenizer.encode(text)[:positions], label) for text, label in pairs]
    room = positions - longest
    if cut := sum(len(ids) > room for ids, _ in examples):
        print(f"{cut} of {len(pairs)} texts are cut to {room} tokens ({positions} positions - "
              f"{longest} of the prompt)", file=sys.stderr)  # fmt: skip
    return examples


def print_table(header, rows, markdown=False):
    """Print columns, all but the first to the right; markdown: as a table that README can hold."""
    rows = [header, *([str(cell) for cell in row] for row in rows)]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    left, between, right = ("| ", " | ", " |") if markdown else ("", "  ", "")
    for i, (name, *cells) in enumerate(rows):
        print(left + between.join([name.ljust(first), *map(str.rjust, cells, widths)]) + right)
        if markdown and i == 0:
            print("|---|" + "--:|" * len(widths))


def cell(number, form=".4f"):
    """A number as a cell of a table, a dash where it is not known."""
    return "-" if number is None else format(number, form)


# ---- what RUN is ----------------------------------------------------------------------------


def read_run(run):
    """The prompts of a finished run, best on selection first: summary.json's rows, each with the
    settings of run.json, which a row overrides, and the path of its file."""
    try:
        names = ("run.json", "summary.json")
        asked, found = (json.loads((run / name).read_bytes()) for name in names)
        known = asked["settings"] | {"run": run, "majority": found["baselines"].get("majority")}
        rows = [known | row | {"path": run / row["folder"] / "prompt.safetensors"}
                for row in found["prompts"]]  # fmt: skip
        return sorted(rows, key=lambda row: -row["selection"]["accuracy"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{run}: {' or '.join(names)} is damaged ({error}); train anew") from None


def find_prompts(run, every=False):
    """RUN as a person names it -> prompt.safetensors: of a run folder the best, or every one."""
    run = Path(run)
    for path in (run, run / "prompt.safetensors"):
        if path.is_file():
            return [path]
    if (run / "summary.json").is_file():
        paths = [row["path"] for row in read_run(run)]
        return paths if every else paths[:1]
    raise FileNotFoundError(f"{run} is no finished run, no prompt folder and no prompt.safetensors")


def open_prompts(args, paths):
    """(gpt2, tokenizer, prompts, metadata of the first), all on the model they were trained on."""
    prompts, about = zip(*map(load_prompt, paths))
    metadata = about[0]
    folder = checkpoint_folder(args.model or metadata.get("base_model", ""))
    sha256 = fingerprint(*weight_files(folder))
    gpt2, tokenizer = open_base(args, folder)
    for path, prompt, its in zip(paths, prompts, about):
        (P, C), N = prompt.vectors.shape, len(prompt.head)
        if its.get("text_rule") != TEXT_RULE:
            raise ValueError(f"{path} was trained under another text rule than {TEXT_RULE!r}")
        if its.get("base_sha256") != sha256:
            raise ValueError(f"{path} was trained on another model than {folder} (the weights' "
                             "sha256 differ); name the right one with --model")  # fmt: skip
        if C != gpt2.config.n_embd or P >= gpt2.config.n_positions:
            raise ValueError(f"{path} holds {P} vectors of {C} channels, which do not fit {folder}")
        if (its["labels"], N) != (metadata["labels"], len(prompts[0].head)):
            raise ValueError(f"{path} has other labels than {paths[0]}: no common answer")
    return gpt2, tokenizer, [prompt.to(args.device) for prompt in prompts], metadata


# ---- verbs ----------------------------------------------------------------------------------


def together(args):
    """The prompts that answer: RUN's, and those of --with."""
    runs = [args.run, *args.beside]
    return list(dict.fromkeys(path for run in runs for path in find_prompts(run, args.all)))


def answer_split(args, paths):
    """(logits (K, n, N), labels (n,), texts, data, names of the labels) on the split that is asked
    for, from one reading."""
    gpt2, tokenizer, prompts, metadata = open_prompts(args, paths)
    data = args.data or metadata["recipe"].get("data", "")
    pairs = read_split(data, args.split, len(prompts[0].head))
    longest = max(len(prompt.vectors) for prompt in prompts)
    examples = encode(tokenizer, pairs, gpt2.config.n_positions, longest)
    texts, labels = zip(*pairs)
    logits = answers(gpt2, prompts, examples, args.batch_size)  # (K, n, N)
    return logits, torch.tensor(labels), texts, data, metadata["labels"]


def score_verb(args):
    paths = together(args)
    logits, labels, texts, data, names = answer_split(args, paths)
    alone = {str(path): judge(one, labels)["accuracy"] for path, one in zip(paths, logits)}
    logits = logits.mean(dim=0)  # (n, N): several prompts answer by their mean
    result = judge(logits, labels) | {"prompt": " + ".join(alone), "alone": list(alone.values())}
    truth = truth_of(labels, logits.shape[1])  # (n,)
    sure, chosen = probabilities(logits).max(dim=1)[0], choose(logits)  # (n,), (n,)
    wrong = [i for i in sure.argsort(descending=True).tolist() if chosen[i] != truth[i]]
    mistakes = [{"text": texts[i], "label": int(truth[i]), "answer": int(chosen[i]),
                 "probability": sure[i].item()} for i in wrong[: args.errors]]  # fmt: skip
    if args.json:
        return print(json.dumps(result | ({"errors": mistakes} if args.errors else {})))
    if len(alone) > 1:
        print_table(["prompt", "alone"], [[path, cell(share)] for path, share in alone.items()])
    print("{who} on {data} {split}: accuracy {accuracy:.4f} of {n} texts, 95 % interval "
          "{ci95[0]:.3f} to {ci95[1]:.3f}, loss {loss:.4f}, majority baseline {majority:.4f}"
          .format(**result, data=data, split=args.split,
                  who=result["prompt"] if len(alone) == 1 else "together"))  # fmt: skip
    columns = zip(names, result["confusion"], result["precision"], result["recall"])
    print_table(["label", *(f"answered {name}" for name in names), "precision", "recall"],
                [[name, *row, cell(p), cell(r)] for name, row, p, r in columns])  # fmt: skip
    if result["alarm"]:
        print(f"{'warning' if result['collapsed'] else 'note'}: {result['alarm']}")
    for error in mistakes:
        label, answer = names[error["label"]], names[error["answer"]]
        print(f"{error['probability']:.3f} {answer}, but it is {label}: {error['text']}")


def lines_of(stream, most):
    """Lines of bytes, in lists of what has arrived: a pipe that trickles is answered as it goes.

    A list has `most` lines at most; of a line without end LONGEST bytes and a piece are kept.
    """
    rest = b""
    while data := stream.read1(2**16):
        *lines, rest = (rest[: LONGEST + 1] + data).split(b"\n")
        yield from (lines[i : i + most] for i in range(0, len(lines), most))
    if rest:
        yield [rest]


def text_of(line):
    """A line -> (its text, None), or (what can be shown of it, why it cannot be answered)."""
    text = clean(line[:LONGEST].decode("utf-8", "replace"))
    if len(line) > LONGEST:
        return text[:80], f"is longer than {LONGEST:,} bytes"
    try:
        line.decode()
    except UnicodeDecodeError:
        return text, "is not UTF-8"
    return text, None if text else "is blank"


def predict_verb(args):
    if args.texts and args.input:
        raise ValueError("predict takes texts or --input, not both")
    if args.glue and not args.input:
        raise ValueError("--glue needs GLUE's test.tsv as --input")
    source = open(args.input, "rb") if args.input else contextlib.nullcontext(sys.stdin.buffer)
    with source as stream:
        gpt2, tokenizer, prompts, metadata = open_prompts(args, together(args))
        positions, longest = gpt2.config.n_positions, max(len(p.vectors) for p in prompts)

        def answer(texts):
            """Texts -> (label, logits [N], probabilities) of each, by the mean of all prompts."""
            examples = encode(tokenizer, [(text, 0) for text in texts], positions, longest)
            logits = answers(gpt2, prompts, examples, args.batch_size).mean(dim=0)  # (n, N)
            columns = (choose(logits), logits, probabilities(logits))
            return zip(*(column.tolist() for column in columns))

        if args.glue:
            return glue_file(args, answer)
        pieces = [[text.encode("utf-8", "surrogateescape") for text in args.texts]]
        bar = tqdm(unit=" texts", disable=sys.stdout.isatty() or None)  # on a terminal, on stderr
        done = 0
        for lines in pieces if args.texts else lines_of(stream, 64 * args.batch_size):
            if done == 0:
                lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
            checked = [text_of(line) for line in lines]
            for number, (_, problem) in enumerate(checked, done + 1):
                if problem and args.texts:
                    raise ValueError(f"text {number} {problem}")
                if problem:
                    tqdm.write(f"line {number} {problem}", file=sys.stderr)
            answered = answer([text for text, problem in checked if not problem])
            for text, problem in checked:
                label, row, share = (None, None, None) if problem else next(answered)
                name, sure = (None, None) if problem else (metadata["labels"][label], share[label])
                found = dict(text=text, label=label, label_name=name, logits=row)
                found |= {"probabilities": share} | ({"error": problem} if problem else {})
                plain = f"{name or '-'}\t{cell(sure, '.3f')}\t{text}"
                print(json.dumps(found) if args.json else plain)
            sys.stdout.flush()
            bar.update(len(lines))
            done += len(lines)


def glue_file(args, answer):
    """GLUE's test.tsv, columns index and sentence -> the file that its server takes."""
    rows = list(rows_of(Path(args.input)))
    if not rows:
        raise ValueError(f"{args.input} has no rows")
    for number, row in rows:
        if not (str(row.get("index")).isdecimal() and clean(str(row.get("sentence") or ""))):
            raise ValueError(f"{args.input}, line {number}: GLUE's test files have a number in the "
                             "column index and a text in the column sentence")  # fmt: skip
    labels = [label for label, _, _ in answer([clean(str(row["sentence"])) for _, row in rows])]
    lines = ["index\tprediction", *(f"{row['index']}\t{x}" for (_, row), x in zip(rows, labels))]
    write_file(args.glue, ("\n".join(lines) + "\n").encode())
    said = {"file": args.glue, "n": len(labels)}
    print(json.dumps(said) if args.json else f"{len(labels):,} predictions in {args.glue}")


SAME = ("model", "data", "train", "prompt_tokens", "lr", "batch_size", "epochs", "select_on")


def trained(runs):
    """The prompts of all runs: dictionaries of how each was trained and what it scored.

    A single prompt says it in its metadata, but for its score on selection and the baselines.
    """
    rows, said = [], ("accuracy", "n", "prompt_tokens")
    for run in map(Path, runs):
        if (run / "summary.json").is_file():
            rows += read_run(run)
        else:
            (path,) = find_prompts(run)
            about = load_prompt(path)[1]
            row = {key: json.loads(about[key]) for key in said if key in about}
            rows.append(about["recipe"] | row | {"model": about.get("base_model"), "path": path})
    unknown = dict.fromkeys((*SAME, "epoch", "majority", "untrained", "selection", "run"))
    for i, row in enumerate(rows):
        if not row.keys() >= {*said}:
            raise ValueError(f"{row['path']} goes without its {', '.join(said)}; train it anew")
        rows[i] = unknown | row | {"selected": (row.get("selection") or {}).get("accuracy")}
    return rows


def mean_of(rows, key):
    """The mean of what rows say under key, None where none does."""
    known = [row[key] for row in rows if row[key] is not None]
    return statistics.mean(known) if known else None


def over_seeds(rows):
    """Rows that differ in no more than the seed as one: a list of dictionaries."""
    groups = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in SAME), []).append(row)
    result = []
    for same, group in groups.items():
        accuracies, n = [row["accuracy"] for row in group], group[0]["n"]
        mean = statistics.mean(accuracies)
        result.append(dict(zip(SAME, same)) | {
            "seeds": len(group), "epoch": [row["epoch"] for row in group],
            "selected": mean_of(group, "selected"), "accuracy": mean,
            "sd": statistics.stdev(accuracies) if len(group) > 1 else None,
            "n": n, "ci95": wilson(mean * n, n), "untrained": mean_of(group, "untrained"),
        })  # fmt: skip
    return result


def promise(row):
    """What a choice goes by: the score on selection, so that dev chooses nothing it then judges."""
    return row["accuracy"] if row["selected"] is None else row["selected"]


def table_verb(args):
    rows, best, lines = trained(args.runs), [], []
    for model, data in dict.fromkeys((row["model"], row["data"]) for row in rows):
        mine = [row for row in rows if (row["model"], row["data"]) == (model, data)]
        best.append(max(mine, key=lambda row: (row["train"] != "head", promise(row))))
        floors = [{"model": model, "data": data, "train": name, "accuracy": mean_of(mine, name)}
                  for name in ("majority", "untrained") if mean_of(mine, name)]  # fmt: skip
        groups = over_seeds(mine)
        groups.sort(key=lambda group: (group["train"] != "head", group["prompt_tokens"]))
        heads = [group for group in groups if group["train"] == "head"]
        for group in groups:
            below = floors + (heads if group["train"] != "head" else [])
            highest = max(below, key=lambda row: row["accuracy"], default=None)
            group["gain"] = highest and group["accuracy"] - highest["accuracy"]
            group["over"] = highest and highest["train"]
        lines += floors + groups
    if args.json:
        for line in lines:
            print(json.dumps(line))
    else:
        print_table(["model", "data", "batch size", "best accuracy", "token count"],
                    [[row["model"], row["data"], row["batch_size"], cell(row["accuracy"]),
                      row["prompt_tokens"]] for row in best], markdown=True)  # fmt: skip
        print()
        print_table(["model", "data", "trained", "tokens", "batch", "lr", "seeds", "epochs",
                     "selection", "dev", "sd", "95 % interval", "gain"], [
            [row["model"], row["data"], row["train"]] + ([
                row["prompt_tokens"], row["batch_size"], row["lr"], row["seeds"],
                f"{' '.join(map(str, row['epoch']))} of {row['epochs']}", cell(row["selected"]),
                cell(row["accuracy"]), cell(row["sd"]), "{:.3f} to {:.3f}".format(*row["ci95"]),
                cell(row["gain"], "+.4f") + (f" over {row['over']}" if row["over"] else ""),
            ] if "seeds" in row else [*[""] * 6, cell(row["accuracy"]), *[""] * 3])
            for row in lines
        ], markdown=True)  # fmt: skip
        print("\nbest accuracy: on dev, of the prompt that is best on selection; selection, dev: "
              "means over\nseeds; sd: between them; interval: of the mean, from the number of dev "
              "texts")  # fmt: skip
    if len(args.runs) == len(rows) == 2:
        compare(args, [row["path"] for row in rows])


def compare(args, paths):
    """Print McNemar's test of two prompts, which both answer the split."""
    right, seen = [], []
    for path in paths:
        logits, labels, texts, _, _ = answer_split(args, [path])
        truth = truth_of(labels, logits.shape[2])  # (n,)
        right.append(choose(logits[0]) == truth)  # (n,)
        seen.append((texts, truth.tolist()))
    if seen[0] != seen[1]:
        raise ValueError("the two were trained on different data; name one for both with --data")
    test = mcnemar(*right)
    if args.json:
        return print(json.dumps({"mcnemar": test | {"prompts": [str(path) for path in paths]}}))
    print("\nMcNemar's test, {n} texts: {only_right[0]} only the first gets right, {only_right[1]} "
          "only the second; p = {p:.4f}, exact and two-sided".format(**test))  # fmt: skip


def new_figure(path, panels, height=4):
    """(figure, axes of its panels side by side) for a picture at path, if one can be made there."""
    if Path(path).suffix not in (".png", ".svg", ".pdf"):
        raise ValueError(f"--out {path} should end in .png, .svg or .pdf")
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install -e '.[plot]'") from None
    figure = Figure(figsize=(4.8 * panels, height), dpi=200, layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def save_figure(args, figure):
    """Write the picture, and say so."""
    data = io.BytesIO()
    figure.savefig(data, format=Path(args.out).suffix[1:])
    write_file(args.out, data.getvalue())
    print(json.dumps({"file": args.out}) if args.json else f"see {args.out}")


def plot_verb(args):
    if not args.out:
        raise ValueError("plot needs --out, a picture to write: .png, .svg or .pdf")
    rows, logs = trained(args.runs), {None: []}
    several = len({row["data"] for row in rows}) > 1
    for row in rows:
        row["line"] = f"{row['model']} on {row['data']}" if several else str(row["model"])
        if (run := row["run"]) not in logs:
            log = run / "metrics.jsonl"
            logs[run] = [point for _, point in rows_of(log)] if log.exists() else []
        mine = [point for point in logs[run] if point["prompt"] == row["name"]]
        row["curve"] = {point["epoch"]: point["accuracy"] for point in mine
                        if point["split"] == row["select_on"]}  # fmt: skip
    lines = list(dict.fromkeys(row["line"] for row in rows))
    curved = [line for line in lines if any(row["curve"] for row in rows if row["line"] == line)]
    lengths = sorted({row["prompt_tokens"] for row in rows})
    figure, (left, *others) = new_figure(args.out, 1 + len(curved))

    for i, line in enumerate(lines):
        mine, draw = [row for row in rows if row["line"] == line], {"color": f"C{i}", "alpha": 0.8}
        for train, style, told in (("prompt+head", "o-", ""), ("head", "x--", ", head only")):
            groups = [group for group in over_seeds(mine) if group["train"] == train]
            best = {group["prompt_tokens"]: group for group in sorted(groups, key=promise)}
            if best:  # of each length the best, which selection has told
                x = sorted(best)
                y, low, high = zip(*((best[P]["accuracy"], *best[P]["ci95"]) for P in x))
                ends = [[a - b for a, b in zip(y, low)], [b - a for a, b in zip(y, high)]]
                x = [P * 1.03 ** (2 * i + (train == "head")) for P in x]  # intervals side by side
                left.errorbar(x, y, ends, fmt=style, capsize=3, label=line + told, **draw)
    for data in dict.fromkeys(row["data"] for row in rows):
        mine = [row for row in rows if row["data"] == data]
        for name, style in (("untrained", "-."), ("majority", ":")):
            if level := mean_of(mine, name):
                told = name + f" on {data}" * several
                left.axhline(level, linestyle=style, color="grey", label=told, zorder=0)
    left.set_xscale("log")
    left.set_xticks(lengths, map(str, lengths))
    left.minorticks_off()
    title = "95 % intervals" if several else f"{rows[0]['data']}, 95 % intervals"
    left.set(xlabel="prompt tokens P", ylabel="mean accuracy on dev", title=title)

    for axes, line in zip(others, curved):
        mine = [row for row in rows if row["line"] == line and row["curve"]]
        for row in sorted(mine, key=lambda row: row["prompt_tokens"]):
            head = row["train"] == "head"
            told = f"P = {row['prompt_tokens']}" + ", head only" * head
            draw = {"color": f"C{lengths.index(row['prompt_tokens'])}"}
            draw["label"] = "_" * (told in axes.get_legend_handles_labels()[1]) + told
            axes.plot(*zip(*sorted(row["curve"].items())), "--" if head else "-", lw=1, **draw)
            axes.plot(row["epoch"], row["curve"][row["epoch"]], "o", color=draw["color"])
        axes.set(xlabel="epoch (chosen ones marked)", ylabel="accuracy on selection",
                 title=line)  # fmt: skip
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    for axes in (left, *others):
        axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    save_figure(args, figure)


def tokens_verb(args):
    gpt2, tokenizer, (prompt,), about = open_prompts(args, find_prompts(args.run))
    table = gpt2.wte.weight[: tokenizer.size].float()  # (V, C); some checkpoints pad V
    vectors, began = prompt.vectors.detach(), about["init_ids"]  # (P, C)
    near = F.normalize(vectors) @ F.normalize(table).T  # (P, V), cosines
    cosines, ids = (part.tolist() for part in near.topk(5))  # each (P, 5)
    began = began if len(began) == len(vectors) else [None] * len(vectors)  # --init FILE: unknown
    found = []
    for i, start in enumerate(began):
        first = None if start is None else tokenizer.decode([start])
        moved = None if start is None else (vectors[i] - table[start]).norm().item()
        words = [[tokenizer.decode([id]), cosine] for id, cosine in zip(ids[i], cosines[i])]
        found.append({"vector": i, "began": first, "moved": moved, "norm": vectors[i].norm().item(),
                      "nearest": words})  # fmt: skip
    if args.json:
        return print("\n".join(map(json.dumps, found)))
    print_table(["vector", "began as", "moved", "norm", "nearest", *[""] * 4], [
        [row["vector"], "-" if row["began"] is None else repr(row["began"]),
         cell(row["moved"], ".2f"), cell(row["norm"], ".2f"),
         *(f"{word!r} {cosine:.2f}" for word, cosine in row["nearest"])] for row in found
    ])  # fmt: skip
    print("moved: distance from the vector of the token it began as; tokens have a median norm of "
          f"{table.norm(dim=1).median():.2f}.\nNeighbours need not explain a prompt: it may do its "
          "work beside unrelated words (arXiv 2112.08348)")  # fmt: skip


def shade(words, values):
    """Words for a terminal, on orange as deep as the value is above 0, on blue if it is below."""
    top, line = max(map(abs, values)) or 1, ""
    for word, value in zip(words, values):
        deep = (255, 140, 0) if value > 0 else (90, 150, 255)
        r, g, b = (round(255 + (part - 255) * abs(value) / top) for part in deep)
        line += f"\x1b[38;2;0;0;0;48;2;{r};{g};{b}m {word} \x1b[0m"
    return line


def attention_verb(args):
    text = clean(args.text)
    spans = [match.span() for match in re.finditer(r"\S+", text)]
    words = [text[start:end] for start, end in spans]
    if not words:
        raise ValueError("the text is blank")
    figure, panels = new_figure(args.out, 2, 1 + len(words) / 4) if args.out else (None, ())
    gpt2, tokenizer, (prompt,), about = open_prompts(args, find_prompts(args.run))
    L, P, positions = len(gpt2.h), len(prompt.vectors), gpt2.config.n_positions
    if args.layer and args.layer > L:
        raise ValueError(f"--layer {args.layer}: this model has {L} layers")

    # Attention goes to tokens; each belongs to the word that ends after its first character.
    ids = tokenizer.encode(text)
    starts = tokenizer.bpe.decode_with_offsets(ids)[1][: positions - P]
    word_of = [bisect.bisect([end for _, end in spans], start) for start in starts]
    weights = attention_weights(gpt2, prompt, torch.tensor(ids[: len(starts)], device=args.device))
    weights = weights[args.layer - 1] if args.layer else weights.mean(dim=0)  # (H, T+P)
    weights = weights if args.heads else weights.mean(dim=0, keepdim=True)  # (H or 1, T+P)
    place = torch.tensor(word_of + [len(words)] * P)  # (T+P,), the prompt as one word more
    shares = torch.zeros(len(weights), len(words) + 1).index_add(1, place, weights)

    # Occlusion: what the answer loses when a word is not there.
    without = [clean(text[:start] + text[end:].lstrip()) for start, end in spans]
    texts = [(one, 0) for one in (text, *without) if one]
    examples = encode(tokenizer, texts, positions, P)
    logits = answers(gpt2, [prompt], examples, args.batch_size)[0]  # (W+1, N)
    label = int(choose(logits[0]))
    odds = log_odds(logits, label)  # (W+1,)
    lost = (odds[0] - odds[1:]).tolist() or [None]  # without its only word there is no text
    shown = [x or 0.0 for x in lost]
    unit = "log-odds" if logits.shape[1] > 1 else "distance from 0.5"

    name, mean = about["labels"][label], shares.mean(dim=0).tolist()  # of W+1
    layer = f"in layer {args.layer}" if args.layer else f"mean of {L} layers"
    if args.out:
        for axes, values, title in zip(panels, (mean[:-1], shown), (f"attention, {layer}",
                                       f"{unit} of {name} lost without the word")):  # fmt: skip
            axes.barh(range(len(words)), values, color=["C1" if x > 0 else "C0" for x in values])
            axes.set_yticks(range(len(words)), words)
            axes.invert_yaxis()
            axes.set_title(title, fontsize="medium")
        return save_figure(args, figure)
    if args.json:
        answer = {"text": text, "label": label, "label_name": name, "log_odds": odds[0].item()}
        seen = {"attention": shares[:, :-1].tolist(), "to_prompt": shares[:, -1].tolist()}
        return print(json.dumps(answer | {"words": words, "occlusion": lost} | seen))
    print(f"{name}, {unit} {odds[0]:.2f}; attention of the prompt's last vector, {layer}")
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        print("attention", shade(words, mean[:-1]))
        print("occlusion", shade(words, shown))
    heads = [f"head {i}" for i in range(1, len(shares) + 1)] if args.heads else ["attention"]
    print_table(["word", "occlusion", *heads], [
        [word, cell(x, "+.3f"), *(cell(part, ".3f") for part in parts)]
        for word, x, parts in zip([*words, "(the prompt)"], [*lost, None], shares.T.tolist())
    ])  # fmt: skip
    print(f"occlusion: {unit} of {name} lost without the word.  What is attended to need not be "
          "what decides,\nand GPT-2 often attends to a first token, whatever it is")  # fmt: skip


# ---- the command line -----------------------------------------------------------------------


def parse_args(argv):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = "a run folder, a prompt folder in it, or a prompt.safetensors"
    flags = {
        "run": dict(metavar="RUN", help=run),
        "runs": dict(metavar="RUN", nargs="+", help=run),
        "text": dict(metavar="TEXT", help="the text it looks at"),
        "texts": dict(metavar="TEXT", nargs="*", help="texts to label, before any --with"),
        "--input": dict(help="a file with one text a line; it may be larger than memory"),
        "--glue": dict(metavar="FILE", help="with GLUE's test.tsv as --input: write the FILE that "
                       "GLUE's server takes"),
        "--with": dict(dest="beside", metavar="RUN", nargs="+", default=[], help="prompts that "
                       "answer together with RUN's, by their mean logits, on one reading"),
        "--all": dict(action="store_true", help="all prompts of a run answer together, not its "
                      "best alone"),
        "--errors": dict(metavar="N", type=count, default=0, help="show the N surest mistakes"),
        "--data": dict(help="data set to answer (the one it was trained on)"),
        "--split": dict(default="dev", help="which file of it (%(default)s)"),
        "--layer": dict(type=count, help="attention in this layer, from 1 (the mean of all)"),
        "--heads": dict(action="store_true", help="attention of each head (their mean)"),
        "--out": dict(metavar="FILE", help="write a picture: .png, .svg or .pdf; needs matplotlib"),
        "--json": dict(action="store_true", help="print JSON, one object a line"),
        "--model": dict(help="where the base model lies now, if it moved"),
    }  # fmt: skip
    for function, names, text in (
        (score_verb, "run --data --split --errors --with --all", "accuracy with its interval, "
         "loss, confusion, precision and recall on a labelled split"),
        (predict_verb, "run texts --input --glue --with --all", "label texts: arguments, the lines "
         "of --input, or those of standard input as they come"),
        (table_verb, "runs --data --split", "accuracies beside the baselines, as Markdown; of two "
         "single prompts also McNemar's test, for which both answer the split"),
        (plot_verb, "runs --out", "accuracy against prompt length, and learning curves"),
        (tokens_verb, "run", "the tokens nearest to each vector, and how far it moved"),
        (attention_verb, "run text --layer --heads --out", "what the prompt's last vector attends "
         "to, and what the answer loses without each word"),
    ):  # fmt: skip
        verb = function.__name__.removesuffix("_verb")
        one = verbs.add_parser(verb, help=text, description=text)
        one.set_defaults(function=function)
        for name in names.split() + ["--json"]:
            one.add_argument(name, **flags[name])
        if function is not plot_verb:
            one.add_argument("--model", **flags["--model"])
            add_machine_flags(one)
    args, rest = parser.parse_known_args(argv)
    if any(word.startswith("-") for word in rest) or rest and args.verb != "predict":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse does not see texts that stand behind a flag
        args.texts += rest
    return args


@one_sentence
def main(argv=None):
    args = parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    main()
