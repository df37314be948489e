"""The peers of bench/benchmark.py: how others train a prompt on a frozen GPT-2 that classifies.

Each is made as a step: a function that trains once on a batch (ids (B, T), lengths (B,),
labels (B,)).  The weights are random, so nothing is downloaded.
"""

import torch
import torch.nn.functional as F
import transformers


def hugging_face(sizes, vocabulary, device):
    """GPT2ForSequenceClassification, frozen, without dropout, which spares it some work.

    sizes: (C, L, H).
    """
    C, L, H = sizes
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=C, n_layer=L, n_head=H, num_labels=2, pad_token_id=0
    )
    # Made where it is needed: a GPU draws the weights of gpt2-large at once, a CPU does not.
    with torch.device(device):
        base = transformers.GPT2ForSequenceClassification(config)
    return base.to(device).eval().requires_grad_(False)


def step_of(parameters, loss_of, bf16):
    """The step by which all peers train; loss_of: (ids, lengths, labels) -> loss."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)

    def step(batch):
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(*batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def post(base, P, bf16):
    """The blog post's way: text and prompt embedded in one sequence, all of it read with gradient.

    base: of hugging_face; P: tokens of the prompt; bf16: whether under bfloat16 autocast.
    """
    table = base.transformer.wte
    prompt = torch.nn.Parameter(table.weight[300 : 300 + P].detach().clone())  # (P, C)
    base.score.requires_grad_(True)

    def loss_of(ids, lengths, labels):
        x = F.pad(table(ids), (0, 0, 0, P))  # (B, T+P, C)
        mask = torch.zeros(x.shape[:2], device=x.device)  # (B, T+P)
        for row, length in enumerate(lengths.tolist()):
            x[row, length : length + P] = prompt
            mask[row, : length + P] = 1
        return base(inputs_embeds=x, attention_mask=mask, labels=labels).loss

    return step_of([prompt, base.score.weight], loss_of, bf16)


def peft_prompt_tuning(base, P, bf16):
    """PEFT's prompt tuning, which puts the prompt before the text; arguments as of `post`.

    ImportError where there is no PEFT.
    """
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=P)
    model = get_peft_model(base, config).to(base.device).eval()

    def loss_of(ids, lengths, labels):
        mask = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]  # (B, T)
        return model(input_ids=ids, attention_mask=mask.long(), labels=labels).loss

    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return step_of(learned, loss_of, bf16)
