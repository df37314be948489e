"""A run as a person follows it: what it begins with, a line an epoch, the table at its end."""

import datetime
import time

from metrics import standing
from support.first_vectors import is_prompt
from support.settings import INITS
from support.summary import best_first
from support.terminal import command, few, path_word, say, table_text, warn

MANY = 20  # labels that are told with their counts


def tell_beginning(facts, gpt2, dataset):
    """What the prompts ride on, and what they learn from.  facts: of run.json."""
    settings = facts.settings
    size = sum(parameter.numel() for parameter in gpt2.parameters())
    where = f"{settings.dtype} on {settings.device}"
    say(f"model {settings.model}: {size:,} frozen parameters in {where}")
    sizes = []
    for split, n in facts.texts.items():
        sizes.append(f"{n:,} {split}")
    say(f"data {settings.data}: {', '.join(sizes)} texts")

    # Their names and numbers, so that a column that is not the one of the labels is seen at once.
    counts = []
    for name, n in dataset.label_counts().items():
        counts.append(f"{name} {n:,}")
    if counts:
        say(f"labels of train: {few(counts, MANY)}")
    if settings.init not in INITS:
        what = "the vectors of" if is_prompt(settings.init) else "the tokens of the text"
        say(f"the prompts begin as {what} {settings.init}")


class Clock:
    """How long a run has taken since it began or went on, and how long it will take."""

    def __init__(self, first, total):
        """The steps first .. total-1 are to do."""
        self.began = time.perf_counter()
        self.first = first
        self.total = total

    def speed(self, done):
        """Steps a second, `done` of all steps being done."""
        return (done - self.first) / (time.perf_counter() - self.began)

    def sentence(self, done):
        """Speed, time gone and time left, as of `done` steps."""
        speed = self.speed(done)
        gone = round(time.perf_counter() - self.began)
        left = round((self.total - done) / speed)
        return f"{speed:.1f} steps/s, {in_hours(gone)} gone, {in_hours(left)} left"


def in_hours(seconds):
    """As 1:02:03"""
    return str(datetime.timedelta(seconds=seconds))


def tell_epoch(epoch, clock, done, active, select_by):
    """A line after an epoch: where the prompt that leads stands, of those that go on."""
    if not active:
        return
    leader = max(active, key=lambda trial: standing(trial.best, select_by))
    who = leader.name
    if len(active) > 1:
        who = f"leader {who}"
    parts = []
    for line in leader.latest.values():
        parts.append(f"{line.split} {figures(line)}")
    # Of what the best is best in; the loss, where nothing else is known.
    known = {"accuracy": leader.best.accuracy, "macro-f1": leader.best.macro_f1}
    best = known.get(select_by)
    if best is None:
        best = leader.best.loss
    say(f"epoch {epoch}, {clock.sentence(done)}, {who}: {', '.join(parts)}, best {best:.4f}")


def figures(line):
    """Loss and, where it is known, accuracy of a line of the log."""
    loss = "not finite" if line.loss is None else f"{line.loss:.3f}"
    if line.accuracy is None:
        return f"loss {loss}"
    return f"loss {loss} accuracy {line.accuracy:.4f}"


def tell_end(summary, path, text):
    """The table of a run, warnings, and a command to try, with one of its texts."""
    say(result_table(summary))
    for row in summary.prompts:
        if row.collapsed:
            warn(f"{row.name}: {row.alarm}")
    # What gives one answer to everything is nothing to try.
    if not best_first(summary)[0].collapsed:
        words = ["--", text] if text.startswith("-") else [text]
        say(f"try: {command('evaluate.py', 'predict', path_word(path), *words)}")


def result_table(summary):
    """Of each prompt what it is worth on the selection split and on dev, and the baselines."""
    rows = summary.prompts
    split = rows[0].selection.split
    header = ["prompt", "lr", "epoch", split, "dev", "95 % interval"]
    measure = "accuracy"
    if rows[0].accuracy is None:
        header = ["prompt", "lr", "epoch", f"{split}, squared error", "dev", "Pearson's r"]
        measure = "loss"
    table = []
    for row in rows:
        beside = row.pearson
        if measure == "accuracy":
            low, high = row.ci95
            beside = f"{low:.3f} to {high:.3f}"
        scores = [getattr(row.selection, measure), getattr(row, measure), beside]
        table.append([row.name, str(row.lr), row.epoch] + scores)
    for name, value in summary.baselines.items():
        table.append([name, "", "", "", value, ""])
    return table_text(header, table)
