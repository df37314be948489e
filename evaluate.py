"""Use a trained prompt, one verb a question.

    python evaluate.py score     RUN                 is it good?  accuracy, interval, confusion
    python evaluate.py score     RUN --errors 5      and where is it most wrong?
    python evaluate.py predict   RUN "a delight from start to finish"
    python evaluate.py predict   RUN --input reviews.csv --out answers.csv
    python evaluate.py predict   RUN --input test.tsv --glue SST-2.tsv
    python evaluate.py table     RUN ...             better than nothing, than the other one?
    python evaluate.py plot      RUN ... --out results.png
    python evaluate.py tokens    RUN                 what has become of its vectors?
    python evaluate.py attention RUN "a fine film"   what does it look at?

RUN is a run folder (its best prompt answers), a prompt folder in it, or a prompt.safetensors.  More
prompts (score and predict: --with RUN, --all) answer together, an ensemble, by their mean logits.
"""

import support.threads  # noqa: F401  before torch

import contextlib
import os
import sys

import torch

from data import encode, readable
from metrics import decide, logits_of
from report import inside, plot, table
from report.score import report_score
from support import processes
from support.answers import Answer, answer_lines, emit_answers, refuse_together, table_to_answer
from support.checkpoint import open_checkpoint
from support.dataset import read_split
from support.packed import pack
from support.prompt_file import read_prompt, refuse_misfit
from support.questions import asked, of_a_split
from support.records import Count, hints_of, read
from support.settings import Settings
from support.summary import find_prompts
from support.table import is_table
from support.terminal import ending

# ---- prompts that answer --------------------------------------------------------------------


class Classifier:
    """One prompt, or an ensemble of several, on the model that they were trained on.

    labels: their names; files: PromptFiles; prompts, gpt2, tokenizer, checkpoint: what answers.
    """

    def __init__(self, files, model=None, device=None, dtype="auto", batch_size=16):
        """files: [PromptFile]; the others as in `load`.  ValueError where one does not fit."""
        # Python and the command line come through this one gate.
        if model is not None and not isinstance(model, (str, os.PathLike)):
            raise ValueError(f"model {model!r:.40} is no name and no path")
        self.batch_size = read(Count, batch_size, "batch_size")
        dtype = read(hints_of(Settings)["dtype"], dtype, "dtype")
        self.device = processes.device_of(str(device or processes.default_device()))

        # Labels are compared by their names: the mean of unlike ones would mean nothing.
        first = files[0]
        for file in files:
            if file.labels != first.labels or file.num_labels != first.num_labels:
                raise ValueError(
                    f"{file.path} has other labels than {first.path}: no common answer"
                )
        self.files = files
        self.labels = first.labels

        # A model that a person names is fetched wherever it lies; one that a file names, if we
        # know it.
        name = first.base.base_model if model is None else os.fspath(model)
        self.checkpoint = open_checkpoint(name, model is not None)
        self.tokenizer = self.checkpoint.tokenizer
        self.gpt2 = self.checkpoint.load(processes.body_dtype(dtype, self.device), self.device)
        pack(self.gpt2, with_gradient=False)

        # Vectors of one model mean nothing on another.  Its hash is known once it has been read.
        for file in files:
            refuse_misfit(file, self.checkpoint)
        self.prompts = [file.prompt.to(self.device) for file in files]

    def logits(self, pairs):
        """[(text, label)] -> float32 (K, n, N), what each prompt makes of each text"""
        # All prompts ride on one reading of the texts: the longest says how much of them is read.
        longest = max(len(prompt.vectors) for prompt in self.prompts)
        examples = encode(self.tokenizer, pairs, self.gpt2.config.n_positions, longest)
        return logits_of(self.gpt2, self.prompts, examples, self.batch_size)

    def predict(self, texts):
        """[text] -> of each a dictionary: text, label, label_name, logits [N], probabilities [N].

        Of a regression the label is the number, with neither name nor probabilities.  ValueError,
        naming its place, for what is no text.
        """
        # A text is no list of texts: its items would be its letters.
        if isinstance(texts, (str, bytes, dict)) or not hasattr(texts, "__iter__"):
            raise ValueError(f"predict takes a list of texts, not {texts!r:.40}: put it in [ ]")
        # Refused as a whole, before any work; a line of a file keeps its place instead.
        lines = []
        for number, text in enumerate(texts, 1):
            if not isinstance(text, str):
                raise ValueError(f"text {number} is no text but {text!r:.40}")
            text, problem = readable(text)
            if problem:
                raise ValueError(f"text {number} {problem}")
            lines.append((text, None))
        return [answer.as_dict() for answer in self.answers(lines)]

    def answers(self, lines):
        """[(text, why it cannot be answered, or None)] -> [Answer], each in its place."""
        # The label is not looked at: what is read has the form of what is trained on.
        pairs = [(text, 0) for text, problem in lines if not problem]
        # An ensemble answers by its mean logits.
        logits = self.logits(pairs).mean(dim=0)  # (n, N)
        shares = logits.softmax(dim=1).tolist()
        answered = zip(decide(logits).tolist(), logits.tolist(), shares, strict=True)
        found = []
        for text, problem in lines:
            if problem:
                found.append(Answer(text, error=problem))
                continue
            label, row, share = next(answered)
            if label < 0:
                # Not a number is no answer; an argmax would have called it label 0.
                found.append(Answer(text, error="gets logits that are not finite"))
            elif len(row) == 1:
                # One column was trained on the squared error: it is the number.
                found.append(Answer(text, label=row[0], logits=row))
            else:
                found.append(Answer(text, label, self.labels[label], row, share))
        return found

    def answer_split(self, data=None, split=None, text_column=None, label_column=None):
        """A labelled split -> (where, texts, labels (n,), logits (K, n, N)).

        What is None is what the prompt was trained on, and dev.  where: data and split, in words.
        """
        first = self.files[0]
        recipe = first.recipe
        # Where a flag is silent, the recipe says which texts and which of their columns.
        data = data or recipe.data
        split = split or "dev"
        if not data:
            raise ValueError(f"{first.path} does not say its data; name a data set with --data")
        columns = (text_column or recipe.text_column, label_column or recipe.label_column)
        # The labels of a file are numbered as those of the prompt are, by their names.
        N = first.num_labels
        pairs = read_split(data, split, self.labels, N, columns[0], columns[1])
        texts = [text for text, _ in pairs]
        labels = torch.tensor([label for _, label in pairs])
        return f"{data} {split}", texts, labels, self.logits(pairs)


