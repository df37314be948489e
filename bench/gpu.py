"""What bench/gpu.sh asks of a GPU, one part a call.

    python bench/gpu.py PART [--device cpu] [--small] [--work FOLDER] [--out FOLDER]

A part ends by a line "= what it found", or in an error.  A part of several says each as it comes,
"- what it found".  --small: as little as shows that the part runs.  --work: a folder for runs; one
part finds there what another has left.  --out: a folder for figures as JSON.
"""

import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import torch
import torch.distributed as dist
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import benchmark
import evaluate
import train
from metrics import score
from model import Prompt, classify, losses
from support.checkpoint import ROOT, open_checkpoint
from support.dataset import read_split
from support.files import safetensors_bytes
from support.meter import Meter
from support.processes import device_of, joined
from support.settings import Parser, Settings, add_flag
from support.terminal import ending

TRAIN_STEP = train.train_step
SST2_TRAIN = 57_549  # texts, with 872 held out and what stands in them dropped
SST2_DEV = 872


@dataclass(frozen=True)
class Task:
    """What a part is asked."""

    device: torch.device
    small: bool
    work: Path  # for run folders
    out: Path  # for figures

    def pick(self, full, small):
        """A size: as on a GPU, or as small as shows that the part runs."""
        return small if self.small else full

    @property
    def is_cuda(self):
        return self.device.type == "cuda"

    @property
    def size(self):
        return self.pick("gpt2", "tiny")

    @property
    def body_dtype(self):
        return torch.bfloat16 if self.is_cuda else torch.float32


def say(text):
    """One finding of several, as it comes."""
    print(f"- {text}", flush=True)


# ---- runs -----------------------------------------------------------------------------------


def run_folder(task, name, *flags):
    """Train the bundled model on reviews in a folder of this name -> its path"""
    path = task.work / name
    words = ["--device", task.device.type, "--out", str(path), *map(str, flags)]
    if task.small:
        words += ["--data", str(sst2_like(task)), "--batch-size", "4"]
    train.main(words)
    return path


def prompt_of(run):
    """The bytes of a run's one prompt."""
    [path] = run.glob("prompts/*/prompt.safetensors")
    return path.read_bytes()


def steps(task):
    return task.pick(300, 6)


def straight_run(task):
    """A run that was never stopped, made once."""
    path = task.work / "straight"
    if (path / "summary.json").exists():
        return path
    return run_folder(task, "straight", "--steps", steps(task))


def learns(task):
    """The default run learns, and is scored."""
    flags = task.pick([], ["--steps", 6])
    started = time.perf_counter()
    run = run_folder(task, "learns", *flags)
    spent = time.perf_counter() - started
    # A cuDNN plan for each length of texts would cost more than the attention.
    plans = task.is_cuda and torch.backends.cuda.cudnn_sdp_enabled()
    evaluate.main(["score", str(run), "--device", task.device.type])
    summary = json.loads((run / "summary.json").read_text())
    accuracy = summary["prompts"][0]["accuracy"]
    majority = summary["baselines"]["majority"]
    if not task.small and accuracy < majority + 0.2:
        raise ValueError(f"accuracy {accuracy:.4f} on dev, where the majority is {majority:.4f}")
    if plans:
        raise ValueError("train.py leaves cuDNN's attention on, which plans for each length")
    return f"dev {accuracy:.4f} (majority {majority:.4f}), {spent:.0f} s of training"


def equal(task):
    """Two equal runs come to the same bits."""
    first = prompt_of(straight_run(task))
    second = prompt_of(run_folder(task, "again", "--steps", steps(task)))
    if first != second:
        raise ValueError(f"two equal runs of {steps(task)} steps differ: {far(first, second)}")
    return f"two runs of {steps(task)} steps: the same {len(first):,} bytes"


def far(first, second):
    """How far two prompt files, in bytes, are apart."""
    one = torch.frombuffer(bytearray(first[-4096:]), dtype=torch.float32)
    two = torch.frombuffer(bytearray(second[-4096:]), dtype=torch.float32)
    if len(first) != len(second):
        return "not even of one length"
    return f"by up to {(one - two).abs().max():.2e} in their last {len(one):,} numbers"


