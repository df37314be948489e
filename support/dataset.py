"""A data set: labelled texts, from tables on disk to (text, label) pairs, and how they are split.

It is reviews, which is bundled, sst2, which is fetched once, a folder with a table for each split,
or one table, of which a part is held back as dev.
"""

import hashlib
import io
import os
import tempfile
import urllib.request
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from data import hold_out
from support.labels import (
    KNOWN,
    is_number,
    label_count,
    label_names,
    label_of,
    listed,
    name_of,
    why_no_label,
)
from support.phrases import Phrases, words_of
from support.table import LABEL_FLAG, TABLES, is_table, read_table, spelled
from support.terminal import progress, say, warn

ROOT = Path(__file__).parent.parent
NAMED = ("reviews", "sst2")
DEV = ("dev", "validation", "valid", "val")  # what people call it
HELD_OUT = 872  # texts at most, as many as SST-2's dev split has; a tenth of a smaller set

SST2_URL = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
SST2_MD5 = "9f81648d4199384278b86e315dac217c"


@dataclass(frozen=True)
class Dataset:
    """The texts of a run, as (text, label) pairs: a label is the number of its name, or a float."""

    name: str
    labels: list[str]  # what each answer is called
    num_labels: int  # 1: a regression
    train: list
    held: list  # where the best epoch is chosen
    dev: list
    sha256: dict[str, str]  # of the files from which they come: "train" and "dev"

    def label_counts(self):
        """{name of a label: how many texts of train have it}; of a regression nothing."""
        if self.num_labels == 1:
            return {}
        counts = Counter(label for _, label in self.train)
        return {name: counts[number] for number, name in enumerate(self.labels)}


