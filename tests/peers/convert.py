"""llama.cpp's convert_hf_to_gguf.py, run from its source tree: convert.py TREE MODEL OUT [more arguments].

The converter names a tokenizer's pre-tokenizer by looking up a hash of how it encodes one fixed text, and stops
when the hash is not in its table.  The fixtures' small vocabularies are not there, so the answer is given by hand:
`qwen2`, the pre-tokenizer their tokenizer.json describes.  Nothing else of the converter is touched.
"""

import sys

tree, model, out, *more = sys.argv[1:]
sys.path.insert(0, tree)
sys.argv = ["convert_hf_to_gguf.py", model, "--outfile", out, *more]

import convert_hf_to_gguf  # noqa: E402
from conversion import base  # noqa: E402

base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
convert_hf_to_gguf.main()
