"""The table of trained prompts: means over seeds, beside the baselines; and whether two differ."""

import dataclasses
import statistics
from dataclasses import dataclass

import torch

from metrics import decide, score_of, standing, truth_of
from support.prompt_file import PromptFile, Scores, read_prompt
from support.records import common, to_json
from support.statistics import mcnemar, wilson
from support.summary import Selection, find_prompts
from support.terminal import emit, table_text, warn

SHOWN = ("model", "data", "train", "prompt_tokens", "batch_size", "lr", "epochs")  # as columns

SET = ("model", "data", "text_column", "label_column", "num_labels")  # what sets apart

# ---- prompts --------------------------------------------------------------------------------


def trained(runs):
    """The prompts of all runs, each once, however often it is named: [PromptFile]."""
    paths = {}
    for run in runs:
        for path in find_prompts(run, every=True):
            paths.setdefault(path.resolve(), path)
    return [read_prompt(path) for path in paths.values()]


def refuse_without_scores(files):
    """Each prompt of a table has to say how it was trained, and what it scored."""
    for file in files:
        recipe = file.recipe
        scores = file.scores
        unknown = [recipe.train, recipe.lr, recipe.epoch, recipe.epochs, scores.n]
        if None in unknown or scores.accuracy is scores.loss is None:
            raise ValueError(f"{file.path} goes without its scores; train it anew, to the end")


def how_of(file):
    """All that says how a prompt was trained, but the seed: {what: value}."""
    how = {"model": file.base.base_model, "prompt_tokens": file.prompt_tokens, "init": file.init}
    how["num_labels"] = file.num_labels
    how |= vars(file.recipe)
    del how["seed"]
    del how["epoch"]
    return how


# ---- lines ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Prompts that differ in the seed at most."""

    how: dict  # what they agree in
    files: list[PromptFile]

    def all(self, name):
        """What is known of one of their Scores."""
        found = [getattr(file.scores, name) for file in self.files]
        return [value for value in found if value is not None]

    def mean(self, name):
        """The mean over the seeds; None where nothing is known."""
        found = self.all(name)
        return statistics.mean(found) if found else None

    def sd(self, name):
        """The standard deviation between seeds."""
        found = self.all(name)
        return statistics.stdev(found) if len(found) > 1 else None

    def ci95(self):
        """The interval of the mean accuracy, from the number of texts."""
        if self.measure() == "loss":
            return None
        n = self.files[0].scores.n
        return wilson(self.mean("accuracy") * n, n)

    def measure(self):
        """What a prompt is measured by: accuracy, or the loss where labels are numbers."""
        return "accuracy" if self.all("accuracy") else "loss"

    def epochs(self):
        """Which epoch was best with each seed, and of how many."""
        best = [file.recipe.epoch for file in self.files]
        told = " ".join(map(str, best))
        # Older files of runs with --steps say how many epochs there would have been.
        return f"{told} of {self.how['epochs']}" if max(best) <= self.how["epochs"] else told

    def as_dict(self):
        """The line as an object."""
        found = dict(self.how)
        for name in ("selected", "selected_loss", "accuracy", "loss", "macro_f1", "pearson"):
            found[name] = self.mean(name)
        found["untrained"] = self.mean("untrained")
        found["seeds"] = len(self.files)
        found["epoch"] = [file.recipe.epoch for file in self.files]
        found["sd"] = self.sd(self.measure())
        found["n"] = self.files[0].scores.n
        found["ci95"] = self.ci95()
        return found


