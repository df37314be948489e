"""Inside a prompt: the tokens near its vectors, what it attends to, what an answer hangs on."""

import math
import re
from dataclasses import dataclass

import torch

from data import clean, cut
from metrics import decide
from support.records import to_json
from support.terminal import cell, emit, shown, table_text

NEAREST = 5

# ---- tokens ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class NearTokens:
    """What stands near one vector of a prompt."""

    vector: int
    began: str | None  # the token that it was before training
    moved: float | None  # how far from there
    norm: float
    nearest: list  # [(token, cosine)], the nearest first


def report_tokens(classifier, as_json):
    """Print what stands near the vectors of a Classifier's first prompt."""
    file = classifier.files[0]
    found, median = near_tokens(file, classifier.gpt2, classifier.tokenizer)
    show_tokens(found, median, as_json)


def near_tokens(file, gpt2, tokenizer):
    """The tokens nearest to each vector of a prompt: [NearTokens], and the tokens' median norm.

    file: the PromptFile.
    """
    # Some checkpoints pad V with rows that are no token's.
    table = gpt2.wte.weight[: tokenizer.size].float()  # (V, C)
    vectors = file.prompt.vectors.detach().to(table.device)  # (P, C)
    ids = file.init_ids  # none where a file gave the first vectors
    known = len(ids) == len(vectors) and max(ids) < len(table)
    found = []
    for i, vector in enumerate(vectors):
        began = None
        moved = None
        if known:
            began = tokenizer.decode([ids[i]])
            moved = (vector - table[ids[i]]).norm().item()
        cosines, best = torch.cosine_similarity(vector[None], table).topk(NEAREST)
        words = [tokenizer.decode([token]) for token in best.tolist()]
        nearest = list(zip(words, cosines.tolist(), strict=True))
        found.append(NearTokens(i, began, moved, vector.norm().item(), nearest))
    return found, table.norm(dim=1).median().item()


def show_tokens(found, median, as_json):
    """Print what near_tokens gave."""
    if as_json:
        for one in found:
            emit(to_json(one))
        return
    rows = []
    for one in found:
        began = None if one.began is None else repr(one.began)
        words = [f"{word!r} {cosine:.2f}" for word, cosine in one.nearest]
        lengths = [cell(one.moved, ".2f"), cell(one.norm, ".2f")]
        rows.append([one.vector, began] + lengths + words)
    header = ["vector", "began as", "moved", "norm", "nearest"]
    emit(table_text(header + [""] * (NEAREST - 1), rows))
    emit(
        "moved: distance from the vector of the token it began as; tokens have a median norm of "
        f"{median:.2f}.\nNeighbours need not explain a prompt: it may do its "
        "work beside unrelated words (arXiv 2112.08348)"
    )


# ---- attention ------------------------------------------------------------------------------


@torch.no_grad()
def attention_weights(gpt2, prompt, ids):
    """What the prompt's last vector attends to: T ids -> shares (L, H, T+P), float32 on the CPU.

    One causal pass over text and prompt, the plain form of what model.py does in two.
    """
    x = torch.cat([gpt2.wte.weight[ids], prompt.vectors])  # (T+P, C)
    x = (x + gpt2.wpe.weight[: len(x)])[None].type_as(gpt2.wpe.weight)  # (1, T+P, C)
    scores = []
    for block in gpt2.h:
        q, k, _ = block.attn.project(block.ln_1(x))  # each (1, H, T+P, D)
        scores.append(q[:, :, -1:] @ k.mT)  # (1, H, 1, T+P)
        x, _ = block.text_pass(x)  # (1, T+P, C)
    scores = torch.cat(scores).squeeze(2).float() * q.shape[3] ** -0.5  # (L, H, T+P)
    return scores.softmax(dim=2).cpu()


def words_of(gpt2, tokenizer, prompt, text):
    """As much of a text as leaves the prompt room -> its words, each with the white space before
    it, and what the prompt's last vector attends to: shares (L, H, W+1), the last its own.

    Attention goes to tokens.  No token reaches from one word into the next.
    """
    P = len(prompt.vectors)
    ids = tokenizer.encode(text)[: gpt2.config.n_positions - P]
    words = re.findall(r"\s*\S+", tokenizer.bpe.decode(ids, errors="ignore"))
    if not words:
        raise ValueError("the text is blank")
    sizes = [len(tokenizer.encode(word)) for word in words[:-1]]
    sizes += [len(ids) - sum(sizes), P]  # the last word may have been cut
    weights = attention_weights(gpt2, prompt, ids)  # (L, H, T+P)
    shares = [part.sum(dim=2) for part in weights.split(sizes, dim=2)]  # (W+1) x (L, H)
    return words, torch.stack(shares, dim=2)


