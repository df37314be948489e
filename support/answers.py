"""Answers: what a prompt says of texts, for people, for programs, and in the files of predict."""

import contextlib
import dataclasses
import json
import re
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from data import readable
from support.files import new_file
from support.records import is_text, to_json
from support.stopping import Stopped
from support.table import lines_of, read_table
from support.terminal import cell, emit, say, shown, warn

OUTPUTS = (".csv", ".tsv", ".jsonl")


@dataclass(frozen=True)
class Answer:
    """What a prompt says of one text; all but the text is None where it cannot be answered.

    The label of a regression is the number itself, without a name, and without probabilities.
    """

    text: str
    label: int | float | None = None
    label_name: str | None = None
    logits: list[float] | None = None  # N
    probabilities: list[float] | None = None  # N
    error: str | None = None  # why there is no answer

    def as_dict(self):
        """The object that predict prints, and that Python gets; `error` only where there is one."""
        found = dataclasses.asdict(self)
        if self.error is None:
            del found["error"]
        return found

    def value(self):
        """What the text is labelled: a name, or the number of a regression."""
        return self.label if self.label_name is None else self.label_name

    def share(self):
        """The probability of the label."""
        return max(self.probabilities) if self.probabilities else None


def emit_answers(answers, as_json, numbers=False):
    """Print a line for each Answer.  numbers: whether they are those of a regression."""
    for answer in answers:
        if as_json:
            emit(to_json(answer.as_dict()))
            continue
        cells = [cell(answer.value(), ".3f")]
        if not numbers:
            cells.append(cell(answer.share(), ".3f"))
        emit("\t".join([*cells, shown(answer.text)]))


def refuse_together(texts, path, text_column, out, glue, is_rows):
    """What predict is asked has to be one thing.  is_rows: whether path is a table."""
    if texts and path is not None:
        raise ValueError("predict takes texts or --input, not both")
    if out and glue:
        raise ValueError("--out and --glue write the same answers in two forms; name one")
    if (out or glue or text_column) and not is_rows:
        raise ValueError(
            "--out, --glue and --text-column need a table as --input: .tsv, .csv, .jsonl"
        )


def answer_lines(stream, classifier, as_json):
    """Answer the lines of a stream as they come, in their order."""
    numbers = classifier.files[0].num_labels == 1
    done = 0
    for lines in lines_of(stream):
        answers = classifier.answers([readable(line) for line in lines])
        say_problems(answers, "line", done)
        emit_answers(answers, as_json, numbers)
        done += len(lines)


def say_problems(answers, name, done=0):
    """Tell what could not be answered, by its number, counted on from `done`."""
    for number, answer in enumerate(answers, done + 1):
        if answer.error:
            say(f"{name} {number} {answer.error}", sys.stderr)


# ---- tables ---------------------------------------------------------------------------------


@contextlib.contextmanager
def table_to_answer(path, column, file, out, glue, as_json):
    """A table whose rows are to be answered: their texts, and a function to be called with the
    Answers, which prints them, or writes them to out or glue.

    column: of the texts, None: the usual ones; file: the PromptFile that answers.  What can be
    refused is refused here, before the work; nothing that is there is written over.
    """
    table = read_table(path)
    texts = table.texts(column)
    bytes_of = None
    if out:
        bytes_of = rows_with_answers(out, table, file)
    if glue:
        bytes_of = glue_lines(table, texts)
    with whole_output(out or glue) as output:

        def finish(answers):
            say_problems(answers, "row")
            if output:
                output.write(bytes_of(answers))
            else:
                emit_answers(answers, as_json, file.num_labels == 1)

        yield texts, finish
    if output:
        done = {"file": out or glue, "n": len(texts)}
        emit(to_json(done) if as_json else f"{done['n']:,} predictions in {done['file']}")


@contextlib.contextmanager
def whole_output(path):
    """A new file, of which nothing is kept where the work is interrupted; this is said then.  None
    where no path is named."""
    if not path:
        yield None
        return
    try:
        with new_file(path) as output:
            yield output
    except (KeyboardInterrupt, Stopped):
        raise Stopped(signal.SIGINT, f"stopped; nothing was written to {path}") from None


# ---- files of answers -----------------------------------------------------------------------

# Each looks at all that can be refused, and gives a function: Answers -> the bytes of the file.


def rows_with_answers(path, table, file):
    """The rows of a table, with the answers of a prompt beside them.

    path: its suffix says the kind.  file: the PromptFile that answers.
    """
    kind = Path(path).suffix.lower()
    if kind not in OUTPUTS:
        raise ValueError(f"--out {path} should end in {', '.join(OUTPUTS)}: these are written")
    look_at_cells(table, kind)
    if kind == ".tsv":
        for name in file.labels:
            refuse_in_tsv(name, f"{file.path}, label {name!r:.40}")
    names = new_columns(table.columns, file.num_labels)

    def bytes_of(answers):
        added = []
        for answer in answers:
            added.append([answer.value(), answer.share()][: len(names)])
        if kind == ".jsonl":
            return objects_bytes(table, names, added)
        return cells_bytes(table, names, added, kind)

    return bytes_of


