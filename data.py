"""Everything that brings bytes in: checkpoints, tokenizer, data sets, batches.

checkpoint_folder and fingerprint, Tokenizer, clean and read_split, hold_out, collate and batches,
TextCache.
Whatever is wrong with a file ends in a ValueError or OSError whose one sentence names it.
"""

import csv
import hashlib
import io
import json
import math
import os
import random
import shutil
import urllib.request
import zipfile
from pathlib import Path

import tiktoken
import torch

ROOT = Path(__file__).parent
BUNDLED = "tiny"
OFFICIAL = {  # name: hub id, pinned revision
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}
SST2_URL = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
SST2_MD5 = {
    "SST-2.zip": "9f81648d4199384278b86e315dac217c",
    "train.tsv": "da409a0a939379ed32a470bc0f7fe99a",
    "dev.tsv": "268856b487b2a31a28c0a93daaff7288",
}
SST2_LIMIT = 2**23  # bytes, more than any of these has
LABEL_NAMES = {"reviews": ["negative", "positive"], "sst2": ["negative", "positive"]}


# ---- checkpoints ----------------------------------------------------------------------------


def checkpoint_folder(name):
    """Folder of a checkpoint (config.json, merges.txt, safetensors): bundled, local or fetched.

    name: a folder; or a name in weights/ ("tiny" is bundled); or one of OFFICIAL, at its pinned
    revision; or any hub id, owner/name.  What is fetched goes to weights/NAME and is fetched once.
    """
    for folder in (Path(name), ROOT / "weights" / name):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        raise FileNotFoundError(f"{name} is a folder without config.json, so it is no checkpoint")
    repo, revision = OFFICIAL.get(name, (name, None))
    if repo.count("/") != 1 or repo.startswith(("/", ".")):
        names = ", ".join([BUNDLED, *OFFICIAL])
        raise FileNotFoundError(f"there is no model {name}: name a folder, a hub id, or {names}")
    return download_checkpoint(repo, revision, ROOT / "weights" / name)


def download_checkpoint(repo, revision, folder):
    """Fetch a GPT-2 into folder, which appears when it is whole; what was cut off resumes."""
    from huggingface_hub import HfApi, snapshot_download  # here, because importing it takes a while

    files = ["config.json", "merges.txt", "model.safetensors"]
    if repo not in (official for official, _ in OFFICIAL.values()):
        files += ["model.safetensors.index.json", "model-*-of-*.safetensors"]
    partial = folder.with_name(folder.name + ".part")
    try:
        # A branch is resolved to its commit first: only for a commit does the library know whether
        # what it finds here, when the network is away, is the whole of it.
        revision = revision or HfApi().model_info(repo).sha
        snapshot_download(repo, revision=revision, local_dir=partial, allow_patterns=files)
    except Exception as error:  # the library's, or those of the three HTTP clients it has had
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"could not fetch {repo} ({reason}): check the network and run again, it resumes; or "
            f"put {', '.join(files[:3])} of https://huggingface.co/{repo} into {folder}"
        ) from None
    if lacking := [name for name in files[:2] if not (partial / name).is_file()]:
        raise FileNotFoundError(f"{repo} on the hub has no {lacking[0]}, so it is no GPT-2")
    (partial / "revision").write_text(revision)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(folder)
    return folder


