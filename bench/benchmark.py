"""How fast training is, beside the peers, in one process and one run.

    python bench/benchmark.py                         gpt2 geometry, reviews, some twenty minutes on two cores
    python bench/benchmark.py --data FOLDER           the batches of another data set, such as SST-2's
    python bench/benchmark.py --text-tokens 256 --prompt-tokens 5
    python bench/benchmark.py --device cuda --size gpt2-large

Weights are random, so nothing is downloaded.  Every contender trains a prompt of the same length and a head; rounds are
interleaved, so that a slow moment of a shared machine hits all of them; medians of the time per text, and ratios of
these, are what to read.  The peers need `pip install -e '.[bench]'`.

(a) the post: transformers' GPT2ForSequenceClassification, prompt inserted after the last token, float32, frozen body
(b) the same under bfloat16 autocast
(c) PEFT prompt tuning (SEQ_CLS), bfloat16 autocast
(d) this project, one prompt                     (d') the same with the text's keys and values kept from before
(e) this project, six prompts of 1 2 5 10 20 50 tokens in a pack, and the same six one after the other
(f) the floor: nothing but (d)'s matrix products, forward and backward      (f') nothing but those of (d')
(g) the post as people run it: (a) in random order      (g') (b) in random order      (h) PEFT: (c) in random order

All batches hold equally many texts of one data set, each padded to its longest.  (a) to (f) get this project's, of
near-equal lengths, which spare the peers most pads; (g) and (h) get what a loader that shuffles would make.  So g/a is
what sorting by length gives, a/d the rest, g/d both.  The batches of either epoch, sorted by length, are split into
--batches parts; the one nearest to its part's mean length is taken.  Texts of --text-tokens need no (g) and no (h).

Where the hardware does not multiply bfloat16 fast, this project, (c) and (h) compute in float32, since emulated
bfloat16 would only make a peer look slow; (b) and (g') are left out.
"""

import argparse
import ctypes
import json
import os
import platform
import random
import re
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from tqdm import trange

from data import Tokenizer, batches, collate, cut, read_split
from model import GPT2, GPT2Config, Prompt
from support.fetch import ROOT
from support.flags import device_of
from support.machine import body_dtype
from train import train_step

SIZES = {"tiny": (256, 6, 4), "gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}
PACK = (1, 2, 5, 10, 20, 50)
V, POSITIONS = 50257, 1024
SST2_ROWS = 67_349


# ---- the contenders: each a function that trains one step on a batch (ids, lengths, labels) -------


def ours(gpt2, sizes, texts=None):
    """This project: prompts of these sizes in one pack; texts: {id of a batch: its keys and values}"""
    C = gpt2.config.n_embd
    prompts = [Prompt(gpt2.wte.weight[300 : 300 + P].float(), torch.zeros(2, C)) for P in sizes]
    prompts = [prompt.to(gpt2.wte.weight.device) for prompt in prompts]
    optimizer = torch.optim.AdamW([tensor for p in prompts for tensor in p.parameters()], lr=1e-3, fused=True)
    return lambda batch: train_step(gpt2, prompts, optimizer, *batch, texts and texts[id(batch)])


def hugging_face(size, device):
    """GPT2ForSequenceClassification with random weights, frozen, without dropout (which spares it some work)"""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    C, L, H = SIZES[size]
    config = GPT2Config(vocab_size=V, n_embd=C, n_layer=L, n_head=H, num_labels=2, pad_token_id=0)
    return GPT2ForSequenceClassification(config).to(device).eval().requires_grad_(False)


def peer(parameters, loss_of, bf16):
    """The step that both peers train by; loss_of: (ids, lengths, labels) -> loss"""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step(batch):
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def post(base, P, bf16):
    """The blog post's way: text and prompt embedded in one sequence, all of it read with gradient"""
    prompt = torch.nn.Parameter(base.transformer.wte.weight[300 : 300 + P].detach().clone())
    base.score.requires_grad_(True)

    def loss_of(ids, lengths, labels):
        x = F.pad(base.transformer.wte(ids), (0, 0, 0, P))  # (B, T+P, C)
        mask = torch.zeros(x.shape[:2], device=x.device)
        for row, length in enumerate(lengths.tolist()):
            x[row, length : length + P] = prompt
            mask[row, : length + P] = 1
        return base(inputs_embeds=x, attention_mask=mask, labels=labels).loss

    return peer([prompt, base.score.weight], loss_of, bf16)


def peft_prompt_tuning(base, P, bf16):
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(base, PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)).to(base.device).eval()

    def loss_of(ids, lengths, labels):
        mask = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        return model(input_ids=ids, attention_mask=mask, labels=labels).loss

    return peer([p for p in model.parameters() if p.requires_grad], loss_of, bf16)


def products(gpt2, P, read=True):
    """(forward, backward) pairs of (rows, weight): the matrix products of one of our steps, and no more"""

    def layers(rows, last_rows):
        for i, block in enumerate(gpt2.h):
            yield rows, block.attn.c_attn.weight
            after = last_rows if i == len(gpt2.h) - 1 else rows
            for layer in (block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj) if after else ():
                yield after, layer.weight

    def of(batch):
        B, T = batch[0].shape
        prompt = list(layers(B * P, B))
        return (list(layers(B * T, 0)) if read else []) + prompt, prompt

    return of