def grouped(items, key):
    """{key(item): [items]}, in the order in which keys come first."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def lines_of(files):
    """[Line], prompts that differ in the seed at most together: head alone first, then by length
    and rate."""
    lines = []
    for group in grouped(files, lambda file: tuple(how_of(file).items())).values():
        seeds = {}
        for file in group:
            seed = file.recipe.seed
            if seed in seeds:
                raise ValueError(
                    f"{seeds[seed]} and {file.path} were trained in the same way with the same "
                    f"seed ({seed}); name one of them"
                )
            seeds[seed] = file.path
        lines.append(Line(how_of(group[0]), group))
    keys = ("train", "prompt_tokens", "lr")
    return sorted(lines, key=lambda line: tuple(line.how[key] for key in keys))


def sets_of(files):
    """The prompts of each model on each set of labelled texts: [[PromptFile]]."""

    def key(file):
        how = how_of(file)
        return tuple(how[name] for name in SET)

    return list(grouped(files, key).values())


def best_of(files):
    """The prompt of a set that is best on the selection split; heads alone come last."""
    # Of prompts that were chosen in unlike ways accuracy decides, of regressions the loss.
    asked = {file.recipe.select_by or "accuracy" for file in files}
    by = asked.pop() if len(asked) == 1 else "accuracy"
    by = "loss" if files[0].num_labels == 1 else by
    # Older files do not know the loss: among these accuracy alone decides.
    known = all(file.scores.selected_loss is not None for file in files)

    def key(file):
        scores = file.scores
        loss = scores.selected_loss if known else 0.0
        selected = Selection(scores.selected, loss, macro_f1=scores.selected_macro_f1)
        return (file.recipe.train != "head", standing(selected, by))

    return max(files, key=key)


def baselines_of(files):
    """{name: accuracy, or loss where labels are numbers} of what answers without reading, and
    without training: what the prompt, or the head, adds is the difference."""
    line = Line({}, files)
    names = {"majority": "majority", "untrained": "untrained"}
    if line.measure() == "loss":
        names = {"constant": "constant_loss", "untrained": "untrained_loss"}
    found = {name: line.mean(field) for name, field in names.items()}
    return {name: value for name, value in found.items() if value is not None}


def differing(files, names=None):
    """What prompts differ in beside the columns of the table: names of how_of.

    names: those to look at, None: all.
    """
    hows = [how_of(file) for file in files]
    found = []
    for name in names or hows[0]:
        if name not in SHOWN and len({how[name] for how in hows}) > 1:
            found.append(name)
    return found


# ---- the table ------------------------------------------------------------------------------


def report_table(runs, where, as_json, classifier_of):
    """Print the prompts of runs; of exactly two also whether they differ.

    where: {data, split, text_column, label_column}; where one is named, they are scored there.
    classifier_of: [PromptFile] -> the Classifier that asks them.
    """
    files = trained(runs)
    pair = len(runs) == len(files) == 2
    asked = any(where.values())
    found = None
    place = None
    if asked:
        found = answered(files, where, classifier_of)
        files = [rescored(one) for one in found]
        place = " and ".join(dict.fromkeys(one.where for one in found))
    refuse_without_scores(files)
    show_table(files, as_json, place)
    if pair and not asked and files[0].recipe.data != files[1].recipe.data:
        refuse_pair(files, [f"{file.recipe.data} dev" for file in files])
    elif pair:
        first, second = found or answered(files, where, classifier_of)
        compare(first, second, as_json)


def show_table(files, as_json, where=None):
    """Print the prompts as two tables in Markdown, or as an object a line.

    where: what they were scored on, if not on their own dev.
    """
    if as_json:
        for group in sets_of(files):
            how = how_of(group[0])
            measure = Line({}, group).measure()
            for name, value in baselines_of(group).items():
                line = {"model": how["model"], "data": how["data"], "train": name, measure: value}
                emit(to_json(line))
            for line in lines_of(group):
                emit(to_json(line.as_dict()))
        return

    best = []
    rows = []
    for group in sets_of(files):
        names = differing(files, SET) + [name for name in differing(group) if name not in SET]
        rows += rows_of(group, names)
        top = best_of(group)
        one = Line(how_of(top), [top])
        shown = [one.how["model"], one.how["data"], one.how["batch_size"]]
        best.append(shown + [one.mean(one.measure()), top.prompt_tokens])
    header = ["model", "data", "batch size", "best accuracy", "token count"]
    emit(table_text(header, best, "pipe"))
    emit("")
    header = ["model", "data", "trained", "tokens", "batch", "lr", "seeds", "epochs", "selection"]
    header += ["dev", "sd", "95 % interval", "macro F1", "pearson", "differs in"]
    header, rows = filled(header, rows)
    emit(table_text(header, rows, "pipe"))
    emit(
        "\nbest accuracy: on dev, of the prompt that is best on selection; selection, dev: "
        "means\nover seeds; sd: between them; interval: of the mean, from the number of texts"
    )
    if any(Line({}, [file]).measure() == "loss" for file in files):
        emit("where labels are numbers: squared errors instead of accuracies")
    if where:
        emit(f"dev: here {where}, on which they were scored now")


def rows_of(files, names):
    """One set of prompts as cells.  names: of how_of, which are told where lines differ in them."""
    first = how_of(files[0])
    rows = []
    for name, value in baselines_of(files).items():
        before = [first["model"], first["data"], name] + [""] * 6
        rows.append(before + [value] + [""] * 5)
    for line in lines_of(files):
        how = line.how
        measure = line.measure()
        interval = line.ci95()
        row = [how["model"], how["data"], how["train"], how["prompt_tokens"], how["batch_size"]]
        row += [str(how["lr"]), len(line.files), line.epochs()]
        row += [line.mean("selected" if measure == "accuracy" else "selected_loss")]
        row += [line.mean(measure), line.sd(measure)]
        row += ["{:.3f} to {:.3f}".format(*interval) if interval else ""]
        row += [line.mean("macro_f1"), line.mean("pearson")]
        row += [", ".join(f"{name} {how[name]}" for name in names)]
        rows.append(row)
    return rows


def filled(header, rows):
    """header and rows without the columns, from macro F1 on, in which nothing stands."""
    keep = list(range(header.index("macro F1")))
    for i in range(len(keep), len(header)):
        if any(row[i] not in ("", None) for row in rows):
            keep.append(i)
    return [header[i] for i in keep], [[row[i] for i in keep] for row in rows]


# ---- answers to a split ---------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """What one prompt makes of a labelled split."""

    file: PromptFile
    where: str  # data set and split
    texts: list[str]
    labels: torch.Tensor  # (n,)
    logits: torch.Tensor  # (n, N)


def answered(files, where, classifier_of):
    """What each prompt makes of a split: [Answered].

    Prompts of one model that tell the same labels apart read the same texts together.
    """

    def key(file):
        recipe = file.recipe
        columns = (recipe.data, recipe.text_column, recipe.label_column)
        return (file.base, tuple(file.labels), file.num_labels, columns)

    found = {}
    for group in grouped(files, key).values():
        place, texts, labels, logits = classifier_of(group).answer_split(**where)
        for file, one in zip(group, logits, strict=True):
            found[file.path] = Answered(file, place, texts, labels, one)
    return [found[file.path] for file in files]


def rescored(one):
    """The PromptFile of an Answered, with the scores of these answers on dev."""
    before = one.file.scores
    scores = common(Scores, score_of(one.logits, one.labels))
    scores |= {"selected": before.selected, "selected_loss": before.selected_loss}
    return dataclasses.replace(one.file, scores=Scores(**scores))


def compare(first, second, as_json):
    """Print McNemar's test of two Answered; where they are none of the same texts, say so."""
    paths = [str(first.file.path), str(second.file.path)]
    right = []
    truths = []
    for one in (first, second):
        truth = truth_of(one.labels, one.logits.shape[1])  # (n,)
        if truth is None:
            warn(f"no McNemar's test: {one.file.path} answers with numbers, none right or wrong")
            return
        right.append(decide(one.logits) == truth)  # (n,)
        truths.append([one.file.labels[label] for label in truth.tolist()])
    if first.texts != second.texts or truths[0] != truths[1]:
        refuse_pair([first.file, second.file], [first.where, second.where])
        return
    test = mcnemar(right[0], right[1])
    if as_json:
        emit(to_json({"mcnemar": dataclasses.asdict(test) | {"prompts": paths}}))
        return
    emit(
        f"\nMcNemar's test, {test.n} texts: {test.only_right[0]} only the first gets right, "
        f"{test.only_right[1]} only the second; p {probability(test.p)}, exact and two-sided"
    )


def refuse_pair(files, places):
    """Say why two prompts are not compared."""
    warn(
        f"no McNemar's test: {files[0].path} and {files[1].path} have different data "
        f"({places[0]}; {places[1]}); name one with --data"
    )


def probability(p):
    """A small probability, never as 0."""
    if p == 0:
        return "< 1e-300"
    return f"= {p:.4f}" if p >= 0.001 else f"= {p:.1e}"