def resumes(task):
    """Stopped halfway and resumed, a run comes to the bits of one never stopped."""
    half = steps(task) // 2
    calls = 0

    def step(*given, **more):
        nonlocal calls
        calls += 1
        if calls == half:
            os.kill(os.getpid(), signal.SIGINT)
        return TRAIN_STEP(*given, **more)

    train.train_step = step
    code = 0
    try:
        run_folder(task, "stopped", "--steps", steps(task))
    except SystemExit as end:
        code = end.code
    finally:
        train.train_step = TRAIN_STEP
    if code != 128 + signal.SIGINT:
        raise ValueError(f"a run that was interrupted ended with exit code {code}")
    path = task.work / "stopped"
    train.main(["--resume", str(path)])
    straight = prompt_of(straight_run(task))
    resumed = prompt_of(path)
    if straight != resumed:
        raise ValueError(f"resumed at step {half} it differs: {far(straight, resumed)}")
    return f"stopped at step {half} of {steps(task)} and resumed: the same bytes"


# ---- the arithmetic -------------------------------------------------------------------------


def float64(task):
    """Logits and gradients in float64 are those of the CPU."""
    here = answers(torch.device("cpu"))
    there = answers(task.device)
    worst = 0.0
    for one, two in zip(here, there, strict=True):
        worst = max(worst, float((one - two).abs().max() / one.abs().max()))
    if not worst < 1e-10:
        raise ValueError(f"logits or gradients in float64 differ by {worst:.1e}")
    return f"logits and gradients differ from the CPU's by {worst:.1e}, relative to the largest"


def answers(device):
    """Logits of a pack on a batch, and the gradients of its loss, in float64 on the CPU."""
    gpt2 = open_checkpoint("tiny").load(torch.float64, device)
    generator = torch.Generator().manual_seed(0)
    C = gpt2.config.n_embd
    prompts = []
    for P in (1, 5, 20):
        vectors = torch.randn(P, C, generator=generator, dtype=torch.float64)
        head = torch.randn(2, C, generator=generator, dtype=torch.float64)
        prompts.append(Prompt(vectors * 0.1, head * 0.1).to(device))
    lengths = torch.tensor(
        [1, 7, 30, 12, 119]
    )  # the last leaves the longest prompt too little room
    ids = torch.randint(8000, (5, 119), generator=generator)
    labels = torch.tensor([0, 1, 1, 0, 1])
    logits = classify(gpt2, prompts, ids.to(device), lengths.to(device))  # (K, B, N)
    losses(logits, labels.to(device)).sum().backward()
    found = [logits.detach().cpu()]
    for prompt in prompts:
        found += [prompt.vectors.grad.cpu(), prompt.head.grad.cpu()]
    return found


# ---- speed ----------------------------------------------------------------------------------


def random_batch(gpt2, B, T):
    """[ids, lengths, labels] of B texts of T tokens."""
    device = gpt2.wte.weight.device
    ids = torch.randint(gpt2.config.vocab_size, (B, T), device=device)
    return [ids, torch.full((B,), T, device=device), torch.arange(B, device=device) % 2]


def body(task):
    return benchmark.random_gpt2(task.size, task.device, task.body_dtype)


def step_seconds(task, step, batch, count=5):
    """Median time of a step."""
    warm_up = task.pick(3, 1)
    spent = []
    for number in range(-warm_up, task.pick(count, 1)):
        contender = benchmark.Contender(step, [batch])
        seconds = benchmark.seconds(contender, task.device)
        if number >= 0:
            spent.append(seconds)
    return statistics.median(spent)


def stalls(task):
    """No step waits for the device, and none for a plan of its shape."""
    gpt2 = body(task)
    found = ["a step does not wait for the device"]
    if task.is_cuda:
        refuse_syncs(gpt2)
    else:
        found = ["without CUDA no wait is looked for"]
    lengths = task.pick(range(1, 61), range(1, 4))
    # The project's own way first, then the way of torch by default.
    for name, cudnn in (("ours", False), ("cuDNN's", True)):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        first = [pass_seconds(task, gpt2, T) for T in lengths]
        again = [pass_seconds(task, gpt2, T) for T in lengths]
        more = [one - two for one, two in zip(first, again, strict=True)]
        stall = statistics.median(more)
        found.append(
            f"{len(more)} lengths, {name} attention: first {sum(first):.2f} s, again "
            f"{sum(again):.2f} s; a first one takes {stall * 1e3:.1f} ms more, at worst "
            f"{max(more) * 1e3:.0f}"
        )
        if task.is_cuda and not cudnn and stall > 0.005:
            raise ValueError(found[-1])
    return "; ".join(found)


