"""The judge: what differs between a port's tensors and the golden ones, and why.

Judge finds the first tensor that differs, in the order of computation.  Search looks for a known
mistake that gives the port's own numbers.  Hints says what is true of the first tensor that
differs, whatever the mistake is.
"""

import math
from itertools import chain, permutations

import torch

from method import ask, steps
from mistakes import READING, STEP, TEXTS, WAY_BACK
from task import (
    BUNDLED_LOGITS,
    GIVEN,
    PACK,
    RECIPE,
    SIZE,
    STAGES,
    TOKENS,
    C,
    H,
    bundled_case,
    case_of,
    counts,
    draw_former,
    group,
    is_given,
    read_golden,
    stage,
    tolerance,
)

FORMER = "these are the answers to format 1: read the task again"
LATE = "the losses are those after each step, not before it"

# The letter of each axis of a tensor, by the beginning of its name.
AXES = {
    "text": "bt",
    "pack": "bs",
    "hidden": "bk",
    "logits": "kb",
    "loss": "k",
    "norm": "k",
    "curve": "tk",
}


# ---- two tensors ----------------------------------------------------------------------------


def distance(name, ours, theirs, golden):
    """Largest absolute difference where it counts; infinite for another shape"""
    if ours.shape != theirs.shape:
        return math.inf
    apart = (ours.double() - theirs).abs()
    if name.startswith("text.") or name == "ids":
        apart = apart[counts(name, ours.shape, golden["lengths"])]
    return apart.max().item() if apart.numel() else 0.0


def row(tensors, name):
    """tensors[name], or one row of it where the name ends as curve[3] does; None: there is none"""
    name, _, number = name.partition("[")
    tensor = tensors.get(name)
    if tensor is None or not number:
        return tensor
    t = int(number[:-1])
    return tensor[t] if tensor.dim() == 2 and t < len(tensor) else None


def as_stored(theirs, ours):
    """A port's tensor in float64, rounded to what `ours` has room for.

    In JSON a float32 stands with as many digits as tell it from its neighbours, which as a float64
    is another number.
    """
    return theirs.to(ours.dtype).double() if ours.is_floating_point() else theirs


def times(tensor):
    """The shape, as a person writes it"""
    return " x ".join(map(str, tensor.shape)) or "a number"


def some_of(names):
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


# ---- the judge ------------------------------------------------------------------------------


class Judge:
    """What differs between a port's tensors and the golden ones.

    .given and .wrong: names in the order of computation; .first: of those that differ, or None;
    .names: the known mistakes that explain it; .hints: more sentences about the first.
    """

    def __init__(self, theirs, only=None, allowed=0.0):
        """theirs: {name: tensor in float64}; only: a level; allowed: a tolerance for all that is
        rounded, where it is larger"""
        self.golden = read_golden()
        self.allowed = allowed
        self.theirs = {}
        for name, tensor in theirs.items():
            if name in self.golden and (not only or group(name).level in (only, "task")):
                self.theirs[name] = as_stored(tensor, self.golden[name])
        self.errors = {}
        self.given = [name for name in self.golden if name in self.theirs]
        self.wrong = [name for name in self.given if not self.agrees(name)]
        self.first = self.wrong[0] if self.wrong else None
        self.names = self.why() if self.first else []
        self.hints = list(Hints(self).sentences()) if self.first else []

    def error(self, name):
        """The distance of a tensor, or of a row of it, from the golden one"""
        if name not in self.errors:
            ours = row(self.golden, name)
            self.errors[name] = distance(name, ours, row(self.theirs, name), self.golden)
        return self.errors[name]

    def tolerance(self, name):
        """How large an error may be: `allowed` is for numbers that are rounded alone"""
        exact = stage(name) in (TOKENS, GIVEN) or name in ("pack.position", "pack.mask")
        if exact and not name.startswith(("weights.", "prompt.")):
            return tolerance(name)
        return max(tolerance(name), self.allowed)

    def agrees(self, name):
        return self.error(name) <= self.tolerance(name)  # NaN does not

    def why(self):
        """The sentences of the mistakes that explain what differs: none, one or two"""
        if is_former(self):
            return [FORMER]
        if self.first == "curve" and self.is_late():
            return [LATE]
        return Search(self).known()

    def is_late(self):
        """Whether each row of the curve is the one after"""
        curve = self.theirs["curve"]
        right = self.golden["curve"]
        return curve.shape == right.shape and (curve[:-1] - right[1:]).abs().max() < 1e-4


