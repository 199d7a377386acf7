"""Theory against sums written out, identity, records, traces and calibration."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

import specjax
from specjax import drafters
from specjax import generation
from specjax import models
from specjax import tree as tree_lib
from specjax import verify
from specjax.analysis import calibration
from specjax.analysis import costs
from specjax.analysis import identity
from specjax.analysis import records
from specjax.analysis import theory
from specjax.analysis import timed_programs
from specjax.analysis import timing
from specjax.analysis import traces
from specjax.kernels import accept
from specjax.kernels.accept import op_rule
from tests.support import compiles
from tests.support import tolerance

VOCAB = 32
# DESIGN's fields of a row of metrics.jsonl.
FIELDS = (
    'name new_tokens target_passes seconds prefill_seconds tokens_per_second speedup '
    'predicted_speedup mean_acceptance_length draft_acceptance_rate '
    'acceptance_rate_per_position identical_to_plain versions hardware'
).split()


def language_model(seed: int, *, width: int = 16) -> models.LanguageModel:
  config = models.TransformerConfig(
      vocab_size=VOCAB, width=width, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8,
      mlp_width=24,
  )
  module = models.Transformer(config)
  params = module.init(jax.random.key(seed), jnp.zeros((1, 4), jnp.int32))['params']
  return models.LanguageModel(module, jax.tree.map(lambda x: x * 2, params))


@pytest.fixture(scope='module')
def target():
  return language_model(0)


@pytest.fixture(scope='module')
def traced(target):
  """A run with accepted, recovered and bonus tokens, two rows of different lengths."""
  reference = specjax.decode(target, [[1, 2, 3], [4]], max_new_tokens=[17, 60])
  drafter = drafters.synthetic(
      reference.tokens, acceptance=0.7, vocab_size=VOCAB, num_speculative_tokens=3
  )
  output = specjax.generate(
      target, [[1, 2, 3], [4]], drafter=drafter, max_new_tokens=[17, 60], trace=True
  )
  np.testing.assert_array_equal(output.tokens, reference.tokens)
  return output


class TestTheory:

  @pytest.mark.parametrize('alpha', [0.0, 0.3, 0.9, 1.0])
  @pytest.mark.parametrize('k', [0, 1, 4])
  def test_expected_tokens_is_the_mean_over_outcomes(self, alpha, k):
    # n accepted tokens: n successes and a failure, or all K; one token follows.
    outcomes = [(n + 1, alpha**n * (1 - alpha)) for n in range(k)] + [(k + 1, alpha**k)]
    assert sum(p for _, p in outcomes) == tolerance.approx(1)
    mean = sum(n * p for n, p in outcomes)
    assert theory.expected_tokens(alpha, k) == tolerance.approx(mean)
    if alpha < 1:
      assert mean == tolerance.approx((1 - alpha ** (k + 1)) / (1 - alpha))

  def test_conditional_rates_give_back_the_measured_mean(self):
    accepted = np.random.default_rng(0).integers(0, 5, size=200)  # tokens per round, K = 4
    accepted_at = [(accepted > d).sum() for d in range(4)]
    rates = theory.conditional_rates(accepted_at, 200)
    assert theory.expected_tokens(rates, 4) == tolerance.approx(1 + accepted.mean())
    assert theory.expected_tokens(rates, 2) == tolerance.approx(1 + np.minimum(accepted, 2).mean())
    assert theory.conditional_rates([3, 0, 0], 6) == [0.5, 0.0, 0.0]

  def test_theorem_3_8(self):
    # Leviathan et al. 2022: γ + 1 passes' worth of tokens for γ c + 1 of work.
    for alpha, k, c in [(0.8, 5, 0.05), (0.5, 3, 0.2)]:
      wanted = (1 - alpha ** (k + 1)) / ((1 - alpha) * (k * c + 1))
      assert theory.leviathan_speedup(alpha, k, c) == tolerance.approx(wanted)
    tokens, seconds = 3.2, 4 * 0.1 + 1.3 + 0.05
    got = theory.speedup(tokens, num_drafted=4, draft_cost=0.1, pass_cost=1.3, overhead=0.05)
    assert got == tolerance.approx(tokens / seconds)

  def test_best_length_is_the_largest_of_all(self):
    found = theory.best_length(
        0.8, max_num_speculative_tokens=12, draft_cost=0.05, pass_cost=lambda m: 1 + 0.02 * m
    )
    by_hand = [1.0] + [
        theory.expected_tokens(0.8, k) / (0.05 * k + 1 + 0.02 * (k + 1)) for k in range(1, 13)
    ]
    assert found.num_speculative_tokens == int(np.argmax(by_hand)) > 0
    assert np.asarray(found.speedups) == tolerance.approx(np.asarray(by_hand))
    hopeless = theory.best_length(0.1, max_num_speculative_tokens=4, draft_cost=0.5)
    assert (hopeless.num_speculative_tokens, hopeless.speedup) == (0, 1.0)

  def test_what_is_not_known_is_refused(self):
    with pytest.raises(ValueError, match='known for 2 positions, K is 3'):
      theory.expected_tokens([0.5, 0.5], 3)
    with pytest.raises(ValueError, match=r'in \[0, 1\]'):
      theory.expected_tokens(1.2, 3)
    with pytest.raises(ValueError, match='at least 0'):
      theory.expected_tokens(0.5, -1)


class TestIdentity:

  def test_gap_rule(self):
    scores = np.zeros((3, 4), np.float32)
    scores[1] = [1.0, 0.98, 0.5, 0.0]
    same, flipped, wrong = [0, 0, 2], [0, 1, 2], [0, 2, 2]
    report = identity.gap_rule([same] * 2, [same, flipped], [scores] * 2, largest_difference=0.02)
    assert report.first_differences == (-1, 1)
    assert report.num_positions == 3 + 2
    assert (report.num_flips, report.identical, report.holds) == (1, False, True)
    # The difference of two scores of about one.
    tolerance.assert_close(report.gaps[1], 0.02, tolerance.chained(2))
    report = identity.gap_rule([same], [wrong], [scores], largest_difference=0.02)
    assert not report.holds
    with pytest.raises(ValueError, match='one output ends'):
      identity.gap_rule([same], [same[:2]], [scores], largest_difference=1.0)

  def test_first_difference(self):
    assert identity.first_difference([1, 2], [1, 2]) == -1
    assert identity.first_difference([1, 2], [1, 3]) == 1
    assert identity.first_difference([1, 2], [1, 2, 3]) == 2

  def test_logits_do_not_depend_on_the_width_but_by_rounding(self, target):
    tokens = np.arange(14).reshape(2, 7) % VOCAB
    whole = target(jnp.asarray(tokens)).logits
    one = identity.logits_at_width(target, tokens, width=1)
    three = identity.logits_at_width(target, tokens, width=3)
    tolerated = tolerance.of_logits(
        target.module.config, size=tolerance.largest(whole), positions=7
    )
    tolerance.assert_close(one, whole, tolerated)
    flips, difference = identity.count_flips(one, three)
    assert flips == 0
    tolerance.assert_close(difference, 0.0, tolerated)


class TestRecords:

  def test_a_row_is_made_of_sums(self, target, traced):
    other = specjax.generate(
        target, [[7, 8]], drafter=drafters.ngram(num_speculative_tokens=3), max_new_tokens=9
    )
    row = records.record(
        [traced, other],
        name='both',
        rule='greedy',
        drafter='mixed',
        temperature=0,
        num_speculative_tokens=3,
        dtype='float32',
        width=4,
        seconds=[2.0, 1.0],
        plain=([4.0, 5.0], [77, 9]),
        identical_to_plain=True,
    )
    assert set(FIELDS) <= {field.name for field in dataclasses.fields(row)}
    assert (row.prompts, row.new_tokens) == (3, 17 + 60 + 9)
    assert row.tokens_per_second == tolerance.approx(86 / 3)
    assert row.speedup == tolerance.approx(3.0)
    assert row.speedup_low <= 3.0 <= row.speedup_high
    assert row.target_passes == traced.target_passes + other.target_passes
    rounds = traced.stats.rounds.sum() + other.stats.rounds.sum()
    assert row.mean_acceptance_length == tolerance.approx(86 / rounds)
    assert 1 <= row.mean_acceptance_length <= 4
    proposed = traced.stats.proposed_at[:, 0].sum() + other.stats.proposed_at[:, 0].sum()
    accepted = traced.stats.accepted_at[:, 0].sum() + other.stats.accepted_at[:, 0].sum()
    assert row.acceptance_rate_per_position[0] == tolerance.approx(accepted / proposed)
    json.dumps(dataclasses.asdict(row), allow_nan=False)
    assert row.versions['jax'] == jax.__version__
    assert row.hardware['platform'] == jax.default_backend()

  def test_plain_decoding_has_no_acceptance(self, target):
    output = specjax.decode(target, [[1]], max_new_tokens=3)
    row = records.record(
        [output], name='plain', rule='greedy', drafter='none', temperature=0,
        num_speculative_tokens=0, dtype='float32', width=1,
    )
    assert row.draft_acceptance_rate is None and row.acceptance_rate_per_position == ()
    assert row.mean_acceptance_length == 1.0 and row.speedup is None
    with pytest.raises(ValueError, match='at least one run'):
      records.record(
          [], name='', rule='', drafter='', temperature=0, num_speculative_tokens=0, dtype='',
          width=1,
      )


class TestTraces:

  @pytest.mark.parametrize('row', [0, 1])
  def test_rounds_emit_the_output(self, traced, row):
    rounds = traces.rounds(traced, row)
    emitted = [token for each in rounds for token in each.emitted]
    assert emitted == traced.new_tokens(row).tolist()
    kinds = traces.sources(traced, row)
    assert kinds.count(traces.ACCEPTED) == traced.stats.accepted[row]
    assert set(kinds) <= {traces.ACCEPTED, traces.RECOVERED, traces.BONUS}
    assert len(rounds) == traced.stats.rounds[row]
    for each in rounds:
      accepted = [node for node in each.nodes if node.accepted]
      kept = [s == traces.ACCEPTED for s in each.sources]
      assert [node.token for node in accepted][: sum(kept)] == list(each.emitted[: sum(kept)])
      assert all(0 <= node.target_prob <= 1 and node.draft_prob == 1 for node in each.nodes)

  def test_all_sources_occur(self, traced):
    kinds = {kind for row in (0, 1) for kind in traces.sources(traced, row)}
    assert kinds == {traces.ACCEPTED, traces.RECOVERED, traces.BONUS}

  def test_a_run_without_one_says_so(self, target):
    output = specjax.decode(target, [[1]], max_new_tokens=2)
    with pytest.raises(ValueError, match='trace=True'):
      traces.rounds(output)
    output = specjax.decode(target, [[1]], max_new_tokens=2, trace=True)
    assert traces.sources(output) == [traces.PLAIN] * 2

  def test_pieces_join_to_the_text(self):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(['x'], trainer)
    text = 'naïve → 漢字 🎈' * 20 + '\N{REPLACEMENT CHARACTER}x'
    ids = tokenizer.encode(text).ids
    pieces = traces.pieces(tokenizer, ids)
    assert len(pieces) == len(ids) and ''.join(pieces) == text
    # Bytes that are no text: no piece is lost and none appears twice.
    broken = ids[1:3] * 100
    assert ''.join(traces.pieces(tokenizer, broken)) == tokenizer.decode(broken)


def example() -> costs.Calibration:
  """Plain step 10 ms, pass 9 ms at width 1, 12 at 5; overhead 2; drafting 1 a token."""
  return costs.Calibration(
      dtype='float32', width=1, candidates=(costs.Candidate('float32', 1, 0.010, 0.020),),
      widths=(1, 5, 9), pass_seconds=(0.009, 0.012, 0.018),
      rules=(
          costs.RuleCosts(
              rule='greedy', plain=0.010, overhead=((4, 0.002), (8, 0.002)),
              drafting={'model': ((4, 0.004), (8, 0.008)), 'lookup': ((4, 0.001),)},
          ),
      ),
      batch_size=1, cache_length=128, rounds=8, repetitions=3, noise=0.1, versions={}, hardware={},
  )


class TestTiming:

  def test_turns_are_shuffled_and_medians_kept(self):
    calls, lines = [], []
    seconds = {'a': 1.0, 'b': 2.0, 'c': 3.0}

    def run(key, case):
      calls.append((key, case))
      # Slow where it compiles, and once for a while afterwards.
      slow = 100.0 if len(calls) in (1, 3, 5, 10, 11) else 1.0
      return slow * seconds[key] * (case + 1), len(calls)

    times = timing.in_turns(
        run, list(seconds), repetitions=3, num_cases=2, progress=lines.append, case_name='prompt'
    )
    assert times.medians() == {'a': [1, 2], 'b': [2, 4], 'c': [3, 6]}
    assert times.noise == 99 and timing.Times({'a': np.ones((1, 3))}, {}).noise == 0
    assert calls[:6] == [('a', 0)] * 2 + [('b', 0)] * 2 + [('c', 0)] * 2
    rounds = [calls[start : start + 3] for start in range(6, len(calls), 3)]
    assert [{case for _, case in each} for each in rounds] == [{0}, {1}] * 3
    assert all({key for key, _ in each} == set(seconds) for each in rounds)
    assert len({tuple(key for key, _ in each) for each in rounds}) > 1
    for key, (first, second) in times.results.items():  # of the first repetition, not the warm-up
      assert 6 < first <= 9 < second <= 12
      assert [calls[first - 1], calls[second - 1]] == [(key, 0), (key, 1)]
    assert lines[2:5] == ['compiling 3/3: c', 'timing 1/3, prompt 1/2', 'timing 1/3, prompt 2/2']


class TestCalibration:

  def test_rounds_are_timed_with_the_rule_that_runs(self, monkeypatch):
    """Over a large vocabulary, or on an accelerator, that is the op."""
    monkeypatch.setattr(op_rule, 'CPU_VOCABULARY', 0)
    request = generation.Request(max_new_tokens=4)
    setup, state, _, _ = generation.prepare(language_model(0), [[1, 2]], request)
    drafter = drafters.ngram(num_speculative_tokens=2)
    setup, _ = timed_programs.with_drafter(
        setup.replace(rule=verify.block()), state, drafter, request
    )
    assert setup.rule == dataclasses.replace(
        accept.through(verify.block(), 'xla'), is_chain=True
    )

  def test_terms_of_the_formula(self):
    found = example()
    cost = found.cost('greedy', 4)
    assert cost.draft_cost == tolerance.approx(0.1)
    assert cost.pass_cost == tolerance.approx(1.2)
    assert cost.overhead == tolerance.approx(0.2)
    between = found.cost('greedy', 6)
    assert between.draft_cost == tolerance.approx(0.1)
    assert between.pass_cost == tolerance.approx(1.5)
    # At K = 0 there is plain decoding: 1 ms of overhead, nothing drafted.
    assert found.cost('greedy', 2).overhead == tolerance.approx(0.15)
    assert found.cost('greedy', 4, drafter=None).draft_cost == 0.0
    assert found.cost('greedy', 2, drafter='lookup').draft_cost == tolerance.approx(0.025)
    # Beyond what was run a token costs what it cost on average.
    assert found.cost('greedy', 8, drafter='lookup').draft_cost == tolerance.approx(0.025)

  def test_prediction_is_what_a_stopwatch_would_show(self):
    found, rates = example(), [0.8, 0.7, 0.6, 0.5]
    tokens = 1 + 0.8 + 0.56 + 0.336 + 0.168
    seconds_a_token = (0.012 + 0.002 + 0.004) / tokens
    assert found.predict('greedy', 4, rates).speedup == tolerance.approx(0.010 / seconds_a_token)
    half = found.predict('greedy', 4, rates, num_drafted=2).speedup
    assert half == tolerance.approx(0.010 * tokens / (0.012 + 0.002 + 0.002))
    best = found.best_length('greedy', 0.9)
    assert best.speedups[4] == tolerance.approx(found.predict('greedy', 4, 0.9).speedup)
    assert best.speedup == max(best.speedups) and len(best.speedups) == 9
    assert len(found.best_length('greedy', rates).speedups) == 5

  def test_what_was_not_calibrated_is_refused(self):
    found = example()
    with pytest.raises(ValueError, match="'block' was not calibrated; there are: greedy"):
      found.cost('block', 4)
    with pytest.raises(ValueError, match='K must be 1 … 8'):
      found.cost('greedy', 9)
    with pytest.raises(ValueError, match="drafter 'eagle'"):
      found.cost('greedy', 4, drafter='eagle')

  def test_json(self):
    found = example()
    assert costs.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found

  @pytest.mark.parametrize('width', [1, 5, 20])
  @pytest.mark.parametrize('length, chunk', [(64, 8), (48, 32)])
  def test_caches_are_as_large_as_the_engine_makes_them(self, target, width, length, chunk):
    request = generation.Request(
        width=width, cache_length=length, prefill_chunk=chunk, max_new_tokens=1
    )
    made = jax.eval_shape(
        lambda: target.init_cache(
            **generation.cache_sizes(2, length, width=width, prefill_chunk=chunk)
        )
    )
    wanted = {}

    def init_cache(**sizes):
      wanted.update(sizes)
      raise StopIteration

    spy = types.SimpleNamespace(
        module=target.module, vocab_size=target.vocab_size, init_cache=init_cache
    )
    with pytest.raises(StopIteration):
      generation.prepare(spy, [[1], [2]], request)
    wanted = jax.eval_shape(lambda: target.init_cache(**wanted))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, wanted)

  @pytest.mark.usefixtures('compiled_fast')
  def test_measures_every_program(self, target):
    lines, draft = [], language_model(1)
    found = calibration.calibrate(
        target,
        draft,
        prompts=[[1, 2, 3]],
        max_num_speculative_tokens=2,
        widths=(),
        cache_length=64,
        prefill_chunk=8,
        dtypes=('float32',),
        rules=(verify.greedy(),),
        drafters={'lookup': lambda k: drafters.ngram(num_speculative_tokens=k)},
        cases=[('greedy', 'model', 2), ('greedy', 'lookup', 1)],
        trees={('greedy', 'tree'): drafters.model_tree(draft, tree=(2, 2))},
        rounds=4,
        repetitions=2,
        progress=lines.append,
    )
    assert [(c.dtype, c.width) for c in found.candidates] == [('float32', 1), ('float32', 2)]
    assert set(found.widths) == {found.width, 2, 3} and min(found.pass_seconds) > 0
    costs = found.rule('greedy')
    assert [k for k, _ in costs.overhead] == [1, 2]
    assert {name: points[0][0] for name, points in costs.drafting.items()} == dict(
        model=2, lookup=1
    )
    assert found.rounds == 4 and found.repetitions == 2
    # A tree of six nodes, its pass timed apart from those of chains.
    tree = costs.trees['tree']
    assert (tree.num_nodes, tree.depth) == (6, 2) and tree.pass_seconds > 0
    predicted = found.predict_tree('greedy', 'tree', [0.5, 0.5])
    assert predicted.tokens_per_round == 1.75
    seconds = tree.pass_seconds + tree.overhead + tree.drafting
    assert 1.75 / predicted.speedup == tolerance.approx(seconds / costs.plain)
    kept = json.loads(json.dumps(dataclasses.asdict(found)))
    assert specjax.analysis.costs.from_json(kept) == found
    assert found.predict('greedy', 2, 1.0).tokens_per_round == 3.0
    assert any('timing 2/2' in line for line in lines)
    assert found.hardware == records.hardware()
    # What was timed is the program that generation runs: it is not compiled again.
    drafter = drafters.model(draft, num_speculative_tokens=2)
    options = dict(cache_length=64, prefill_chunk=8, max_new_tokens=5, width=found.width)
    with compiles.counted() as compiled:
      specjax.generate(target, [[4, 5]], drafter=drafter, rule=verify.greedy(), **options)
    assert compiled['run'] == 0

  def test_bad_requests(self, target):
    with pytest.raises(ValueError, match='at least one prompt'):
      calibration.calibrate(target, prompts=[])
    with pytest.raises(ValueError, match='at least 1'):
      calibration.calibrate(target, prompts=[[1]], max_num_speculative_tokens=0)
    with pytest.raises(ValueError, match='cache_length of at least 12'):
      calibration.calibrate(target, prompts=[[1, 2, 3]], cache_length=8)

  def test_a_tree_of_equal_cost_is_as_wide_and_deep(self, target):
    tree = drafters.dynamic_tree(num_nodes=9, depth=4, width=3)
    dynamic = drafters.model_tree(language_model(1), tree=tree)
    parents = timed_programs.parents_of_equal_cost(dynamic)
    assert parents == (0, 0, 0, 1, 2, 4, 5, 6, 7)
    shape = tree_lib.StaticTree(parents)
    assert (shape.num_nodes, shape.depth) == (9, 4)
    static = drafters.model_tree(language_model(1), tree=[(0,), (0, 0), (0, 1)])
    assert timed_programs.parents_of_equal_cost(static) == (0, 1, 1)

  def test_trees_of_unknown_rules_and_names_are_refused(self, target):
    with pytest.raises(ValueError, match="under .'recursive'.; the rules are .'greedy'."):
      calibration.calibrate(
          target, prompts=[[1]], trees={('recursive', 'tree'): types.SimpleNamespace(depth=2)}
      )
    with pytest.raises(ValueError, match="'tree' was not calibrated under 'greedy'; there are"):
      example().predict_tree('greedy', 'tree', 0.5)

  def test_cases(self):
    rules, makers = [verify.greedy(), verify.block()], {'model': None, 'lookup': None}
    cases = [('greedy', 'model', 4), ('greedy', 'lookup', 4), ('greedy', 'model', 2)]
    found = calibration._check_cases(cases, rules, makers, 8)
    assert found == {'greedy': {4: {'model', 'lookup'}, 2: {'model'}}, 'block': {8: set()}}
    for wrong in [('typical', 'model', 4), ('greedy', 'eagle', 4), ('greedy', 'model', 9)]:
      with pytest.raises(ValueError, match='Cannot calibrate'):
        calibration._check_cases([wrong], rules, makers, 8)

  def test_cast(self, target):
    half = calibration.cast(target, 'bfloat16')
    assert half.module.dtype == jnp.bfloat16
    assert all(w.dtype == jnp.bfloat16 for w in jax.tree.leaves(half.params))
