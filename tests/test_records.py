"""records.py: dataclasses that are read from JSON strictly, and written to it."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import strategies as st

from hostile import EDITS, ODD, ODD_JSON, cases, mutate, spliced
from hostile import read as answer_of
from support.checkpoint import Base
from support.prompt_file import Recipe, Scores
from support.records import Count, Rate, Seed, Share, Whole, from_json, load, read, to_json
from support.run_folder import LogLine, RunFacts
from support.settings import Settings
from support.summary import Selection, Summary, SummaryRow


@dataclass(frozen=True)
class Inner:
    word: str
    share: Share = 0.5


@dataclass(frozen=True)
class Outer:
    """A field of each kind of type there is."""

    count: Count
    number: float
    inner: Inner
    flag: bool = False
    kind: Literal["one", "two"] = "one"
    size: Literal["auto"] | Annotated[int, 0, 99] = "auto"
    name: Annotated[str, "[a-z]+"] = "x"
    maybe: str | None = None
    inners: list[Inner] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)


WHOLE = {
    "count": 3,
    "number": 1.5,
    "inner": {"word": "w", "share": 1},
    "flag": True,
    "kind": "two",
    "size": 7,
    "name": "abc",
    "maybe": "m",
    "inners": [{"word": "a"}, {"word": "b", "share": 0.25}],
    "sizes": {"x": 1},
}

# ---- exact types ----------------------------------------------------------------------------


def test_a_whole_object_becomes_a_record():
    found = read(Outer, WHOLE)
    assert found == Outer(
        count=3,
        number=1.5,
        inner=Inner("w", 1),
        flag=True,
        kind="two",
        size=7,
        name="abc",
        maybe="m",
        inners=[Inner("a"), Inner("b", 0.25)],
        sizes={"x": 1},
    )


def test_what_is_left_out_has_its_default():
    assert read(Outer, {"count": 1, "number": 0, "inner": {"word": ""}}) == Outer(1, 0, Inner(""))


def test_a_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(Inner, {"word": "w"}).word = "other"


RIGHT = [
    (int, [0, -1, 2**63 - 1, -(2**63) + 1]),
    (float, [0, 1.5, -1e308, 5, 2**63, 10**300]),
    (str, ["", "é", "\0\n", "\u200d", "\U0010ffff"]),
    (bool, [True, False]),
    (str | None, [None, ""]),
    (Literal["a", "b"], ["a", "b"]),
    (list[int], [[], [1, 2]]),
    (dict[str, float], [{}, {"": 1.0}]),
]
WRONG = [
    (int, [True, 1.0, "1", None, [], {}, 2**63, -(2**63), 10**400]),
    (float, [True, "1", None, math.nan, math.inf, -math.inf, 10**400, -(10**400), []]),
    (str, [1, None, b"a", ["a"], "\ud800", "a\udce9"]),
    (bool, [0, 1, "true", None]),
    (str | None, [1, False, "\ud800"]),
    (Literal["a", "b"], ["c", "", None, 1, ["a"], {"a": 1}]),
    (list[int], [None, {}, "12", (1, 2), [1, "2"], [None]]),
    (dict[str, float], [None, [], "", {"a": "1"}, {"a": math.nan}]),
    (Inner, [None, [], "w", 1, [["word", "w"]]]),
]


@pytest.mark.parametrize("kind,values", RIGHT, ids=str)
def test_a_value_of_the_type_is_taken_as_it_is(kind, values):
    for value in values:
        found = read(kind, value)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("kind,values", WRONG, ids=str)
def test_a_value_of_another_type_is_refused_by_its_place(kind, values):
    for value in values:
        with pytest.raises(ValueError, match=r"^here.*: .{3,200}$"):
            read(kind, value, "here")


BOUNDS = [(Count, 1, 2**31 - 1), (Whole, 0, 2**31 - 1), (Seed, 0, 2**63 - 1), (Share, 0, 1)]


@pytest.mark.parametrize("kind,low,high", [*BOUNDS, (Rate, 1e-30, 1e30)])
def test_a_number_has_bounds(kind, low, high):
    assert read(kind, low) == low
    assert read(kind, high) == high
    below = math.nextafter(low, -1) if isinstance(low, float) else low - 1
    for value in (below, high * 2 + 1):
        with pytest.raises(ValueError, match=r"^here: "):
            read(kind, value, "here")


@pytest.mark.parametrize("text", ["", "A", "ab1", "ab\n", " ab"])
def test_the_whole_of_a_text_has_the_form(text):
    assert read(Annotated[str, "[a-z]+"], "ab") == "ab"
    with pytest.raises(ValueError, match=r"here: .* is not of the form \[a-z\]\+"):
        read(Annotated[str, "[a-z]+"], text, "here")


def test_a_union_takes_each_of_its_types_within_its_bounds():
    kind = Literal["auto"] | Annotated[int, 0, 99]
    assert [read(kind, value) for value in ("auto", 0, 99)] == ["auto", 0, 99]
    for value in (100, -1, "off", True, None, 1.0):
        with pytest.raises(ValueError, match="^here: "):
            read(kind, value, "here")


def test_a_refusal_says_what_was_found_and_what_is_wanted():
    with pytest.raises(ValueError, match=r"^here: 'x' is not 'auto'$"):
        read(Literal["auto"] | Count, "x", "here")
    with pytest.raises(ValueError, match=r"^here: 1.5 is not an integer$"):
        read(int, 1.5, "here")
    with pytest.raises(ValueError, match=r"^here: nan is not a finite number$"):
        read(float, math.nan, "here")
    with pytest.raises(ValueError, match=r"^here: 0 is not from 1 to 2147483647$"):
        read(Count, 0, "here")


# ---- places ---------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["count", "number", "inner"])
def test_a_key_that_is_missing_is_named(key):
    rest = {name: value for name, value in WHOLE.items() if name != key}
    with pytest.raises(ValueError, match=rf"^\$: '{key}' is missing$"):
        read(Outer, rest)


def test_a_key_that_is_unknown_is_named():
    with pytest.raises(ValueError, match=r"^\$: 'colour' is no key that is known here$"):
        read(Outer, WHOLE | {"colour": 1})
    with pytest.raises(ValueError, match=r"^\$\.inner: '' is no key"):
        read(Outer, WHOLE | {"inner": {"word": "w", "": 0}})


DEEP = [
    ({"inner": {"word": 1}}, r"\$\.inner\.word"),
    ({"inners": [{"word": "a"}, {"word": "b", "share": 2}]}, r"\$\.inners\[1\]\.share"),
    ({"inners": [3]}, r"\$\.inners\[0\]"),
    ({"sizes": {"x": 1, "y": None}}, r"\$\.sizes\.y"),
    ({"size": 100}, r"\$\.size"),
]


@pytest.mark.parametrize("change,place", DEEP)
def test_the_place_of_a_wrong_value_is_named(change, place):
    with pytest.raises(ValueError, match=rf"^{place}: "):
        read(Outer, WHOLE | change)


# ---- from a file ----------------------------------------------------------------------------


def test_a_file_is_read_by_its_path(tmp_path):
    (tmp_path / "o.json").write_text(json.dumps(WHOLE))
    assert load(tmp_path / "o.json", Outer) == load(str(tmp_path / "o.json"), Outer)
    assert load(tmp_path / "o.json", Outer) == read(Outer, WHOLE)


NO_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff",
    b"\xef\xbb\xbf[]",
    b"[" * 10**5,
    b"[" * 10**5 + b"]" * 10**5,
    b'{"count":' * 10**5,
    b'{"count": ' + b"9" * 5000 + b"}",
    b'{"count": NaN, "number": 1, "inner": {"word": ""}}',
    b'{"count": 1, "number": 1e999, "inner": {"word": ""}}',
    b'{"count": 1, "number": 1, "inner": {"word": "\\ud800"}}',
]


@pytest.mark.parametrize("data", NO_JSON, ids=range(len(NO_JSON)))
def test_what_is_no_such_record_is_refused_in_a_sentence(tmp_path, data):
    (tmp_path / "o.json").write_bytes(data)
    with pytest.raises(ValueError, match=r"o.json is damaged, or not what is read here \(.*\)$"):
        load(tmp_path / "o.json", Outer)


def test_a_file_that_is_not_there_is_told_as_such(tmp_path):
    with pytest.raises(FileNotFoundError, match="o.json"):
        load(tmp_path / "o.json", Outer)


@cases(150, edits=EDITS)
def test_mutated_bytes_get_a_record_or_a_sentence(tmp_path_factory, edits):
    path = tmp_path_factory.getbasetemp() / "o.json"
    path.write_bytes(mutate(json.dumps(WHOLE).encode(), edits))
    found = answer_of(load, path, Outer, naming="o.json")
    if found is not None:
        assert read(Outer, json.loads(to_json(found))) == found


@cases(250, key=st.sampled_from(list(WHOLE)), odd=ODD)
def test_odd_values_get_a_record_or_a_sentence(tmp_path_factory, key, odd):
    path = tmp_path_factory.getbasetemp() / "o.json"
    path.write_bytes(spliced(WHOLE, key, odd))
    found = answer_of(load, path, Outer, naming="o.json")
    if found is not None:
        assert read(Outer, json.loads(to_json(found))) == found


# ---- files of ours, each with an odd value at any place --------------------------------------

ROW = SummaryRow("p1-s0", Selection(0.5, 1.0, 9, "dev"), seed=0, lr=0.1, ci95=[0.0, 1.0])
FACTS = RunFacts(
    format="prompt-training-run/1",
    settings=Settings(),
    base=Base("tiny"),
    data={"train": "0"},
    labels=["a", "b"],
    prompts=["p1-s0"],
    texts={"dev": 3},
    versions={"torch": "2"},
    argv=["--lr", "1"],
)
OURS = [
    FACTS,
    Summary([ROW], {"majority": 0.5}),
    LogLine(1, 1, "p1-s0", "train", 0.5, None, norm=2.5),
    Recipe(data="reviews", lr=0.1, seed=0),
    Scores(n=3, accuracy=0.5),
]


def holes(value):
    """value with "@@" in the place of each of its parts, one after the other"""
    yield "@@"
    keys = []
    if isinstance(value, dict):
        keys = list(value)
    elif isinstance(value, list):
        keys = range(len(value))
    for key in keys:
        for hole in holes(value[key]):
            changed = value.copy()
            changed[key] = hole
            yield changed
    if isinstance(value, dict):
        yield value | {"another": "@@"}


def holes_of(record):
    return holes(json.loads(to_json(record)))


@pytest.mark.parametrize("record", OURS, ids=type)
def test_an_odd_value_at_any_place_gets_a_record_or_a_sentence(record):
    """Some 5,000 of them for all the files of ours together."""
    for hole in holes_of(record):
        for odd in ["0", "1", "-1", "3.5", '"p1-s0"', '"head"', *ODD_JSON]:
            text = json.dumps(hole).replace('"@@"', odd)
            found = answer_of(from_json, type(record), text, "our.json", naming="our.json")
            if found is not None:
                assert from_json(type(record), to_json(found), "our.json") == found


def test_there_are_as_many_odd_values_as_there_were():
    places = sum(len(list(holes_of(record))) for record in OURS)
    assert places * len(ODD_JSON) >= 4000


# ---- writing --------------------------------------------------------------------------------

WORDS = st.text(max_size=8)
INNERS = st.builds(Inner, WORDS, st.floats(0, 1))
OUTERS = st.builds(
    Outer,
    count=st.integers(1, 2**31 - 1),
    number=st.floats(allow_nan=False, allow_infinity=False),
    inner=INNERS,
    flag=st.booleans(),
    kind=st.sampled_from(["one", "two"]),
    size=st.just("auto") | st.integers(0, 99),
    name=st.text("abc", min_size=1, max_size=5),
    maybe=st.none() | WORDS,
    inners=st.lists(INNERS, max_size=3),
    sizes=st.dictionaries(WORDS, st.integers(-(2**62), 2**62), max_size=3),
)


@cases(200, record=OUTERS, indent=st.none() | st.just(2))
def test_a_record_comes_back_as_it_was_written(record, indent):
    assert from_json(Outer, to_json(record, indent=indent), "o.json") == record


def test_what_is_not_finite_is_null():
    for value in (math.nan, math.inf, -math.inf):
        assert to_json(value) == "null"
        assert to_json([1, {"a": (value,)}]) == '[1, {"a": [null]}]'
        assert json.loads(to_json(Inner("w", value))) == {"word": "w", "share": None}


def test_a_path_is_written_as_a_text():
    assert to_json({"a": Path("b/c")}) == json.dumps({"a": str(Path("b/c"))})


@pytest.mark.parametrize("value", [{1, 2}, object(), b"x", 1j, int, [object()], {"a": {1}}])
def test_what_has_no_place_in_json_is_refused(value):
    with pytest.raises(TypeError):
        to_json(value)


def test_json_is_one_line_of_ascii():
    assert to_json({"a": "é\n\u2028\x1b"}) == r'{"a": "\u00e9\n\u2028\u001b"}'