def is_former(judge):
    """Whether the first tensor that differs is that of the small task in format 1"""
    name = judge.first
    task = draw_former()
    case = case_of(task)
    case.recipe = RECIPE | {"lr": [0.03, 0.1, 0.02, 0.05]}
    if name.startswith(("half", "labels", "lengths")):  # these are the same
        return False
    for other, tensor in chain(task.items(), steps(case)):
        if other.split("[")[0] == name:
            theirs = row(judge.theirs, other)
            if theirs is None:
                return False
            return distance(other, tensor.detach(), theirs, task) <= 10 * tolerance(name)
    return False


# ---- known mistakes -------------------------------------------------------------------------


class Search:
    """Which known mistake, or which two, give a port's numbers up to the first that differs."""

    def __init__(self, judge):
        self.judge = judge
        self.first = judge.first
        self.stage = stage(judge.first)
        self.training = group(judge.first).level == "training"

    def known(self):
        """The sentences of the mistakes that give all given tensors of the stage of the first"""
        mistakes = self.candidates()
        reached = [(mistake, self.run(mistake)) for mistake in mistakes]
        found = {mistake.sentence for mistake, reach in reached if reach == 2}
        if found:
            return list(found) if len(found) == 1 else []  # of two neither is certain
        for one, reach in reached:
            if reach == 1:
                for two in mistakes:
                    if not set(one.parts) & set(two.parts) and self.run(one, two) == 2:
                        return [one.sentence, two.sentence]
        return []

    def candidates(self):
        """The mistakes that may show first in this tensor"""
        judge = self.judge
        if is_given(self.first):
            return []
        if self.stage == TOKENS:
            return TEXTS
        if self.stage == BUNDLED_LOGITS:
            # A large model: what shows in the small one is not looked for here.
            small_is_given = PACK in {stage(name) for name in judge.theirs}
            is_long = self.first[5] in "23"
            if small_is_given or is_long or judge.error(self.first) == math.inf:
                return [mistake for mistake in READING if mistake.parts == ("seen",)]
            return READING
        if not self.training:
            return READING
        if self.first.startswith("after.") and "curve" not in judge.theirs:
            return []  # ten steps for each mistake would take too long
        # Where logits are given they agree, and so does all that is made before.
        return ([] if "logits" in judge.theirs else READING) + WAY_BACK + STEP

    def run(self, *mistakes):
        """How far these mistakes reach; see `reach`"""
        changes = {}
        for mistake in mistakes:
            changes |= mistake.changes()
        # What these mistakes leave as it is.
        text = None
        unchanged = ()
        if self.training and not any(mistake in READING for mistake in mistakes):
            golden = self.judge.golden
            text = {name: golden[name].double() for name in golden if name.startswith("text.")}
            in_the_step = all(mistake in STEP for mistake in mistakes)
            unchanged = STAGES[:5] if in_the_step else STAGES[:3]
        if self.stage in unchanged:
            return 0
        return self.reach(self.made_with(changes, text), unchanged)

    def made_with(self, changes, text):
        """What the method makes with these changes: (name, tensor), one by one"""
        if self.stage == TOKENS:
            return ask(bundled_case(), changes, only=())
        if self.stage == BUNDLED_LOGITS:
            return ask(bundled_case(torch.float32), changes)
        return steps(case_of(self.judge.golden), changes, text=text)

    def reach(self, made, unchanged):
        """0: these (name, tensor) do not give the first that differs; 1: they do; 2: and all given
        ones of its stage.

        unchanged: stages in which there is nothing to compare.
        """
        judge = self.judge
        met = 0
        try:
            for name, tensor in made:
                if met and stage(name) != self.stage:
                    break
                if stage(name) in unchanged or row(judge.theirs, name) is None:
                    continue
                if not self.fits(name, tensor.detach(), slack=10 if met else 1):
                    return met
                if name.split("[")[0] == self.first and not judge.agrees(name):
                    met = 1
        except (IndexError, RuntimeError, ValueError):  # so wrong that nothing goes on from there
            pass
        return 2 * met

    def fits(self, name, ours, slack):
        """Whether a known mistake, which makes `ours`, explains this tensor; NaN explains NaN"""
        judge = self.judge
        theirs = row(judge.theirs, name)
        error = judge.error(name)  # rounding grows with it
        if not math.isfinite(error):
            error = 0.0
        gap = distance(name, ours, theirs, judge.golden)
        if math.isnan(gap):
            ours = ours.double().nan_to_num(1e30, 2e30, -2e30)
            theirs = theirs.nan_to_num(1e30, 2e30, -2e30)
            gap = distance(name, ours, theirs, judge.golden)
        by_hand = min(judge.allowed, error / 10)
        return gap <= max(tolerance(name) * slack, error * slack / 1e5, by_hand)


