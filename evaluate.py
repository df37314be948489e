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
prompts (score and predict: --with RUN, --all) answer together, an ensemble, by their mean logits.
"""

import contextlib
import math
import sys
from types import SimpleNamespace

import torch
from tqdm import tqdm

from data import LONGEST, TEXT_RULE, Tokenizer, clean, collate, cut, encode, read_split
from model import choose, classify, load_gpt2, load_prompt, losses
from support import checks, fetch, files, flags, machine
from support.run import find_prompts

# ---- numbers --------------------------------------------------------------------------------


@torch.no_grad()
def answers(gpt2, prompts, examples, batch_size):
    """Logits of every prompt for every example, float32 (K, n, N) on the CPU, in their order.

    examples: [(ids, label)].  Near-equal lengths are read together; processes share the batches.
    """
    device, (rank, world) = gpt2.wte.weight.device, machine.rank_and_world()
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]))
    logits = torch.zeros(len(prompts), len(examples), len(prompts[0].head), device=device)
    for chosen in cut(order, batch_size)[rank::world]:
        ids, lengths, _ = collate([examples[i] for i in chosen])
        batch = classify(gpt2, prompts, ids.to(device), lengths.to(device))  # (K, B, N)
        logits[:, chosen] = batch.float()
    machine.all_reduce([logits])  # each is a zero in all processes but one
    return logits.cpu()


def probabilities(logits):
    """(n, N) -> (n, N or 2): softmax, but one column is itself the share of label 1."""
    if logits.shape[1] == 1:
        return torch.cat([1 - logits, logits], dim=1).clamp(0, 1)
    return logits.softmax(dim=1)


def wilson(correct, n, z=1.96):
    """Wilson's 95 % interval of a share, [low, high]: honest also near 0 and 1."""
    p, spread = correct / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z * math.sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return [max(0.0, middle - half), min(1.0, middle + half)]


def tally(chosen, truth, classes):
    """What chosen labels (n,) are worth against the true ones (n,): counts, shares, an alarm."""
    cells = torch.bincount(truth * classes + chosen, minlength=classes**2)
    confusion = cells.view(classes, classes)  # row: true label, column: answer
    right = confusion.diag().tolist()
    answered, there = (confusion.sum(dim=dim).tolist() for dim in (0, 1))
    n, alarm = len(truth), None
    accuracy, collapsed = sum(right) / n, max(answered) == n > 1
    if collapsed:
        usual = answered.index(n)
        alarm = (
            f"{accuracy:.4f} is the share of label {usual}: this model answers {usual} for "
            "everything"
        )
    return {
        "n": n,
        "accuracy": accuracy,
        "ci95": wilson(sum(right), n),
        "confusion": confusion.tolist(),
        "precision": [r / of if of else None for r, of in zip(right, answered)],
        "recall": [r / of if of else None for r, of in zip(right, there)],
        "majority": max(there) / n,
        "collapsed": collapsed,
        "alarm": alarm,
    }


def truth_of(labels, N):
    """What labels (n,) are for prompts of N labels: themselves, or, as numbers, 1 above 0.5."""
    return labels if N > 1 else choose(labels[:, None])


def judge(logits, labels):
    """`tally` and loss of the logits (n, N) of one prompt, or of several together."""
    N = logits.shape[1]
    truth = truth_of(labels, N)  # (n,)
    result = tally(choose(logits), truth, max(N, 2))
    if N == 1:
        note = (
            "the head has one column, trained on the squared error: answers are 1 above 0.5; an "
            "argmax of one column would answer 0 for everything and score "
            f"{1 - truth.float().mean():.4f}, the share of label 0"
        )
        result["alarm"] = f"{result['alarm']}; {note}" if result["alarm"] else note
    return result | {"loss": losses(logits[None], labels).nan_to_num(nan=3e38).item()}


def score(gpt2, prompts, examples, batch_size):
    """What each prompt is worth on labelled examples: a list of K dictionaries.

    n, accuracy, ci95, loss, confusion (row: true label, column: answer), precision and recall of
    each label, majority (the share of the commonest label: what an answer without reading gets),
    collapsed (one answer for all texts) and alarm (a sentence on what is wrong with it, or None).
    """
    labels = torch.tensor([label for _, label in examples])  # (n,)
    return [judge(logits, labels) for logits in answers(gpt2, prompts, examples, batch_size)]


# ---- prompts that answer --------------------------------------------------------------------


NO_ANSWER = dict.fromkeys(("text", "label", "label_name", "logits", "probabilities"))


