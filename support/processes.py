"""Processes and what they compute on: ranks, sums over all of them, devices, number types."""

import contextlib
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def rank_and_world():
    """(rank, world size) of this process under torchrun; (0, 1) without it."""
    if dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextlib.contextmanager
def joined(device):
    """Join what torchrun started, if it did, and leave it at the end."""
    if not dist.is_torchelastic_launched():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield
    dist.destroy_process_group()  # not after an error: others may be waiting for this one


@contextlib.contextmanager
def together():
    """Around what all processes do at once: it fails where one of them has ended."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).split("\n")[0]
        raise OSError(
            f"the processes lost each other; has another one ended? ({reason})"
        ) from error


def all_reduce(tensors):
    """Replace each tensor by its sum over all processes: one message, however many tensors."""
    _, world = rank_and_world()
    if world == 1:
        return
    flat = parameters_to_vector(tensors)
    with together():
        dist.all_reduce(flat)
    vector_to_parameters(flat, tensors)


def rank_0_decides(act):
    """Let rank 0 act; where it is refused, all processes end by its error."""
    rank, world = rank_and_world()
    if world == 1:
        act()
        return
    refusal = [None]
    if rank == 0:
        try:
            act()
        except (OSError, ValueError) as error:
            refusal = [error]
    with together():
        dist.broadcast_object_list(refusal)
    if refusal[0] is not None:
        raise refusal[0]


def part_of(batch):
    """This process's part of a batch, and how many of it count.

    A process for which nothing is left takes one that counts as none, so that all do the same work.
    """
    rank, world = rank_and_world()
    mine = batch[rank::world]
    return mine or batch[:1], len(mine)


# ---- devices and number types ---------------------------------------------------------------


def default_device():
    """The accelerator that torch finds, as "cuda" or "mps"; else "cpu"."""
    if torch.accelerator.is_available():
        return torch.accelerator.current_accelerator().type
    return "cpu"


def device_of(name):
    """A device that is there, by its name; of several GPUs each process of torchrun takes its own.

    ValueError where this machine has none of this name.
    """
    try:
        device = torch.device(name)
        if name == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, TypeError, NotImplementedError):
        raise ValueError(f"this machine has no device {name}; try cpu") from None
    return device


def body_dtype(name, device):
    """The frozen body's dtype: float32, bfloat16, or auto, which is bfloat16 where that is fast.

    Prompts, heads, losses and Adam's state are always float32.
    """
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        flags = cpu_flags() if device.type == "cpu" else ""
        fast = "avx512_bf16" in flags or "amx_bf16" in flags
    return torch.bfloat16 if fast else torch.float32


def cpu_flags():
    """What Linux says that the CPU can do; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""
