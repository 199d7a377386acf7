"""Makes `tests/golden/yarn.npz`: frequencies and logits with YaRN, by `transformers`.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
    /tmp/golden/bin/python scripts/make_golden_yarn.py

For every setting of `SETTINGS`, the inverse frequencies [head_dim / 2] and the factor on cosines
and sines; for those of `MODELS`, the logits [1, 48, V] float32 of the golden Qwen3 model
(`scripts/make_golden_models.py`) with that setting, whose original context is a third of the
sequence or less. The settings are in the file as well, as JSON.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers
from transformers import modeling_rope_utils

ROOT = pathlib.Path(__file__).resolve().parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
# Size of a head, base, longest context, and the keys of `rope_scaling`.
SETTINGS = {
    'Qwen2.5': (128, 1e6, 131072, dict(factor=4.0, original_max_position_embeddings=32768)),
    'Qwen3': (128, 1e6, 131072, dict(
        factor=4.0, original_max_position_embeddings=32768, beta_fast=32.0, beta_slow=1.0)),
    'DeepSeek-V2': (64, 1e4, 163840, dict(
        factor=40, original_max_position_embeddings=4096, beta_fast=32, beta_slow=1,
        mscale=0.707, mscale_all_dim=0.707)),
    'two scales': (64, 1e4, 163840, dict(
        factor=40, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=0.5)),
    'one scale': (64, 1e4, 163840, dict(
        factor=40, original_max_position_embeddings=4096, mscale=0.707)),
    'gpt-oss': (64, 150000, 131072, dict(
        factor=32.0, original_max_position_embeddings=4096, beta_fast=32.0, beta_slow=1.0,
        truncate=False)),
    'attention factor': (128, 1e6, 131072, dict(
        factor=4.0, original_max_position_embeddings=32768, attention_factor=1.25)),
    'no original': (32, 1e4, 2048, dict(factor=2.0)),
    'factor one': (32, 1e4, 2048, dict(factor=1.0, original_max_position_embeddings=2048)),
    'short': (16, 2000.0, 64, dict(factor=4.0, original_max_position_embeddings=16)),
    'short, narrow': (16, 2000.0, 64, dict(
        factor=3.0, original_max_position_embeddings=16, beta_fast=1.0, beta_slow=0.25,
        truncate=False, attention_factor=1.5)),
    'all stretched': (16, 2000.0, 64, dict(factor=4.0, original_max_position_embeddings=4)),
}
MODELS = ('short', 'short, narrow')


def parameters(name: str) -> dict:
  _, theta, _, scaling = SETTINGS[name]
  return {'rope_type': 'yarn', 'rope_theta': theta, **scaling}


def frequencies(name: str) -> tuple[np.ndarray, float]:
  head_dim, _, longest, _ = SETTINGS[name]
  config = transformers.LlamaConfig(
      hidden_size=2 * head_dim, num_attention_heads=2, max_position_embeddings=longest,
      rope_parameters=parameters(name),
  )
  inverse, factor = modeling_rope_utils.ROPE_INIT_FUNCTIONS['yarn'](config, 'cpu')
  return inverse.numpy(), factor


def logits(name: str, tokens: np.ndarray) -> np.ndarray:
  folder = GOLDEN / 'models' / 'qwen3'
  config = transformers.AutoConfig.from_pretrained(folder)
  config.rope_parameters = parameters(name)
  model = transformers.AutoModelForCausalLM.from_pretrained(
      folder, config=config, attn_implementation='eager', dtype=torch.float32
  ).eval()
  with torch.no_grad():
    return model(torch.from_numpy(tokens).long()).logits.numpy()


def main(path: str) -> None:
  torch.set_num_threads(1)
  arrays = {'settings': np.array(json.dumps(SETTINGS))}
  for name in SETTINGS:
    arrays[f'{name}: frequencies'], arrays[f'{name}: magnitude'] = frequencies(name)
  tokens = np.load(GOLDEN / 'models' / 'qwen3' / 'golden.npz')['tokens'][:1]
  for name in MODELS:
    arrays[f'{name}: logits'] = logits(name, tokens)
  np.savez_compressed(path, **arrays)
  print(f'{path}: {pathlib.Path(path).stat().st_size / 1000:.0f} kB')


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else str(GOLDEN / 'yarn.npz'))
