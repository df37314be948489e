"""A prompt trained here, in Hugging Face transformers.

    python porting/ports/transformers_port.py [PROMPT.safetensors [MODEL_FOLDER]]    reviews/dev.tsv

Three traps.  Padding: pads come after the prompt, not between text and prompt; here each row is
text, prompt, pads, so the positions that GPT2Model counts by itself are right.  (With pads on the
left, give position_ids as well.)  Pooling: the answer is read at lengths + P - 1, found by its
index; GPT2ForSequenceClassification looks for the last token that is no pad, which it can not see
in inputs_embeds, and has a head of config.num_labels rows.  Cutting: a text of more than n - P
tokens is cut, or the prompt has no room.
"""

import csv
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence
from transformers import GPT2Model, GPT2Tokenizer

ROOT = Path(__file__).parent.parent.parent
TINY = ROOT / "weights" / "tiny"
PROMPT = TINY / "prompts" / "reviews-p10" / "prompt.safetensors"


@torch.no_grad()
def answer(model, tokenizer, vectors, head, texts):
    """B texts, vectors (P, C), head (N, C) -> logits (B, N)"""
    room = model.config.n_positions - len(vectors)
    rows = []
    for text in texts:
        ids = torch.tensor(tokenizer.encode(text.strip())[:room], dtype=torch.int64)
        rows.append(torch.cat([model.wte(ids), vectors]))  # (T+P, C)
    lengths = torch.tensor([len(row) for row in rows])
    x = pad_sequence(rows, batch_first=True)  # (B, T+P, C), pads on the right
    mask = torch.arange(x.shape[1]) < lengths[:, None]
    hidden = model(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state  # after ln_f
    return hidden[torch.arange(len(x)), lengths - 1] @ head.T


def load(prompt=PROMPT, folder=TINY):
    """The first four that `answer` takes"""
    tensors = load_file(prompt)
    model = GPT2Model.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = GPT2Tokenizer.from_pretrained(folder)
    assert len(tokenizer) == model.config.vocab_size
    return model, tokenizer, tensors["prompt"], tensors["head.weight"]


def main(argv):
    with open(ROOT / "reviews" / "dev.tsv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows.sort(key=lambda row: len(row["sentence"]))
    port = load(*argv)
    right = 0
    for start in range(0, len(rows), 40):
        batch = rows[start : start + 40]
        labels = torch.tensor([int(row["label"]) for row in batch])
        logits = answer(*port, [row["sentence"] for row in batch])  # (B, N)
        right += int((logits.argmax(1) == labels).sum())
    print(f"accuracy {right / len(rows):.4f} of {len(rows)} texts")


if __name__ == "__main__":
    main(sys.argv[1:])
