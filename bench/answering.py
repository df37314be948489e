"""How many texts a second are answered: this project's predict beside transformers' pipeline.

    pip install -e '.[bench]'
    python bench/answering.py                  the bundled model, and one of gpt2's size
    python bench/answering.py --texts 200 --rounds 5

Both read the same texts, those of reviews, with the same weights in float32, in the order in which
they come, 16 at a time: the pipeline pads 16 neighbours to the longest, this project reads texts of
near-equal lengths together.  The pipeline also runs as people start it, one text at a time.  The
rounds take turns; medians and their ratios are what to read.  What is loaded, and the first texts,
are not timed.
"""

import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch
import transformers

import evaluate
import record
import train
from support.dataset import read_split
from support.settings import Parser, Settings, checked
from support.terminal import ending, say

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"
SIZES = {"tiny": None, "gpt2": {"n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}}
BATCH = 16
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)


def checkpoint_of(size, folder):
    """The bundled model, or a random one of another geometry with its tokenizer, in a folder."""
    if SIZES[size] is None:
        return TINY
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(TINY / name, folder)
    config = transformers.GPT2Config.from_pretrained(TINY, **SIZES[size])
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def ours(base, folder):
    """A prompt of ten tokens, barely trained -> a function that answers texts."""
    run = Path(folder, "run")
    words = ["--model", str(base), "--max-examples", "16", "--epochs", "1", "--dtype", "float32"]
    words += ["--device", "cpu", "--out", str(run)]
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(words)
    classifier = evaluate.load(run, device="cpu", dtype="float32", batch_size=BATCH)
    return classifier.predict


def theirs(base, size):
    """transformers' pipeline with the same weights -> a function that answers texts."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.GPT2ForSequenceClassification.from_pretrained(base, dtype=torch.float32)
    model.config.pad_token_id = model.config.eos_token_id
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)

    def answer(texts):
        return pipeline(texts, batch_size=size)

    return answer


def texts_a_second(size, texts, rounds):
    """{who: texts a second, a median of rounds in turn}"""
    with tempfile.TemporaryDirectory() as folder:
        base = checkpoint_of(size, folder)
        contenders = {
            "this project": ours(base, folder),
            f"pipeline, {BATCH} at a time": theirs(base, BATCH),
            "pipeline, one at a time": theirs(base, 1),
        }
        for answer in contenders.values():
            assert len(answer(texts[:BATCH])) == BATCH
        speeds = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, answer in contenders.items():
                start = time.perf_counter()
                answer(texts)
                speeds[name].append(len(texts) / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in speeds.items()}


def measure(args):
    """Both sizes -> the figures, as for JSON."""
    texts = [text for text, _ in read_split("reviews", "dev")][: args.texts]
    speeds = {}
    for size in SIZES:
        speeds[size] = texts_a_second(size, texts, args.rounds)
        for name, speed in speeds[size].items():
            times = speeds[size]["this project"] / speed
            say(f"{size}: {name:26} {speed:8.1f} texts a second, this project {times:.2f} times")
    return {"texts": len(texts), "threads": torch.get_num_threads(), "texts_a_second": speeds}


@ending()
def main(argv=None):
    """Measure, tell and write -> the figures."""
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__)
    count = checked(Settings, "batch_size")
    parser.add_argument("--texts", type=count, default=399, help="how many (%(default)s)")
    parser.add_argument("--rounds", type=count, default=3, help="(%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="a new file for the figures")
    args = parser.parse_args(argv)
    command = ["python", "bench/answering.py", *argv]
    return record.keep(command, args.json, lambda: measure(args))


if __name__ == "__main__":
    main()
