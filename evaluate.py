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

import math
from types import SimpleNamespace

import torch

from data import TEXT_RULE, Tokenizer, collate, cut, encode, read_split, readable
from model import choose, classify, load_gpt2, load_prompt, losses
from support import checks, fetch, flags, machine
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
    for chosen in machine.progress(cut(order, batch_size)[rank::world], "batches"):
        ids, lengths, _ = collate([examples[i] for i in chosen], device)
        logits[:, chosen] = classify(gpt2, prompts, ids, lengths).float()  # (K, B, N)
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
        result["alarm"] = "; ".join(filter(None, [result["alarm"], note]))
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


def open_model(name, args, asked):
    """What prompts ride on: the frozen GPT-2, its tokenizer, and what identifies them.

    name, asked: as in fetch.checkpoint_folder; args: device and dtype, as the flags.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)  # it would make a plan for each length of texts
    folder = fetch.checkpoint_folder(name, asked)
    base = fetch.base_of(name, folder)
    gpt2 = load_gpt2(folder, machine.body_dtype(args.dtype, args.device), args.device)
    return gpt2, Tokenizer(folder / "merges.txt", gpt2.config.vocab_size), base


NO_ANSWER = dict.fromkeys("text label label_name logits probabilities".split())


class Classifier:
    """One prompt, or an ensemble of several, on the model that they were trained on."""

    def __init__(self, paths, args):
        """paths: prompt.safetensors files; ValueError where one does not fit the model.

        args: model (None: what the prompt says), device, dtype and batch_size, as the flags."""
        prompts, about = zip(*map(load_prompt, paths))
        self.metadata, self.batch_size = about[0], args.batch_size
        self.labels = self.metadata["labels"]
        name = args.model or self.metadata.get("base_model", "")
        self.gpt2, self.tokenizer, base = open_model(name, args, bool(args.model))
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

    def answer_split(self, args):
        """(texts, labels (n,), logits (K, n, N)) of the labelled split that the flags name.

        args: data, split, text_column, label_column; None: what the prompt was trained on.
        """
        own, N = self.metadata["recipe"], len(self.prompts[0].head)
        data = args.data or own.get("data", "")
        text = args.text_column or own.get("text_column")
        label = args.label_column or own.get("label_column")
        pairs = read_split(data, args.split, N, self.labels, (text, label))
        texts, labels = zip(*pairs)
        return texts, torch.tensor(labels), self.logits(pairs)

    def predict(self, texts):
        """[text] -> of each a dictionary: text, label, label_name, logits [N], probabilities."""
        pairs = []
        for number, text in enumerate(texts, 1):
            text, problem = readable(text)
            if problem:
                raise ValueError(f"text {number} {problem}")
            pairs.append((text, 0))
        logits = self.logits(pairs).mean(dim=0)  # (n, N)
        labels = choose(logits).tolist()
        texts, names = [text for text, _ in pairs], [self.labels[label] for label in labels]
        columns = texts, labels, names, logits.tolist(), probabilities(logits).tolist()
        return [dict(zip(NO_ANSWER, row)) for row in zip(*columns)]


def load(run, model=None, device=None, dtype="auto", batch_size=16):
    """RUN as a person names it -> the Classifier that `predict` asks."""
    device = torch.device(device or machine.default_device())
    args = SimpleNamespace(model=model, device=device, dtype=dtype, batch_size=batch_size)
    return Classifier(find_prompts(run), args)


# ---- the command line -----------------------------------------------------------------------


@machine.one_sentence
def main(argv=None):
    import report  # late, since it builds on this file

    args = flags.asking(__doc__, report.VERBS, argv)
    args.answer(args)


if __name__ == "__main__":
    main()
