"""What becomes of one text, in numbers: every step of minimal.py, then the gradients of training.

python porting/story.py "great fun"
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from minimal import block, layer_norm, logits_of, tokenizer  # noqa: E402

TINY = ROOT / "weights" / "tiny"
PROMPT = TINY / "prompts" / "reviews-p10" / "prompt.safetensors"


def numbers(row, form="9.3f"):
    return "".join(f"{value:{form}}" for value in row)


def show(step, x):
    """(Q, C): the beginnings of the first row and of the last"""
    print(f"{step:10}{tuple(x.shape)}{numbers(x[0, :4])} ...{numbers(x[-1, :4])} ...")


def show_positions(ids, P, bpe):
    tokens = "  ".join(f"{bpe.decode([i])!r} (id {i})" for i in ids)
    print(f"positions 0 to {len(ids) - 1}: {tokens}")
    print(f"positions {len(ids)} to {len(ids) + P - 1}: the prompt\n")


def show_gradients(loss_of_label, vectors, head):
    print(
        "\nlabel, loss, the norm of the gradient on: head, prompt, each of the prompt's vectors"
    )
    for label, loss in enumerate(loss_of_label):
        of_vectors, of_head = torch.autograd.grad(loss, (vectors, head), retain_graph=True)
        norms = [of_head.norm(), of_vectors.norm(), *of_vectors.norm(dim=1)]
        print(label, numbers([loss, *norms], "7.3f"))


def tell(text="great fun", folder=TINY, prompt=PROMPT):
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    stored = load_file(folder / "model.safetensors")
    weights = {name: tensor.double() for name, tensor in stored.items()}
    trained = load_file(prompt)
    vectors = trained["prompt"].double().requires_grad_()  # (P, C)
    head = trained["head.weight"].double().requires_grad_()  # (N, C)
    bpe = tokenizer(folder / "merges.txt")
    ids = bpe.encode_ordinary(text.strip())[: config["n_positions"] - len(vectors)]
    show_positions(ids, len(vectors), bpe)

    # The same steps as in logits_of, with a line after each.
    print(f"after     (T+P, C)  {'first row, a token':40}last row, the last vector of the prompt")
    x = torch.cat([weights["wte.weight"][ids], vectors])  # (T+P, C)
    x = x + weights["wpe.weight"][: len(x)]
    show("embedding", x)
    for i in range(config["n_layer"]):
        x = block(x, weights, config, i)
        show(f"h.{i}", x)
    show("ln_f", layer_norm(x, weights, "ln_f", config["layer_norm_epsilon"]))

    logits = logits_of(ids, vectors, head, weights, config)  # (N,)
    shares = numbers(logits.softmax(0))
    print(f"\nthe last row times the head: logits{numbers(logits, '10.5f')}, probabilities{shares}")
    show_gradients(-logits.log_softmax(0), vectors, head)


if __name__ == "__main__":
    tell(*sys.argv[1:])
