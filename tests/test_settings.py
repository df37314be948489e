"""settings.py: what a run is asked, as flags and as run.json."""

import dataclasses
import math
import typing

import pytest
from hypothesis import strategies as st

from hostile import cases
from support import settings
from support.checkpoint import Base
from support.records import from_json, hints_of, to_json
from support.run_folder import RunFacts
from support.settings import Parser, Settings, parser_of, settings_of

FIELDS = [field for field in dataclasses.fields(Settings) if "group" in field.metadata]
NAMES = [field.name for field in FIELDS]


def asked(*words):
    """Words of a command line -> Settings"""
    return settings_of(parser_of("").parse_args([str(word) for word in words]))


def flag(name):
    """The flag of a field"""
    return "--" + name.replace("_", "-")


def stored(found):
    """Settings as they come back from run.json"""
    facts = RunFacts(
        format="prompt-training-run/1",
        settings=found,
        base=Base("tiny"),
        data={},
        labels=["0", "1"],
        prompts=["p1-s0"],
    )
    return from_json(RunFacts, to_json(facts, indent=2), "run.json").settings


# ---- what flags mean ------------------------------------------------------------------------

DOCUMENTED = {
    "model": "tiny",
    "data": "reviews",
    "text_column": None,
    "label_column": None,
    "num_labels": None,
    "max_examples": None,
    "select_on": "hold-out",
    "select_by": "accuracy",
    "prompt_tokens": [10],
    "seeds": [0],
    "init": "sample",
    "train": "prompt+head",
    "lr": [0.03],
    "head_lr": 0.005,
    "epochs": 6,
    "steps": None,
    "patience": None,
    "cache_text": "auto",
    "out": None,
    "device": "cpu",  # conftest hides a GPU
    "dtype": "auto",
    "batch_size": 16,
    "total_steps": None,
    "processes": 1,
}


def test_flags_mean_what_is_documented():
    assert dataclasses.asdict(asked()) == DOCUMENTED
    assert asked() == Settings()


def test_a_run_goes_on_or_is_replaced_only_where_that_is_asked():
    found = parser_of("").parse_args([])
    assert found.resume is None
    assert found.overwrite is False
    assert parser_of("").parse_args(["--resume", "a", "--overwrite"]).resume == "a"


BUDGETS = {
    "off": 0,
    "0": 0,
    "500M": 5 * 10**8,
    "2g": 2 * 10**9,
    "3k": 3000,
    "77": 77,
    "auto": "auto",
}


@pytest.mark.parametrize("word", BUDGETS)
def test_a_size_has_letters_for_thousands(word):
    assert asked("--cache-text", word).cache_text == BUDGETS[word]


def test_what_comes_twice_in_a_list_is_one():
    found = asked("--seeds", 2, 0, 2, "--lr", "0.1", "1e-1", "--prompt-tokens", 3, 3)
    assert found.seeds == [2, 0]
    assert found.lr == [0.1]
    assert found.prompt_tokens == [3]


def test_a_rate_is_a_float_however_it_is_written():
    for word in ("3", "3.0", "3e0"):
        (rate,) = asked("--lr", word).lr
        assert repr(rate) == "3.0"


def test_no_list_is_shared_between_two_settings():
    assert asked().seeds is not asked().seeds
    assert Settings().seeds is not Settings().seeds


def test_every_field_is_a_flag_but_what_a_run_comes_to():
    rest = {field.name for field in dataclasses.fields(Settings)} - set(NAMES)
    assert rest == {"total_steps", "processes"}
    known = parser_of("")._option_string_actions
    for name in NAMES:
        assert flag(name) in known


def test_the_help_names_each_flag_and_its_default():
    text = " ".join(parser_of("What it is.").format_help().split())
    assert text.count("What it is.") == 1
    for name in NAMES:
        assert f" {flag(name)} " in text
    for default in ("(tiny)", "(10)", "(0.03)", "(0.005)", "(sample)", "(runs/MODEL-DATA)"):
        assert default in text
    assert "%(" not in text
    for group in settings.GROUPS:
        assert f"{group}: " in text


def test_a_run_that_goes_on_has_its_own_flags_and_then_those_given_anew():
    began = asked("--lr", 0.1, 0.2, "--init", "eot", "--cache-text", "5k", "--steps", 7)
    parser = parser_of("")
    parser.set_defaults(**vars(began))
    assert settings_of(parser.parse_args([])) == began
    again = settings_of(parser.parse_args(["--lr", "0.3"]))
    assert again == dataclasses.replace(began, lr=[0.3])


# ---- what is refused ------------------------------------------------------------------------

REFUSED = [
    ["--lrate", "1"],
    ["--epoch", "1"],  # no part of a name is a name
    ["--lr", "fast"],
    ["--lr", "0"],
    ["--lr", "nan"],
    ["--lr", "-1"],
    ["--lr"],
    ["--head-lr", "inf"],
    ["--head-lr", "1e301"],
    ["--lr", "1e305"],
    ["--lr", "1e-31"],
    ["--seeds", "-1"],
    ["--seeds", str(2**63)],
    ["--seeds", "1.5"],
    ["--prompt-tokens", "0"],
    ["--prompt-tokens"],
    ["--prompt-tokens", "9" * 5000],
    ["--epochs", "-1"],
    ["--epochs", "10000000000"],
    ["--steps", "0"],
    ["--patience", "0"],
    ["--patience", "10000000000"],
    ["--max-examples", "10000000000"],
    ["--num-labels", "0"],
    ["--num-labels", "2.0"],
    ["--batch-size", "3000000000"],
    ["--batch-size", ""],
    ["--cache-text", "much"],
    ["--cache-text", "99999999999G"],
    ["--cache-text", "-1"],
    ["--cache-text", "1.5G"],
    ["--cache-text", "5T"],
    ["--dtype", "int8"],
    ["--train", "all"],
    ["--select-on", "test"],
    ["--select-by", "f1"],
    ["--out", "run\udce9"],
    ["--model", "m\udce9"],
    ["--text-column", "\ud800"],
]


