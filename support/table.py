"""Tables: rows of texts and labels on disk, as people have them, and lines of a stream.

A table is a tsv, csv or jsonl file.  What else people call a table is refused by its name, with the
way to one of these.
"""

import codecs
import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

from data import LONGEST, readable
from support.files import read_bytes
from support.terminal import few

TABLES = (".tsv", ".csv", ".jsonl")
TEXT_COLUMNS = ("sentence", "text")
LABEL_COLUMNS = ("label",)
TEXT_FLAG = "--text-column"
LABEL_FLAG = "--label-column"

# A cell may be as long as a file; what is too long for a text is told as that.
csv.field_size_limit(2**31 - 1)

UNPACK = "unpack it first (gunzip, unzip or the like)"
BY_PANDAS = "write it as csv first, as pandas does: pd.read_parquet(...).to_csv(..., index=False)"
BY_SPREADSHEET = "save it in the spreadsheet program as CSV UTF-8"
BY_LINES = "a table has one object a line and ends in .jsonl: jq -c '.[]' data.json > data.jsonl"
WAYS_OUT = {  # what people also call a table: ending -> how to make one of it
    ".json": BY_LINES,
    ".ndjson": "it holds one object a line if its name is right: rename it to .jsonl",
    ".jsonlines": "it holds one object a line if its name is right: rename it to .jsonl",
    ".gz": UNPACK,
    ".bz2": UNPACK,
    ".xz": UNPACK,
    ".zst": UNPACK,
    ".zip": UNPACK,
    ".parquet": BY_PANDAS,
    ".arrow": BY_PANDAS,
    ".feather": BY_PANDAS,
    ".pkl": BY_PANDAS,
    ".xlsx": BY_SPREADSHEET,
    ".xls": BY_SPREADSHEET,
    ".ods": BY_SPREADSHEET,
}
MARKS = {  # between cells -> what it is called, what to do where a file has it instead of ours
    "\t": ("tabs", "name it .tsv"),
    ";": ("semicolons", "save it with commas between the cells"),
    "|": ("bars", "save it with commas between the cells"),
    ",": ("commas", "name it .csv"),
}


def is_table(path):
    """Whether a file is a table by its name, in any case; ValueError for one that is not read."""
    ending = Path(path).suffix.lower()
    if ending in WAYS_OUT:
        raise ValueError(
            f"{path} is no table that is read here (.tsv, .csv, .jsonl): {WAYS_OUT[ending]}"
        )
    return ending in TABLES