class Classifier:
    """One prompt, or an ensemble of several, on the model that they were trained on."""

    def __init__(self, paths, args):
        """paths: prompt.safetensors files; ValueError where one does not fit the model.

        args: model (None: what the prompt says), device, dtype and batch_size, as the flags."""
        prompts, about = zip(*map(load_prompt, paths))
        self.metadata, self.batch_size = about[0], args.batch_size
        self.labels = self.metadata["labels"]
        name = args.model or self.metadata.get("base_model", "")
        folder = fetch.checkpoint_folder(name, asked=bool(args.model))
        self.gpt2 = load_gpt2(folder, machine.body_dtype(args.dtype, args.device), args.device)
        self.tokenizer = Tokenizer(folder / "merges.txt", self.gpt2.config.vocab_size)
        base = fetch.base_of(folder, folder)
        for path, prompt, its in zip(paths, prompts, about):
            checks.prompt_on_model(path, prompt, its, TEXT_RULE, base, self.gpt2.config)
            if its["labels"] != self.labels or len(prompt.head) != len(prompts[0].head):
                raise ValueError(f"{path} has other labels than {paths[0]}: no common answer")
        self.prompts = [prompt.to(args.device) for prompt in prompts]

    def logits(self, pairs):
        """[(text, label)] -> float32 (K, n, N), what each prompt makes of each text"""
        longest = max(len(prompt.vectors) for prompt in self.prompts)
        examples = encode(self.tokenizer, pairs, self.gpt2.config.n_positions, longest)
        return answers(self.gpt2, self.prompts, examples, self.batch_size)

    def answer_split(self, data, split):
        """(texts, labels (n,), logits (K, n, N)) of a labelled data set; None: its own."""
        data = data or self.metadata["recipe"].get("data", "")
        pairs = read_split(data, split, len(self.prompts[0].head))
        texts, labels = zip(*pairs)
        return texts, torch.tensor(labels), self.logits(pairs)

    def predict(self, texts):
        """[text] -> of each a dictionary: text, label, label_name, logits [N], probabilities."""
        texts = [checks.input_text(number, text, clean) for number, text in enumerate(texts, 1)]
        logits = self.logits([(text, 0) for text in texts]).mean(dim=0)  # (n, N)
        labels = choose(logits).tolist()
        names = [self.labels[label] for label in labels]
        rows = zip(texts, labels, names, logits.tolist(), probabilities(logits).tolist())
        return [dict(zip(NO_ANSWER, row)) for row in rows]


def load(run, model=None, device=None, dtype="auto", batch_size=16):
    """RUN as a person names it -> the Classifier that `predict` asks."""
    device = torch.device(device or machine.default_device())
    args = SimpleNamespace(model=model, device=device, dtype=dtype, batch_size=batch_size)
    return Classifier(find_prompts(run), args)


# ---- verbs ----------------------------------------------------------------------------------


def ensemble(args):
    """The files of RUN's prompts and of those of --with."""
    found = [path for run in (args.run, *args.others) for path in find_prompts(run, args.all)]
    return list(dict.fromkeys(found))


def score_verb(args):
    """Score the prompts together, each alone, and the surest mistakes."""
    import report

    paths = ensemble(args)
    classifier = Classifier(paths, args)
    texts, labels, logits = classifier.answer_split(args.data, args.split)
    alone = [judge(one, labels)["accuracy"] for one in logits]
    together = logits.mean(dim=0)  # (n, N)
    result = judge(together, labels)
    result |= {"prompt": " + ".join(map(str, paths)), "alone": alone}

    truth, said = truth_of(labels, together.shape[1]).tolist(), choose(together).tolist()
    sure = probabilities(together).amax(dim=1)  # (n,)
    wrong = [i for i in sure.argsort(descending=True).tolist() if said[i] != truth[i]]
    errors = [
        {"text": texts[i], "label": truth[i], "answer": said[i], "probability": sure[i].item()}
        for i in wrong[: args.errors]
    ]
    if args.json:
        print(machine.to_json(result | ({"errors": errors} if args.errors else {})))
    else:
        report.print_score(args, result, errors, paths, classifier)


def predict_verb(args):
    """Label arguments, or the lines of a file or of standard input as they come, in their order."""
    import report

    if args.texts and args.input:
        raise ValueError("predict takes texts or --input, not both")
    if args.glue and not args.input:
        raise ValueError("--glue needs GLUE's test.tsv as --input")
    source = open(args.input, "rb") if args.input else contextlib.nullcontext(sys.stdin.buffer)
    with source as stream:
        classifier = Classifier(ensemble(args), args)
        if args.glue:
            return report.glue_file(args, classifier)
        if args.texts:
            return report.print_answers(args, classifier.predict(args.texts))
        done = 0
        bar = tqdm(unit=" texts", disable=sys.stdout.isatty() or None)  # on a terminal, on stderr
        for lines in files.lines_of(stream, 64 * args.batch_size, LONGEST):
            for _, problem in lines:
                done += 1
                if problem:
                    tqdm.write(f"line {done} {problem}", file=sys.stderr)
            answered = iter(classifier.predict([text for text, problem in lines if not problem]))
            found = [NO_ANSWER | {"text": t, "error": p} if p else next(answered) for t, p in lines]
            report.print_answers(args, found)
            bar.update(len(lines))


@machine.one_sentence
def main(argv=None):
    import report  # late, since it builds on this file

    args = flags.asking(__doc__, argv)
    verbs = {"score": score_verb, "predict": predict_verb} | report.VERBS
    verbs[args.verb](args)


if __name__ == "__main__":
    main()
