"""The acceptance op's definition in jnp, its front, and the engine that decides through it."""

import collections
import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh
import numpy as np
import pytest

from specjax import drafters
from specjax import generation
from specjax import randomness
from specjax import sampling as sampling_lib
from specjax import testing
from specjax import verify
from specjax.kernels import accept as accept_lib
from specjax.kernels.accept import api
from specjax.kernels.accept import base
from specjax.kernels.accept import op_rule
from specjax.kernels.accept import xla
from specjax.models import LanguageModel
from specjax.sharding import layout as layout_lib
from tests.support import accept_suite
from tests.support import exact_laws
from tests.support import tiny
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')

RULES = {
    rule.name: rule
    for rule in (verify.greedy(), verify.rejection(), verify.block(), verify.coupled())
}


class TestXla(accept_suite.AcceptSuite):
  """`implementation='xla'`."""

  IMPLEMENTATION = 'xla'
  # The last one is prime and longer than a tile, so that a tile is filled up.
  VOCABULARIES = (7, 300, 4999)
  KINDS = ('logits', 'law', 'one_hot')
  RULES = ('rejection', 'block')


class TestDefinition:

  @pytest.mark.parametrize('vocab_size', [32_000, 128_256, 151_936, 262_144, 7])
  def test_tiles_do_not_cross_shards(self, vocab_size):
    tile = base.tile_size(vocab_size)
    for shards in (2, 4, 8, 16):
      if vocab_size % shards == 0:
        assert vocab_size // shards % tile == 0
    assert tile < 4097

  @pytest.mark.parametrize('size', [1, 2, 3, 7, 16, 63, 64])
  def test_sums_by_halves(self, size):
    values = np.random.default_rng(0).integers(0, 100, (3, size)).astype(np.float32)
    found = randomness.ordered_sum(jnp.asarray(values))
    np.testing.assert_array_equal(found, values.sum(axis=-1))

  def test_a_draw_never_takes_a_token_without_weight(self):
    weights = jnp.array([[0.0, 0.5, 0.0, 0.5, 0.0]] * 4)
    goals = jnp.array([0.0, 0.5, 1.0, 1.1])
    assert randomness.pick(weights, goals).tolist() == [1, 3, 3, 3]

  @pytest.mark.parametrize('rule', ['rejection', 'block'])
  def test_law_in_the_engine(self, rule):
    """Enumerated through the op's own definition, by the engine's round; see test_lossless."""
    target, draft = testing.table_model(seed=1), testing.table_model(seed=9)
    rows = [dict(), dict(temperature=0.5), dict(top_k=2), dict(top_p=0.7), dict(temperature=0.0)]
    columns = {
        name: [row.get(name, default) for row in rows]
        for name, default in (('temperature', 1.0), ('top_k', 0), ('top_p', 1.0))
    }
    sampling = sampling_lib.make(batch_size=len(rows), **columns)
    prompts = [(0, 1, 0)] * len(rows)
    expected = testing.plain_law(target, prompts, sampling=sampling, max_new_tokens=3)
    for drafter in (
        drafters.model(draft, num_speculative_tokens=2), drafters.ngram(num_speculative_tokens=2)
    ):
      laws = testing.output_law(
          target, prompts, rule=accept_lib.through(RULES[rule], 'xla'), drafter=drafter,
          sampling=sampling, max_new_tokens=3,
      )
      for law, right in zip(laws, expected):
        tolerance.assert_law(law, right)

  @pytest.mark.parametrize('siblings', ['with_replacement', 'without_replacement', 'rank'])
  def test_law_of_trees_in_the_engine(self, siblings):
    target, draft = testing.table_model(seed=1), testing.table_model(seed=9)
    drafter = drafters.model_tree(draft, tree=[(0,), (1,), (0, 0)], siblings=siblings)
    sampling = sampling_lib.make(batch_size=2, temperature=[1.0, 0.5], top_p=[1.0, 0.8])
    prompts = [(0, 1, 0)] * 2
    expected = testing.plain_law(target, prompts, sampling=sampling, max_new_tokens=3)
    laws = testing.output_law(
        target, prompts, rule=accept_lib.through(verify.recursive(), 'xla'), drafter=drafter,
        sampling=sampling, max_new_tokens=3,
    )
    for law, right in zip(laws, expected):
      tolerance.assert_law(law, right)

  def test_the_enumeration_sees_a_fault_of_the_op(self):
    """A residual that forgets the draft's law."""

    class Faulty(xla.TileRows):

      def draw(self, draw, source):
        return super().draw(draw.or_target(draw.scale >= 0), source)

    target, draft = testing.table_model(seed=1), testing.table_model(seed=9)
    with mock.patch.object(xla, 'TileRows', Faulty):
      law, = testing.output_law(
          target, [(0, 1, 0)], rule=accept_lib.through(verify.rejection(), 'xla'),
          # K = 1: a program that no other test has compiled.
          drafter=drafters.model(draft, num_speculative_tokens=1), max_new_tokens=2,
      )
    right, = testing.plain_law(target, [(0, 1, 0)], max_new_tokens=2)
    assert testing.max_difference(law, right) > exact_laws.SEEN

  @pytest.mark.parametrize('name', [*RULES])
  def test_same_tokens_in_the_engine(self, name):
    """Through the op and by the rule's own definition, over many rounds."""
    settings = sampling_lib.make(batch_size=4, **SETTINGS)
    target = tiny.model(0, num_layers=1)
    drafter = drafters.ngram(num_speculative_tokens=3)
    if RULES[name].mode == 'sample':
      # Weights a little larger: laws that agree often, not always.
      draft = LanguageModel(target.module, jax.tree.map(lambda x: 1.1 * x, target.params))
      drafter = drafters.model(draft, num_speculative_tokens=3)
    outputs = [
        generation.generate(
            target, tiny.PROMPTS, drafter=drafter, rule=rule, sampling=settings,
            max_new_tokens=24, seeds=3,
        )
        for rule in (RULES[name], accept_lib.through(RULES[name], 'xla'))
    ]
    np.testing.assert_array_equal(outputs[0].tokens, outputs[1].tokens)
    np.testing.assert_array_equal(outputs[0].stats.accepted, outputs[1].stats.accepted)
    assert int(outputs[0].stats.accepted.sum()) > 3

  def test_trees_in_the_engine(self):
    plain = generation.decode(
        tiny.model(0, num_layers=1), tiny.PROMPTS, rule=verify.coupled(), max_new_tokens=16, seeds=1
    )
    drafter = drafters.synthetic(
        plain.tokens, acceptance=0.7, vocab_size=tiny.VOCAB, parents=(0, 0, 1, 1, 3)
    )
    through = generation.generate(
        tiny.model(0, num_layers=1), tiny.PROMPTS, drafter=drafter, max_new_tokens=16, seeds=1,
        rule=accept_lib.through(verify.coupled(), 'xla'),
    )
    np.testing.assert_array_equal(plain.tokens, through.tokens)
    assert int(through.stats.accepted.sum()) > 10