@torch.no_grad()
def run_products(gpt2, P, read=True):
    of, inputs = products(gpt2, P, read), {}

    def times(rows, channels):
        if (rows, channels) not in inputs:
            inputs[rows, channels] = torch.randn(rows, channels, dtype=gpt2.wte.weight.dtype, device=gpt2.wte.weight.device)
        return inputs[rows, channels]

    def step(batch):
        forward, backward = of(batch)
        for rows, weight in forward:
            F.linear(times(rows, weight.shape[1]), weight)
        for rows, weight in backward:
            times(rows, weight.shape[0]) @ weight

    return step


# ---- measuring ----------------------------------------------------------------------------------


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step, todo, device):
    synchronize(device)
    start = time.perf_counter()
    for batch in todo:
        step(batch)
    synchronize(device)
    return time.perf_counter() - start


def peak_bytes(step, batch, device):
    """Memory of one step above what was held before it (weights included in what was held)."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(batch)
        return torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark

    def status(key):
        return 1024 * int(re.search(rf"{key}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])

    before = status("VmRSS")
    step(batch)
    return status("VmHWM") - before


def graph_bytes(step, batch):
    """What autograd keeps for the backward pass: bytes of storages made during the forward pass."""
    kept, texts = {}, set()
    read = GPT2.read

    def note(self, ids):
        text = read(self, ids)
        texts.add(text.untyped_storage().data_ptr())
        return text

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    GPT2.read = note
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            step(batch)
    finally:
        GPT2.read = read
    return kept, texts


def chip_of(device):
    """Its name; of a CPU also which instructions it has of those that matter here."""
    info = Path("/proc/cpuinfo").read_text()
    name, *_ = re.findall(r"^model name\s*: (.+)", info, re.M) or [platform.machine()]
    has = [flag for flag in ("avx2", "avx512_bf16", "amx_bf16") if re.search(rf"\b{flag}\b", info)]
    return torch.cuda.get_device_name(device) if device.type == "cuda" else " ".join([name, *has])


def make_batches(args, device):
    """[(batches that stand for an epoch, the epoch's mean length)]: as training draws them, and in random order."""
    tokenizer = Tokenizer(ROOT / "weights/tiny/merges.txt")
    examples = [(tokenizer.encode(text), label) for text, label in read_split(args.data, "train")]
    if args.text_tokens:
        joined = [i for ids, _ in examples for i in ids]
        T = args.text_tokens
        examples = [(joined[i : i + T], i // T % 2) for i in range(0, len(joined) - T, T)]
    lengths = torch.tensor([float(len(ids)) for ids, _ in examples])

    def some(plan):
        plan = torch.tensor([batch for batch in plan if len(batch) == args.batch_size])  # (batches, B)
        longest = lengths[plan].amax(1)  # the length of a batch, pads included
        parts = longest.argsort(stable=True).tensor_split(min(args.batches, len(plan)))
        chosen = [part[(longest[part] - longest[part].mean()).abs().argmin()] for part in parts]
        todo = [tuple(t.to(device) for t in collate([examples[i] for i in plan[k].tolist()])) for k in chosen]
        return todo, longest.mean().item()

    near = some(batches(examples, args.batch_size, epoch=1))
    shuffled = random.Random(0).sample(range(len(examples)), len(examples))
    return [near] if args.text_tokens else [near, some(cut(shuffled, args.batch_size))]


def parse_args(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="gpt2", help="geometry of the model (%(default)s)")
    add("--data", default="reviews", help="data set whose batches are taken (%(default)s)")
    add("--text-tokens", type=int, help="texts of exactly so many tokens instead")
    add("--prompt-tokens", type=int, default=20, help="length of the prompt (%(default)s)")
    add("--batch-size", type=int, default=32, help="(%(default)s)")
    add("--batches", type=int, default=3, help="batches in a round (%(default)s)")
    add("--rounds", type=int, default=5, help="(%(default)s)")
    add("--device", type=device_of, default="cpu", help="(%(default)s)")
    add("--json", help="file to write the figures to")
    return parser.parse_args(argv)


LABELS = {
    "a": "the post, float32", "b": "the post, bf16 autocast", "c": "PEFT prompt tuning", "d": "ours", "d'": "ours, texts kept",
    "e": "ours, six in a pack", "f": "floor of d", "f'": "floor of d'",
    "g": "a in random order", "g'": "b in random order", "h": "c in random order",
}  # fmt: skip
MIXED = {"g": "a", "g'": "b", "h": "c"}
RATIOS = "a/d b/d c/d g/d g'/d h/d a/d' b/d' c/d' g/d' g'/d' h/d' g/a g'/b h/c a6/e e6/e f/d f'/d'".split()


def make_contenders(args, gpt2, todo, mixed=None):
    """{name: (step, batches)}; "a5" is (a) with a prompt of 5 tokens, "e5" is (e)'s prompt of 5 tokens alone"""
    P, device, bf16 = args.prompt_tokens, args.device, gpt2.wte.weight.dtype == torch.bfloat16
    texts = {id(batch): gpt2.read(batch[0]) for batch in todo}
    steps = {"d": ours(gpt2, [P]), "d'": ours(gpt2, [P], texts), "e": ours(gpt2, PACK)}
    steps |= {f"e{p}": ours(gpt2, [p]) for p in PACK}
    steps |= {"f": run_products(gpt2, P), "f'": run_products(gpt2, P, read=False)}
    try:
        base = hugging_face(args.size, device)
        steps["a"] = post(base, P, False)
        if bf16:
            steps["b"] = post(base, P, True)
        if not args.text_tokens:  # it takes long, and on long texts says nothing new
            steps |= {f"a{p}": post(base, p, False) for p in PACK}
        steps["c"] = peft_prompt_tuning(hugging_face(args.size, device), P, bf16)
    except ImportError as error:
        print(f"without some peers: {error}", file=sys.stderr)
    contenders = {name: (step, todo) for name, step in steps.items()}
    contenders |= {name: (steps[of], mixed) for name, of in MIXED.items() if mixed and of in steps}
    return dict(sorted(contenders.items()))


def main(argv=None):
    args = parse_args(argv)
    device, P = args.device, args.prompt_tokens
    C, L, H = SIZES[args.size]
    torch.manual_seed(0)
    todo, epoch_means = zip(*make_batches(args, device))
    shapes = [[tuple(batch[0].shape) for batch in its] for its in todo]
    dtype = body_dtype("auto", device)
    gpt2 = GPT2(GPT2Config(V, POSITIONS, C, L, H)).to(device, dtype).requires_grad_(False)
    contenders = make_contenders(args, gpt2, *todo)

    times = {name: [] for name in contenders}
    for round in trange(-3, args.rounds, unit="round", disable=None):  # the first three are warm-up
        for name, (step, its) in contenders.items():
            spent = seconds(step, its, device)
            if round >= 0:
                times[name].append(spent)
    median = {name: statistics.median(spent) for name, spent in times.items()}
    for six in "ae":
        if f"{six}{PACK[0]}" in median:
            median[f"{six}6"] = sum(median[f"{six}{p}"] for p in PACK)
    largest = {name: (step, max(its, key=lambda batch: batch[0].shape[1])) for name, (step, its) in contenders.items()}
    memory = {name: peak_bytes(*largest[name], device) for name in LABELS if name in contenders}
    kept, texts = graph_bytes(*largest["d"])
    weights = {p.untyped_storage().data_ptr() for p in gpt2.parameters()}
    graph = sum(size for pointer, size in kept.items() if pointer not in texts | weights)
    flops = sum(2 * rows * w.numel() for batch in todo[0] for part in products(gpt2, P)(batch) for rows, w in part)

    ratios = {pair: median[a] / median[b] for pair in RATIOS for a, b in [pair.split("/")] if {a, b} <= median.keys()}
    if "a" in memory:
        ratios["memory a/d"] = memory["a"] / memory["d"]
    n, chip, threads = args.batch_size * len(todo[0]), chip_of(device), torch.get_num_threads()
    print(f"{args.size}, P = {P}, {dtype} on {device} ({chip}; threads: {threads}), medians of {args.rounds} rounds")
    for order, its, mean in zip(("near-equal lengths", "random order"), shapes, epoch_means):
        print(f"{order}: batches {its}, mean length {statistics.mean(T for _, T in its):.1f}, whole epoch {mean:.1f}")
    for name in memory:
        print(f"{name:3} {LABELS[name]:24} {n / median[name]:9.1f} examples/s  {median[name] / median['d']:6.2f} x d's time"
              f"  step's peak {memory[name] / 2**20:7.1f} MiB")  # fmt: skip
    print(f"autograd graph of d {graph / 2**20:.1f} MiB; matrix products alone {flops / median['f'] / 1e9:.0f} GFLOP/s")
    print("times: " + "  ".join(f"{pair} {value:.2f}" for pair, value in ratios.items()))
    sweep = SST2_ROWS * 3 / n * median["e"]
    hours = f"{sweep / 3600:.1f} hours ({sweep / 60:.0f} minutes)"
    print(f"SST-2's {SST2_ROWS:,} rows x 3 epochs with the pack, projected from these steps: {hours}")
    if args.json:
        figures = {"argv": sys.argv[1:] if argv is None else argv, "chip": chip, "cores": os.cpu_count(),
                   "versions": {"python": platform.python_version(), "torch": torch.__version__}, "threads": threads,
                   "dtype": str(dtype), "batches": shapes, "epoch_means": epoch_means, "seconds": times,
                   "peak_bytes": memory, "graph_bytes": graph, "ratios": ratios, "sweep_seconds": sweep}  # fmt: skip
        Path(args.json).write_text(json.dumps(figures, indent=2) + "\n")
    return ratios


if __name__ == "__main__":
    main()
