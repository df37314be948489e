"""How fast training is, beside the peers, in one process and one run.

    python bench/benchmark.py                    gpt2, reviews: some twenty minutes on two cores
    python bench/benchmark.py --data FOLDER      the batches of another data set, such as SST-2's
    python bench/benchmark.py --text-tokens 256 --prompt-tokens 5
    python bench/benchmark.py --device cuda --size gpt2-large
    python bench/benchmark.py --beside FOLDER    (d), (d') and (e) here and in another checkout

Weights are random, so nothing is downloaded.  Every contender trains a prompt of the same length
and a head; rounds are interleaved, so that a slow moment of a shared machine hits all of them;
medians of the time per text, and ratios of these, are what to read.  The peers need
`pip install -e '.[bench]'`.

(a) the post: transformers' GPT2ForSequenceClassification, prompt inserted after the last token,
    float32, frozen body
(b) the same under bfloat16 autocast
(c) PEFT prompt tuning (SEQ_CLS), bfloat16 autocast
(d) this project, one prompt        (d') the same with the text's keys and values kept from before
(e) this project, six prompts of 1 2 5 10 20 50 tokens in a pack, and the same six one after the
    other
(f) the floor: nothing but (d)'s matrix products, forward and backward
                                    (f') nothing but those of (d')
(g) the post as people run it: (a) in random order         (g') (b) in random order
(h) PEFT: (c) in random order

All batches hold equally many texts of one data set, each padded to its longest.  (a) to (f) get
this project's, of near-equal lengths, which spare the peers most pads; (g) and (h) get what a
loader that shuffles would make.  So g/a is what sorting by length gives, a/d the rest, g/d both.
The batches of either epoch, sorted by length, are split into --batches parts; the one nearest to
its part's mean length is taken.  Texts of --text-tokens need no (g) and no (h).

Where the body is float32, as it is by default on hardware that does not multiply bfloat16 fast,
(c) and (h) are float32, too, since emulated bfloat16 would only make a peer look slow; (b) and (g')
are left out.

--beside measures two checkouts of this project, say an old and a new one, on the same batches and
the same random weights: each round is a process of either, in turn, and the ratio of a round is
that of two processes which ran one after the other.
"""

import ctypes
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch
from tqdm import trange

import record
from data import batches, collate, cut
from model import GPT2, GPT2Config, Prompt
from record import chip_of
from support.checkpoint import open_checkpoint
from support.dataset import read_split
from support.packed import PackedLinear, multiply, pack
from support.processes import body_dtype, device_of
from support.settings import Parser, Settings, add_flag, checked
from support.terminal import ending, say, warn
from train import train_step

SIZES = {  # C, L, H
    "tiny": (256, 6, 4),
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
}
PACK = (1, 2, 5, 10, 20, 50)
V = 50257
POSITIONS = 1024
SST2_ROWS = 67_349
WARM_UP = 3  # rounds

LABELS = {
    "a": "the post, float32",
    "b": "the post, bf16 autocast",
    "c": "PEFT prompt tuning",
    "d": "ours",
    "d'": "ours, texts kept",
    "e": "ours, six in a pack",
    "f": "floor of d",
    "f'": "floor of d'",
    "g": "a in random order",
    "g'": "b in random order",
    "h": "c in random order",
}
MIXED = {"g": "a", "g'": "b", "h": "c"}  # who trains in random order, and who that is in ours
RATIOS = "a/d b/d c/d g/d g'/d h/d a/d' b/d' c/d' g/d' g'/d' h/d' g/a g'/b h/c a6/e e6/e f/d f'/d'"


@dataclass(frozen=True)
class Contender:
    """Who trains, and on what."""

    step: Callable  # trains once on a batch
    batches: list  # of [ids, lengths, labels], for (d') of [ids, lengths, labels, kv]


# ---- the contenders -------------------------------------------------------------------------


def random_gpt2(size, device, dtype):
    """Our body with random weights, frozen, and packed as train.py packs it."""
    gpt2 = random_body(size, device, dtype)
    pack(gpt2, with_gradient=True)
    return gpt2


def random_body(size, device, dtype):
    """Our body with random weights, frozen, as it is after loading."""
    C, L, H = SIZES[size]
    with torch.device(device):
        gpt2 = GPT2(GPT2Config(V, POSITIONS, C, L, H))
    # Its tables begin as zeros, and hardware may multiply zeros faster than numbers.
    for table in (gpt2.wte, gpt2.wpe):
        torch.nn.init.normal_(table.weight, std=0.02)
    return gpt2.to(dtype).requires_grad_(False)


