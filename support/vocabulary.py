"""The vocabulary of a base model: which tokens it has, and which id each of them has.

Two things make a byte-level BPE: in which order bytes are joined, and which id has what they make.
People have them in two forms: merges.txt with vocab.json, or tokenizer.json with both.  Where ids
are written down they hold: who trains a tokenizer puts special tokens first, and then each id is
another than the order of the merges says.  What would make other tokens of a text than GPT-2's BPE
is refused by its name.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from support.files import damaged, read_bytes
from support.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"
LARGEST = 2**24  # bytes of a file that is read here; ids stay below it, too
FILES = (
    "merges.txt",
    "vocab.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)


@dataclass(frozen=True)
class Vocabulary:
    """What one form of files says."""

    path: Path  # the file that holds the merges
    first_line: int  # where the merges begin in it; 0 where it has no lines
    merges: list[tuple[str, str]]  # two tokens each, in the spelling of the file
    ids: dict[str, int] | None  # of tokens in the same spelling; None: not written here
    added: list[dict]  # {"content", "id", "special", ...} of tokens beside these

    def place(self, number):
        """How to name a merge, which counts from 0."""
        where = f"line {self.first_line + number}" if self.first_line else f"merge {number + 1}"
        words = " ".join(self.merges[number])
        return f"{self.path}, {where}: {words!r:.42}"


def read_tokenizer(folder, rows, end_id=None):
    """The Tokenizer of a checkpoint folder; ValueError or OSError where it is none of GPT-2's kind.

    rows: of the model's table of vectors, which no id may go beyond.  end_id: the id of
    <|endoftext|> by config.json, if it says so.
    """
    whole = folder / "tokenizer.json"
    merges = folder / "merges.txt"
    forms = []
    refuse_added_space(folder / "tokenizer_config.json")
    if merges.exists():
        forms.append(read_merges_and_ids(folder))
    if whole.exists():
        forms.append(read_tokenizer_json(whole))
    if not forms:
        lone = "; vocab.json alone is not enough" if (folder / "vocab.json").exists() else ""
        raise FileNotFoundError(
            f"{folder} has neither merges.txt nor tokenizer.json, which say its tokens; put one of "
            f"them there, from where the model came{lone}"
        )

    spelled = [spell_out(form) for form in forms]
    if len(forms) == 2:
        refuse_two_answers(forms, spelled[0])
    form = forms[-1]  # tokenizer.json, where it is there, has ids and all that was added
    if form.ids is None:
        return by_order_of_merges(form, spelled[-1], rows, end_id)
    return by_written_ids(form, spelled[-1], rows)


# ---- the files ------------------------------------------------------------------------------


def read_merges_and_ids(folder):
    """merges.txt, with the ids of vocab.json where that is there."""
    path = folder / "merges.txt"
    lines = lines_of(path)
    first_line = 1
    if lines[0].startswith("#version"):
        del lines[0]
        first_line = 2
    merges = []
    for line in lines:
        left, _, right = line[:1000].partition(" ")
        merges.append((left, right))
    vocab = folder / "vocab.json"
    ids = checked_ids(vocab, read_object(vocab)) if vocab.exists() else None
    return Vocabulary(path, first_line, merges, ids, added_beside(folder))


def lines_of(path):
    """The lines of a UTF-8 file with either kind of line end, without a byte order mark."""
    data = read_bytes(path, LARGEST)
    refuse_stand_in(path, data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 ({error.reason})") from None
    lines = text.removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines]


def read_tokenizer_json(path):
    """The one file in which the library tokenizers, and transformers from 5 on, keep all."""
    whole = read_object(path)
    with damaged(path, "is no tokenizer.json as it is read here"):
        model = {"type": "BPE", **whole["model"]}
        refuse_other_rules(whole, model)
        merges = []
        for merge in model["merges"]:
            # Older files have "a b" for ["a", "b"].
            left, right = merge.split(" ") if isinstance(merge, str) else merge
            merges.append((left + "", right + ""))
        added = [dict(token) for token in whole.get("added_tokens") or []]
    return Vocabulary(path, 0, merges, checked_ids(path, model["vocab"]), added)


def read_object(path):
    """A JSON object of a file, as a dictionary."""
    data = read_bytes(path, LARGEST)
    refuse_stand_in(path, data)
    with damaged(path, "is no JSON object; fetch it again"):
        return {**json.loads(data)}


def refuse_stand_in(path, data):
    """What lies where a file should be, when the file did not come: say how it comes.

    data: its bytes, or the first of them.
    """
    begin = data[:200].lstrip().lower()
    if not begin:
        raise ValueError(f"{path} is empty; fetch it again")
    if begin.startswith(b"version https://git-lfs"):
        raise ValueError(
            f"{path} is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
        )
    if begin.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(
            f"{path} is a web page, not the file itself; download the file (on the hub its address "
            "has /resolve/, not /blob/)"
        )


def checked_ids(path, ids):
    """ids, if it is a dictionary of different token ids; else ValueError."""
    with damaged(path, "holds no ids of tokens; fetch it again"):
        for token, number in ids.items():
            if type(number) is not int or not 0 <= number < LARGEST:
                raise ValueError(f"{token!r:.60} has the id {number!r:.40}")
        if len(set(ids.values())) < len(ids):
            raise ValueError("two tokens have one id")
    return ids


def added_beside(folder):
    """Tokens that were added to a vocab.json, as older writers kept them, in files of their own."""
    added = []
    path = folder / "tokenizer_config.json"
    listed = read_object(path).get("added_tokens_decoder") if path.exists() else None
    if listed:
        with damaged(path, "lists no added tokens as they are read here"):
            return [{"id": int(number), **token} for number, token in listed.items()]
    path = folder / "added_tokens.json"
    special = folder / "special_tokens_map.json"
    known = json.dumps(read_object(special), ensure_ascii=False) if special.exists() else ""
    for text, number in (read_object(path) if path.exists() else {}).items():
        added.append({"content": text, "id": number, "special": json.dumps(text)[1:-1] in known})
    return added


# ---- what would tokenize otherwise ----------------------------------------------------------


def refuse_added_space(path):
    """tokenizer_config.json may ask for more than the files of tokens say."""
    config = read_object(path) if path.exists() else {}
    for flag in ("add_prefix_space", "add_bos_token", "add_eos_token"):
        if config.get(flag):
            raise ValueError(
                f"{path} says {flag}: this model tokenizes otherwise than GPT-2, with something "
                "put before or after each text, which is not implemented here"
            )


def refuse_other_rules(whole, model):
    """Whatever in a tokenizer.json makes other tokens of a text than GPT-2's rules do."""
    before = only_one(whole.get("pre_tokenizer"), "pretokenizers")
    after = whole.get("post_processor")
    normalizer = only_one(whole.get("normalizer"), "normalizers")
    rules = {
        f"a model of type {model['type']!r:.40}": model["type"] != "BPE",
        f"a normalizer {kind_of(normalizer)}": normalizer is not None,
        f"the pre-tokenizer {kind_of(before)}": kind_of(before) != "ByteLevel",
        "a space before each text (add_prefix_space)": (before or {}).get("add_prefix_space", True),
        "no pattern of words (use_regex)": not (before or {}).get("use_regex", True),
        f"tokens around each text, by {kind_of(after)}": not leaves_alone(after),
        "dropout": model.get("dropout"),
        "byte_fallback": model.get("byte_fallback"),
        "ignore_merges": model.get("ignore_merges"),
        "continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "end_of_word_suffix": model.get("end_of_word_suffix"),
    }
    for what, there in rules.items():
        if there:
            raise ValueError(f"it tokenizes otherwise than GPT-2, which is not implemented: {what}")