def load(run, model=None, device=None, dtype="auto", batch_size=16):
    """RUN as a person names it -> the Classifier that `predict` asks.

    model: where the base model lies now, if it moved; device: cpu, cuda, ...; dtype: auto, float32
    or bfloat16; batch_size: texts read at once.  ValueError or OSError where one is none.
    """
    # The other arguments are looked at by the Classifier, as those of the command line are.
    if not isinstance(run, (str, os.PathLike)):
        raise ValueError(f"run {run!r:.40} is no path of a run, or of a prompt")
    return Classifier(prompts_of(run), model, device, dtype, batch_size)


def prompts_of(run, others=(), every=False):
    """The PromptFiles of a RUN and of others, each once.  every: all of a run, not its best."""
    # A prompt that is named twice answers once: its logits count no more than others'.
    paths = []
    for name in [run] + list(others):
        paths += find_prompts(name, every)
    return [read_prompt(path) for path in dict.fromkeys(paths)]


# ---- verbs ----------------------------------------------------------------------------------

# Each is called with the flags that support/questions.py lists for it; machine are those that say
# how to compute.


def score(run, others, every, errors, as_json, **flags):
    """Is it good, and where is it most wrong?"""
    where, machine = of_a_split(flags)
    report_score(Classifier(prompts_of(run, others, every), **machine), where, errors, as_json)


def predict(run, texts, path, text_column, out, glue, others, every, as_json, **machine):
    """Which label?  Of texts, of the rows of a table, or of lines as they come."""
    # What does not go together is refused before a file is opened, a prompt or a model.
    is_rows = path is not None and is_table(path)
    refuse_together(texts, path, text_column, out, glue, is_rows)
    files = prompts_of(run, others, every)
    if is_rows:
        # As `score` does: the column that the prompt was trained on, unless another is named.
        column = text_column or files[0].recipe.text_column
        with table_to_answer(path, column, files[0], out, glue, as_json) as (lines, finish):
            finish(Classifier(files, **machine).answers(lines))
    elif texts:
        # Texts of the command line are refused in the words in which Python is.
        found = Classifier(files, **machine).predict(texts)
        emit_answers([Answer(**one) for one in found], as_json, files[0].num_labels == 1)
    else:
        # A file that is not there is told before the model is read.
        with open(path, "rb") if path else contextlib.nullcontext(sys.stdin.buffer) as stream:
            answer_lines(stream, Classifier(files, **machine), as_json)


def compare(runs, as_json, **flags):
    """Better than nothing, and than another one?"""
    where, machine = of_a_split(flags)
    # The report opens a model only where something has to be scored or compared.
    table.report_table(runs, where, as_json, lambda files: Classifier(files, **machine))


def tokens(run, as_json, **machine):
    """What have its vectors become?"""
    inside.report_tokens(Classifier(prompts_of(run), **machine), as_json)


def attention(run, text, out, as_json, **machine):
    """What does it look at?"""
    files = prompts_of(run)
    # The picture's file is made before the work, so that what would be refused is refused first.
    with plot.new_picture(out) as figure:
        inside.report_attention(text, Classifier(files, **machine), figure, as_json)
    plot.tell_picture(out, as_json)


VERBS = {
    "score": score,
    "predict": predict,
    "table": compare,
    "plot": plot.report_plot,
    "tokens": tokens,
    "attention": attention,
}


def main(argv=None):
    """The command line; argv: its words, None: those that this program was started with."""
    # What a user can mend ends in one sentence and exit code 2.
    with ending():
        verb, options = asked(__doc__, sys.argv[1:] if argv is None else argv)
        VERBS[verb](**options)


if __name__ == "__main__":
    main()
