"""A Score as a person reads it: one line, the confusion of labels, the surest mistakes."""

from metrics import decide, score_of, truth_of
from support.records import to_json
from support.terminal import emit, shown, table_text

MANY = 10  # with more labels than that nobody reads a confusion matrix
COMMONEST = 10  # so many of its cells are shown then, and of the labels at either end


def report_score(classifier, where, errors, as_json):
    """Print what a Classifier is worth on a labelled split.

    where: what its answer_split takes; errors: how many mistakes to show.
    """
    place, texts, labels, logits = classifier.answer_split(**where)
    names = classifier.labels
    together = logits.mean(dim=0)  # (n, N)
    found = score_of(together, labels, names)
    mistakes = surest_mistakes(together, labels, texts, errors)

    # Of an ensemble also what each prompt is worth alone.
    paths = [str(file.path) for file in classifier.files]
    by = "loss" if found.accuracy is None else "accuracy"
    alone = []
    for one in logits:
        alone.append(getattr(score_of(one, labels), by))
    if as_json:
        more = {"prompt": " + ".join(paths), "alone": alone, "errors": mistakes}
        emit(to_json(vars(found) | more))
        return
    who = paths[0]
    if len(paths) > 1:
        emit(table_text(["prompt", "alone"], zip(paths, alone, strict=True)))
        who = "together"
    show_score(found, who, place, names, mistakes)


def surest_mistakes(logits, labels, texts, count):
    """The mistakes of which a prompt is most sure; of numbers, those that are furthest off.

    logits (n, N), labels (n,) -> [{probability, answer, label, text}], the worst first
    """
    if logits.shape[1] == 1:
        answers = logits.squeeze(1)  # (n,)
        truth = labels
        badness = (answers - labels).abs()  # (n,)
        shares = [None] * len(texts)
    else:
        answers = decide(logits)  # (n,)
        truth = truth_of(labels, logits.shape[1])
        badness = logits.softmax(dim=1).amax(dim=1)  # (n,)
        shares = badness.tolist()
    # What is no answer is no sure one.
    badness = badness.nan_to_num(nan=-1.0).tolist()
    wrong = (answers != truth).nonzero().squeeze(1).tolist()
    wrong.sort(key=lambda i: -badness[i])
    answers = answers.tolist()
    truth = truth.tolist()
    found = []
    for i in wrong[:count]:
        one = {"probability": shares[i], "answer": answers[i], "label": truth[i]}
        one["text"] = texts[i]
        found.append(one)
    return found


def show_score(score, who, where, names, errors):
    """Print a Score.  who answers; where: data and split; names of the labels; errors: as above."""
    emit(f"{who} on {where}: {sentence_of(score)}")
    if score.confusion is not None:
        show_confusion(score, names)
    if score.alarm:
        kind = "warning" if score.collapsed or score.broken else "note"
        emit(f"{kind}: {score.alarm}")
    for one in errors:
        answer = one["answer"]
        label = one["label"]
        text = shown(one["text"])
        if one["probability"] is None:  # a regression
            emit(f"{answer:.3f}, but it is {label:g}: {text}")
            continue
        said = names[answer] if answer >= 0 else "no answer"
        share = one["probability"]
        emit(f"{share:.3f} {shown(said)}, but it is {shown(names[label])}: {text}")


def sentence_of(score):
    """The numbers of a Score, and what they are to be compared with."""
    loss = "not finite" if score.loss is None else known(score.loss)
    parts = []
    if score.accuracy is None:
        parts.append(f"{score.n} texts")
    else:
        low, high = score.ci95
        parts.append(f"accuracy {score.accuracy:.4f} of {score.n} texts")
        parts.append(f"95 % interval {low:.3f} to {high:.3f}")
    if score.constant_loss is None:
        parts.append(f"loss {loss}")
        parts.append(f"macro F1 {score.macro_f1:.4f}")
    else:
        parts.append(f"squared error {loss} (the best constant {score.constant_loss:.4f})")
        parts.append(f"Pearson {known(score.pearson)}")
        parts.append(f"Spearman {known(score.spearman)}")
    if score.majority is not None:
        parts.append(f"majority baseline {score.majority:.4f}")
    return ", ".join(parts)


def known(value):
    """A number, or that there is none."""
    return "unknown" if value is None else f"{value:.4f}"


def show_confusion(score, names):
    """Who is taken for whom: all of it, or of many labels the ends and the commonest mistakes."""
    if len(names) <= MANY:
        answered = [f"answered {name}" for name in names]
        header = ["label"] + answered + ["precision", "recall"]
        rows = []
        for i, name in enumerate(names):
            shares = [score.precision[i], score.recall[i]]
            rows.append([name] + score.confusion[i] + shares)
        emit(table_text(header, rows))
        return

    # Labels that are not there have no recall, and are left out.
    order = [i for i, share in enumerate(score.recall) if share is not None]
    order.sort(key=lambda i: -score.recall[i])
    ends = order
    if len(order) > 2 * COMMONEST:
        ends = order[:COMMONEST] + order[-COMMONEST:]
    rows = []
    for i in ends:
        texts = sum(score.confusion[i])
        precision = score.precision[i]
        rows.append([names[i], texts, precision, score.recall[i]])
    emit(f"{len(order)} labels by recall, {len(rows)} of them shown:")
    emit(table_text(["label", "texts", "precision", "recall"], rows))

    mistakes = []
    for i, row in enumerate(score.confusion):
        for j, count in enumerate(row):
            if i != j and count > 0:
                mistakes.append([count, names[i], names[j]])
    mistakes.sort(key=lambda mistake: -mistake[0])
    emit("the commonest mistakes:")
    emit(table_text(["texts", "label", "answered"], mistakes[:COMMONEST]))
