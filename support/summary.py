"""The summary of a finished run: how each prompt did, and which is the best."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from metrics import standing
from support.records import Count, Seed, Share, Whole, load

NAME = r"p[0-9]+-s[0-9]+[A-Za-z0-9_.+-]*"  # of a prompt and its folder


@dataclass(frozen=True)
class Selection:
    """How the best epoch of a prompt did on the selection split."""

    accuracy: Share | None = None
    loss: float | None = None
    n: Count | None = None
    split: str = ""
    macro_f1: Share | None = None


@dataclass(frozen=True)
class SummaryRow:
    """What summary.json says of one prompt of a finished run; the scores are those on dev."""

    name: Annotated[str, NAME]
    selection: Selection
    folder: str = ""
    prompt_tokens: Count | None = None
    seed: Seed | None = None
    lr: float | None = None
    epoch: Count | None = None
    broke: Whole = 0  # the step by which it was no longer finite
    untrained: Share | None = None
    untrained_loss: float | None = None
    n: Count | None = None
    accuracy: Share | None = None
    ci95: list[float] | None = None
    loss: float | None = None
    macro_f1: Share | None = None
    pearson: float | None = None
    spearman: float | None = None
    collapsed: bool = False
    alarm: str | None = None


@dataclass(frozen=True)
class Summary:
    """summary.json: what a finished run came to."""

    prompts: list[SummaryRow]
    baselines: dict[str, float | None] = field(default_factory=dict)
    finished: bool = True
    select_by: Literal["accuracy", "macro-f1", "loss"] = "accuracy"


def best_first(summary):
    """The rows of a summary, the best on the selection split first."""
    return sorted(
        summary.prompts,
        key=lambda row: standing(row.selection, summary.select_by),
        reverse=True,
    )


def find_prompts(run, every=False):
    """RUN as a person names it -> the paths of prompt.safetensors: of a run folder the best on the
    selection split, or every one, best first."""
    run = Path(run)
    for path in (run, run / "prompt.safetensors"):
        if path.is_file():
            return [path]
    if not (run / "summary.json").is_file():
        raise FileNotFoundError(
            f"{run} is no finished run, no prompt folder and no prompt.safetensors"
        )
    paths = []
    for row in best_first(load(run / "summary.json", Summary)):
        paths.append(run / "prompts" / row.name / "prompt.safetensors")
    if not paths:
        raise ValueError(f"{run}/summary.json is damaged: it names no prompt")
    return paths if every else paths[:1]
