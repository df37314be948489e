"""A trial: one prompt of a run in training, how it began, and the best it has been."""

import copy
import dataclasses
import itertools
import math
import sys
from dataclasses import dataclass, field

from data import TEXT_RULE
from metrics import standing
from model import Prompt
from support.prompt_file import PromptFile, Recipe, Scores
from support.records import common, plain, read
from support.run_folder import LogLine
from support.summary import Selection, Summary, SummaryRow
from support.terminal import say


@dataclass
class Trial:
    """One prompt of the run, how it began, and the best it has been."""

    name: str
    seed: int
    lr: float
    prompt: Prompt
    init_ids: list[int]
    select_on: str  # the split on which the best is chosen
    best: Selection | None = None
    best_epoch: int = 0
    epochs_since_best: int = 0
    broke_at: int = 0  # the step by which its numbers were no longer finite
    latest: dict[str, LogLine] = field(default_factory=dict)  # of each split

    def __post_init__(self):
        self.initial = copy.deepcopy(self.prompt)
        self.best_prompt = copy.deepcopy(self.prompt)

    def consider(self, found, epoch, select_by):
        """Keep the prompt if `found`, a Selection, is the best so far; whether it was kept."""
        self.epochs_since_best += 1
        if self.best and standing(found, select_by) <= standing(self.best, select_by):
            return False
        self.best = found
        self.best_epoch = epoch
        self.epochs_since_best = 0
        self.best_prompt.load_state_dict(self.prompt.state_dict())
        return True

    def stop(self, step):
        """Its numbers are no longer finite: it is trained no further."""
        self.broke_at = step
        say(f"{self.name} stopped: not finite by step {step}; {self.advice()}", sys.stderr)

    def advice(self):
        """What helps where numbers are no longer finite."""
        if len(self.prompt.head) == 1:
            return "try a lower --lr, or divide labels that are far from 0 by a constant"
        return "try a lower --lr"

    def state_dict(self):
        """All that changes in training, for --resume."""
        return {
            "best": plain(self.best),
            "epoch": self.best_epoch,
            "waited": self.epochs_since_best,
            "broke": self.broke_at,
            "now": self.prompt.state_dict(),
            "kept": self.best_prompt.state_dict(),
        }

    def load_state_dict(self, state):
        best = state["best"]
        self.best_epoch = state.get("epoch", 0)
        if best and "epoch" in best:
            # The first version kept all of a result, and the epoch with it, but not the split.
            self.best_epoch = best["epoch"]
            known = {item.name for item in dataclasses.fields(Selection)}
            best = {name: value for name, value in best.items() if name in known}
            best["split"] = self.select_on
        self.best = read(Selection | None, best)
        self.epochs_since_best = state["waited"]
        self.broke_at = state["broke"]
        self.prompt.load_state_dict(state["now"])
        self.best_prompt.load_state_dict(state["kept"])

    def file(self, facts, result=None, start=None):
        """The PromptFile of the best prompt: how it came about, and how it scored.

        facts: the run's; result: its Score on the split that was asked last; start: the same of
        what it began as.
        """
        asked = common(Recipe, facts.settings)
        asked |= {"lr": self.lr, "seed": self.seed, "epoch": self.best_epoch or None}
        # With --steps, the epochs that these steps make.
        per_epoch = math.ceil(facts.texts["train"] / facts.settings.batch_size)
        asked["epochs"] = math.ceil(facts.settings.total_steps / per_epoch)
        return PromptFile(
            prompt=self.best_prompt,
            labels=facts.labels,
            base=facts.base,
            recipe=Recipe(**asked),
            scores=self.scores(result, start) if result else Scores(),
            init=facts.settings.init,
            init_ids=self.init_ids,
            text_rule=TEXT_RULE,
        )

    def scores(self, result, start):
        """What a prompt.safetensors says of its worth; arguments as in `file`."""
        return Scores(
            **common(Scores, result),
            untrained=start.accuracy if start else None,
            untrained_loss=start.loss if start else None,
            selected=self.best.accuracy,
            selected_loss=self.best.loss,
            selected_macro_f1=self.best.macro_f1,
        )

    def row(self, result, start):
        """What summary.json says of it; result, start: Scores on dev of its best and first."""
        return SummaryRow(
            name=self.name,
            folder=f"prompts/{self.name}",
            prompt_tokens=len(self.best_prompt.vectors),
            seed=self.seed,
            lr=self.lr,
            epoch=self.best_epoch,
            broke=self.broke_at,
            selection=self.best,
            untrained=start.accuracy,
            untrained_loss=start.loss,
            **common(SummaryRow, result),
        )


def start_trials(settings, first_vectors, device):
    """A Trial for every prompt length, seed and learning rate."""
    trials = []
    wanted = itertools.product(settings.prompt_tokens, settings.seeds, settings.lr)
    for P, seed, lr in wanted:
        prompt, ids = first_vectors.draw(P, seed)
        # The baseline trains the head alone.
        prompt.vectors.requires_grad_(settings.train == "prompt+head")
        name = f"p{P}-s{seed}"
        if len(settings.lr) > 1:
            name += f"-lr{lr}"
        trials.append(Trial(name, seed, lr, prompt.to(device), ids, settings.select_on))
    return trials


def summary_of(trials, best, begun, select_by):
    """The Summary of a run; best, begun: the Scores on dev of what each trial was at its best and
    at its beginning."""
    rows = []
    for trial, result, start in zip(trials, best, begun, strict=True):
        rows.append(trial.row(result, start))
    first = best[0]
    if first.accuracy is None:
        levels = [start.loss for start in begun]
        baselines = {"constant": first.constant_loss}
    else:
        levels = [start.accuracy for start in begun]
        baselines = {"majority": first.majority}
    known = None not in levels  # a loss may be too large for a number
    baselines["untrained"] = sum(levels) / len(levels) if known else None
    return Summary(rows, baselines, finished=True, select_by=select_by)
