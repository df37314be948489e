"""Ask a trained prompt.

    python evaluate.py score   RUN                      accuracy on the dev split of its data
    python evaluate.py score   RUN --data FOLDER --split test --json
    python evaluate.py predict RUN "a delight from start to finish" "it never comes to life"
    python evaluate.py predict RUN --input reviews.txt --json > answers.jsonl

RUN is a run folder (its best prompt answers), a prompt folder in it, or a prompt.safetensors.
"""

import argparse
import functools
import json
import math
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from data import TEXT_RULE, Tokenizer, checkpoint_folder, clean, collate, fingerprint, read_split
from model import choose, classify, load_gpt2, load_prompt, losses, weight_files


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
        raise OSError(f"another process of this run ended, so this one does too ({reason})") from None
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


def score(gpt2, prompts, examples, batch_size):
    """What each prompt is worth on labelled examples: a list of K dictionaries.

    n, accuracy, ci95, loss, confusion (row: true label, column: answer), majority (the share of the
    commonest label: what an answer without reading gets) and collapsed (one answer for all texts).
    """
    logits = answers(gpt2, prompts, examples, batch_size)  # (K, n, N)
    K, n, N = logits.shape
    labels = torch.tensor([label for _, label in examples])  # (n,)
    truth = labels if N > 1 else (labels > 0.5).long()
    results = []
    for chosen, loss in zip(choose(logits), losses(logits, labels)):  # (n,), ()
        confusion = torch.zeros(max(N, 2), max(N, 2), dtype=torch.int64)
        confusion.index_put_((truth, chosen), torch.tensor(1), accumulate=True)
        correct = int(confusion.trace())
        results.append({
            "n": n,
            "accuracy": correct / n,
            "ci95": wilson(correct, n),
            "loss": loss.item(),
            "confusion": confusion.tolist(),
            "majority": int(confusion.sum(dim=1).max()) / n,
            "collapsed": int((confusion.sum(dim=0) > 0).sum()) == 1 < n,
        })  # fmt: skip
    return results


# ---- what both programs share ---------------------------------------------------------------


