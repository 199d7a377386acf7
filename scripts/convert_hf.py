"""Rewrites a Hugging Face folder: another dtype, other shards, the text part of a Gemma 3.

    python scripts/convert_hf.py --source=gemma-3-4b-it --output=gemma-3-4b-text \
        --dtype=bfloat16 --text_only

Loading checks that specjax supports the model; what it prints is its size. Tokenizer and
generation settings go along. Nothing is left behind when it fails.
"""

import pathlib

from absl import app
from absl import flags
import jax
import ml_dtypes
import numpy as np

from specjax import models
from specjax.models.hf import keys as hf_keys

DTYPES = {
    'keep': None,
    'float32': np.float32,
    'float16': np.float16,
    'bfloat16': ml_dtypes.bfloat16,
}
# What tokenizers, chats and generation need, and the licences that go with the weights.
BESIDE = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'chat_template.jinja',
    'generation_config.json',
    'LICENSE*',
    'NOTICE*',
)

_SOURCE = flags.DEFINE_string('source', None, 'Folder to read.', required=True)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder to write; must not exist. None checks the source only.'
)
_DTYPE = flags.DEFINE_enum('dtype', 'keep', list(DTYPES), 'Dtype of the weights written.')
_SHARD_GB = flags.DEFINE_float('max_shard_gb', 5.0, 'Size of a shard, in 10^9 bytes.')
_TEXT_ONLY = flags.DEFINE_bool(
    'text_only', False, 'Take the language model of a Gemma 3 with a vision tower.'
)


def convert(
    source: pathlib.Path,
    output: pathlib.Path | None,
    *,
    dtype: str = 'keep',
    max_shard_bytes: int = 5_000_000_000,
    text_only: bool = False,
) -> models.LanguageModel:
  """Reads `source`, writes `output` unless it is None, and returns the model."""
  model = models.load_hf(source, dtype=DTYPES[dtype], text_only=text_only)
  if output is not None:
    beside = [file for pattern in BESIDE for file in sorted(source.glob(pattern))]
    models.save_hf(
        model,
        output,
        max_shard_bytes=max_shard_bytes,
        bos_id=hf_keys.read_file(source / 'config.json', hf_keys.GENERATION)['bos_token_id'],
        eos_ids=models.load_eos_ids(source),
        extra_files=beside,
    )
  return model


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unknown arguments {argv[1:]}.')
  # Weights only pass through: host memory is where they belong.
  jax.config.update('jax_platforms', 'cpu')
  try:
    model = convert(
        pathlib.Path(_SOURCE.value),
        None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value),
        dtype=_DTYPE.value,
        max_shard_bytes=int(_SHARD_GB.value * 1e9),
        text_only=_TEXT_ONLY.value,
    )
  except (OSError, ValueError) as error:
    raise SystemExit(f'convert_hf: {error}') from error
  print(model.module.config)
  print(f'{model.module.config.num_parameters:,} parameters, {np.dtype(model.module.dtype)}')
  if _OUTPUT.value is not None:
    print(f'Written to {_OUTPUT.value}')


if __name__ == '__main__':
  app.run(main)
