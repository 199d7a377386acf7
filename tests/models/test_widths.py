"""One layer of a Llama-3.1-70B and of a Llama-3.2-1B, at real widths, against transformers."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from specjax import models
from specjax.models.hf import tensors as hf_tensors
from specjax.models.hf import weights as hf
from tests.support import widths

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'widths.npz'


@pytest.mark.parametrize('name', widths.SHAPES)
def test_a_layer_at_its_real_widths_agrees_with_transformers(name):
  golden = np.load(GOLDEN)
  exact, rounded = golden[f'{name} float32'], golden[f'{name} bfloat16']
  config = dataclasses.replace(
      models.presets.get(name), num_layers=1, vocab_size=widths.VOCAB
  )
  stored = {key: value.astype(jnp.bfloat16) for key, value in widths.state(name)}
  params = {}
  for parameter in hf.table(config):
    tensors = [stored.pop(part.name) for part in parameter.parts]
    value = hf_tensors.read(parameter, tensors, jnp.bfloat16)
    hf_tensors.insert(params, parameter.path, jnp.asarray(value))
  assert not stored
  module = models.Transformer(config, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)
  logits = np.asarray(models.LanguageModel(module, params)(jnp.asarray(widths.tokens())).logits)
  # As near to exact arithmetic as the other bfloat16 pass is, and of a size that says something.
  tolerance = np.abs(rounded - exact).max()
  assert np.abs(exact).max() > 20 * tolerance
  assert np.abs(logits - exact).max() < 2 * tolerance