def only_one(step, name):
    """A step of a tokenizer: of a sequence of one step that step, of an empty one None."""
    while step is not None and step["type"] == "Sequence" and len(step[name]) < 2:
        step = step[name][0] if step[name] else None
    return step


def kind_of(step):
    return "that is missing" if step is None else str(step["type"])[:40]


def leaves_alone(step):
    """Whether a post-processor adds no token to a text."""
    if step is None or step["type"] == "ByteLevel":
        return True
    if step["type"] == "Sequence":
        return all(leaves_alone(part) for part in step["processors"])
    return step["type"] == "TemplateProcessing" and all(
        "Sequence" in part for part in step["single"]
    )


def refuse_two_answers(forms, tokens):
    """merges.txt with vocab.json, and tokenizer.json, must say the same where both are there."""
    first, second = forms
    same = first.merges == second.merges
    if same and first.ids:
        same = all(first.ids.get(token) == second.ids.get(token) for token in tokens)
    if not same:
        raise ValueError(
            f"{first.path} (with vocab.json) and {second.path} say different merges or ids; keep "
            "the one that the model was trained with, and move the other away"
        )


# ---- tokens and their ids -------------------------------------------------------------------


def spelling():
    """{character: byte}: how the files write bytes, in the order of GPT-2's first 256 tokens.

    Bytes that are visible in Latin-1 stand for themselves and come first; the others are written
    as the characters from 256 on.
    """
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    byte_of = {chr(byte): byte for byte in visible}
    for byte in range(256):
        if byte not in visible:
            byte_of[chr(256 + len(byte_of) - len(visible))] = byte
    return byte_of


