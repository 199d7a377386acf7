"""The shipped pair: what it holds, its size, and that speculation changes nothing on it."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

import specjax
from specjax import drafters
from specjax import verify
from specjax import zoo

FOLDER = pathlib.Path(zoo.__file__).parent


class TestPair:

  def test_what_it_holds(self):
    pair = zoo.load('stdlib')
    assert pair.target.module.config.num_parameters == 16_802_880
    assert pair.draft.module.config.num_parameters == 1_753_856
    assert pair.target.vocab_size == pair.tokenizer.get_vocab_size()
    assert pair.target.params['embedding'].dtype == jnp.bfloat16
    assert pair.end_of_text == 0
    assert len(pair.held_out) == 24
    text = pair.held_out[0].text
    assert pair.tokenizer.decode(pair.tokenizer.encode(text).ids) == text

  def test_everything_shipped_is_at_most_60_megabytes(self):
    size = sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())
    assert size < 60e6

  def test_prompts_do_not_overlap(self):
    pair = zoo.load('stdlib')
    prompts = pair.prompts(200, length=64)
    assert len({tuple(prompt) for prompt in prompts}) == 200
    assert pair.prompts(3, length=64, offset=5) == prompts[5:8]
    with pytest.raises(ValueError, match='Ask for fewer'):
      pair.prompts(10_000, length=64)

  def test_its_heads(self):
    pair = zoo.load('stdlib')
    sizes = {'eagle3': 2_868_480, 'early_exit': 860_800, 'medusa': 5_653_760}
    for name, size in sizes.items():
      head = pair.head(name)
      assert head.config.num_parameters == size
      assert head.module.dtype == jnp.bfloat16
    assert pair.head('eagle3').config.feature_layers == (2, 7, 11)
    assert pair.head('eagle3').embedding is None
    with pytest.raises(ValueError, match="no head 'nothing'"):
      pair.head('nothing')

  def test_the_head_of_the_model_that_is_fetched(self):
    """Its file alone: the target, whose output rows are its output head, may not be there."""
    folder = zoo.folder('smollm2') / 'eagle3'
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    tensors = safetensors.load_file(folder / 'model.safetensors')
    assert (config['draft_vocab_size'], config['fc_norm']) == (6144, True)
    assert tensors['d2t'].shape == (6144,) and tensors['t2d'].sum() == 6144
    weights = {name: x for name, x in tensors.items() if x.dtype == np.int8}
    assert 'lm_head.weight' not in tensors and sum(x.size for x in weights.values()) > 4.1e6
    assert all(np.isfinite(tensors[f'{name}_scale']).all() for name in weights)

  def test_unknown_name(self):
    with pytest.raises(ValueError, match='there are: stdlib'):
      zoo.load('nothing')


class TestLossless:

  @pytest.mark.parametrize('name', ['greedy', 'coupled'])
  def test_bitwise_plain_on_held_out_files(self, name):
    # A sample of scripts/check_lossless.py, which takes 200 prompts.
    pair = zoo.load('stdlib')
    options = dict(rule=getattr(verify, name)(), max_new_tokens=32, seeds=7)
    accepted = 0
    for prompt in pair.prompts(6, length=48, offset=16):
      expected = specjax.decode(pair.target, [prompt], width=5, **options)
      for drafter in (drafters.model(pair.draft), drafters.ngram()):
        output = specjax.generate(pair.target, [prompt], drafter=drafter, **options)
        np.testing.assert_array_equal(output.tokens, expected.tokens)
        accepted += output.stats.accepted.sum()
    # Many drafts must have been accepted, or the equality says nothing.
    assert accepted > 50
