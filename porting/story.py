"""What becomes of one text, in numbers: every step of minimal.py, then the gradients of training.

python porting/story.py "great fun"
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import argparse
import json

import torch

from minimal import block, layer_norm, logits_of, tokenizer
from support.files import read_safetensors
from support.terminal import emit, ending

ROOT = Path(__file__).parent.parent
TINY = ROOT / "weights" / "tiny"
PROMPT = TINY / "prompts" / "reviews-p10" / "prompt.safetensors"


def numbers(row, form="9.3f"):
    """Some numbers side by side"""
    return "".join(f"{value:{form}}" for value in row)


def show(step, x):
    """A line: the beginnings of the first row of x (Q, C), and of the last"""
    emit(f"{step:10}{tuple(x.shape)}{numbers(x[0, :4])} ...{numbers(x[-1, :4])} ...")


def show_positions(ids, P, bpe):
    """Which token stands where, and where the prompt does"""
    tokens = []
    for number in ids:
        tokens.append(f"{bpe.decode([number])!r} (id {number})")
    emit(f"positions 0 to {len(ids) - 1}: {'  '.join(tokens)}")
    emit(f"positions {len(ids)} to {len(ids) + P - 1}: the prompt\n")


def show_gradients(logits, vectors, head):
    """A line a label: were it the right one, the loss of logits (N,) and how long its gradients"""
    emit("\nlabel, loss, the norm of the gradient on: head, prompt, each of the prompt's vectors")
    for label, loss in enumerate(-logits.log_softmax(0)):
        of_vectors, of_head = torch.autograd.grad(loss, (vectors, head), retain_graph=True)
        norms = [of_head.norm(), of_vectors.norm(), *of_vectors.norm(dim=1)]
        emit(f"{label} {numbers([loss, *norms], '7.3f')}")


def tell(text="great fun", folder=TINY, prompt=PROMPT):
    """Print what becomes of a text.  folder: a checkpoint; prompt: of which file"""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    stored, _ = read_safetensors(folder / "model.safetensors")
    weights = {name: tensor.double() for name, tensor in stored.items()}
    trained, _ = read_safetensors(prompt)
    vectors = trained["prompt"].double().requires_grad_()  # (P, C)
    head = trained["head.weight"].double().requires_grad_()  # (N, C)
    bpe = tokenizer(folder / "merges.txt")
    ids = bpe.encode_ordinary(text.strip())[: config["n_positions"] - len(vectors)]
    show_positions(ids, len(vectors), bpe)

    # The same steps as in logits_of, with a line after each.
    emit(f"after     (T+P, C)  {'first row, a token':40}last row, the last vector of the prompt")
    x = torch.cat([weights["wte.weight"][ids], vectors])  # (T+P, C)
    x = x + weights["wpe.weight"][: len(x)]
    show("embedding", x)
    for i in range(config["n_layer"]):
        x = block(x, weights, config, i)
        show(f"h.{i}", x)
    show("ln_f", layer_norm(x, weights, "ln_f", config["layer_norm_epsilon"]))

    logits = logits_of(ids, vectors, head, weights, config)  # (N,)
    shares = numbers(logits.softmax(0))
    emit(f"\nthe last row times the head: logits{numbers(logits, '10.5f')}, probabilities{shares}")
    show_gradients(logits, vectors, head)


@ending()
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="?", default="great fun")
    parser.add_argument("folder", nargs="?", default=TINY, help="a checkpoint")
    parser.add_argument("prompt", nargs="?", default=PROMPT, help="a prompt.safetensors of it")
    args = parser.parse_args(argv)
    tell(args.text, args.folder, args.prompt)


if __name__ == "__main__":
    main()