def refuse_syncs(gpt2):
    """RuntimeError of torch where a step, or the meter, waits for the GPU."""
    batch = random_batch(gpt2, 32, 12)
    kv = gpt2.text_pass(batch[0])
    for lengths in ([20], [1, 5, 5, 20]):
        step = benchmark.ours(gpt2, lengths)
        meter = Meter()
        step(batch)  # the first one makes Adam's state
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for given in (batch, [*batch, kv]):
                meter.add(*step(given), 32, 32)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def pass_seconds(task, gpt2, T):
    """Time of reading 32 texts of T tokens."""
    ids = random_batch(gpt2, 32, T)[0]
    benchmark.synchronize(task.device)
    start = time.perf_counter()
    gpt2.text_pass(ids)
    benchmark.synchronize(task.device)
    return time.perf_counter() - start


def beside_peers(task):
    """bench/benchmark.py, of several sizes."""
    full = [
        ("gpt2", 32, "bfloat16"),
        ("gpt2", 256, "bfloat16"),
        ("gpt2-large", 32, "bfloat16"),
        ("gpt2", 32, "float32"),
    ]
    asked = task.pick(full, [("tiny", 2, "float32")])
    for size, B, dtype in asked:
        path = task.out / f"{size}-{B}-{dtype}.json"
        words = ["--size", size, "--batch-size", str(B), "--dtype", dtype, "--json", str(path)]
        words += ["--device", task.device.type, "--batches", task.pick("2", "1")]
        words += ["--rounds", task.pick("4", "1")]
        ratios = benchmark.main(words)
        figures = json.loads(path.read_text())
        speeds = []
        for name in ("d", "d'", "e"):
            speeds.append(f"{name} {figures['texts'] / figures['median'][name]:,.0f}/s")
        pairs = ("a/d", "b/d", "c/d", "g/d", "h/d", "e6/e", "f/d")
        times = [f"{pair} {ratios[pair]:.2f}" for pair in pairs if pair in ratios]
        sweep = figures["sweep_seconds"] / 60
        peak = (figures["peak_bytes"]["d"] or 0) / 2**20
        say(
            f"{size}, batch {B}, {dtype}: {', '.join(speeds)}; {' '.join(times)}; a step of d "
            f"takes {peak:.0f} MiB; SST-2 x 3 epochs x 6 prompts {sweep:.0f} minutes"
        )
    return f"{len(asked)} sizes measured"


def launches(task):
    """How many kernels a step launches, and what share of its time they run."""
    gpt2 = body(task)
    B = task.pick(32, 2)
    batch = random_batch(gpt2, B, 12)
    kept = [*batch, gpt2.text_pass(batch[0])]
    found = []
    for name, lengths, given in (
        ("d", [20], batch),
        ("d'", [20], kept),
        ("e", benchmark.PACK, batch),
    ):
        step = benchmark.ours(gpt2, lengths)
        spent = step_seconds(task, step, given)  # without the profiler, which slows it
        kernels, busy = profiled(task, step, given)
        found.append(
            f"{name} {spent * 1e3:.2f} ms, {kernels:.0f} launches, busy {busy / spent:.0%}"
        )
    return f"{task.size}, batch {B}, 12 tokens: " + "; ".join(found)


def profiled(task, step, batch):
    """Of a step: kernels launched, on a CPU operations, and seconds for which they ran."""
    count = task.pick(3, 1)
    activities = [ProfilerActivity.CPU]
    if task.is_cuda:
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as seen:
        for _ in range(count):
            step(batch)
        benchmark.synchronize(task.device)
    # On a GPU all that ran there, but for ranges of a name only; on a CPU torch's operations.
    if task.is_cuda:
        ran = [event for event in seen.events() if event.device_type != DeviceType.CPU]
        ran = [event for event in ran if not event.name.startswith("Optimizer.")]
        busy = sum(event.time_range.elapsed_us() for event in ran)
    else:
        ran = [event for event in seen.events() if event.name.startswith("aten::")]
        busy = sum(event.self_cpu_time_total for event in ran)
    return len(ran) / count, busy / count / 1e6


