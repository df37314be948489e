"""The request: what train.py is asked to do, by flags or by a run that goes on."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

from support import checkpoint, dataset
from support.first_vectors import resolve_init
from support.processes import rank_and_world
from support.run_folder import read_facts
from support.settings import Settings, parser_of, settings_of


@dataclass(frozen=True)
class Request:
    """The settings of a run, whether it goes on, and whether it may replace another."""

    settings: Settings
    resume: bool
    overwrite: bool


def parse_request(argv, description):
    """The words of a command line -> Request.

    With --resume the settings are those that the run was begun with, then what is given here.
    """
    parser = parser_of(description)
    args = parser.parse_args(argv)
    if args.resume is not None:
        if args.out is not None or args.overwrite:
            raise ValueError(f"--resume {args.resume} takes neither --out nor --overwrite")
        facts = read_facts(args.resume)
        parser.set_defaults(**vars(facts.settings))
        args = parser.parse_args(argv)
        args.out = args.resume
        if "init" in facts.data and not Path(args.init).exists():
            raise ValueError(f"{args.init} is not there; say by --init where that prompt lies now")
    asked = settings_of(args)

    # Names are decided once, and stored as known words or whole paths.
    model = checkpoint.resolve(asked.model)
    data = dataset.resolve(asked.data)
    named = f"runs/{Path(model).name}-{Path(data).stem}"
    settings = dataclasses.replace(
        asked,
        model=model,
        data=data,
        init=resolve_init(asked.init),
        out=str(Path(asked.out or named).absolute()),
    )
    return Request(settings, args.resume is not None, args.overwrite)


def came_to(settings, num_labels, gpt2, examples):
    """The settings with what was found out: labels, device, dtype, steps, processes.

    examples: how many there are to train on.
    """
    per_epoch = math.ceil(examples / settings.batch_size)
    weight = gpt2.wte.weight
    _, world = rank_and_world()
    return dataclasses.replace(
        settings,
        num_labels=num_labels,
        select_by="loss" if num_labels == 1 else settings.select_by,
        device=weight.device.type,
        dtype=str(weight.dtype).removeprefix("torch."),
        total_steps=settings.steps or settings.epochs * per_epoch,
        processes=world,
    )