def fingerprint(*paths):
    """sha256, in hex, of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


# ---- tokenizer ------------------------------------------------------------------------------


class Tokenizer:
    """GPT-2's byte-level BPE.  merges.txt is all it takes: the order of the merges gives the ids.

    Ids 0 to 255 are the bytes in GPT-2's order, then one id a merge, then <|endoftext|>.
    """

    # Contractions; words, numbers and signs, each with the space before it; the other white space.
    PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

    def __init__(self, path):
        """path: a merges.txt; ValueError, naming the line, when it is not one."""
        # The file spells every byte as a visible character: bytes that are one in Latin-1 stand for
        # themselves and come first, the others are numbered from 256 on.
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        order = visible + [byte for byte in range(256) if byte not in visible]
        spelled = [*visible, *range(256, 256 + 256 - len(visible))]
        byte_of = {chr(character): bytes([byte]) for character, byte in zip(spelled, order)}
        ranks = {bytes([byte]): i for i, byte in enumerate(order)}
        lines = read_text(path).split("\n")
        for number, line in enumerate(lines, 1):
            if number == 1 and line.startswith("#version") or line == "" and number == len(lines):
                continue
            try:
                left, right = (b"".join(byte_of[c] for c in part) for part in line.split(" "))
            except (KeyError, ValueError):
                left = right = b""
            if left not in ranks or right not in ranks or left + right in ranks:
                raise ValueError(f"{path}, line {number}: {line[:40]!r} merges no two known tokens")
            ranks[left + right] = len(ranks)
        self.end_of_text = len(ranks)
        self.size = len(ranks) + 1
        self.bpe = tiktoken.Encoding("gpt2", pat_str=self.PATTERN, mergeable_ranks=ranks,
                                     special_tokens={"<|endoftext|>": len(ranks)})  # fmt: skip

    def encode(self, text):
        """str -> list of ids; "<|endoftext|>" in a text is ordinary characters."""
        return self.bpe.encode_ordinary(text)

    def decode(self, ids):
        """list of ids -> str"""
        return self.bpe.decode(ids)


# ---- data sets ------------------------------------------------------------------------------

TEXT_RULE = "strip"
LONGEST = 2**18  # characters of a text, twice what 1,024 tokens of 128 bytes, the longest, can hold


def clean(text):
    """The one text rule, for training and predicting: no white space at either end.

    Every sentence of SST-2 ends in a space, which would become a token of its own, the very one
    that the prompt follows.  ValueError for what the tokenizer would garble or break on.
    """
    text.encode()  # fails on half a surrogate pair, which JSON and a shell let through
    if len(text) > LONGEST:
        raise ValueError(f"the text has {len(text)} characters; cut it, {LONGEST} are the limit")
    return text.strip()


def read_text(path):
    """A UTF-8 file without its byte order mark; ValueError, naming the line, if it is none."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}, is not UTF-8 ({error.reason})") from None


