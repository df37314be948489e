"""The seconds of (d), (d') and (e) of bench/benchmark.py, in one checkout of this project.

    python bench/one_checkout.py FOLDER < request.json

`benchmark.py --beside` starts it, once a round and checkout.  What is measured is the model.py and
the train.py of FOLDER, whatever version that is; the batches come with the request, so that both
checkouts train on the same.  The answer is a line of JSON: {"seconds": {name: a round's}, "losses":
{name: of the last step}}.
"""

import json
import statistics
import sys
import time
from pathlib import Path

# Only this checkout's modules: not those of the folder in which this file lies.
sys.path.insert(0, str(Path(sys.argv[1]).absolute()))

import torch

from model import GPT2, GPT2Config, Prompt
from train import train_step

WARM_UP = 3  # rounds


def random_gpt2(request):
    """A frozen body whose weights are the same in every checkout."""
    device = torch.device(request["device"])
    C, L, H = request["sizes"]
    gpt2 = GPT2(GPT2Config(request["vocabulary"], request["positions"], C, L, H))
    torch.manual_seed(0)
    # By name, so that no order of definitions matters.
    for name, weights in sorted(gpt2.named_parameters()):
        if "ln_" not in name:
            torch.nn.init.normal_(weights, std=0.02)
    gpt2.to(device, getattr(torch, request["dtype"])).requires_grad_(False)
    try:
        from support.packed import pack
    except ImportError:  # the checkout is older than packed weights
        return gpt2
    pack(gpt2, with_gradient=True)
    return gpt2


def step_of(gpt2, lengths):
    """One pack of prompts of these lengths -> the function that trains it on a batch."""
    prompts = []
    for P in lengths:
        vectors = gpt2.wte.weight[300 : 300 + P].float()
        prompts.append(Prompt(vectors, torch.zeros(2, gpt2.config.n_embd)).to(vectors.device))
    parameters = [tensor for prompt in prompts for tensor in prompt.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)

    def step(batch):
        return train_step(gpt2, prompts, optimizer, *batch)

    return step


def measure(step, batches, rounds):
    """Median time of a round and of the CPU in it, and the loss of the last step.

    Both checkouts should come to the same loss.
    """
    spent = []
    spent_by_cpu = []
    for number in range(-WARM_UP, rounds):
        start = time.perf_counter()
        cpu_start = time.process_time()
        for batch in batches:
            loss = step(batch)[0]
        value = loss.mean().item()  # waits for a GPU to end
        if number >= 0:
            spent.append(time.perf_counter() - start)
            spent_by_cpu.append(time.process_time() - cpu_start)
    return statistics.median(spent), statistics.median(spent_by_cpu), value


def main():
    request = json.load(sys.stdin)
    if request["threads"]:
        torch.set_num_threads(request["threads"])
    gpt2 = random_gpt2(request)
    batches = []
    for batch in request["batches"]:
        batches.append([torch.tensor(part, device=gpt2.wte.weight.device) for part in batch])
    # `read` is what `text_pass` was called at first.
    text_pass = gpt2.text_pass if hasattr(gpt2, "text_pass") else gpt2.read
    kept = [[*batch, text_pass(batch[0])] for batch in batches]

    P = [request["prompt_tokens"]]
    answer = {"seconds": {}, "cpu_seconds": {}, "losses": {}}
    for name, lengths, given in (
        ("d", P, batches),
        ("d'", P, kept),
        ("e", request["pack"], batches),
    ):
        found = measure(step_of(gpt2, lengths), given, request["rounds"])
        spent, spent_by_cpu, loss = found
        answer["seconds"][name] = spent
        answer["cpu_seconds"][name] = spent_by_cpu
        answer["losses"][name] = loss
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