SETTINGS = dict(temperature=[1.0, 0.7, 0.0, 1.0], top_k=[0, 0, 0, 9], top_p=[1.0, 0.9, 1.0, 1.0])


class TestDefault:

  def test_by_default(self):
    rule = verify.block()
    choose = op_rule.by_default
    assert choose(rule, vocab_size=32_000) is rule
    assert choose(rule, vocab_size=32_768) == accept_lib.through(rule, 'xla')
    explicit = accept_lib.through(rule, 'xla')
    assert choose(explicit, vocab_size=7) is explicit
    assert choose(verify.typical(), vocab_size=10**6) == verify.typical()

  @pytest.mark.parametrize('platform, capability, kind, wanted', [
      # An unproven kernel is no default on GPUs; one of a proven kind is, from Hopper on.
      ('tpu', None, 'TPU v5e', 'mosaic_tpu'), ('gpu', '9.0', 'NVIDIA H200', 'xla'),
      ('gpu', '10.0', 'NVIDIA B200', 'xla'), ('gpu', '9.0', 'proven', 'mosaic_gpu'),
      ('gpu', '10.0', 'proven', 'mosaic_gpu'), ('gpu', '8.0', 'proven', 'xla'),
      ('gpu', 'gfx942', 'proven', 'xla'), ('cpu', None, 'cpu', 'xla'),
  ])
  def test_the_best_for_a_device(self, platform, capability, kind, wanted, monkeypatch):
    device = mock.Mock(platform=platform, compute_capability=capability, device_kind=kind)
    monkeypatch.setattr(api, 'PROVEN_GPUS', ('proven',))
    assert api.best(device) == wanted
    with mock.patch.object(jax, 'devices', return_value=[device]):
      assert api.best() == wanted
      # Small vocabularies too, but on CPUs: there what is written in `verify` is faster.
      rule = op_rule.by_default(verify.block(), vocab_size=64)
    chosen = verify.block() if platform == 'cpu' else accept_lib.through(verify.block(), wanted)
    assert rule == chosen

  @pytest.mark.parametrize('implementation', ['mosaic_tpu', 'mosaic_gpu'])
  def test_the_engine_takes_it(self, implementation):
    """What `generate` hands to its loop; that loop through the kernels is the kernels' test."""
    request = generation.Request(
        drafter=drafters.ngram(num_speculative_tokens=3), rule=verify.coupled(), max_new_tokens=4
    )
    with mock.patch.object(api, 'best', return_value=implementation):
      setup, *_ = generation.prepare(tiny.model(0, num_layers=1), tiny.PROMPTS, request)
    assert setup.rule.implementation == implementation
    assert setup.rule.is_chain

  def test_on_a_mesh(self):
    mesh = AbstractMesh((2, 4), ('data', 'model'))
    layout = lambda *axes: layout_lib.Layout('some', mesh, (('vocab', axes), ('batch', ('data',))))
    choose = lambda layout, rule=verify.block(), vocab_size=128_256, batch_size=2: (
        op_rule.by_default(
            rule, vocab_size=vocab_size, layout=layout, batch_size=batch_size
        )
    )
    split = accept_lib.Split(mesh, ('model',), ('data',))
    assert choose(layout('model')) == accept_lib.through(verify.block(), 'xla', split)
    # Not split, or not into whole tiles or rows: the rules as written reduce in place.
    assert choose(layout()) == verify.block()
    assert choose(layout('data')) == verify.block()
    assert choose(layout('model'), vocab_size=128_258) == verify.block()
    assert choose(layout('model'), batch_size=3) == verify.block()
    assert choose(layout('model'), rule=verify.recursive()) == verify.recursive()

  def test_a_class_of_ones_own_is_left_alone(self):

    @dataclasses.dataclass(frozen=True)
    class Own(type(verify.block())):
      pass

    assert op_rule.by_default(Own(), vocab_size=10**6) == Own()


