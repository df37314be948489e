"""What is bundled, what is downloaded once, and where it lies: checkpoints and data sets."""

import functools
import hashlib
import io
import json
import re
import shutil
import urllib.request
import zipfile
from pathlib import Path

from support.checks import gpt2_sizes
from support.files import TABLES, sha256, weight_files

ROOT = Path(__file__).parent.parent
BUNDLED, NAMED = "tiny", ("reviews", "sst2")
OFFICIAL = {  # name: hub id, pinned revision
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}
SST2_URL = "https://dl.fbaipublicfiles.com/glue/data/SST-2.zip"
SST2_MD5 = "9f81648d4199384278b86e315dac217c"


# ---- checkpoints ----------------------------------------------------------------------------


def checkpoint_folder(name, asked=True):
    """Folder of a checkpoint (config.json, merges.txt, safetensors): bundled, local or fetched.

    name: a folder; or a name in weights/ ("tiny" is bundled); or one of OFFICIAL, at its pinned
    revision; or any hub id, owner/name.  What is fetched goes to weights/NAME and is fetched once.
    asked: a person named it; where a file did, only OFFICIAL ones are fetched.
    """
    for folder in (Path(name), ROOT / "weights" / name):
        if (folder / "config.json").is_file():
            return folder
    if Path(name).is_dir():
        raise FileNotFoundError(f"{name} is a folder without config.json, so it is no checkpoint")
    repo, revision = OFFICIAL.get(name, (name, None))
    if not re.fullmatch(r"[^/.][^/]*/[^/]*", repo) or not (asked or revision):
        names = ", ".join([BUNDLED, *OFFICIAL])
        where = "name a folder, a hub id, or" if asked else "say by --model where it lies, or"
        raise FileNotFoundError(f"there is no model {name}: {where} {names}")
    return download_checkpoint(repo, revision, ROOT / "weights" / name)


def download_checkpoint(repo, revision, folder):
    """Fetch a GPT-2 into folder, which appears when it is whole; what was cut off resumes."""
    from huggingface_hub import HfApi, snapshot_download  # here, because importing it takes a while

    wanted = ["config.json", "merges.txt", "model.safetensors"]
    patterns = [*wanted, "model.safetensors.index.json", "model-*-of-*.safetensors"]
    partial = folder.with_name(folder.name + ".part")
    try:
        # A branch is resolved to its commit first: only for a commit does the library know whether
        # what it finds here, when the network is away, is the whole of it.
        revision = revision or HfApi().model_info(repo).sha
        snapshot_download(repo, revision=revision, local_dir=partial, allow_patterns=patterns)
    except Exception as error:  # the library's, or those of the three HTTP clients it has had
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"could not fetch {repo} ({reason}): check the network and run again, it resumes "
            "(HF_HUB_DISABLE_XET=1 helps where it hangs); or "
            f"put {', '.join(wanted)} of https://huggingface.co/{repo} into {folder}"
        ) from None
    for name in wanted[:2]:
        if not (partial / name).is_file():
            raise FileNotFoundError(f"{repo} on the hub has no {name}, so it is no GPT-2")
    (partial / "revision").write_text(revision)
    shutil.rmtree(partial / ".cache", ignore_errors=True)
    partial.rename(folder)
    return folder


def base_of(name, folder):
    """What a prompt says of the model it was trained on: its name, its commit if it was downloaded,
    and one hash of all that decides what it computes: weights, merges.txt and sizes."""
    path = folder / "revision"
    revision = path.read_text(errors="replace")[:80] if path.exists() else ""
    paths = [*weight_files(folder), folder / "merges.txt", folder / "config.json"]
    stats = [(s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in map(Path.stat, paths)]
    hashed = hash_of(folder, *stats)
    return {"base_model": str(name), "base_revision": revision, "base_sha256": hashed}


@functools.cache
def hash_of(folder, *stats):
    """The hash that base_of tells, computed again when one of the files is another."""
    parts = [
        sha256(*weight_files(folder)),
        sha256(folder / "merges.txt"),
        json.dumps(gpt2_sizes(folder / "config.json"), sort_keys=True),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def absolute(name, known):
    """A name that is known, or the whole path of what lies there: a run works from any folder."""
    return name if name in known or not Path(name).exists() else str(Path(name).absolute())


# ---- data sets ------------------------------------------------------------------------------


def split_file(data, split):
    """The one file split.tsv, .csv or .jsonl of a data set: "reviews", which is bundled, "sst2",
    which is fetched once, or a folder."""
    folder = ROOT / data if data in NAMED else Path(data)
    if data == "sst2" and not (folder / "dev.tsv").exists():
        download_sst2(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no data set {data}: name a folder, reviews, or sst2")
    stems = [split, "validation"] if split == "dev" else [split]
    names = [stem + kind for stem in stems for kind in TABLES]
    found = [name for name in names if (folder / name).exists()]
    if len(found) != 1:
        has = " and ".join(found) or "none of them"
        raise FileNotFoundError(f"{folder} should hold one of {', '.join(names)}; it has {has}")
    return folder / found[0]


def download_sst2(folder):
    """Fetch GLUE's SST-2, check it, and put train.tsv and dev.tsv into folder, both or none.

    Nothing but the one archive with this md5 is ever unpacked, and nobody can make another that has
    it: so neither its members nor what they unpack to need a check of their own.
    """
    partial = folder.with_name(folder.name + ".part")
    try:
        with urllib.request.urlopen(SST2_URL, timeout=60) as answer:
            fetched = answer.read(2**23)  # bytes, more than it has
        if hashlib.md5(fetched).hexdigest() != SST2_MD5:
            raise OSError(f"SST-2.zip came damaged: its md5 is not {SST2_MD5}")
        names = ["SST-2/train.tsv", "SST-2/dev.tsv"]
        zipfile.ZipFile(io.BytesIO(fetched)).extractall(partial, names)
        (partial / "SST-2").rename(folder)
    except Exception as error:  # urllib has more of them than OSError
        raise OSError(
            f"could not fetch SST-2 ({str(error)[:200]!r}): check the network and run again, or "
            f"unpack train.tsv and dev.tsv of {SST2_URL} into {folder} by hand"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