# ---- hints ----------------------------------------------------------------------------------


class Hints:
    """Sentences about the first tensor that differs, true whatever the mistake is."""

    def __init__(self, judge):
        self.judge = judge
        self.name = judge.first
        self.ours = judge.golden[self.name].double()
        self.theirs = judge.theirs[self.name]
        self.allowed = judge.tolerance(self.name)

    def sentences(self):
        yield from self.of_the_axes()
        if self.theirs.shape == self.ours.shape:
            yield from self.of_the_numbers()
        else:
            yield f"its shape is {times(self.theirs)}, not {times(self.ours)}"
        if not is_given(self.name):
            yield f"it is made of: {group(self.name).made_of}"
            yield from self.of_what_is_not_given()

    def is_near(self, ours, theirs):
        return distance(self.name, ours, theirs, self.judge.golden) <= self.allowed

    def of_the_axes(self):
        """Whether the numbers are right in another order of the axes"""
        if self.ours.dim() != self.theirs.dim():
            return
        orders = list(permutations(range(self.ours.dim())))
        for order in orders[1:]:
            if self.is_near(self.ours, self.theirs.permute(order)):
                yield f"the numbers are right, but the axes have to be put in the order {order}"

    def of_the_numbers(self):
        """What is wrong with them, and where"""
        where = counts(self.name, self.ours.shape, self.judge.golden["lengths"])
        off = ~((self.ours - self.theirs).abs() <= self.allowed) & where
        nan = self.theirs.isnan()
        missing = int((nan & where).sum())
        if missing:
            yield f"{missing} of its {int(where.sum())} numbers are NaN"
            whole_rows = nan.all(-1).any() and not nan.all() and torch.equal(off, nan & where)
            if self.name.endswith(".attn") and whole_rows:
                yield (
                    "these are whole rows, as after a row of a mask that may look nowhere, or "
                    "after exp of more than 88"
                )
        elif self.ours[where].numel() > 1 and tolerance(self.name):
            yield from self.of_a_factor(where)
        yield from self.of_the_places(off)

    def of_a_factor(self, where):
        """Whether all numbers are the same multiple of the right ones"""
        products = (self.ours * self.theirs)[where].sum()
        squares = (self.ours * self.ours)[where].sum()
        ratio = (products / squares).item()
        if not self.theirs[where].any():
            yield "all its numbers are 0"
        elif abs(ratio - 1) > 1e-3 and self.is_near(self.ours * ratio, self.theirs):
            yield f"it is exactly {ratio:.4g} times what it should be{letters(ratio)}"

    def of_the_places(self, off):
        """In which texts, prompts or steps alone it differs.  off: bool, where it does"""
        kind = self.name.removeprefix("grad.").split(".")[0]
        if self.name == "grad.norm":
            kind = "norm"
        for axis, letter in enumerate(AXES.get(kind, "")):
            if self.ours.dim() == 4:  # (B, H, T, D)
                axis *= 2
            some = off
            if off.dim() > 1:
                some = off.transpose(0, axis).flatten(1).any(1)
            if not some.all():
                numbers = some.nonzero().flatten().tolist()
                yield f"it differs only where {letter} is {', '.join(map(str, numbers))}"

    def of_what_is_not_given(self):
        """The tensors just before it, where the mistake may be"""
        if group(self.name).level == "tokenizer":
            return
        before = []
        for name in self.judge.golden:
            if name == self.name:
                break
            if not is_given(name) and is_of_other_task(name) == is_of_other_task(self.name):
                before.append(name)
        missing = []
        for name in reversed(before):
            if name in self.judge.theirs:
                break
            missing.insert(0, name)
        if missing:
            yield (
                "what is made before it is not given, so the mistake may be there, too: "
                + some_of(missing)
            )


def is_of_other_task(name):
    """Whether the small model has no part in a tensor"""
    return name.startswith(("tokens", "real", "half"))


def letters(ratio):
    """Which size of the task a factor may be: ": B?" """
    if abs(ratio + 1) < 1e-3:
        return ": the wrong sign?"
    forms = {letter: float(size) for letter, size in SIZE.items()}
    forms["the root of C"] = C**0.5
    forms["the root of D"] = (C / H) ** 0.5
    forms |= {f"1/{letter}": 1 / size for letter, size in forms.items()}
    guess = [form for form, size in forms.items() if abs(ratio / size - 1) < 1e-3]
    return f": {' or '.join(guess)}?" if guess else ""