def packs(task):
    """What a pack costs for each of its prompts."""
    gpt2 = body(task)
    B = task.pick(32, 2)
    batch = random_batch(gpt2, B, 12)
    kept = [*batch, gpt2.text_pass(batch[0])]
    found = []
    for K in task.pick((1, 6, 18, 54, 500), (1, 2)):
        step = benchmark.ours(gpt2, [5] * K)
        spent = step_seconds(task, step, kept, count=3)
        peak = benchmark.peak_bytes(benchmark.Contender(step, [kept]), task.device) or 0
        found.append(
            f"{K} {spent * 1e3:.1f} ms ({spent / K * 1e3:.2f} a prompt, {peak / 2**20:,.0f} MiB)"
        )
        say(f"pack of {found[-1]}")
    return f"prompts of 5 tokens, {B} texts of 12, kept: " + "; ".join(found)


# ---- a whole epoch --------------------------------------------------------------------------


def epoch(task):
    """Two epochs of a data set of SST-2's size, from the files to the scores."""
    B = best_batch(task)
    gpt2 = write_random_gpt2(task)
    data = sst2_like(task)
    if task.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    run = task.work / "epoch"
    start = time.perf_counter()
    words = ["--model", str(gpt2), "--data", str(data), "--epochs", "2", "--batch-size", str(B)]
    train.main([*words, "--device", task.device.type, "--out", str(run)])
    spent = time.perf_counter() - start
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    speeds = []
    for number in (1, 2):
        each = [
            line["examples_per_second"]
            for line in lines
            if line["epoch"] == number and line["examples_per_second"]
        ]
        speeds.append(f"{statistics.median(each):,.0f}" if each else "-")
    peak = torch.cuda.max_memory_allocated() / 2**30 if task.is_cuda else 0
    facts = json.loads((run / "run.json").read_text())
    scored = scoring_speed(task, B)
    return (
        f"{task.size}, batch {B}, {facts['texts']['train']:,} texts: {spent:.0f} s for two epochs, "
        f"scores, reading and writing; texts/s {speeds[0]} read, then {speeds[1]}; scoring "
        f"{scored:,.0f} texts/s; peak {peak:.1f} GiB; {projected(task)}"
    )


def best_batch(task):
    """The batch size of the most texts a second, of 12 tokens and a prompt of 10."""
    gpt2 = body(task)
    speed = {}
    for B in task.pick((32, 64, 128, 256, 512, 1024), (2, 4)):
        step = benchmark.ours(gpt2, [10])
        speed[B] = B / step_seconds(task, step, random_batch(gpt2, B, 12))
    told = ", ".join(f"{B} {value:,.0f}" for B, value in speed.items())
    say(f"texts/s by batch size: {told}")
    return max(speed, key=speed.get)


def scoring_speed(task, B):
    """Texts a second of scoring one prompt."""
    gpt2 = body(task)
    count = task.pick(SST2_DEV, 8)
    examples = [(list(range(1, 2 + i % 40)), i % 2) for i in range(count)]
    prompt = Prompt(gpt2.wte.weight[:10].float(), torch.zeros(2, gpt2.config.n_embd))
    prompts = [prompt.to(task.device)]
    for _ in range(2):  # the first one is warm-up
        start = time.perf_counter()
        score(gpt2, prompts, examples, B)
        spent = time.perf_counter() - start
    return count / spent


def write_random_gpt2(task):
    """A checkpoint of the size that is measured, with random weights -> its folder."""
    folder = task.work / "random-gpt2"
    folder.mkdir()
    tiny = ROOT / "weights" / "tiny"
    config = json.loads((tiny / "config.json").read_text())
    C, L, H = benchmark.SIZES[task.size]
    config |= {"n_embd": C, "n_layer": L, "n_head": H}
    config |= {"n_positions": benchmark.POSITIONS, "n_ctx": benchmark.POSITIONS}
    gpt2 = benchmark.random_body(task.size, torch.device("cpu"), torch.bfloat16)
    tensors = gpt2.state_dict()
    # The bundled tokenizer has fewer tokens than gpt2.
    tensors["wte.weight"] = tensors["wte.weight"][: config["vocab_size"]]
    for name, tensor in tensors.items():
        if name.endswith(("attn.c_attn.weight", "c_proj.weight", "mlp.c_fc.weight")):
            tensors[name] = tensor.t()  # official files have (in, out)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors, {"format": "pt"}))
    for name in ("merges.txt", "vocab.json"):
        (folder / name).write_bytes((tiny / name).read_bytes())
    return folder


