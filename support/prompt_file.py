"""A trained prompt on disk: prompt.safetensors, and what it says of itself."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from data import TEXT_RULE
from model import Prompt
from support.checkpoint import Base
from support.files import damaged, read_bytes, safetensors_bytes, split_safetensors
from support.records import Count, Seed, Share, Whole, plain, read

FORMAT = "prompt-training/1"
POSITION_RULE = "after-text"
LARGEST = 2**30  # bytes of a prompt.safetensors


@dataclass(frozen=True)
class Recipe:
    """How a prompt was trained.  Files of older versions lack what is None."""

    data: str | None = None
    text_column: str | None = None
    label_column: str | None = None
    max_examples: Count | None = None
    batch_size: Count | None = None
    epochs: Count | None = None
    steps: Count | None = None
    patience: Count | None = None
    train: Literal["prompt+head", "head"] | None = None
    select_on: Literal["hold-out", "dev"] | None = None
    select_by: Literal["accuracy", "macro-f1", "loss"] | None = None
    dtype: str | None = None
    lr: float | None = None
    head_lr: float | None = None
    seed: Seed | None = None
    epoch: Count | None = None  # which of them was the best


@dataclass(frozen=True)
class Scores:
    """What a prompt was worth: on dev, on the selection split, and untrained.

    Of a regression only the losses, which are squared errors, and the correlation are known.
    """

    n: Count | None = None  # texts of dev
    accuracy: Share | None = None
    loss: float | None = None
    macro_f1: Share | None = None
    pearson: float | None = None
    majority: Share | None = None  # the share of dev's commonest label
    constant_loss: float | None = None  # of the best constant, where labels are numbers
    untrained: Share | None = None  # accuracy on dev before the first step
    untrained_loss: float | None = None
    selected: Share | None = None  # accuracy on the selection split
    selected_loss: float | None = None
    selected_macro_f1: Share | None = None


@dataclass(frozen=True)
class PromptFile:
    """One prompt.safetensors: the tensors, and what they were trained on, how, and to what end."""

    prompt: Prompt
    labels: list[str]  # what each answer is called
    base: Base
    recipe: Recipe = field(default_factory=Recipe)
    scores: Scores = field(default_factory=Scores)
    init: str = ""
    init_ids: list[int] = field(default_factory=list)  # the tokens it began as, where it did
    text_rule: str = ""
    path: Path | None = None

    @property
    def prompt_tokens(self):
        return len(self.prompt.vectors)

    @property
    def num_labels(self):
        return len(self.prompt.head)


# ---- writing --------------------------------------------------------------------------------


def prompt_bytes(file):
    """A PromptFile as the bytes of a prompt.safetensors, the same for the same content.

    Tensors `prompt` (P, C) and `head.weight` (N, C), float32.  Metadata is str -> str: what is no
    text is JSON.
    """
    prompt = file.prompt
    tensors = {"prompt": prompt.vectors.float(), "head.weight": prompt.head.float()}
    recipe = dataclasses.asdict(file.recipe)
    told = {
        "format": FORMAT,
        "position_rule": POSITION_RULE,
        "prompt_tokens": file.prompt_tokens,
        "num_labels": file.num_labels,
        "labels": file.labels,
        "init": file.init,
        "init_ids": file.init_ids,
        "text_rule": file.text_rule,
        "recipe": recipe,
    }
    told |= plain(file.base)
    for name, value in plain(file.scores).items():
        if value is not None:
            told[name] = value
    metadata = {}
    for name, value in told.items():
        metadata[name] = value if isinstance(value, str) else json.dumps(value)
    return safetensors_bytes(tensors, metadata)


# ---- reading --------------------------------------------------------------------------------


def read_prompt(path):
    """prompt.safetensors -> PromptFile, its prompt on the CPU; ValueError if it is not one."""
    return parse_prompt(read_bytes(Path(path), LARGEST), path)


def parse_prompt(data, path):
    """The bytes of a prompt.safetensors -> PromptFile.  path: where they stood."""
    with damaged(path, "is no whole safetensors file"):
        tensors, metadata = split_safetensors(data)
    for name, wanted in (("format", FORMAT), ("position_rule", POSITION_RULE)):
        if metadata.get(name) != wanted:
            raise ValueError(f"{path} is no prompt of ours: its {name} is not {wanted!r}")
    with damaged(path, "lacks a finite prompt (P, C), head.weight (N, C) or metadata"):
        prompt = prompt_of(tensors)
        labels = read(list[str], json.loads(metadata["labels"]), "labels")
        init_ids = json.loads(metadata["init_ids"])
        if len(init_ids) not in (0, len(prompt.vectors)):
            raise ValueError("init_ids are not one for each vector")
        if len(labels) != max(len(prompt.head), 2):
            raise ValueError("labels are not one for each row of the head")
        scores = {}
        for item in dataclasses.fields(Scores):
            if item.name in metadata:
                scores[item.name] = json.loads(metadata[item.name])
        base = {}
        for item in dataclasses.fields(Base):
            base[item.name] = metadata.get(item.name, "")
        return PromptFile(
            prompt=prompt,
            labels=labels,
            base=read(Base, base, "base"),
            recipe=read(Recipe, json.loads(metadata["recipe"]), "recipe"),
            scores=read(Scores, scores, "scores"),
            init=metadata.get("init", ""),
            init_ids=read(list[Whole], init_ids, "init_ids"),
            text_rule=metadata.get("text_rule", ""),
            path=Path(path),
        )


def prompt_of(tensors):
    """{name: tensor} of a file -> Prompt; ValueError where they are not those of one."""
    if tensors.keys() != {"prompt", "head.weight"}:
        raise ValueError("it holds other tensors")
    for tensor in tensors.values():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError("a tensor is not float32, or not finite")
    vectors = tensors["prompt"]
    head = tensors["head.weight"]
    P, C = vectors.shape
    N, width = head.shape
    if C != width or P * N * C == 0:
        raise ValueError("prompt and head do not fit together")
    return Prompt(vectors, head)


def refuse_misfit(file, checkpoint):
    """ValueError unless a prompt answers on this model, and under the text rule of data.py.

    checkpoint: a base model, opened.  Vectors of one model mean nothing on another.
    """
    P, C = file.prompt.vectors.shape
    config = checkpoint.config
    if file.text_rule != TEXT_RULE:
        raise ValueError(f"{file.path} was trained under another text rule than {TEXT_RULE!r}")
    if C != config.n_embd or P >= config.n_positions:
        raise ValueError(
            f"{file.path} holds {P} vectors of {C} channels, which do not fit {checkpoint.name}"
        )
    if not checkpoint.accepts(file.base.base_sha256):
        raise ValueError(
            f"{file.path} was trained on another model than {checkpoint.name} (weights, tokens or "
            "sizes differ); name the right one with --model"
        )
