"""Records: frozen dataclasses that are read from JSON strictly, and written to it.

A field's type says what it may hold: int, float, str, bool, `X | None`, list[X], dict[str, X],
Literal, another dataclass, Annotated[number, low, high] for a number from low to high, or
Annotated[str, pattern] for a text of a form.
"""

import dataclasses
import functools
import json
import math
import re
import types
import typing
from pathlib import Path
from typing import Annotated

from support.files import damaged, read_bytes

Count = Annotated[int, 1, 2**31 - 1]
Whole = Annotated[int, 0, 2**31 - 1]
Seed = Annotated[int, 0, 2**63 - 1]
Rate = Annotated[float, 1e-30, 1e30]
Share = Annotated[float, 0, 1]


def read(kind, value, at="$"):
    """What json.loads gave, as an instance of kind; ValueError names the place where it is not.

    A boolean is no integer, 1.0 is none either, and NaN and infinity are no numbers.
    """
    origin = typing.get_origin(kind)
    parts = typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return read_record(kind, value, at)
    if origin is Annotated:
        number = read(parts[0], value, at)
        if parts[0] is str:
            return matching(number, kind.__metadata__[0], at)
        low, high = kind.__metadata__
        if not low <= number <= high:
            raise ValueError(f"{at}: {number} is not from {low} to {high}")
        return number
    if origin in (typing.Union, types.UnionType):
        return read_union(parts, value, at)
    if origin is list and isinstance(value, list):
        return [read(parts[0], item, f"{at}[{i}]") for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return {key: read(parts[1], item, f"{at}.{key}") for key, item in value.items()}
    if origin is typing.Literal and value in parts and type(value) is str:
        return value
    if kind is float and type(value) in (int, float) and is_finite(value):
        return value
    if kind is int and type(value) is int and abs(value) < 2**63:
        return value
    if kind is str and type(value) is str and is_text(value):
        return value
    if kind is bool and type(value) is bool:
        return value
    wanted = " or ".join(map(repr, parts)) if origin is typing.Literal else name_of(kind)
    raise ValueError(f"{at}: {value!r:.60} is not {wanted}")


def matching(text, pattern, at):
    """text, if the whole of it is as a pattern says."""
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{at}: {text!r:.60} is not of the form {pattern}")
    return text


def read_record(kind, value, at):
    """An object as a dataclass: each key is a field, and each field without a default is a key."""
    if not isinstance(value, dict):
        raise ValueError(f"{at}: {value!r:.60} is no object")
    hints = hints_of(kind)
    for name in value:
        if name not in hints:
            raise ValueError(f"{at}: {name!r:.60} is no key that is known here")
    found = {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            found[field.name] = read(hints[field.name], value[field.name], f"{at}.{field.name}")
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}: {field.name!r} is missing")
    return kind(**found)


def read_union(parts, value, at):
    """A value of one of several types; where of none, the first says what is wrong with it."""
    if value is None and type(None) in parts:
        return None
    first = None
    for part in parts:
        if part is type(None):
            continue
        try:
            return read(part, value, at)
        except ValueError as error:
            first = first or error
    raise first


def common(kind, record):
    """{name: value} of what a record says that a record of this kind may say, too."""
    found = {}
    for field in dataclasses.fields(kind):
        if hasattr(record, field.name):
            found[field.name] = getattr(record, field.name)
    return found


@functools.cache
def hints_of(kind):
    """{field: type} of a dataclass."""
    return typing.get_type_hints(kind, include_extras=True)


def is_finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        return False


def is_text(value):
    """No half of a surrogate pair, which no file could hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def name_of(kind):
    names = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false"}
    return names.get(kind) or str(typing.get_origin(kind) or kind)


def from_json(kind, text, path):
    """JSON in bytes or a str as an instance of kind; ValueError names the file it stood in."""
    with damaged(path, "is damaged, or not what is read here"):
        return read(kind, json.loads(text))


def load(path, kind):
    """A JSON file as an instance of kind."""
    return from_json(kind, read_bytes(Path(path)), path)


def to_json(value, **more):
    """JSON of records, lists, dictionaries and numbers; a number that is not finite is null.

    more: as json.dumps takes it.  TypeError for what has no place in JSON.
    """
    return json.dumps(plain(value), allow_nan=False, **more)


def plain(value):
    """A value as json.dumps takes it: records as objects, paths as texts, NaN as None."""
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