def sst2_like(task):
    """SST-2, where it lies here, else texts of made-up words with its lengths -> its folder."""
    if not task.small and (ROOT / "sst2" / "train.tsv").exists():
        return ROOT / "sst2"
    words = sorted({word for text, _ in read_split("reviews", "train") for word in text.split()})
    generator = random.Random(0)
    folder = task.work / "like-sst2"
    if folder.exists():
        return folder
    folder.mkdir()
    # More rows than are trained on: what stands in the held out ones is dropped.
    for split, rows in (
        ("train", task.pick(SST2_TRAIN + 8_000, 60)),
        ("dev", task.pick(SST2_DEV, 8)),
    ):
        lines = ["sentence\tlabel"]
        for i in range(rows):
            # About the lengths of SST-2: half have up to 8 tokens, and the mean is 11.
            count = min(34, max(1, round(generator.lognormvariate(1.25, 0.8))))
            lines.append(" ".join(generator.choices(words, k=count)) + f"\t{i % 2}")
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def projected(task):
    """What a sweep of gpt2-large would take, where the benchmark has measured it."""
    path = task.out / "gpt2-large-32-bfloat16.json"
    if not path.exists():
        return "no sweep of gpt2-large is projected"
    minutes = json.loads(path.read_text())["sweep_seconds"] / 60
    return f"gpt2-large, six prompts on SST-2 for 3 epochs: {minutes:.0f} minutes, projected"


# ---- processes, and the tests ---------------------------------------------------------------


def nccl(task):
    """One process that was started as by torchrun: it joins, adds up, trains and leaves."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "one",
        "RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_RANK": "0",
    }
    with joined(device_of(task.device.type)):
        backend = dist.get_backend()
        numbers = torch.arange(1000.0, device=task.device)
        dist.all_reduce(numbers)
        if numbers.sum().item() != 499_500:
            raise ValueError(f"an all-reduce of one process changed its numbers: {numbers.sum()}")
    alone = prompt_of(straight_run(task))
    joint = prompt_of(run_folder(task, "nccl", "--steps", steps(task)))
    if alone != joint:
        raise ValueError(f"under {backend} a run differs: {far(alone, joint)}")
    return f"{backend}: all-reduce, and a run of {steps(task)} steps with the same bytes"


def tests(task):
    """The test suite on the device, where it takes one."""
    if "--device" not in (ROOT / "tests" / "conftest.py").read_text():
        return "skipped: tests/conftest.py hides a GPU and takes no --device"
    rooms = ["model", "metrics", "text_cache", "train"]
    names = [f"tests/test_{room}.py" for room in task.pick(rooms, ["meter"])]
    words = [sys.executable, "-m", "pytest", "-x", "--device", task.device.type, *names]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    last = (done.stdout.strip().splitlines() or [done.stderr[-200:]])[-1]
    if done.returncode != 0:
        print(done.stdout, done.stderr)
        raise ValueError(last)
    return f"{', '.join(names)}: {last}"


# ---- the command line -----------------------------------------------------------------------

PARTS = {
    "learns": learns,
    "float64": float64,
    "equal": equal,
    "resumes": resumes,
    "stalls": stalls,
    "benchmark": beside_peers,
    "launches": launches,
    "packs": packs,
    "epoch": epoch,
    "nccl": nccl,
    "tests": tests,
}


def main(argv=None):
    with ending():
        parser = Parser(description=__doc__)
        parser.add_argument("part", choices=PARTS)
        add_flag(parser, Settings, "device")
        parser.add_argument("--small", action="store_true")
        parser.add_argument("--work", help="a folder for runs (a new one)")
        parser.add_argument("--out", help="a folder for figures (that of runs)")
        args = parser.parse_args(argv)
        work = Path(args.work or tempfile.mkdtemp()).absolute()
        out = Path(args.out or work).absolute()
        device = device_of(args.device)
        torch.manual_seed(0)
        found = PARTS[args.part](Task(device, args.small, work, out))
        print(f"= {found}", flush=True)


if __name__ == "__main__":
    main()
