"""Mix saved LoRAs sample by sample, on any Hugging Face causal language model:  y = W0 x + sum_i w_i s_i B_i A_i x

python examples/mix_loras.py --demo          a small random model, made on the spot
python examples/mix_loras.py MODEL LORA LORA -- "0.7,0.3:First question" "0,1:Second question"
"""

import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM


def mixable(base, folders: list[str]) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    """All LoRAs active at once; ``mix["weights"]`` ``(B, E)``, set before a forward, acts between A and B of each."""
    model, mix = PeftModel.from_pretrained(base, folders[0], adapter_name="0"), {}
    for number, folder in enumerate(folders[1:], 1):
        model.load_adapter(folder, adapter_name=str(number))
    model.base_model.set_adapter([str(i) for i in range(len(folders))], inference_mode=True)
    for name, module in model.named_modules():
        if name.rpartition(".")[0].endswith("lora_A"):  # lora_A.0, lora_A.1, ... of every adapted layer
            column = int(name.rpartition(".")[2])
            module.register_forward_hook(lambda _, __, out, i=column: out * mix["weights"].to(out)[:, i, None, None])
    return model.eval(), mix


def answer(name: str, *rest: str) -> list[str]:
    """Greedy answers; ``rest`` are LoRA folders, ``--``, and questions ``w,w,...:text``."""
    cut = rest.index("--")
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model, mix = mixable(AutoModelForCausalLM.from_pretrained(name), list(rest[:cut]))
    weights, _, questions = zip(*(text.partition(":") for text in rest[cut + 1 :]), strict=True)
    mix["weights"] = torch.tensor([[float(w) for w in row.split(",")] for row in weights])
    batch = tokenizer(list(questions), return_tensors="pt", padding=True)
    new = model.generate(**batch, max_new_tokens=64, do_sample=False)[:, batch["input_ids"].shape[1] :]
    return tokenizer.batch_decode(new, skip_special_tokens=True)


@torch.no_grad()
def demo(folder: str) -> None:
    """One question under four mixes: distance to plain peft, the bare model, the row alone; the bare model, not 0."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=99, **size)).save_pretrained(f"{folder}/base")
    bare, *base = [LlamaForCausalLM.from_pretrained(f"{folder}/base").eval() for _ in range(5)]  # peft changes its base
    for i in "01":
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        get_peft_model(base.pop(), lora).save_pretrained(f"{folder}/{i}")
    model, mix = mixable(base.pop(), [f"{folder}/0", f"{folder}/1"])
    first, ids = PeftModel.from_pretrained(base.pop(), f"{folder}/0").eval(), torch.arange(8)[None]
    mix["weights"] = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.3, 0.7], [0.0, 1.0]])
    mixed, mix["weights"] = model(ids.repeat(4, 1)).logits, mix["weights"][2:3]
    for what, row, other in ("[1, 0]", 0, first), ("[0, 0]", 1, bare), ("[.3, .7]", 2, model), ("[0, 1]", 3, bare):
        print(f"{what}: {float((mixed[row] - other(ids).logits[0]).abs().max()):.6f}")


if __name__ == "__main__":
    demo(tempfile.mkdtemp()) if sys.argv[1:] == ["--demo"] else print(*answer(*sys.argv[1:]), sep="\n")
