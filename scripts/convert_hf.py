"""Rewrites a model as a Hugging Face folder: another dtype or layout, the text part of a Gemma 3.

    python scripts/convert_hf.py --source=gemma-3-4b-it --output=gemma-3-4b-text \
        --dtype=bfloat16 --text_only
    python scripts/convert_hf.py --source=model.Q4_K_M.gguf --output=model --dtype=bfloat16

The source is a folder, a hub id, a `.gguf` file, or smollm2, which is fetched.

Loading checks that specjax supports the model; its shape and size are printed. Tokenizer and
generation settings are copied. Nothing is left behind when it fails.
"""

import json
import pathlib
import tempfile

from absl import app
from absl import flags
import jax
import ml_dtypes
import numpy as np

from specjax import models
from specjax.models import hub
from specjax.models import loading
from specjax.models.hf import keys as hf_keys
from specjax.zoo import fetched

DTYPES = {
    'keep': None,
    'float32': np.float32,
    'float16': np.float16,
    'bfloat16': ml_dtypes.bfloat16,
}
# Copied as they are: what tokenizers, chats and generation need, and licences of the weights.
COPIED_FILES = (
    'tokenizer.json',
    'tokenizer_config.json',
    'special_tokens_map.json',
    'chat_template.jinja',
    'chat_template.json',
    'generation_config.json',
    'LICENSE*',
    'NOTICE*',
)

_SOURCE = flags.DEFINE_string('source', None, 'What to read.', required=True)
_OUTPUT = flags.DEFINE_string(
    'output', None, 'Folder to write; must not exist. Without it the source is only checked.'
)
_DTYPE = flags.DEFINE_enum('dtype', 'keep', list(DTYPES), 'Dtype of the written weights.')
_SHARD_GB = flags.DEFINE_float('max_shard_gb', 5.0, 'Largest size of a shard, in 10^9 bytes.')
_TEXT_ONLY = flags.DEFINE_bool(
    'text_only', False, 'Take only the language model of a Gemma 3 with vision.'
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
  if loading.is_gguf(source):
    return _convert_gguf(source, output, dtype, max_shard_bytes)
  model = models.load_hf(source, dtype=DTYPES[dtype], text_only=text_only)
  if output is not None:
    files = [file for pattern in COPIED_FILES for file in sorted(source.glob(pattern))]
    models.save_hf(
        model,
        output,
        max_shard_bytes=max_shard_bytes,
        bos_id=hf_keys.read_file(source / 'config.json', hf_keys.GENERATION)['bos_token_id'],
        eos_ids=models.load_eos_ids(source),
        extra_files=files,
    )
  return model


def _convert_gguf(
    source: pathlib.Path, output: pathlib.Path | None, dtype: str, max_shard_bytes: int
) -> models.LanguageModel:
  """Of a GGUF file; its tokenizer and chat template become files of the folder."""
  loaded = models.load(source, dtype=DTYPES[dtype])
  if output is None:
    return loaded.model
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    loaded.tokenizer.save(str(folder / 'tokenizer.json'))
    config = dict(loaded.special_tokens, tokenizer_class='PreTrainedTokenizerFast')
    if loaded.chat_template is not None:
      config['chat_template'] = loaded.chat_template
    text = json.dumps(config, indent=2, ensure_ascii=False)
    (folder / 'tokenizer_config.json').write_text(text, encoding='utf-8')
    models.save_hf(
        loaded.model,
        output,
        max_shard_bytes=max_shard_bytes,
        eos_ids=loaded.end_tokens,
        extra_files=sorted(folder.iterdir()),
    )
  return loaded.model


def main(argv: list[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'Unexpected arguments {argv[1:]}; only flags are taken.')
  # Weights are only copied, for which no accelerator is needed.
  jax.config.update('jax_platforms', 'cpu')
  try:
    model = convert(
        fetched.fetch() if _SOURCE.value == fetched.NAME else hub.fetch(_SOURCE.value),
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
