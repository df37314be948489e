"""The model hub: a checkpoint is fetched once, and stands in its folder only when it is whole."""

import contextlib
import itertools
import os
import re
import shutil

from support.vocabulary import FILES as TOKENIZER_FILES

OFFICIAL = {  # name: hub id, pinned revision
    "gpt2": ("openai-community/gpt2", "607a30d783dfa663caf39e06633721c8d4cfcd7e"),
    "gpt2-medium": ("openai-community/gpt2-medium", "6dcaa7a952f72f9298047fd5137cd6e4f05f41da"),
    "gpt2-large": ("openai-community/gpt2-large", "32b71b12589c2f8d625668d2335a01cac3249519"),
    "gpt2-xl": ("openai-community/gpt2-xl", "15ea56dee5df4983c59b2538573817e1667135e2"),
    "distilgpt2": ("distilbert/distilgpt2", "2290a62682d06624634c1f46a6ad5be0f47f38aa"),
}
SMALL = ["config.json", *TOKENIZER_FILES]
WEIGHTS = ["model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"]
MARK = ".prompt-training"  # a file in folders that are ours; it says what is fetched into them


def fetch(repo, revision, folder, refuse):
    """Fetch a GPT-2 into folder, which appears when it is whole; what was cut off resumes.

    revision: a commit; None: the newest, which is noted in the file `revision`.
    refuse(folder, whole) raises for what is no GPT-2, before its weights are fetched and after.
    OSError for what the hub does not have, or where it cannot be reached.
    """
    with reached(repo, folder):
        # Here, because importing it takes a while.
        from huggingface_hub import HfApi, snapshot_download

        # A branch is resolved to its commit first: only for a commit does the library know whether
        # what it finds here, when the network is away, is the whole of it.
        how = {"revision": revision} if revision else {}
        info = HfApi().model_info(repo, **how)
        revision = revision or info.sha
        offered = [file.rfilename for file in info.siblings or []]
    if offered:
        refuse_incomplete(repo, offered)

    # The small files first: of another kind of model the weights are not fetched.
    partial = own_folder(folder, f"{repo} {revision}\n")
    for patterns in (SMALL, WEIGHTS):
        with reached(repo, folder):
            snapshot_download(repo, revision=revision, local_dir=partial, allow_patterns=patterns)
        if patterns is SMALL and (partial / "config.json").is_file():
            refuse(partial, False)
    refuse_incomplete(repo, os.listdir(partial))
    refuse(partial, True)

    (partial / "revision").write_text(revision)
    shutil.rmtree(partial / ".cache", ignore_errors=True)  # the library's notes
    try:
        partial.rename(folder)
    except OSError:
        # Another process was faster, or something of the user's has this name.
        raise OSError(
            f"{repo} has come whole, but {folder} is there already; move that away and run again"
        ) from None
    with contextlib.suppress(OSError):
        (folder / MARK).unlink()


@contextlib.contextmanager
def reached(repo, folder):
    """The errors of the library, or of the three HTTP clients it has had, as one sentence."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise OSError(
            f"could not fetch {repo} ({reason:.300}): check the network and run again, it resumes "
            "(HF_HUB_DISABLE_XET=1 helps where it hangs); or put config.json, model.safetensors, "
            f"and tokenizer.json or merges.txt and vocab.json, of https://huggingface.co/{repo} "
            f"into {folder}"
        ) from None


def own_folder(folder, mark):
    """A folder beside `folder` for what is not whole yet: made now, or by an earlier try of ours.

    Whose it is says a file in it.  One that says otherwise is left alone, and another name taken.
    """
    for number in itertools.count(1):
        more = f".{number}" if number > 1 else ""
        partial = folder.with_name(f"{folder.name}.part{more}")
        with contextlib.suppress(FileExistsError):
            partial.mkdir(parents=True)
            (partial / MARK).write_text(mark)
            return partial
        if is_ours(partial, mark):
            return partial


def is_ours(partial, mark):
    try:
        return not partial.is_symlink() and (partial / MARK).read_text() == mark
    except (OSError, ValueError):
        return False


# ---- what is no checkpoint ------------------------------------------------------------------


def refuse_incomplete(repo, names):
    """FileNotFoundError where these files of a repository are no whole GPT-2."""
    if "config.json" not in names and "adapter_config.json" in names:
        raise FileNotFoundError(adapter_sentence(repo))
    if "config.json" not in names:
        raise FileNotFoundError(f"{repo} on the hub has no config.json, so it is no GPT-2")
    if "merges.txt" not in names and "tokenizer.json" not in names:
        raise FileNotFoundError(
            f"{repo} on the hub has no merges.txt and no tokenizer.json, so it is no GPT-2"
        )
    if "model.safetensors" not in names and "model.safetensors.index.json" not in names:
        others = [name for name in names if is_pickle(name)]
        instead = f" but {', '.join(others):.200}" if others else ""
        raise FileNotFoundError(
            f"{repo} on the hub has no model.safetensors{instead}, and {way_to_convert(repo)}"
        )


def is_pickle(name):
    """Whether a file holds weights in another format, by its name."""
    return re.fullmatch(r".*\.(bin|ckpt|pt|pth|h5|msgpack|gguf|onnx)", name) is not None


def way_to_convert(source):
    """What to do where weights are there in another format."""
    source = repr(str(source))
    return (
        "what may hold code is never opened here; convert it once, in Python: "
        "from transformers import AutoModelForCausalLM, AutoTokenizer; "
        f"AutoModelForCausalLM.from_pretrained({source}).save_pretrained('converted'); "
        f"AutoTokenizer.from_pretrained({source}).save_pretrained('converted'); "
        "then name the folder converted"
    )


def adapter_sentence(source):
    return (
        f"{source} is an adapter (adapter_config.json), not a whole model; merge it into its base "
        "model first (peft: model.merge_and_unload(), then save_pretrained) and name that folder"
    )
