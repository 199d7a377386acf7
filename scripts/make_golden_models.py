"""Makes the golden models of the tests: one tiny random model per family, by `transformers`.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.23.0 safetensors==0.8.0
    /tmp/golden/bin/python scripts/make_golden_models.py tests/golden/models

Python 3.11. Each folder then holds `config.json`, `generation_config.json` and
`model.safetensors` as `save_pretrained` writes them (float32), and `golden.npz`: tokens
[2, 48] int32 and the logits [2, 48, V] float32 with eager attention. The numbers
depend on torch's generator and kernels, so other versions give other files, which serve
as well: the tests compare a folder's weights with that folder's logits.

The weights are widely spread, norm scales and biases are random too, windows are shorter than
the sequence, rotary scaling starts within it, and soft caps are reached: every switch of a
family changes its logits, so that agreement means something.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers

SEQUENCE = 48
COMMON = dict(
    vocab_size=96,
    hidden_size=32,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=3e-3,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    attn_implementation='eager',
)
GEMMA = COMMON | dict(head_dim=16, tie_word_embeddings=True, sliding_window=8)

MODELS = {
    'llama2': transformers.LlamaConfig(
        **COMMON | dict(num_key_value_heads=4),
        intermediate_size=56,
        num_hidden_layers=2,
        rope_parameters={'rope_type': 'default', 'rope_theta': 1000.0},
    ),
    'llama3': transformers.LlamaConfig(
        **COMMON | dict(eos_token_id=[2, 3]),
        intermediate_size=48,
        num_hidden_layers=3,
        head_dim=12,
        tie_word_embeddings=True,
        rope_parameters={
            'rope_type': 'llama3',
            'rope_theta': 10_000.0,
            'factor': 8.0,
            'low_freq_factor': 1.0,
            'high_freq_factor': 4.0,
            'original_max_position_embeddings': 32,
        },
    ),
    'mistral': transformers.MistralConfig(
        **COMMON,
        intermediate_size=48,
        num_hidden_layers=3,
        sliding_window=7,
        rope_parameters={'rope_type': 'default', 'rope_theta': 10_000.0},
    ),
    'qwen2': transformers.Qwen2Config(
        **COMMON,
        intermediate_size=40,
        num_hidden_layers=4,
        tie_word_embeddings=True,
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=2,
        rope_parameters={'rope_type': 'default', 'rope_theta': 5000.0},
    ),
    'qwen3': transformers.Qwen3Config(
        **COMMON | dict(hidden_size=40),
        intermediate_size=40,
        num_hidden_layers=2,
        head_dim=16,
        rope_parameters={'rope_type': 'default', 'rope_theta': 2000.0},
    ),
    'gemma2': transformers.Gemma2Config(
        **GEMMA,
        intermediate_size=24,
        num_hidden_layers=4,
        query_pre_attn_scalar=24,
        attn_logit_softcapping=3.0,
        final_logit_softcapping=4.0,
        rope_parameters={'rope_type': 'default', 'rope_theta': 10_000.0},
    ),
    'gemma3': transformers.Gemma3TextConfig(
        **GEMMA | dict(num_key_value_heads=1),
        intermediate_size=32,
        num_hidden_layers=4,
        query_pre_attn_scalar=20,
        sliding_window_pattern=3,
        rope_parameters={
            'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 10_000.0},
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 200.0},
        },
    ),
}


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
  """Fills every parameter, norm scales and biases included, with widely spread values."""
  for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if 'norm' in name:
      # Gemma stores its scales minus one.
      center = 0.0 if 'gemma' in model.config.model_type else 1.0
      parameter.data = center + 0.4 * noise
    elif 'embed_tokens' in name or name.endswith('bias'):
      parameter.data = 0.3 * noise
    else:
      parameter.data = 1.2 * noise / parameter.shape[-1] ** 0.5


def main(folder: str) -> None:
  torch.set_num_threads(1)
  for seed, (name, config) in enumerate(MODELS.items()):
    generator = torch.Generator().manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation='eager', dtype=torch.float32
    ).eval()
    randomise(model, generator)
    model.tie_weights()
    tokens = torch.randint(config.vocab_size, (2, SEQUENCE), generator=generator)
    with torch.no_grad():
      logits = model(tokens).logits
    path = pathlib.Path(folder) / name
    model.save_pretrained(path)
    np.savez(path / 'golden.npz', tokens=tokens.numpy().astype(np.int32), logits=logits.numpy())
    size = sum(file.stat().st_size for file in path.iterdir())
    print(f'{name}: {size / 1000:.0f} kB, standard deviation of logits {logits.std():.2f}')


if __name__ == '__main__':
  main(sys.argv[1] if len(sys.argv) > 1 else 'tests/golden/models')
