"""A Hugging Face folder as a GGUF file for llama.cpp, by its own converter, whatever its tokenizer is.

The converter knows tokenizers by a hash and refuses one that it has not met, such as those of make_shape.py. Prompts
are token ids here and texts are not compared, so that any vocabulary of the right size will do.

    python -m benchmarks.peers.to_gguf FOLDER bf16 FILE.gguf --converter ../peers/llama/source/vendor/llama.cpp
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("number", choices=("bf16", "f32", "q8_0"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--converter", type=Path, required=True, help="llama.cpp's folder with convert_hf_to_gguf.py")
    args = parser.parse_args()
    sys.path[:0] = [str(args.converter), str(args.converter / "gguf-py")]

    # Found under the converter's folder only.
    from conversion.base import TextModel

    plain = TextModel._set_vocab_gpt2
    TextModel.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"

    def no_file(self: object) -> None:
        raise FileNotFoundError("no vocabulary of SentencePiece")

    def any_words(self: TextModel) -> None:
        plain(self)
        # llama.cpp loads no vocabulary without merges, and that of make_shape.py has none.
        if "tokenizer.ggml.merges" not in self.gguf_writer.kv_data[0]:
            self.gguf_writer.add_token_merges(["a b"])

    TextModel._set_vocab_sentencepiece = no_file
    TextModel._set_vocab_llama_hf = no_file
    TextModel._set_vocab_gpt2 = any_words
    part = args.file.with_suffix(".part")
    sys.argv = ["convert_hf_to_gguf.py", str(args.folder), "--outtype", args.number, "--outfile", str(part)]
    runpy.run_path(str(args.converter / "convert_hf_to_gguf.py"), run_name="__main__")
    part.rename(args.file)


if __name__ == "__main__":
    main()
