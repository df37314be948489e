"""Random GPT-2 checkpoints in the official format, for tests that need no download."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

TINY = Path(__file__).parent.parent / "weights" / "tiny"
SHARED = Path(__file__).parent.parent.parent / "shared" / "data"  # official files, where they lie about


def sizes(C=10, H=2, L=3, V=300, n_positions=24, **more):
    """A config.json as a dictionary; V - 257 merges of the bundled tokenizer make the vocabulary."""
    config = {"model_type": "gpt2", "activation_function": "gelu_new", "vocab_size": V, "n_positions": n_positions}
    return config | {"n_embd": C, "n_layer": L, "n_head": H, "layer_norm_epsilon": 1e-5} | more


def random_weights(config, seed=0, dtype=torch.float32):
    """Official names and (in, out) layout.  Nothing is zero or one, so nothing can go unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    C = config["n_embd"]

    def normal(*shape, scale=0.3, mean=0.0):
        return (torch.randn(*shape, generator=generator, dtype=torch.float32).mul_(scale).add_(mean)).to(dtype)

    weights = {"wte.weight": normal(config["vocab_size"], C), "wpe.weight": normal(config["n_positions"], C)}
    for i in range(config["n_layer"]):
        for name, (rows, columns) in {
            "attn.c_attn": (C, 3 * C), "attn.c_proj": (C, C), "mlp.c_fc": (C, 4 * C), "mlp.c_proj": (4 * C, C),
        }.items():  # fmt: skip
            weights[f"h.{i}.{name}.weight"] = normal(rows, columns, scale=rows**-0.5)
            weights[f"h.{i}.{name}.bias"] = normal(columns)
        for name in ("ln_1", "ln_2"):
            weights[f"h.{i}.{name}.weight"] = normal(C, mean=1.0)
            weights[f"h.{i}.{name}.bias"] = normal(C)
    weights["ln_f.weight"], weights["ln_f.bias"] = normal(C, mean=1.0), normal(C)
    return weights


def mask_buffers(config):
    """What older official files carry beside the weights."""
    n = config["n_positions"]
    mask = torch.ones(n, n).tril().view(1, 1, n, n)
    return {f"h.{i}.attn.bias": mask.clone() for i in range(config["n_layer"])}


def write_unaligned(path, tensors, size):
    """A safetensors file of exactly `size` bytes, with a header as early writers left it: no metadata,
    and of any length, so that the official gpt2's floats begin at byte 14,291, an odd place."""
    header, end = {}, 0
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].numel()):
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    text = json.dumps(header, separators=(",", ":")).encode().ljust(size - 8 - end)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in header:
            tensors[name].numpy().tofile(file)


def write_checkpoint(folder, config, weights):
    """config.json, model.safetensors and a fitting merges.txt in folder -> folder"""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    lines = (TINY / "merges.txt").read_text(encoding="utf-8").splitlines()[: config["vocab_size"] - 256]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_shards(folder, weights):
    """Five shards and their index in place of the one file of a checkpoint folder."""
    names = sorted(weights)
    shards = {f"model-0000{i + 1}-of-00005.safetensors": names[i::5] for i in range(5)}
    (folder / "model.safetensors").unlink()
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in shards.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