class TestRefusal:

  def accept(self, **changes):
    case = accept_suite.random_case(2, 3, 7)
    uniforms = accept_lib.Uniforms(jnp.full((2, 3), 0.5), jnp.full((2, 4), 0.5))
    arguments = dict(
        target_logits=jnp.asarray(case.target, jnp.float32).reshape(8, 7),
        draft_tokens=jnp.asarray(case.tokens, jnp.int32),
        rule='block', numbers=uniforms, sampling=sampling_lib.make(batch_size=2),
        draft_logits=jnp.asarray(case.draft, jnp.float32).reshape(6, 7),
    ) | changes
    target, tokens = arguments.pop('target_logits'), arguments.pop('draft_tokens')
    return accept_lib.accept(target, tokens, **arguments)

  @pytest.mark.parametrize('changes, message', [
      (dict(rule='typical'), 'rule must be one of'),
      (dict(implementation='triton'), 'implementation must be one of'),
      (dict(target_logits=jnp.zeros((2, 4, 7))), r'must be flat, \[B \* \(K \+ 1\), V\]'),
      (dict(target_logits=jnp.zeros((6, 7))), '8 rows'),
      (dict(target_logits=jnp.zeros((8, 7), jnp.float16)), 'float32 or bfloat16'),
      (dict(draft_logits=jnp.zeros((5, 7))), r'\[B \* M, V\]'),
      (dict(draft_logits=jnp.zeros((8, 7))), 'give draft_rows'),
      (dict(numbers=None), r'takes numbers=Uniforms\(...\)'),
      (dict(rule='coupled'), r'takes numbers=Noise\(...\)'),
      (dict(numbers=accept_lib.Uniforms(jnp.zeros((2, 3)), jnp.zeros((2, 3)))), r'\[B, K \+ 1\]'),
      (dict(parents=jnp.zeros((2, 3), jnp.int32)), 'verifies chains'),
      (dict(sampling=sampling_lib.make(batch_size=3)), '3 sequences, draft_tokens has 2'),
      (dict(draft_tokens=jnp.zeros((3,), jnp.int32)), r'must be \[B, K\]'),
  ])
  def test_refuses(self, changes, message):
    with pytest.raises(ValueError, match=message):
      self.accept(**changes)

  def test_through_knows_its_rules(self):
    with pytest.raises(ValueError, match='The op knows the rules'):
      accept_lib.through(verify.typical(), 'xla')
    with pytest.raises(ValueError, match='implementation must be one of'):
      accept_lib.through(verify.block(), 'cuda')


class TestNoise:
  """The shorter function at the end of coupled noise."""

  def winners(self, tokens):
    keys = randomness.row_keys(jnp.arange(2000))
    positions = jnp.broadcast_to(jnp.arange(10), (2000, 10))
    noise = jax.jit(randomness.noise_at)(keys, positions, tokens)
    return np.asarray(jnp.argmax(noise, axis=-1))

  def test_the_largest_is_uniform_and_independent_of_its_neighbours(self):
    for tokens in (jnp.arange(8), 128_000 + 16 * jnp.arange(8)):
      winners = self.winners(tokens)
      pairs = np.concatenate([winners[:, :-1].ravel()[:, None], winners[:, 1:].ravel()[:, None]], 1)
      for values, cells in ((winners.ravel()[:, None], 8), (pairs, 64)):
        counts = collections.Counter(map(tuple, values.tolist()))
        keys = [k for k in np.ndindex(*(8,) * values.shape[1])]
        test = testing.chi_square(counts, {key: 1 / cells for key in keys})
        assert test.p_value > 1e-3

  def test_bits_flip_bits(self):
    """Each bit of the counter flips every bit of the result about half of the time."""
    rng = np.random.default_rng(0)
    first, second, counter = jnp.asarray(rng.integers(0, 2**32, (3, 20_000)), jnp.uint32)
    plain = randomness.mix(first, second, counter)
    for bit in range(18):
      changed = np.asarray(plain ^ randomness.mix(first, second, counter ^ jnp.uint32(1 << bit)))
      shares = ((changed[:, None] >> np.arange(9, 32, dtype=np.uint32)) & 1).mean(axis=0)
      assert np.abs(shares - 0.5).max() < 0.025