def ours(gpt2, lengths):
    """This project: prompts of these lengths in one pack, as a step."""
    C = gpt2.config.n_embd
    prompts = []
    for P in lengths:
        vectors = gpt2.wte.weight[300 : 300 + P].float()  # (P, C)
        prompts.append(Prompt(vectors, torch.zeros(2, C)).to(vectors.device))
    parameters = [tensor for prompt in prompts for tensor in prompt.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step(batch):
        return train_step(gpt2, prompts, optimizer, *batch)

    return step


def layers(gpt2, rows, last_rows):
    """(rows, linear map) of each matrix that a sequence passes.

    last_rows: how many rows go on after the last block's keys and values.
    """
    found = []
    for block in gpt2.h:
        found.append((rows, block.attn.c_attn))
        after = last_rows if block is gpt2.h[-1] else rows
        if after:
            for layer in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj):
                found.append((after, layer))
    return found


def products(gpt2, P, batch, read=True):
    """The matrix products of one of our steps: (rows, linear map) forward, then backward.

    read: whether the texts are read, not kept.
    """
    B, T = batch[0].shape
    prompt = layers(gpt2, B * P, B)
    text = layers(gpt2, B * T, 0) if read else []
    return text + prompt, prompt


def run_products(gpt2, P, read=True):
    """The floor, as a step; arguments as of `products`."""
    table = gpt2.wte.weight
    inputs = {}  # {shape: random numbers}, drawn in the warm-up

    def numbers(*shape):
        if shape not in inputs:
            inputs[shape] = torch.randn(shape, dtype=table.dtype, device=table.device)
        return inputs[shape]

    @torch.no_grad()
    def step(batch):
        forward, backward = products(gpt2, P, batch, read)
        for rows, linear in forward:
            linear(numbers(rows, linear.in_features))
        for rows, linear in backward:
            way_back(numbers(rows, linear.out_features), linear)

    return step


def way_back(gradient, linear):
    """What a gradient (rows, out) becomes before a linear map -> (rows, in)"""
    if isinstance(linear, PackedLinear):
        return multiply(gradient, linear.back, None)
    return gradient @ linear.weight


def make_contenders(args, gpt2, near, mixed=None):
    """{name: Contender}; "a5" is (a) with a prompt of 5 tokens, "e5" (e)'s prompt of 5 alone.

    near: batches of near-equal lengths; mixed: batches in random order.
    """
    P = args.prompt_tokens
    steps = {"d": ours(gpt2, [P]), "e": ours(gpt2, PACK)}
    for p in PACK:
        steps[f"e{p}"] = ours(gpt2, [p])
    steps["f"] = run_products(gpt2, P)
    steps["f'"] = run_products(gpt2, P, read=False)
    try:
        add_peers(steps, args, gpt2)
    except ImportError as error:
        warn(f"without some peers: {error}")
    contenders = {name: Contender(step, near) for name, step in steps.items()}
    kept = [[*batch, gpt2.text_pass(batch[0])] for batch in near]
    contenders["d'"] = Contender(ours(gpt2, [P]), kept)
    for name, same in MIXED.items():
        if mixed and same in steps:
            contenders[name] = Contender(steps[same], mixed)
    return dict(sorted(contenders.items()))


def add_peers(steps, args, gpt2):
    """Put the steps of the peers beside ours; ImportError where one of them is not installed."""
    import peers  # here, because without transformers there are none

    P = args.prompt_tokens
    device = gpt2.wte.weight.device
    bf16 = gpt2.wte.weight.dtype == torch.bfloat16
    base = peers.hugging_face(SIZES[args.size], V, device)
    steps["a"] = peers.post(base, P, bf16=False)
    if bf16:
        steps["b"] = peers.post(base, P, bf16=True)
    if not args.text_tokens:  # six take long, and on long texts say nothing new
        for p in PACK:
            steps[f"a{p}"] = peers.post(base, p, bf16=False)
    # A body of its own, since PEFT changes what it is given.
    base = peers.hugging_face(SIZES[args.size], V, device)
    steps["c"] = peers.peft_prompt_tuning(base, P, bf16)


# ---- the batches ----------------------------------------------------------------------------