@pytest.mark.parametrize("words", REFUSED, ids=range(len(REFUSED)))
def test_a_wrong_flag_is_refused_by_its_name(words):
    with pytest.raises(ValueError, match=rf"{words[0]}\b.*\(see --help\)$"):
        asked(*words)


def test_words_that_belong_to_no_flag_are_refused():
    with pytest.raises(ValueError, match="unrecognized arguments: more"):
        asked("more")


def test_help_is_no_refusal(capsys):
    with pytest.raises(SystemExit) as stop:
        asked("--help")
    assert stop.value.code == 0
    assert "--prompt-tokens" in capsys.readouterr().out


def test_a_flag_of_one_field_may_be_told_otherwise():
    parser = Parser()
    settings.add_flag(parser, Settings, "batch_size", default=3, help="so many")
    settings.add_flag(parser, Settings, "dtype")
    assert parser.parse_args([]).batch_size == 3
    assert parser.parse_args(["--batch-size", "4"]).batch_size == 4
    assert parser.parse_args([]).dtype == "auto"
    with pytest.raises(ValueError, match="--batch-size"):
        parser.parse_args(["--batch-size", "0"])


# ---- there and back -------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
COUNTS = st.integers(1, 2**31 - 1)
RATES = st.floats(1e-30, 1e30)
VALUES = {
    "model": TEXTS,
    "data": TEXTS,
    "text_column": TEXTS,
    "label_column": TEXTS,
    "num_labels": COUNTS,
    "max_examples": COUNTS,
    "select_on": st.sampled_from(["hold-out", "dev"]),
    "select_by": st.sampled_from(["accuracy", "macro-f1", "loss"]),
    "prompt_tokens": st.lists(COUNTS, min_size=1, max_size=4),
    "seeds": st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=4),
    "init": TEXTS,
    "train": st.sampled_from(["prompt+head", "head"]),
    "lr": st.lists(RATES, min_size=1, max_size=4),
    "head_lr": RATES,
    "epochs": COUNTS,
    "steps": COUNTS,
    "patience": COUNTS,
    "cache_text": st.just("auto") | st.integers(0, 2**62),
    "out": TEXTS,
    "device": TEXTS,
    "dtype": st.sampled_from(["auto", "float32", "bfloat16"]),
    "batch_size": COUNTS,
}
SOME = st.fixed_dictionaries({}, optional=VALUES)


def words_of(values):
    """{field: value} as words of a command line"""
    words = []
    for name, value in values.items():
        if isinstance(value, list):
            words.append(flag(name))
            words += [str(item) for item in value]
        else:
            words.append(f"{flag(name)}={value}")
    return words


def test_the_values_drawn_below_are_of_every_flag():
    assert set(VALUES) == set(NAMES)


@cases(300, values=SOME)
def test_what_is_asked_by_flags_comes_back_from_run_json(values):
    found = asked(*words_of(values))
    for name, value in values.items():
        if isinstance(value, list):
            value = list(dict.fromkeys(value))
        assert getattr(found, name) == value
    again = stored(found)
    assert again == found
    # And as flags once more: not a digit is lost on the way.
    told = {name: getattr(again, name) for name in NAMES}
    told = {name: value for name, value in told.items() if value is not None}
    assert asked(*words_of(told)) == found


ANY_NUMBER = st.integers() | st.integers(-3, 3) | st.floats() | st.floats(0, 1e306)
SIZES = st.builds("{}{}".format, st.integers(0, 10**14), st.sampled_from(["", "k", "M", "G"]))
ANY_WORD = ANY_NUMBER.map(str) | SIZES | st.text(max_size=6) | st.sampled_from(["off", "١", "1_0"])


@cases(600, name=st.sampled_from(NAMES), word=ANY_WORD)
def test_no_value_that_a_flag_takes_is_refused_later(name, word):
    """D4 of EDGES: a run was trained to its end, and could then not be read."""
    try:
        found = asked(f"{flag(name)}={word}")
    except ValueError as refusal:
        assert flag(name) in str(refusal)
        return
    assert stored(found) == found
    value = getattr(found, name)
    for number in value if isinstance(value, list) else [value]:
        assert not isinstance(number, float) or math.isfinite(number)


@cases(200, word=st.text(max_size=12))
def test_a_text_is_taken_as_it_is_or_refused(word):
    """What has half a surrogate pair, as a name that is not UTF-8 has, could not be written."""
    whole = all(not 0xD800 <= ord(character) < 0xE000 for character in word)
    try:
        found = asked(f"--init={word}").init
    except ValueError:
        assert not whole
    else:
        assert whole
        assert found == word


def test_each_type_of_a_field_is_one_that_records_can_read():
    known = {"str", "float", "list", "Literal", "Union", "Annotated"}
    for hint in hints_of(Settings).values():
        origin = typing.get_origin(hint) or hint
        name = getattr(origin, "__name__", None) or str(origin).removeprefix("typing.")
        assert name in known | {"UnionType", "Optional"}, hint