def one_sentence(main):
    """Let main end in exit code 2 and one sentence on stderr when the user can mend the cause."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            message = place + (error.strerror or str(error))
        except ValueError as error:
            message = str(error)
        except torch.OutOfMemoryError:
            message = "the device has too little memory; try a smaller --batch-size"
        except KeyboardInterrupt:
            sys.exit(130)
        print("error: " + " ".join(message.split()), file=sys.stderr)
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


def encode(tokenizer, pairs, positions, longest):
    """[(text, label)] -> [(ids, label)], telling how many texts leave a prompt too little room."""
    examples = [(tokenizer.encode(text)[:positions], label) for text, label in pairs]
    room = positions - longest
    if cut := sum(len(ids) > room for ids, _ in examples):
        print(f"{cut} of {len(pairs)} texts are cut to {room} tokens ({positions} positions - "
              f"{longest} of the prompt)", file=sys.stderr)  # fmt: skip
    return examples


def print_table(header, rows):
    """Print columns, all but the first to the right."""
    rows = [header, *([str(cell) for cell in row] for row in rows)]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    for name, *cells in rows:
        print("  ".join([name.ljust(first), *map(str.rjust, cells, widths)]))


def find_prompt(run):
    """RUN as a person names it -> prompt.safetensors: of a run folder, the best on selection."""
    run = Path(run)
    if run.is_file():
        return run
    if (run / "prompt.safetensors").is_file():
        return run / "prompt.safetensors"
    if (run / "summary.json").is_file():
        prompts = json.loads((run / "summary.json").read_text())["prompts"]
        best = max(prompts, key=lambda prompt: prompt["selection"]["accuracy"])
        return run / best["folder"] / "prompt.safetensors"
    raise FileNotFoundError(f"{run} is no finished run, no prompt folder and no prompt.safetensors")


def open_prompt(args):
    """(gpt2, tokenizer, prompt, metadata, path) of RUN, on the very model it was trained on."""
    path = find_prompt(args.run)
    prompt, metadata = load_prompt(path)
    if metadata.get("text_rule") != TEXT_RULE:
        raise ValueError(f"{path} was trained under another text rule than {TEXT_RULE!r}")
    folder = checkpoint_folder(args.model or metadata.get("base_model", ""))
    if fingerprint(*weight_files(folder)) != metadata.get("base_sha256"):
        raise ValueError(f"{path} was trained on another model than {folder} (the weights' sha256 "
                         f"differ); name the right one with --model")  # fmt: skip
    gpt2 = load_gpt2(folder, body_dtype(args.dtype, args.device), args.device)
    P, C = prompt.vectors.shape
    if C != gpt2.config.n_embd or P >= gpt2.config.n_positions:
        raise ValueError(f"{path} holds {P} vectors of {C} channels, which do not fit {folder}")
    return gpt2, Tokenizer(folder / "merges.txt"), prompt.to(args.device), metadata, path


# ---- verbs ----------------------------------------------------------------------------------


def score_verb(args):
    gpt2, tokenizer, prompt, metadata, path = open_prompt(args)
    data, names = args.data or metadata["recipe"].get("data", ""), metadata["labels"]
    pairs = read_split(data, args.split, len(prompt.head))
    examples = encode(tokenizer, pairs, gpt2.config.n_positions, len(prompt.vectors))
    result = score(gpt2, [prompt], examples, args.batch_size)[0] | {"prompt": str(path)}
    if args.json:
        return print(json.dumps(result))
    print("{0} on {1} {2}: accuracy {accuracy:.4f} of {n} texts, 95 % interval {ci95[0]:.3f} to "
          "{ci95[1]:.3f}, loss {loss:.4f}, majority baseline {majority:.4f}"
          .format(path, data, args.split, **result))  # fmt: skip
    print_table(["label", *(f"answered {name}" for name in names)],
                [[name, *row] for name, row in zip(names, result["confusion"])])  # fmt: skip
    if result["collapsed"]:
        print("warning: all texts got one answer; the accuracy is that label's share")


def predict_verb(args):
    if args.texts and args.input:
        raise ValueError("predict takes texts or --input, not both")
    gpt2, tokenizer, prompt, metadata, _ = open_prompt(args)
    texts = args.texts or (open(args.input, encoding="utf-8") if args.input else sys.stdin)
    texts = [clean(text) for text in texts]
    if "" in texts:
        raise ValueError(f"text {texts.index('') + 1} is blank")
    pairs = [(text, 0) for text in texts]
    examples = encode(tokenizer, pairs, gpt2.config.n_positions, len(prompt.vectors))
    logits = answers(gpt2, [prompt], examples, args.batch_size)[0]  # (n, N)
    shares = logits.softmax(dim=1)
    if logits.shape[1] == 1:  # a regression between 0 and 1
        shares = torch.cat([1 - logits, logits], dim=1).clamp(0, 1)
    columns = (tensor.tolist() for tensor in (choose(logits), logits, shares))
    for text, label, row, share in zip(texts, *columns):
        name = metadata["labels"][label]
        answer = dict(text=text, label=label, label_name=name, logits=row, probabilities=share)
        print(json.dumps(answer) if args.json else f"{name}\t{share[label]:.3f}\t{text}")


def parse_args(argv):
    as_written = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=as_written)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, verb, text in (
        ("score", score_verb, "accuracy, interval, loss and confusion on a labelled split"),
        ("predict", predict_verb, "label texts: arguments, --input FILE, or standard input"),
    ):
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(function=verb)
        one.add_argument("run", metavar="RUN", help="run, prompt folder or prompt.safetensors")
        one.add_argument("--model", help="where the base model lies now, if it moved")
        one.add_argument("--json", action="store_true", help="print JSON, one object a line")
        add_machine_flags(one)
    add = verbs.choices["score"].add_argument
    add("--data", help="data set to score on (the one it was trained on)")
    add("--split", default="dev", help="which file of it (%(default)s)")
    add = verbs.choices["predict"].add_argument
    add("texts", metavar="TEXT", nargs="*", help="texts to label")
    add("--input", help="a file with one text a line")
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
