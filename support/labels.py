"""Labels: from what stands in a table to numbers, by the names that they have or as numbers."""

import math
import unicodedata

from support.records import is_text
from support.table import spelled
from support.terminal import few, warn

KNOWN = ["negative", "positive"]  # labels that need no names: 0 and 1 of a sentiment
LARGEST = 3.4028234663852886e38  # of float32


def is_number(value):
    """Whether a label is one; neither true nor 1_0 is."""
    try:
        float(str(value).replace("_", "?"))
        return True
    except ValueError:
        return False


def name_of(value):
    """A label as a name: without blanks around, composed and decomposed accents alike."""
    return unicodedata.normalize("NFC", value.strip())


def label_names(table, values):
    """What the labels of train are called, in the order of their first appearance (but negative
    before positive); none where they are numbers.

    ValueError where most are names and one is a number: that one is wrong, wherever it stands.
    """
    # The majority decides what they are; of as many of each, numbers.
    spellings = {}
    numbers = 0
    odd = None
    for number, value in zip(table.numbers, values, strict=True):
        if is_number(value):
            numbers += 1
            odd = odd or (number, value)
        elif isinstance(value, str) and value.strip():
            if not is_text(value):
                raise ValueError(
                    f"{table.path}, line {number}: label {ascii(value):.40} is not UTF-8"
                )
            spellings[value.strip()] = spellings.get(value.strip(), 0) + 1
    if numbers >= sum(spellings.values()):
        return []  # if one of them is none, pairs_of says which
    # Two spellings that Unicode holds for the same text are one name.
    names = list(dict.fromkeys(map(name_of, spellings)))
    if odd:
        number, value = odd
        raise ValueError(
            f"{table.path}, line {number}: label {value!r:.40} is a number, but others are names "
            f"({listed(names)}); write all as names, or all as numbers from 0 on"
        )
    warn_of_spellings(table, spellings)
    return KNOWN if sorted(names) == KNOWN else names


def warn_of_spellings(table, spellings):
    """Say which names differ in case, blanks or their Unicode form alone: one label meant twice?"""
    alike = {}
    for spelling in spellings:
        key = "".join(unicodedata.normalize("NFKC", spelling).casefold().split())
        alike.setdefault(key, []).append(spelling)
    for same in alike.values():
        if len(same) > 1:
            forms = len({name_of(spelling) for spelling in same})
            counted = "one label" if forms == 1 else f"{forms} labels"
            warn(
                f"{table.path}: the labels {listed(same)} differ in case, blanks or Unicode form "
                f"alone, and count as {counted}"
            )


def listed(names):
    """Names in a sentence; of many the first ones."""
    return few([spelled(name) for name in names], 10)


def label_count(name, asked, names):
    """How many labels there are: as many as there are names, else --num-labels, else two."""
    count = asked or len(names) or 2
    if len(names) == 1:
        raise ValueError(f"{name} has the label {names[0]!r:.40} alone: nothing to tell apart")
    if names and count != len(names):
        raise ValueError(f"--num-labels {count}, but {name} has {len(names)} names of labels")
    return count


def label_of(value, numbers_of, num_labels):
    """A label as it is used: an int, or a float of float32 where num_labels is 1; None: it is none.

    numbers_of: {name: number} of the labels that have names; where num_labels is 0 all have.
    """
    number = float(str(value)) if is_number(value) else math.nan
    if num_labels == 1:
        return number if abs(number) <= LARGEST else None
    # A name first: who calls a label "3" means that name.
    if isinstance(value, str) and name_of(value) in numbers_of:
        return numbers_of[name_of(value)]
    return int(number) if number in range(num_labels) else None


def why_no_label(value, values, names, num_labels):
    """What is wrong with a value that is no label, among all values of its column."""
    if isinstance(value, bool):
        return "is a boolean; write 0 and 1, or names in quotation marks"
    if num_labels == 1:
        return "is not a number of float32"
    if not num_labels:
        return f"is not one of {listed(names)}"
    return (
        f"is not in 0 to {num_labels - 1} (--num-labels); numbers count from 0, or all are names"
        f"{mapping_of(values)}"
    )


def mapping_of(values):
    """What to write for the numbers of a column that do not count from 0, as far as it is clear."""
    numbers = set()
    for value in values:
        if not is_number(value):
            return ""
        numbers.add(float(str(value)))
    # GLUE's test files.
    if numbers == {-1}:
        return "; -1 marks test rows without labels: predict takes these"
    if not 2 <= len(numbers) <= 12 or not all(number.is_integer() for number in numbers):
        return ""
    ordered = sorted(map(int, numbers))
    flag = f"--num-labels {len(ordered)}"
    if ordered == list(range(len(ordered))):
        return f"; these are {len(ordered)}: {flag}"
    # Whole numbers that begin elsewhere, as -1 and 1, or one to five stars.
    steps = [f"{place} for {number}" for place, number in enumerate(ordered)]
    more = f", with {flag}" if len(ordered) > 2 else ""
    return f": write {', '.join(steps)}{more}"