def make_batches(args, device):
    """[(batches that stand for an epoch, the epoch's mean length)]: as training makes them, and,
    unless all texts are as long, in random order."""
    tokenizer = open_checkpoint("tiny").tokenizer
    pairs = read_split(args.data, "train")
    examples = [(tokenizer.encode(text), label) for text, label in pairs]
    if args.text_tokens:
        examples = as_long(examples, args.text_tokens)
    plans = [batches(examples, args.batch_size)]
    if not args.text_tokens:
        shuffled = random.Random(0).sample(range(len(examples)), len(examples))
        plans.append(cut(shuffled, args.batch_size))
    found = []
    for plan in plans:
        plan = [numbers for numbers in plan if len(numbers) == args.batch_size]
        if not plan:
            raise ValueError(f"{args.data} fills no batch of {args.batch_size} texts")
        found.append(stand_for(examples, plan, args.batches, device))
    return found


def as_long(examples, T):
    """The same tokens as texts of T tokens each."""
    joined = [number for ids, _ in examples for number in ids]
    starts = range(0, len(joined) - T, T)
    return [(joined[i : i + T], i // T % 2) for i in starts]


def stand_for(examples, plan, count, device):
    """`count` of the batches of a plan, which stand for it -> (batches, the plan's mean length)"""
    lengths = torch.tensor([float(len(ids)) for ids, _ in examples])
    plan = torch.tensor(plan)  # (batches, B)
    longest = lengths[plan].amax(dim=1)  # (batches,), the length of each, pads included
    chosen = []
    for part in longest.argsort(stable=True).tensor_split(min(count, len(plan))):
        off = (longest[part] - longest[part].mean()).abs()
        numbers = plan[part[off.argmin()]].tolist()
        chosen.append(collate([examples[i] for i in numbers], device))
    return chosen, longest.mean().item()


# ---- measuring ------------------------------------------------------------------------------


def synchronize(device):
    """Wait until the device has done all that it was told."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(contender, device):
    """The time of one round: a step on each batch."""
    synchronize(device)
    start = time.perf_counter()
    for batch in contender.batches:
        contender.step(batch)
    synchronize(device)
    return time.perf_counter() - start


def take_turns(contenders, rounds, device):
    """{name: its seconds, a round each}; the first rounds are warm-up, and not among them."""
    times = {name: [] for name in contenders}
    for number in trange(-WARM_UP, rounds, unit="round", disable=None):
        for name, contender in contenders.items():
            spent = seconds(contender, device)
            if number >= 0:
                times[name].append(spent)
    return times


def medians(times):
    """{name: median}, and under a6 and e6 the six of a pack, one after the other."""
    median = {name: statistics.median(spent) for name, spent in times.items()}
    for letter in "ae":
        alone = [f"{letter}{p}" for p in PACK]
        if alone[0] in median:
            median[f"{letter}6"] = sum(median[name] for name in alone)
    return median


def largest(contender):
    """The batch with the longest texts."""
    return max(contender.batches, key=lambda batch: batch[0].shape[1])


def peak_bytes(contender, device):
    """Memory of one step above what was held before it, in which the weights are.

    None where the system does not tell.
    """
    batch = largest(contender)
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        contender.step(batch)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    except OSError:  # no Linux, or one that does not let us
        return None
    before = process_status("VmRSS")
    contender.step(batch)
    return process_status("VmHWM") - before


def process_status(key):
    """A size from Linux's account of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", status)[1])


def graph_bytes(gpt2, step, batch):
    """What autograd keeps for the backward pass of a step: bytes of storages that it made.

    The weights are not counted, nor the texts' own keys and values.
    """
    kept = {}  # {address of a storage: its bytes}
    others = {weight.untyped_storage().data_ptr() for weight in gpt2.parameters()}
    text_pass = GPT2.text_pass

    def note(self, ids):
        kv = text_pass(self, ids)
        others.add(kv.untyped_storage().data_ptr())
        return kv

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def give_back(tensor):
        return tensor

    GPT2.text_pass = note
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, give_back):
            step(batch)
    finally:
        GPT2.text_pass = text_pass
    return sum(size for address, size in kept.items() if address not in others)


def operations(gpt2, P, near):
    """Floating-point operations of the matrix products of a round."""
    total = 0
    for batch in near:
        for part in products(gpt2, P, batch):
            for rows, linear in part:
                total += 2 * rows * linear.in_features * linear.out_features
    return total


# ---- the figures ----------------------------------------------------------------------------


def ratios_of(median, memory):
    """{"a/d": how many times as long (a) takes as (d)}, of those who ran."""
    ratios = {}
    for pair in RATIOS.split():
        above, below = pair.split("/")
        if above in median and below in median:
            ratios[pair] = median[above] / median[below]
    if memory.get("a") and memory.get("d"):
        ratios["memory a/d"] = memory["a"] / memory["d"]
    return ratios


def measure(args, device):
    """Measure all contenders -> the figures, as a dictionary for --json."""
    torch.manual_seed(0)
    epochs = make_batches(args, device)
    near = epochs[0][0]
    gpt2 = random_gpt2(args.size, device, body_dtype(args.dtype, device))
    contenders = make_contenders(args, gpt2, *[todo for todo, _ in epochs])

    times = take_turns(contenders, args.rounds, device)
    median = medians(times)
    memory = {}
    for name in LABELS:
        if name in contenders:
            memory[name] = peak_bytes(contenders[name], device)
    d = contenders["d"]
    texts = args.batch_size * len(near)
    return {
        "size": args.size,
        "prompt_tokens": args.prompt_tokens,
        "rounds": args.rounds,
        "chip": chip_of(device),
        "threads": torch.get_num_threads(),
        "dtype": str(gpt2.wte.weight.dtype),
        "device": str(device),
        "texts": texts,
        "batches": [[list(batch[0].shape) for batch in todo] for todo, _ in epochs],
        "epoch_means": [mean for _, mean in epochs],
        "seconds": times,
        "median": median,
        "peak_bytes": memory,
        "graph_bytes": graph_bytes(gpt2, d.step, largest(d)),
        "flops_a_second": operations(gpt2, args.prompt_tokens, near) / median["f"],
        "ratios": ratios_of(median, memory),
        "sweep_seconds": SST2_ROWS * 3 / texts * median["e"],
    }


def lines_of(figures):
    """The figures, as a person reads them."""
    median = figures["median"]
    lines = [
        f"{figures['size']}, P = {figures['prompt_tokens']}, {figures['dtype']} on "
        f"{figures['device']} ({figures['chip']}; threads: {figures['threads']}), medians of "
        f"{figures['rounds']} rounds"
    ]
    orders = ["near-equal lengths", "random order"][: len(figures["batches"])]
    for order, shapes, mean in zip(orders, figures["batches"], figures["epoch_means"], strict=True):
        here = statistics.mean(T for _, T in shapes)
        shapes = [tuple(shape) for shape in shapes]
        lines.append(f"{order}: batches {shapes}, mean length {here:.1f}, whole epoch {mean:.1f}")
    for name, peak in figures["peak_bytes"].items():
        speed = figures["texts"] / median[name]
        times = median[name] / median["d"]
        mebibytes = "      -" if peak is None else f"{peak / 2**20:7.1f} MiB"
        lines.append(
            f"{name:3} {LABELS[name]:24} {speed:9.1f} examples/s  {times:6.2f} x d's time"
            f"  step's peak {mebibytes}"
        )
    lines.append(
        f"autograd graph of d {figures['graph_bytes'] / 2**20:.1f} MiB; matrix products alone "
        f"{figures['flops_a_second'] / 1e9:.0f} GFLOP/s"
    )
    ratios = [f"{pair} {value:.2f}" for pair, value in figures["ratios"].items()]
    lines.append("times: " + "  ".join(ratios))
    sweep = figures["sweep_seconds"]
    lines.append(
        f"SST-2's {SST2_ROWS:,} rows x 3 epochs with the pack, projected from these steps: "
        f"{sweep / 3600:.1f} hours ({sweep / 60:.0f} minutes)"
    )
    return lines


# ---- beside another checkout ----------------------------------------------------------------


def beside(args, device):
    """Measure (d), (d') and (e) in this checkout and in another, in turn -> the figures."""
    other = Path(args.beside).absolute()
    for name in ("model.py", "train.py"):
        if not (other / name).is_file():
            raise ValueError(f"--beside {other} is no checkout of this project: it has no {name}")
    near, _ = make_batches(args, device)[0]
    request = {
        "sizes": SIZES[args.size],
        "vocabulary": V,
        "positions": POSITIONS,
        "prompt_tokens": args.prompt_tokens,
        "pack": PACK,
        "device": str(device),
        "dtype": str(body_dtype(args.dtype, device)).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "rounds": args.rounds,
        "batches": [[part.tolist() for part in batch] for batch in near],
    }
    here = Path(__file__).resolve().parent.parent
    figures = {"here": [], "other": []}
    for number in range(args.rounds):
        # Who comes second finds a warmer machine, so they take turns in that, too.
        turns = [("here", here), ("other", other)]
        for side, folder in turns if number % 2 == 0 else reversed(turns):
            figures[side].append(ask(folder, request))
        ratios = [f"{name} {ratio:.3f}" for name, ratio in last_round(figures).items()]
        say(f"round {number + 1} of {args.rounds}: here/other {'  '.join(ratios)}")
    return figures


def last_round(figures):
    """{name: this checkout's time divided by the other's}, of the round that was measured last."""
    here = figures["here"][-1]["seconds"]
    other = figures["other"][-1]["seconds"]
    return {name: here[name] / other[name] for name in here}


def ask(folder, request):
    """One process of bench/one_checkout.py -> its answer; OSError where it fails."""
    script = Path(__file__).resolve().parent / "one_checkout.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder)],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise OSError(f"{folder} could not be measured: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def tell_beside(args, figures):
    """The two checkouts as a person reads them, and their ratios into the figures."""
    say(f"{args.size}, P = {args.prompt_tokens}, {args.rounds} rounds; other is {args.beside}")
    ratios = {}
    for name in ("d", "d'", "e"):
        times = ratios_of_rounds(figures, "seconds", name)
        cpu = ratios_of_rounds(figures, "cpu_seconds", name)
        ratios[f"here/other {name}"] = statistics.median(times)
        ratios[f"here/other {name}, CPU time"] = statistics.median(cpu)
        here = statistics.median(answer["seconds"][name] for answer in figures["here"])
        say(
            f"{name:3} {LABELS[name]:24} here {here:.4f} s a round, here/other "
            f"{statistics.median(times):.3f} ({min(times):.3f} to {max(times):.3f}); of CPU time, "
            f"which others' work lengthens less, {statistics.median(cpu):.3f} "
            f"({min(cpu):.3f} to {max(cpu):.3f})"
        )
        # They should have done the same work, to rounding.
        losses = [figures[side][0]["losses"][name] for side in ("here", "other")]
        say(f"    the last loss here {losses[0]:.6f}, other {losses[1]:.6f}")
    figures["ratios"] = ratios


def ratios_of_rounds(figures, kind, name):
    """Of each round: this checkout's time divided by the other's."""
    rounds = zip(figures["here"], figures["other"], strict=True)
    return [here[kind][name] / other[kind][name] for here, other in rounds]


# ---- the command line -----------------------------------------------------------------------


def parse_args(argv):
    parser = Parser(description=__doc__)
    add = parser.add_argument
    count = checked(Settings, "batch_size")
    add("--size", choices=SIZES, default="gpt2", help="geometry of the model (%(default)s)")
    add("--data", default="reviews", help="data set whose batches are taken (%(default)s)")
    add("--text-tokens", type=count, help="texts of exactly so many tokens instead")
    add("--prompt-tokens", type=count, default=20, help="length of the prompt (%(default)s)")
    add("--batch-size", type=count, default=32, help="(%(default)s)")
    add("--batches", type=count, default=3, help="batches in a round (%(default)s)")
    add("--rounds", type=count, default=5, help="(%(default)s)")
    add_flag(parser, Settings, "device")
    add_flag(parser, Settings, "dtype")
    add("--beside", metavar="FOLDER", help="another checkout of this project, to take turns with")
    add("--json", metavar="FILE", help="a new file for the figures")
    args = parser.parse_args(argv)
    if (args.text_tokens or 0) + max(args.prompt_tokens, *PACK) > POSITIONS:
        raise ValueError(f"text and prompt have more than {POSITIONS} tokens; ask for fewer")
    return args


@ending()
def main(argv=None):
    """Measure, tell, write -> {pair: ratio}."""
    argv = sys.argv[1:] if argv is None else argv
    args = parse_args(argv)
    command = ["python", "bench/benchmark.py", *argv]
    return record.keep(command, args.json, lambda: run(args))["ratios"]


def run(args):
    """Measure and tell what was asked -> the figures."""
    device = device_of(args.device)
    if args.beside:
        figures = beside(args, device)
        tell_beside(args, figures)
    else:
        figures = measure(args, device)
        for line in lines_of(figures):
            say(line)
    return figures


if __name__ == "__main__":
    main()