@dataclass(frozen=True)
class Table:
    """A table, and what it takes to write another one of the same kind."""

    path: Path
    suffix: str  # .tsv, .csv or .jsonl
    columns: list[str]  # as they stand, a name that comes twice twice; of jsonl by first appearance
    numbers: list[int]  # the line of the file in which each row is (of a long row: ends)
    cells: list  # of each row: its cells, list[str]; of jsonl the object, a dictionary
    sha256: str  # of the bytes from which all this was read
    encoding: str  # utf-8, utf-8-sig (with a byte order mark) or utf-16
    newline: str  # "\n" or "\r\n"

    @property
    def bom(self):
        return self.encoding != "utf-8"

    @property
    def rows(self):
        """[(line number, {column: value})]; of columns with one name the last is in it."""
        if self.suffix == ".jsonl":
            return list(zip(self.numbers, self.cells, strict=True))
        found = []
        for number, row in zip(self.numbers, self.cells, strict=True):
            found.append((number, dict(zip(self.columns, row, strict=True))))
        return found

    def values(self, asked, usual, flag):
        """What each row says in a column, None where it says nothing.

        asked: the column's name; None: the first of the `usual` names that a row has.  ValueError,
        with the columns that there are, where the whole table has none; flag: what asks for one.
        """
        if not self.cells:
            raise ValueError(f"{self.path} has no rows")
        names = (asked,) if asked else usual
        there = [name for name in names if name in self.columns]
        doubts = ""
        if not there and self.suffix != ".jsonl":
            # A name as it stands wins over one with blanks around it, as after ", " in line 1.
            wanted = [name.strip() for name in names]
            there = [column for column in self.columns if column.strip() in wanted]
            doubts = doubts_of(self.columns)
        if not there:
            columns = few([spelled(column) for column in self.columns], 12) or "none"
            raise ValueError(
                f"{self.path} has no column {' or '.join(map(spelled, names))} ({flag}); its "
                f"columns are {columns}{doubts}"
            )
        if self.suffix == ".jsonl":
            return [first_of(row, there) for row in self.cells]
        if self.columns.count(there[0]) > 1:
            raise ValueError(
                f"{self.path} has {self.columns.count(there[0])} columns {spelled(there[0])}; "
                f"rename one, or name another by {flag}"
            )
        at = self.columns.index(there[0])
        return [row[at] for row in self.cells]

    def labels(self, column):
        """The label of each row, None where it has none.  column: as `asked` of `values`."""
        return self.values(column, LABEL_COLUMNS, LABEL_FLAG)

    def texts(self, column=None):
        """[(a text, cleaned, None) or ("", why the row has none)], one for each row.

        ValueError as of `values`.
        """
        found = []
        for value in self.values(column, TEXT_COLUMNS, TEXT_FLAG):
            if isinstance(value, str):
                text, problem = readable(value)
                found.append((text, problem and f"has a text that {problem}"))
            else:
                names = spelled(column) if column else " or ".join(TEXT_COLUMNS)
                found.append(("", f"has no text in a column {names} ({TEXT_FLAG})"))
        return found


def doubts_of(columns):
    """What line 1 of a csv or tsv looks like where it does not look like names, or ""."""
    first = columns[0] if columns else ""
    # What Excel needs in some countries to read a csv at all.
    if first.lower().startswith("sep="):
        return "; line 1 is a note of a spreadsheet program: remove it"
    if len(columns) == 1:
        for mark, (name, way_out) in MARKS.items():
            if mark in first:
                return f"; line 1 looks separated by {name}: {way_out}"
    # Nobody calls a column by a sentence; a number is called so where nobody gave names.
    if any(len(name.split()) > 3 or name.strip().isdecimal() for name in columns):
        return "; line 1 looks like a row of data: put a line of names before it, as text,label"
    return ""


def first_of(row, names):
    """What a row says in the first of these columns that it has, or None."""
    for name in names:
        if name in row:
            return row[name]
    return None


def spelled(name):
    """A name in a sentence: cut, and in quotation marks where it would be misread without."""
    name = str(name)[:40]
    plain = name.isprintable() and name == name.strip() and name
    return name if plain else ascii(name)


# ---- reading --------------------------------------------------------------------------------


def read_table(path):
    """A tsv, csv or jsonl file -> Table; ValueError names the file, its line and the way out.

    tsv is GLUE's: no quoting, so a quotation mark is a quotation mark.  csv is a spreadsheet's.
    """
    path = Path(path)
    if not is_table(path):
        raise ValueError(f"{path} is no table: its name should end in {', '.join(TABLES)}")
    # One reading gives both the hash and the rows: nobody can change the file in between.
    data = read_bytes(path)
    encoding = encoding_of(path, data)
    suffix = path.suffix.lower()
    read_rows = objects_of if suffix == ".jsonl" else cells_of
    columns, numbers, cells = read_rows(path, suffix, data, encoding)
    return Table(
        path=path,
        suffix=suffix,
        columns=columns,
        numbers=numbers,
        cells=cells,
        sha256=hashlib.sha256(data).hexdigest(),
        encoding=encoding,
        newline="\r\n" if data[: data.find(b"\n")].rstrip(b"\0").endswith(b"\r") else "\n",
    )


