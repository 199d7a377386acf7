"""Folders of tiny models, and a config that trains one; also a training run to kill.

    python -m tests.support.tiny_folders FOLDER WORKDIR

trains by `train_config`, prints every step that is recorded, and waits after it.
"""

import pathlib
import sys
import time

import jax
import jax.numpy as jnp

from configs import zoo_target
from experiments import train
from experiments.runs import training
from specjax import models

VOCAB = 300
TEXTS = ['def main():\n  return 1\n\n\n', 'import os\nprint(os.name)\n']


def save(
    folder, seed: int, vocab_size: int = VOCAB, scale: float = 3.0, num_layers: int = 1, **kwargs
):
  """A tiny random model with a tokenizer, as a Hugging Face folder."""
  config = models.TransformerConfig(
      vocab_size=vocab_size, width=16, num_layers=num_layers, num_heads=2, num_kv_heads=1,
      head_dim=8, mlp_width=16, tie_embeddings=True, max_positions=256,
  )
  module = models.Transformer(config)
  params = module.init(jax.random.key(seed), jnp.zeros((1, 2), jnp.int32))['params']
  params = jax.tree.map(lambda x: scale * x, params)
  models.save_hf(models.LanguageModel(module, params), folder, **kwargs)


def train_config(folder, module=zoo_target, **fields):
  config = module.get_config('smoke')
  config.dtype = 'float32'
  config.corpus.root = str(folder / 'files')
  config.model.vocab_size = VOCAB
  config.corpus.tokenizer = str(folder / 'tokenizer.json')
  for name, value in fields.items():
    config[name] = value
  return config


def train_slowly(folder: str, workdir: str):
  fit = training.train.fit

  def slow(record, **kwargs):
    def pause(progress):
      record(progress)
      print(progress.step, flush=True)
      time.sleep(0.5)

    return fit(record=pause, **kwargs)

  training.train.fit = slow
  train.run(train_config(pathlib.Path(folder)), workdir)


if __name__ == '__main__':
  train_slowly(*sys.argv[1:])