BYTE_OF = spelling()


def spell_out(form):
    """The tokens of a vocabulary, as its files spell them: 256 bytes, then what each merge makes.

    ValueError, naming the merge, where it joins no two known tokens, or makes one that is known.
    """
    rank = {}
    for character in BYTE_OF:
        rank[character] = len(rank)
    joined = {}  # ranks of two tokens -> rank of what they make
    for number, (left, right) in enumerate(form.merges):
        token = left + right
        if left not in rank or right not in rank or token in rank:
            raise ValueError(f"{form.place(number)} merges no two known tokens")
        joined[rank[left], rank[right]] = len(rank)
        rank[token] = len(rank)
    refuse_other_orders(form, joined)
    return list(rank)


def refuse_other_orders(form, joined):
    """Each token has to come about when its own bytes are joined in the order of the merges.

    What a trainer writes is so.  Where it is not, tiktoken, which knows tokens and no pairs, would
    join what these merges do not.
    """
    parts = [None] * 256 + list(joined)
    for made in range(256, len(parts)):
        left, right = parts[made]
        if not stand_together(left, right, made, joined, parts):
            raise ValueError(
                f"{form.place(made - 256)} can never be reached, because an earlier merge takes a "
                "part of it: this order of merges is none that a trainer makes"
            )


def stand_together(left, right, limit, joined, parts):
    """Whether two tokens still stand side by side when only merges below `limit` have been done.

    Undone from the last merge on, none of the pairs that met at their border may have been joined.
    """
    while joined.get((left, right), limit) >= limit:
        if left > right:
            limit = left
            if left < 256:
                return True
            left = parts[left][1]
        else:
            limit = right + 1
            if right < 256:
                return True
            right = parts[right][0]
    return False


def by_order_of_merges(form, tokens, rows, end_id):
    """A tokenizer whose ids nobody wrote down: GPT-2's own order, and <|endoftext|> after the last.

    ValueError where config.json contradicts that order.
    """
    end = len(tokens)
    if end_id is not None and 0 <= end_id < end:
        raise ValueError(
            f"{form.path} alone does not say the ids: by its order {END_OF_TEXT} is {end}, by "
            f"config.json (eos_token_id) {end_id}; put vocab.json or tokenizer.json beside it"
        )
    if end >= rows:
        raise ValueError(f"{form.path} makes {end + 1} tokens, but config.json has {rows}")
    return Tokenizer(to_bytes(tokens), special={END_OF_TEXT: end})


def by_written_ids(form, tokens, rows):
    """A tokenizer with the ids that vocab.json or tokenizer.json say."""
    written = form.ids
    path = form.path if form.path.suffix == ".json" else form.path.with_name("vocab.json")
    special = {}
    added = {}
    with damaged(path, "lists no added tokens as they are read here"):
        for token in form.added:
            text = token["content"]
            checked_ids(path, {text: token["id"]})
            if token["special"]:
                special[text] = token["id"]
            elif not text or any(map(token.get, ("lstrip", "rstrip", "single_word"))):
                raise ValueError(f"{text!r:.40} takes in what stands around it")
            else:
                added[text] = token["id"]
    if END_OF_TEXT in written:
        special[END_OF_TEXT] = written[END_OF_TEXT]

    ids = []
    for token in tokens:
        if token not in written:
            raise ValueError(f"{path} has no id for {token!r:.60}, a token of {form.path.name}")
        ids.append(written[token])
    used = [*ids, *added.values(), special.get(END_OF_TEXT, 0)]
    if max(used) >= rows:
        raise ValueError(f"{path} has the token id {max(used)}, but config.json has {rows} tokens")
    special = {text: number for text, number in special.items() if number < rows}
    return Tokenizer(to_bytes(tokens), ids, special, added)


def to_bytes(tokens):
    """Tokens as the files spell them -> the bytes that they stand for."""
    return [bytes([BYTE_OF[character] for character in token]) for token in tokens]
