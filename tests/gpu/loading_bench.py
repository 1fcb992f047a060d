"""loading_bench.py FOLDER: transformers with bitsandbytes loads what loading_bench.lua has left there."""
import sys
import time

try:
    import torch
    import transformers
    import bitsandbytes
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
except ImportError as e:
    sys.exit(f"transformers and bitsandbytes are not measured: {e}")

print(f"transformers {transformers.__version__}, bitsandbytes {bitsandbytes.__version__}, torch {torch.__version__}")
torch.zeros(1, device="cuda")
for nested in False, False, True:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                                bnb_4bit_compute_dtype=torch.bfloat16)
    started = time.time()
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], quantization_config=config, dtype=torch.bfloat16,
                                                 device_map={"": 0})
    torch.cuda.synchronize()
    print(f"nf4{'+dq' if nested else ''}: {time.time() - started:.2f} s, {torch.cuda.memory_allocated() / 1e9:.3f} GB, "
          f"at most {torch.cuda.max_memory_allocated() / 1e9:.3f} GB")
    del model