def rows_of(path):
    """tsv, csv or jsonl -> (line number, {column: value}) for each row; line 1 names the columns.

    tsv is GLUE's: no quoting, so a quotation mark is a quotation mark.  csv is a spreadsheet's.
    """
    text, number = read_text(path), 1
    try:
        if path.suffix == ".jsonl":
            for number, line in enumerate(text.split("\n"), 1):
                if line.strip():
                    row = json.loads(line)
                    yield number, row if isinstance(row, dict) else {}
        else:
            glue = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            style = glue if path.suffix == ".tsv" else {"strict": True}
            reader = csv.reader(io.StringIO(text, newline=""), **style)
            columns, number = dict.fromkeys(next(reader, [])), 2  # a name that comes twice is one
            for row in filter(None, reader):
                number = reader.line_num
                if len(row) != len(columns):
                    raise ValueError(f"{len(row)} columns, but line 1 names {len(columns)}")
                yield number, dict(zip(columns, row))
                number += 1  # where a quotation that never ends begins
    except (ValueError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def named_set(data):
    """Folder of a data set: "reviews" is bundled, "sst2" is fetched once, all else is a folder."""
    if data == "sst2":
        if not (ROOT / "sst2" / "dev.tsv").exists():
            download_sst2(ROOT / "sst2")
        return ROOT / "sst2"
    if data == "reviews":
        return ROOT / "reviews"
    if not Path(data).is_dir():
        raise FileNotFoundError(f"there is no data set {data}: name a folder, reviews, or sst2")
    return Path(data)


def split_file(data, split):
    """The one file folder/split.tsv, .csv or .jsonl of a data set."""
    folder = named_set(data)
    names = [f"{split}.{kind}" for kind in ("tsv", "csv", "jsonl")]
    found = [name for name in names if (folder / name).exists()]
    if len(found) != 1:
        has = " and ".join(found) or "none of them"
        raise FileNotFoundError(f"{folder} should hold one of {', '.join(names)}; it has {has}")
    return folder / found[0]


def example_of(row, num_labels):
    """{column: value} -> (text, label), cleaned and checked; ValueError says what is wrong."""
    text, label = row.get("sentence", row.get("text")), row.get("label")
    if text is None or label is None:
        raise ValueError("columns sentence (or text) and label are needed")
    if not isinstance(text, str) or not (text := clean(text)):
        raise ValueError("the text is blank; remove the row")
    try:
        value = float(str(label).replace("_", "?"))  # neither true nor 1_0 is a number
    except ValueError:
        value = math.nan
    if num_labels == 1 and not abs(value) <= torch.finfo(torch.float32).max:
        raise ValueError(f"label {label!r:.40} is not a number of float32")
    if num_labels > 1 and value not in range(num_labels):
        hint = "; -1 marks test rows without labels: predict takes these" if value == -1 else ""
        wanted = f"0 to {num_labels - 1} (--num-labels){hint}"
        raise ValueError(f"label {label!r:.40} is not in {wanted}")
    return text, value if num_labels == 1 else int(value)


def read_split(data, split, num_labels=2):
    """One split as a list of (text, label), cleaned and checked; ValueError names file and line.

    The columns are `sentence` (or `text`) and `label`: 0 to num_labels - 1, or any number where
    num_labels is 1 (regression).
    """
    path, examples = split_file(data, split), []
    for number, row in rows_of(path):
        try:
            examples.append(example_of(row, num_labels))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not examples:
        raise ValueError(f"{path} has no rows")
    return examples


def download_sst2(folder):
    """Fetch GLUE's SST-2, check it, and put train.tsv and dev.tsv into folder, both or none."""

    def checked(name, file):
        """The bytes of an open file, if they are the right ones; no more than these are read."""
        with file:
            content = file.read(SST2_LIMIT)
        if hashlib.md5(content).hexdigest() != SST2_MD5[name]:
            raise OSError(f"{name} came damaged: its md5 is not {SST2_MD5[name]}")
        return content

    partial = folder.with_name(folder.name + ".part")
    partial.mkdir(exist_ok=True)
    try:
        fetched = checked("SST-2.zip", urllib.request.urlopen(SST2_URL, timeout=60))
        archive = zipfile.ZipFile(io.BytesIO(fetched))
        for name in ("train.tsv", "dev.tsv"):
            member = archive.getinfo(f"SST-2/{name}")
            if member.compress_type > zipfile.ZIP_DEFLATED:  # zipfile bounds no other way
                raise OSError(f"{name} is packed in another way than GLUE packs it")
            (partial / name).write_bytes(checked(name, archive.open(member)))
        partial.rename(folder)
    except Exception as error:  # an archive can be broken in more ways than zipfile has names for
        raise OSError(
            f"could not fetch SST-2 ({str(error)!r:.200}): check the network and run again, or unpack "
            f"train.tsv and dev.tsv of {SST2_URL} into {folder} by hand"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def hold_out(examples, size, seed=0):
    """Split (text, label) pairs into (train, held out) so that no phrase stands on both sides.

    SST-2's training rows are phrases of one another: of 1,000 random ones 876 stand inside another
    row, and a score on them says nothing.  So `size` texts are drawn from those contained in no
    other, and whatever is contained in one of the drawn is dropped from training.  Containment is
    by whole words.
    """
    words = {text: text.split() for text, _ in examples}
    start = {}  # the first three words of a text -> the texts that begin with them
    for text, split in words.items():
        start.setdefault(tuple(split[:3]), []).append(text)

    def inside(text):
        """All texts that stand in this one, itself included."""
        split = words[text]
        for i in range(len(split)):
            for key in {tuple(split[i : i + width]) for width in (1, 2, 3)}:
                for other in start.get(key, ()):
                    if split[i : i + len(words[other])] == words[other]:
                        yield other

    contained = set()
    for text in sorted(words, key=lambda text: (-len(words[text]), text)):  # longest first
        if text not in contained:  # else what stands in it was found in a longer one
            contained.update(other for other in inside(text) if other != text)
    whole = [text for text in words if text not in contained]
    drawn = set(random.Random(seed).sample(whole, min(size, len(whole) // 2)))
    dropped = {other for text in drawn for other in inside(text)}
    held = {text: label for text, label in reversed(examples) if text in drawn}
    return [pair for pair in examples if pair[0] not in dropped], list(held.items())


# ---- batches --------------------------------------------------------------------------------


def collate(examples, multiple=1):
    """[(ids, label)] -> ids int64 (B, T), padded on the right, lengths int64 (B,), labels (B,).

    T is the longest length, rounded up to a multiple, for those who want few different shapes.

    Lengths travel with the batch; nothing ever guesses them from pad ids.  Integer labels come as
    int64, the labels of a regression as float32.
    """
    lengths = [len(ids) for ids, _ in examples]
    T = math.ceil(max(lengths) / multiple) * multiple
    ids = torch.zeros(len(examples), T, dtype=torch.int64)
    for row, (tokens, _) in zip(ids, examples):
        row[: len(tokens)] = torch.tensor(tokens)
    return ids, torch.tensor(lengths), torch.tensor([label for _, label in examples])


def batches(examples, size, epoch, seed=0):
    """One epoch as a list of lists of indices: the same batches in every epoch, in a new order.

    What is in a batch follows from the seed alone, so that what was read of it can be kept; the
    order follows from seed and epoch.  Near-equal lengths come together: the shuffled examples
    are sorted by length within pools of 50 batches, then cut.  The last batch may be smaller.
    """
    generator = random.Random(seed)
    order = generator.sample(range(len(examples)), len(examples))
    pools = [order[i : i + 50 * size] for i in range(0, len(order), 50 * size)]
    order = [i for pool in pools for i in sorted(pool, key=lambda i: len(examples[i][0]))]
    cut = [order[i : i + size] for i in range(0, len(order), size)]
    return random.Random(f"{seed}/{epoch}").sample(cut, len(cut))


class TextCache:
    """Keys and values of training batches, kept from the first epoch: texts never change.

    In memory as far as the budget goes, then in files of the run folder; what fits in neither is
    read again in every epoch.  Kept or read again, the bits are the same.
    """

    def __init__(self, budget, gpt2, lengths, epochs, folder, rank, world):
        """Plan, and say what will be kept and why not more.

        budget: bytes of memory, or "auto"; lengths: of all texts, as they are padded; folder: for
        the files; rank, world: of how many processes that share the budget this is which.
        """
        L, C, weight = gpt2.config.n_layer, gpt2.config.n_embd, gpt2.wte.weight
        need = sum(lengths) * L * 2 * C * weight.element_size()
        memory, disk, reason = budget, 0, "--cache-text allows no more"
        if budget == "auto":
            memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
            if weight.device.type == "cuda":
                memory = torch.cuda.mem_get_info(weight.device)[0] // 2
            disk = shutil.disk_usage(Path(folder).parent).free // 2
            reason = "this is a quarter of the memory and half of the free disk"
        if epochs <= 1:
            memory, disk, reason = 0, 0, "in one epoch no text is read twice"
        held, filed = min(need, memory), max(0, min(need - memory, disk))
        print(f"keys and values of the texts: {need / 1e9:.2f} GB, of which {held / 1e9:.2f} are "
              f"kept in memory and {filed / 1e9:.2f} on disk"
              + (f"; {reason}" if held + filed < need else ""))  # fmt: skip
        self.memory, self.disk, self.kept = memory // world, disk // world, {}
        self.folder = Path(folder) / str(rank)
        shutil.rmtree(self.folder, ignore_errors=True)  # of a run that was killed

    def read(self, gpt2, indices, ids):
        """Keys and values (L, 2, B, H, T, D) of the batch with these indices and ids (B, T)."""
        key = indices[0]  # no other batch of this process holds it
        if key in self.kept:
            return self.kept[key].to(ids.device)
        past = gpt2.read(ids)
        if past.nbytes <= self.memory:
            self.memory -= past.nbytes
            self.kept[key] = past
        elif past.nbytes <= self.disk:
            self.disk -= past.nbytes
            path = self.folder / str(key)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                past.flatten().view(torch.uint8).cpu().numpy().tofile(path)
            except OSError:  # somebody else has filled the disk
                path.unlink(missing_ok=True)
                self.disk = 0
            else:
                mapped = torch.from_file(str(path), size=past.numel(), dtype=past.dtype)
                self.kept[key] = mapped.view(past.shape)
        return past
