"""Ways to learn to classify with one small GPT-2: what is trained of it, and how it answers.

All are made of the bundled model, in float32 and without dropout, and learn by one loop, `fit`: the
batches, the rates' rise and fall, the clipping and the choice of the epoch are those of train.py.
What others made comes from their own libraries: transformers and PEFT.
"""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # where the modules lie

import support.threads  # noqa: F401  before torch, as in train.py

import peft
import torch
import transformers

from data import batches, collate, cut, epoch_order
from metrics import score_of, standing
from model import classify, losses
from support.checkpoint import open_checkpoint
from support.first_vectors import FirstVectors
from support.packed import pack
from train import CLIP, lr_share

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"
BATCH = 16
HEAD_LR = 0.005  # of every head, but where the head is all that is trained
CPU = torch.device("cpu")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.simplefilter("ignore", FutureWarning)


@dataclass(frozen=True)
class Way:
    """Who learns: what is trained, and at which rates, and the logits that it gives a batch."""

    groups: list[dict]  # of AdamW: `params`, and `peak`, the rate after the warm-up
    logits: Callable  # ids (B, T), lengths (B,) -> (B, N)

    def parameters(self):
        """All tensors that are trained."""
        return [tensor for group in self.groups for tensor in group["params"]]


def make(name, rate, seed, labels, num_labels):
    """The Way of this name, before its first step.

    name: head, prompt-P, peft-P, lora, last-block or everything.  rate: of what it is named after;
    labels: what the answers are called; num_labels: N, 1 for a regression.
    """
    kind, _, P = name.partition("-")
    if kind in ("head", "prompt"):
        return our_prompt(int(P or 10), rate, seed, labels, num_labels, kind == "head")
    if kind == "peft":
        return peft_prompt(int(P), rate, seed, num_labels)
    return unfrozen(name, rate, seed, num_labels)


# ---- this project ---------------------------------------------------------------------------


def our_prompt(P, rate, seed, labels, num_labels, head_alone):
    """A prompt of P vectors after the text, and its head; head_alone: the vectors stay random."""
    checkpoint = open_checkpoint("tiny")
    gpt2 = checkpoint.load(torch.float32, CPU)
    pack(gpt2, with_gradient=not head_alone)
    prompt, _ = FirstVectors("sample", labels, num_labels, gpt2, checkpoint).draw(P, seed)
    prompt.vectors.requires_grad_(not head_alone)
    groups = [{"params": [prompt.head], "peak": rate if head_alone else HEAD_LR}]
    if not head_alone:
        groups.append({"params": [prompt.vectors], "peak": rate})

    def logits(ids, lengths):
        return classify(gpt2, [prompt], ids, lengths)[0]

    return Way(groups, logits)


# ---- what others made -----------------------------------------------------------------------


def hugging_face(seed, num_labels):
    """transformers' own classifier of the bundled model, its head random."""
    torch.manual_seed(seed)
    model = transformers.GPT2ForSequenceClassification.from_pretrained(
        TINY, num_labels=num_labels, dtype=torch.float32
    )
    # It finds a text's last token as the last that is no pad; no text holds this one.
    model.config.pad_token_id = model.config.eos_token_id
    return model.eval()  # without dropout, as this project


def as_asked(model, ids, lengths):
    """ids (B, T), padded on the right -> the same with the pad's id, and the mask, both (B, T)."""
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.masked_fill(~mask, model.config.pad_token_id), mask.long()


def peft_prompt(P, rate, seed, num_labels, side="left"):
    """PEFT's prompt tuning: P vectors before the text, and the head.

    side: where pads stand.  Behind a prompt transformers reads the answer at the last position,
    whether that is a pad or not; so pads on the right, which is its tokenizer's default, are read
    as if they were text.
    """
    model = hugging_face(seed, num_labels)
    config = peft.PromptTuningConfig(
        task_type=peft.TaskType.SEQ_CLS, num_virtual_tokens=P, prompt_tuning_init="SAMPLE_VOCAB"
    )
    model = peft.get_peft_model(model, config).eval()

    def logits(ids, lengths):
        ids, mask = as_asked(model, ids, lengths)  # (B, T) each
        if side == "left":
            T = ids.shape[1]
            # Every row turns by its pads, which so come to stand at its left.
            turned = (torch.arange(T) + lengths[:, None]) % T  # (B, T)
            ids = ids.gather(1, turned)
            mask = mask.gather(1, turned)
        return model(input_ids=ids, attention_mask=mask).logits

    return Way(groups_of(model, rate), logits)


def unfrozen(name, rate, seed, num_labels):
    """LoRA by PEFT (rank 8 on c_attn, as is PEFT's default for GPT-2), the last block and the last
    LayerNorm, or everything; and the head."""
    model = hugging_face(seed, num_labels)
    if name == "lora":
        config = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS,
            r=8,
            lora_alpha=16,
            target_modules=["c_attn"],
            fan_in_fan_out=True,  # GPT-2 keeps its matrices turned
        )
        model = peft.get_peft_model(model, config).eval()
    elif name == "last-block":
        model.requires_grad_(False)
        for part in (model.transformer.h[-1], model.transformer.ln_f, model.score):
            part.requires_grad_(True)
    elif name != "everything":
        raise ValueError(f"there is no way {name}")

    def logits(ids, lengths):
        ids, mask = as_asked(model, ids, lengths)  # (B, T) each
        return model(input_ids=ids, attention_mask=mask).logits

    return Way(groups_of(model, rate), logits)


def groups_of(model, rate):
    """What of a model is trained: the head at its own rate, all else at this one."""
    heads = []
    others = []
    for name, tensor in model.named_parameters():
        if tensor.requires_grad:
            (heads if "score" in name else others).append(tensor)
    return [{"params": heads, "peak": HEAD_LR}, {"params": others, "peak": rate}]


# ---- learning -------------------------------------------------------------------------------


def optimizer_of(way):
    """AdamW as train.py has it."""
    return torch.optim.AdamW(way.groups, weight_decay=0.0, fused=True)


def learn(way, optimizer, ids, lengths, labels):
    """One step on a batch: ids (B, T), lengths and labels (B,)."""
    loss = losses(way.logits(ids, lengths)[None], labels)[0]
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(way.parameters(), CLIP)
    optimizer.step()


def fit(way, train_set, held_set, epochs):
    """Train on [(ids, label)] and keep the epoch that is best on held_set -> its Score there.

    Without a held_set the last epoch is kept -> None.
    """
    optimizer = optimizer_of(way)
    plan = batches(train_set, BATCH)
    total = epochs * len(plan)
    step = 0
    best = None
    for epoch in range(1, epochs + 1):
        for number in epoch_order(len(plan), epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_share(step, total)
            learn(way, optimizer, *collate([train_set[i] for i in plan[number]]))
            step += 1
        if held_set:
            found = score(way, held_set)
            if best is None or standing(found) > standing(best):
                best = found
                kept = [tensor.detach().clone() for tensor in way.parameters()]
    if held_set:
        with torch.no_grad():
            for tensor, value in zip(way.parameters(), kept, strict=True):
                tensor.copy_(value)
    return best


@torch.no_grad()
def score(way, examples):
    """The Score of a Way on [(ids, label)]; texts of near-equal lengths are read together."""
    parts = []
    labels = []
    for some in cut(sorted(examples, key=lambda example: len(example[0])), BATCH):
        ids, lengths, found = collate(some)
        parts.append(way.logits(ids, lengths))  # (B, N)
        labels.append(found)
    return score_of(torch.cat(parts), torch.cat(labels))
