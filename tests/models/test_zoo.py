"""The shipped pair: what it holds, its size, and that speculation changes nothing on it."""

import pathlib

from absl.testing import absltest
from absl.testing import parameterized
import jax.numpy as jnp
import numpy as np

import specjax
from specjax import drafters
from specjax import verify
from specjax import zoo

FOLDER = pathlib.Path(zoo.__file__).parent


class PairTest(absltest.TestCase):

  def test_what_it_holds(self):
    pair = zoo.load('stdlib')
    self.assertEqual(pair.target.module.config.num_parameters, 16_802_880)
    self.assertEqual(pair.draft.module.config.num_parameters, 1_753_856)
    self.assertEqual(pair.target.vocab_size, pair.tokenizer.get_vocab_size())
    self.assertEqual(pair.target.params['embedding'].dtype, jnp.bfloat16)
    self.assertEqual(pair.end_of_text, 0)
    self.assertLen(pair.held_out, 24)
    text = pair.held_out[0].text
    self.assertEqual(pair.tokenizer.decode(pair.tokenizer.encode(text).ids), text)

  def test_everything_shipped_is_at_most_60_megabytes(self):
    size = sum(path.stat().st_size for path in FOLDER.rglob('*') if path.is_file())
    self.assertLess(size, 60e6)

  def test_prompts_do_not_overlap(self):
    pair = zoo.load('stdlib')
    prompts = pair.prompts(200, length=64)
    self.assertLen({tuple(prompt) for prompt in prompts}, 200)
    self.assertEqual(pair.prompts(3, length=64, offset=5), prompts[5:8])
    with self.assertRaisesRegex(ValueError, 'Ask for fewer'):
      pair.prompts(10_000, length=64)

  def test_its_heads(self):
    pair = zoo.load('stdlib')
    sizes = {'eagle3': 2_868_480, 'early_exit': 860_800, 'medusa': 5_653_760}
    for name, size in sizes.items():
      head = pair.head(name)
      self.assertEqual(head.config.num_parameters, size)
      self.assertEqual(head.module.dtype, jnp.bfloat16)
    self.assertEqual(pair.head('eagle3').config.feature_layers, (2, 7, 11))
    self.assertIsNone(pair.head('eagle3').embedding)
    with self.assertRaisesRegex(ValueError, "no head 'nothing'"):
      pair.head('nothing')

  def test_unknown_name(self):
    with self.assertRaisesRegex(ValueError, 'there are: stdlib'):
      zoo.load('nothing')


class LosslessTest(parameterized.TestCase):

  @parameterized.parameters('greedy', 'coupled')
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
    self.assertGreater(accepted, 50)


if __name__ == '__main__':
  absltest.main()