@dataclass(frozen=True)
class Attention:
    """An answer, what it loses without each word, and what the prompt's last vector attends to."""

    text: str
    label: int | float
    label_name: str | None  # None: the answer is a number
    probability: float | None
    log_odds: float | None  # of the label; None where the answer is a number
    words: list[str]
    occlusion: list  # log-odds, or number, lost without each word; [None] where no text is left
    attention: list[float]  # to each word, mean of all layers and heads
    to_prompt: float  # the same, to the prompt itself
    layers: list  # (L, H, W+1): each of them

    def answer(self):
        """The label, or the number."""
        return f"{self.label:.3f}" if self.label_name is None else self.label_name

    def lost(self):
        """What the occlusion is measured in."""
        what = "the number" if self.label_name is None else f"log-odds of {self.label_name}"
        return f"{what} lost without the word"


def report_attention(text, classifier, figure, as_json):
    """Print what becomes of a text, or draw it where there is a figure."""
    found = attention(text, classifier)
    if figure:
        draw_attention(figure, found, classifier.files[0].path)
    else:
        show_attention(found, as_json)


def attention(text, classifier):
    """What becomes of a text -> Attention.  classifier: what answers, by its first prompt."""
    prompt = classifier.prompts[0]
    text = clean(text)
    words, shares = words_of(classifier.gpt2, classifier.tokenizer, prompt, text)  # (L, H, W+1)
    seen = "".join(words)
    others = []
    for i in range(len(words)):
        others.append(clean("".join(words[:i] + words[i + 1 :])))
    pairs = [(one, 0) for one in [seen] + others if one]
    logits = classifier.logits(pairs)[0]  # (W+1, N)
    label = int(decide(logits[:1])[0])
    if label < 0:
        raise ValueError("the prompt's logits are not finite: it is broken")

    if logits.shape[1] == 1:
        values = logits[:, 0].double()  # (W+1,)
        answer = {"label": values[0].item(), "label_name": None}
        answer |= {"probability": None, "log_odds": None}
    else:
        share = logits.double().softmax(dim=1)[:, label]  # (W+1,)
        values = share.logit(eps=1e-12)
        answer = {"label": label, "label_name": classifier.labels[label]}
        answer |= {"probability": share[0].item(), "log_odds": values[0].item()}
    *mean, own = shares.mean(dim=(0, 1)).tolist()
    occlusion = (values[0] - values[1:]).tolist() or [None]
    layers = shares.tolist()
    return Attention(
        text=seen,
        words=seen.split(),
        occlusion=occlusion,
        attention=mean,
        to_prompt=own,
        layers=layers,
        **answer,
    )


def show_attention(found, as_json):
    """Print an Attention: for a person the mean of all layers and heads."""
    if as_json:
        emit(to_json(found))
        return
    odds = "" if found.log_odds is None else f", log-odds {found.log_odds:.2f}"
    emit(
        f"{found.answer()}{odds}; attention of the prompt's last "
        f"vector, mean of {len(found.layers)} layers"
    )
    rows = []
    for word, lost, share in rows_of(found):
        rows.append([word, cell(lost, "+.3f"), cell(share, ".3f")])
    emit(table_text(["word", "occlusion", "attention"], rows))
    emit(
        f"occlusion: {found.lost()}.  What is attended to need not be what decides,\n"
        "and GPT-2 often attends to a first token, whatever it is"
    )


def rows_of(found):
    """[(word, occlusion, attention)], the prompt last."""
    rows = list(zip(found.words, found.occlusion, found.attention, strict=True))
    rows.append(("(the prompt)", None, found.to_prompt))
    return rows


def draw_attention(figure, found, who):
    """Bars of occlusion and attention, under what the answer is and who gave it.

    A long text wraps into columns that share their scales.
    """
    rows = rows_of(found)
    pieces = cut(rows, max(30, math.ceil(len(rows) / 3)))
    figure.set_size_inches(7.2 * len(pieces), 1.9 + len(pieces[0]) / 4)
    share = "" if found.probability is None else f" {found.probability:.3f}"
    figure.suptitle(shown(f"{found.answer()}{share}, {who}"))
    figure.subplots(1, 2 * len(pieces))
    for i, axes in enumerate(figure.axes):
        piece = pieces[i // 2]
        names = [shown(word) for word, _, _ in piece]
        lost = [value or 0.0 for _, value, _ in piece]
        shares = [share for _, _, share in piece]
        axes.sharex(figure.axes[i % 2])
        axes.barh(range(len(piece)), shares if i % 2 else lost, tick_label=names)
        axes.invert_yaxis()
        axes.set_xlabel("attention" if i % 2 else shown(found.lost()))