def open_dataset(name, text_column=None, label_column=None, num_labels=None, select_on="hold-out"):
    """The texts to train on, to choose on and to score on -> Dataset.

    text_column, label_column: their names, None: the usual ones.  num_labels: None: as many as
    there are names of labels, or two.  select_on: dev, or hold-out, which is a part of train.
    ValueError or OSError where a file is not as it should be.
    """
    # What the labels are called, train decides: the names of dev have to be among them.
    name = resolve(name)
    table = read_table(file_of(name, "train"))
    values = table.labels(label_column)
    names = label_names(table, values)
    num_labels = label_count(name, num_labels, names)
    # Beside names a number would be a slip, so none is taken as a label.
    meaning = (names, 0 if names else num_labels, text_column, label_column)
    train = pairs_of(table, *meaning)
    # Of one table a part is dev; else dev is a table of its own, which may know train's texts.
    if Path(name).is_file():
        dev_hash = table.sha256
        rows = len(train)
        train, dev = parts_of(name, train)
        say(
            f"{name}: of {rows:,} rows {len(dev):,} are held back as dev, {len(train):,} are train "
            f"({rows - len(train) - len(dev):,} that stand in dev are left out); score --split dev "
            "finds the same ones"
        )
    else:
        dev_table = read_table(file_of(name, "dev"))
        dev_hash = dev_table.sha256
        dev = pairs_of(dev_table, *meaning)
        tell_known(name, train, dev)
    # What the best epoch is chosen by.
    held = dev
    if select_on == "hold-out":
        train, held = hold_out(train, min(HELD_OUT, len(train) // 10))
    if not train or not held:
        raise ValueError(f"{name} has too few training texts to hold some out; use --select-on dev")
    if num_labels > len(train):
        raise ValueError(f"--num-labels {num_labels} is more than {name} has texts")

    # A regression whose labels are 0 and 1 is scored by a threshold, which makes two classes of it.
    classes = max(num_labels, 2)
    if name in NAMED and classes == 2:
        names = KNOWN
    return Dataset(
        name=name,
        labels=names or [str(number) for number in range(classes)],
        num_labels=num_labels,
        train=train,
        held=held,
        dev=dev,
        sha256={"train": table.sha256, "dev": dev_hash},
    )


def read_split(name, split, labels=(), num_labels=2, text_column=None, label_column=None):
    """One split of a data set -> [(text, label)], cleaned and checked; ValueError names the line.

    labels: the names that a prompt has for its answers.  Numbers are taken, too, by their place
    among the names, which is said aloud; a label of a regression (num_labels 1) is any number.
    """
    name = resolve(name)
    # One table is split here as it was in training.
    whole = Path(name).is_file()
    if whole and split not in ("train", "dev"):
        raise ValueError(f"{name} is one table; its splits are train and dev")
    table = read_table(file_of(name, "train" if whole else split))
    values = table.labels(label_column)
    # Where the prompt has names, a table has either these or numbers: one among names is a slip.
    # Who counted otherwise than the prompt would get a score of answers that are all wrong, so what
    # the numbers are taken for is said.  0 and 1 of a sentiment mean the same everywhere.
    names = [name_of(label) for label in labels]
    numbers = all(is_number(value) for value in values)
    if num_labels > 1 and not all(map(is_number, names)):
        if not numbers:
            num_labels = 0
        elif names != KNOWN:
            places = [f"{i} = {spelled(label)}" for i, label in enumerate(names[:20])]
            warn(f"{table.path} has numbers for labels; they are taken as {', '.join(places)}")
    pairs = pairs_of(table, names, num_labels, text_column, label_column)
    if whole:
        train, dev = parts_of(name, pairs)
        return train if split == "train" else dev
    return pairs


def pairs_of(table, names, num_labels, text_column, label_column):
    """The rows of a table -> [(text, label)]; ValueError names the first line that has none.

    names: of the labels; num_labels: how many there are, 0: numbers are no labels here.
    """
    values = table.labels(label_column)
    texts = table.texts(text_column)
    numbers_of = {name: number for number, name in enumerate(names)}
    pairs = []
    quoted = None
    for line, (text, problem), value in zip(table.numbers, texts, values, strict=True):
        if value is None:
            column = label_column or "label"
            problem = f"has no label in a column {spelled(column)} ({LABEL_FLAG})"
        if problem:
            raise ValueError(f"{table.path}, line {line}: the row {problem}")
        label = label_of(value, numbers_of, num_labels)
        if label is None:
            why = why_no_label(value, values, names, num_labels)
            raise ValueError(f"{table.path}, line {line}: label {value!r:.40} {why}")
        pairs.append((text, label))
        if text[0] == text[-1] == '"' and '""' in text[1:-1]:
            quoted = quoted or line
    if quoted and table.suffix == ".tsv":
        warn(
            f"{table.path}, line {quoted}: quotation marks as a spreadsheet writes them, but in a "
            "tsv they belong to the text, as in GLUE's; save it as csv"
        )
    return pairs


# ---- splits ---------------------------------------------------------------------------------


def resolve(name):
    """A data set as a person names it -> reviews or sst2, or the whole path of what lies there.

    A known word means the known data set, reviews/ or a path what lies there.  OSError where
    nothing does.
    """
    name = os.fspath(name)
    if name in NAMED:
        here = Path(name)
        if here.is_dir() and here.resolve() != (ROOT / name).resolve():
            warn(f"--data {name} means the known data set; the folder of this name is ./{name}")
        return name
    path = Path(name)
    for known in NAMED:
        if path.exists() and path.resolve() == (ROOT / known).resolve():
            return known
    if not name or not path.exists():
        raise FileNotFoundError(
            f"there is no data set {name or repr(name)}: name a folder, a table, reviews, or sst2"
        )
    return str(path.absolute())


def file_of(name, split):
    """The one table of a split: name is what resolve gave; OSError or ValueError where none is."""
    folder = ROOT / name if name in NAMED else Path(name)
    if name == "sst2" and not (folder / "dev.tsv").exists():
        download_sst2(folder)
    if not folder.is_dir():
        return folder
    # Names in any case, as other systems write them; files that begin with a dot are nobody's data.
    stems = DEV if split == "dev" else (split,)
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    named = [path for path in there if path.name.partition(".")[0].lower() in stems]
    found = [path for path in named if path.suffix.lower() in TABLES]
    if len(found) == 1:
        return found[0]
    for path in named:
        if not found and path.is_file():
            is_table(path)  # refuses what is a table by other names, with the way out
    names = [stem + suffix for stem in stems for suffix in TABLES]
    has = " and ".join(path.name for path in found) or listed([path.name for path in there])
    raise FileNotFoundError(
        f"{folder} should hold one of {', '.join(names)}; it has {has or 'nothing'}"
    )


def parts_of(name, pairs):
    """The pairs of one table -> (train, dev): the same parts whenever the table is the same."""
    train, dev = hold_out(pairs, min(HELD_OUT, max(1, len(pairs) // 10)))
    if not train or not dev:
        raise ValueError(f"{name} has too few texts to hold some back as dev")
    return train, dev


def tell_known(name, train, dev):
    """Warn where texts of dev stand in train, compared as in hold_out: dev then flatters."""
    # The texts of dev are looked up in those of train, of which there are many more.
    phrases = Phrases(words_of(text) for text, _ in dev)
    known = set()
    for text, _ in progress(train, "texts"):
        known.update(phrases.inside(words_of(text)))
    count = sum(words_of(text) in known for text, _ in dev)
    if count:
        warn(
            f"{name}: {count:,} of dev's {len(dev):,} texts also stand in train, but for case and "
            "signs; what is scored on dev flatters"
        )


# ---- SST-2 ----------------------------------------------------------------------------------


def download_sst2(folder):
    """Fetch GLUE's SST-2, check it, and put train.tsv and dev.tsv into folder, both or none.

    Nothing but the one archive with this md5 is ever unpacked, and nobody can make another that has
    it: so neither its members nor what they unpack to need a check of their own.
    """
    try:
        # No more is read than the archive has, whatever is sent.
        with urllib.request.urlopen(SST2_URL, timeout=60) as answer:
            fetched = answer.read(2**23)  # bytes, more than it has
        if hashlib.md5(fetched).hexdigest() != SST2_MD5:
            raise OSError(f"SST-2.zip came damaged: its md5 is not {SST2_MD5}")
        # A folder that nobody else has, so that what is removed afterwards is ours.
        how = {"prefix": ".sst2-", "dir": folder.parent, "ignore_cleanup_errors": True}
        with tempfile.TemporaryDirectory(**how) as temporary:
            names = ["SST-2/train.tsv", "SST-2/dev.tsv"]
            with zipfile.ZipFile(io.BytesIO(fetched)) as archive:
                archive.extractall(temporary, names)
            try:
                (Path(temporary) / "SST-2").rename(folder)
            except OSError:
                if not (folder / "dev.tsv").exists():  # another process was faster
                    raise
    except Exception as error:  # urllib has more of them than OSError
        raise OSError(
            f"could not fetch SST-2 ({str(error)[:200]!r}): check the network and run again, or "
            f"unpack train.tsv and dev.tsv of {SST2_URL} into {folder} by hand"
        ) from None