def glue_lines(table, texts):
    """The answers as they are sent to GLUE's server.

    table: GLUE's test.tsv, with columns index and sentence.  texts: of each row (its text, why it
    cannot be answered, or None); the server wants an answer to each.
    """
    for (number, row), (_, problem) in zip(table.rows, texts, strict=True):
        if problem or not str(row.get("index")).isdecimal():
            raise ValueError(
                f"{table.path}, line {number}: GLUE's test files have a number in the column index "
                "and a text in the column sentence"
            )

    def bytes_of(answers):
        lines = ["index\tprediction\n"]
        for (number, row), answer in zip(table.rows, answers, strict=True):
            if answer.error:
                raise ValueError(f"{table.path}, line {number}: the row {answer.error}")
            lines.append(f"{row['index']}\t{answer.label}\n")
        return "".join(lines).encode()

    return bytes_of


def new_columns(columns, num_labels):
    """Names for what is added to the columns of a table, which has none of these: one of the label
    and one of its probability, or one of the number of a regression."""
    names = []
    for wanted in ("label", "probability")[: min(num_labels, 2)]:
        name = wanted
        tried = 1
        while name in columns:
            name = f"predicted_{wanted}" if tried == 1 else f"predicted_{wanted}_{tried}"
            tried += 1
        names.append(name)
    return names


def look_at_cells(table, kind):
    """Refuse what a kind of file cannot hold, and warn of what no text file can, by its row."""
    if kind == ".jsonl":
        for name in table.columns:
            if table.columns.count(name) > 1:
                raise ValueError(
                    f"{table.path} has two columns {name!r:.40}, of which .jsonl holds one; "
                    "write .csv"
                )
        return
    halved = []
    for number, cells in zip([1] + table.numbers, [table.columns] + rows_of(table), strict=True):
        for column, value in zip(table.columns, cells, strict=True):
            text = cell_text(value)
            where = f"{table.path}, line {number}, column {column!r:.40}"
            if kind == ".tsv":
                refuse_in_tsv(text, where)
            if not is_text(text):
                halved.append(where)
    if halved:
        warn(f"{halved[0]}: half of a surrogate pair is written as an escape ({len(halved)} cells)")


def rows_of(table):
    """The cells of each row, in the order of the columns; None where an object lacks one."""
    if table.suffix != ".jsonl":
        return table.cells
    return [[row.get(column) for column in table.columns] for row in table.cells]


def refuse_in_tsv(text, where):
    """A tsv as GLUE writes it has no quoting, so its cells have no tabs and no line ends."""
    if re.search("[\t\r\n]", text):
        raise ValueError(f"{where}: a tsv holds no tab and no line break; write .csv or .jsonl")


def objects_bytes(table, names, added):
    """The rows of a table as a jsonl.  names: of new columns; added: what stands there, by row."""
    lines = []
    for (_, row), values in zip(table.rows, added, strict=True):
        ours = dict(zip(names, values, strict=True))
        lines.append(json.dumps(row | ours, ensure_ascii=False))
    return file_bytes(lines, table, ".jsonl")


def cells_bytes(table, names, added, kind):
    """The same as a csv or tsv."""
    rows = [table.columns + names]
    for cells, values in zip(rows_of(table), added, strict=True):
        rows.append(cells + values)
    lines = []
    for row in rows:
        cells = [cell_text(value) for value in row]
        lines.append("\t".join(cells) if kind == ".tsv" else ",".join(map(quoted, cells)))
    return file_bytes(lines, table, kind)


def file_bytes(lines, table, kind):
    """Lines with the byte order mark and the line ends of the table from which they come."""
    same_kind = kind == table.suffix
    end = table.newline if same_kind else "\n"
    text = "".join(line + end for line in lines)
    # A mark is taken off when a file is read: a first name that begins with one needs another.
    marked = table.bom and (same_kind or kind != ".jsonl")
    if marked or text.startswith("\ufeff"):
        text = "\ufeff" + text
    # In JSON this is the very spelling of half a surrogate pair.
    return text.encode("utf-8", "backslashreplace")


def cell_text(value):
    """A value as a cell of a csv or tsv: what is no text is JSON, and nothing is empty."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def quoted(text):
    """A cell of a csv.  All line ends are quoted, a carriage return alone too, which Python's csv
    leaves as it is in a file whose lines end otherwise."""
    if re.search('[,"\r\n]', text):
        return '"' + text.replace('"', '""') + '"'
    return text
