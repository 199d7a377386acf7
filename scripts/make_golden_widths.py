"""Makes `tests/golden/widths.npz`: logits of one layer at real widths, by `transformers`.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0
    /tmp/golden/bin/python scripts/make_golden_widths.py

One layer of a Llama-3.1-70B and one of a Llama-3.2-1B, with a vocabulary of 512; the weights
are made by `tests/support/widths.py`, here and in the test, and are exact in bfloat16. The file has
the logits (float32) of a float32 pass and of a bfloat16 pass, whose distance is the tolerance.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import widths  # noqa: E402


def logits(name: str, dtype: torch.dtype) -> np.ndarray:
  width, heads, groups, head_dim, mlp, factor, tied = widths.SHAPES[name]
  scaling = dict(
      rope_type='llama3', factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
      original_max_position_embeddings=8192, rope_theta=500_000.0,
  )
  config = transformers.LlamaConfig(
      vocab_size=widths.VOCAB, hidden_size=width, num_hidden_layers=1, num_attention_heads=heads,
      num_key_value_heads=groups, head_dim=head_dim, intermediate_size=mlp, rms_norm_eps=1e-5,
      rope_theta=500_000.0, rope_parameters=scaling, tie_word_embeddings=tied,
      max_position_embeddings=131_072, attn_implementation='eager', dtype=dtype,
  )
  with torch.device('meta'):
    model = transformers.LlamaForCausalLM(config)
  model = model.to_empty(device='cpu').to(dtype).eval()
  model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
  parameters = model.state_dict()
  for key, value in widths.state(name):
    parameters[key].copy_(torch.from_numpy(value))
  model.tie_weights()
  with torch.no_grad():
    output = model(torch.from_numpy(widths.tokens()).long())
  return output.logits.float().numpy()


def main() -> None:
  arrays = {}
  for name in widths.SHAPES:
    for dtype in (torch.float32, torch.bfloat16):
      arrays[f'{name} {str(dtype).removeprefix("torch.")}'] = logits(name, dtype)
  np.savez_compressed(ROOT / 'tests/golden/widths.npz', **arrays)
  for key, value in arrays.items():
    print(key, value.shape, float(np.abs(value).max()))


if __name__ == '__main__':
  main()
