"""The first vectors of a prompt: random tokens, words, a text, or another prompt's vectors."""

import os

import torch

from model import Prompt
from support.prompt_file import read_prompt, refuse_misfit
from support.settings import INITS
from support.summary import find_prompts

HEAD_SCALE = 0.02  # standard deviation of a head's first numbers


def resolve_init(init):
    """What --init means: a known word, the whole path of a prompt.safetensors, or else a text."""
    if not init.strip():
        raise ValueError(f"--init is blank; name a prompt, a text, or {', '.join(INITS)}")
    if init in INITS or not os.path.exists(init):  # of a text too long for a path, too
        return init
    return str(find_prompts(init)[0].absolute())


def is_prompt(init):
    """Whether what `resolve_init` gave is a prompt on disk."""
    return init not in INITS and os.path.isfile(init)


class FirstVectors:
    """How the prompts of a run begin: what --init says, and a random head."""

    def __init__(self, init, labels, num_labels, gpt2, checkpoint):
        """init: as resolve_init gives it; labels: what the answers are called; checkpoint: the base
        model, opened.  ValueError where what it names does not fit the model or the labels."""
        self.init = init
        self.table = gpt2.wte.weight  # (V, C)
        self.num_labels = num_labels
        self.tokenizer = checkpoint.tokenizer
        self.ordinary = torch.tensor(self.tokenizer.ordinary_ids())
        self.file = None
        self.ids = None  # of words or of a text
        if is_prompt(init):
            self.file = read_prompt(init)
            refuse_misfit(self.file, checkpoint)
            self.rows = rows_by_name(self.file, labels, num_labels)
        elif init == "words":
            self.ids = self.tokenizer.encode(" " + " ".join(labels))
        elif init == "eot":
            if self.tokenizer.end_of_text is None:
                raise ValueError(f"--init eot: {checkpoint.name} has no token <|endoftext|>")
            self.ids = [self.tokenizer.end_of_text]
        elif init not in INITS:
            self.ids = self.tokenizer.encode(init)

    def draw(self, P, seed):
        """A Prompt of P vectors, and the ids of the tokens that they are ([] of another prompt's).

        A seed gives the same prompt, whatever else is drawn in this run.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(self.ordinary), (P,), generator=generator)
        head = torch.randn(self.num_labels, self.table.shape[1], generator=generator)  # (N, C)
        if self.file is not None:
            return self.copy(P), []
        ids = self.ordinary[drawn].tolist()
        if self.init == "words":
            ids = (self.ids + ids)[:P]  # random tokens after the words
        elif self.ids is not None:
            ids = (self.ids * P)[:P]  # a text shorter than the prompt comes again
        return Prompt(self.table[ids].float(), head * HEAD_SCALE), ids

    def copy(self, P):
        """The prompt on disk, its head's rows in the order of this run's labels."""
        found = self.file.prompt_tokens
        if found != P:
            raise ValueError(
                f"--init {self.init} holds {found} vectors, but this run asks for {P}: say "
                f"--prompt-tokens {found}"
            )
        return Prompt(self.file.prompt.vectors, self.file.prompt.head[self.rows])


def rows_by_name(file, labels, num_labels):
    """For each label of a run the row of a prompt's head; ValueError where labels differ."""
    if file.num_labels != num_labels or (num_labels > 1 and set(file.labels) != set(labels)):
        raise ValueError(
            f"--init {file.path} answers {file.num_labels} labels ({', '.join(file.labels)}), but "
            f"this run has {num_labels} ({', '.join(labels)})"
        )
    if num_labels == 1:
        return [0]
    return [file.labels.index(label) for label in labels]