def encoding_of(path, data):
    """utf-8, utf-8-sig or utf-16, if the bytes are that; else ValueError with what they may be.

    UTF-16 is read where it has its mark, as PowerShell writes it: then it is nothing else.
    """
    encoding = "utf-8-sig" if data.startswith(codecs.BOM_UTF8) else "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data.count(0) > len(data) // 4:
        raise ValueError(f"{path} looks like UTF-16 without its mark{as_utf8(path, 'UTF-16LE')}")
    # The whole of it at once, so that nothing is made of half a file.
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        name = encoding[:6].upper()
        raise ValueError(
            f"{path}, line {line}, is not {name.rstrip('-')} ({error.reason}){likely(path, data)}"
        ) from None
    return encoding


def likely(path, data):
    """What bytes that are not UTF-8 may be, and how to make UTF-8 of them."""
    # Of western letters few lie beyond ASCII, of all others nearly all.
    high = len(data) - len(data.translate(None, bytes(range(128, 256))))
    if high > len(data) // 5:
        return (
            "; it may be an encoding of another alphabet, as cp1251, GBK or Shift-JIS"
            f"{as_utf8(path, 'CP1251')}"
        )
    return f"; it may be cp1252, as Excel writes it{as_utf8(path, 'CP1252')}"


def as_utf8(path, encoding):
    return f": save it as UTF-8, or: iconv -f {encoding} -t UTF-8 {path.name} > new{path.suffix}"


def cells_of(path, suffix, data, encoding):
    """The bytes of a csv or tsv -> (columns, numbers, cells) of a Table."""
    # Decoded as it is parsed: as a whole the text may take four times the memory of its bytes.
    lines = io.TextIOWrapper(io.BytesIO(data), encoding, newline="")
    dialect = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if suffix == ".tsv" else {}
    reader = csv.reader(lines, strict=True, **dialect)
    columns = []
    numbers = []
    cells = []
    number = 1
    try:
        columns = next(reader, [])
        number = 2
        for row in reader:
            if not row:
                continue
            number = reader.line_num
            if len(row) != len(columns):
                raise ValueError(f"{len(row)} columns, but line 1 names {len(columns)}")
            numbers.append(number)
            cells.append(row)
            number += 1  # where a quotation that never ends begins
    except (ValueError, csv.Error) as error:
        hint = doubts_of(columns)
        if suffix == ".csv" and b'\\"' in data:
            hint = (
                "; a quotation mark in a cell is doubled in a csv, but this file has "
                "backslashes before them, as Spark writes them: set its option escape to '\"'"
            )
        raise ValueError(f"{path}, line {number}: {error}{hint}") from None
    return columns, numbers, cells


def objects_of(path, suffix, data, encoding):
    """The bytes of a jsonl, an object a line -> (columns, numbers, cells) of a Table."""
    lines = io.TextIOWrapper(io.BytesIO(data), encoding, newline="\n")
    columns = {}
    numbers = []
    cells = []
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            # json.dump writes the whole table as one array.
            if not cells and line.lstrip().startswith("["):
                raise ValueError(f"it is a JSON array; {BY_LINES}")
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError('it is no object, such as {"text": "a fine film", "label": 1}')
            columns.update(dict.fromkeys(row))
            numbers.append(number)
            cells.append(row)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from None
    return list(columns), numbers, cells


# ---- streams --------------------------------------------------------------------------------


def lines_of(stream):
    """The lines of a stream of UTF-8, in lists of what has arrived.

    So a pipe that trickles is answered as it goes.  Bytes that are not UTF-8 come as surrogates;
    ValueError where all are UTF-16.  Of a line without end not much more is kept than a text may
    have.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    rest = ""
    first = True
    while data := stream.read1(2**16):
        if first and data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("the lines are in UTF-16: save them as UTF-8, or use iconv")
        first = False
        *lines, rest = (rest[: LONGEST + 1] + decoder.decode(data)).split("\n")
        yield lines
    rest += decoder.decode(b"", final=True)
    if rest:
        yield [rest]
