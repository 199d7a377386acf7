"""The planner: programs compiled ahead, what is read from them, rooflines, and the command."""

import json
import pathlib
import sys

import pytest

from configs import llama3_70b
from configs import qwen3_blocks
from experiments import plan
from experiments.build import plans as build_plans
from experiments.runs import plans
from specjax import models
from specjax.planning import chips
from specjax.planning import compiled_text
from specjax.planning import roofline
from tests.support import tolerance
from tests.support import tpu_ahead


def config(**changes):
  """Two layers at the real widths."""
  made = llama3_70b.get_config('smoke')
  made.update(context=8192, topologies=())
  made.update(changes)
  return made


@pytest.mark.parametrize(
    'topology, mesh, reduces, all_of_them',
    [
        ('v5e:8x8', {}, 2, 2),  # heads kept eight times
        # Greedy, and no prompts: one program of those, and one block rule, are enough.
        ('v6e:4x4', dict(preset='sequence', sequence=2), 6, 6),
    ],
    ids=['tensor', 'sequence'],
)
def test_the_whole_loop_compiles_for_a_slice_in_place(topology, mesh, reduces, all_of_them):
  tpu_ahead.devices(topology)
  # Arrays that fit into a chip's own memory may be carried there through the draft's loop.
  settings = config(topology=topology, context=131_072)
  settings.mesh.update(mesh)
  settings.drafter.num_layers = 1
  if mesh:
    settings.compile_prefill, settings.rule.name = False, 'greedy'
  case = build_plans.case(settings, topology)
  row = plans.row(case)
  assert row['compiled'] and row['fits']
  assert row['all_reduces_per_layer'] <= reduces
  assert row['collectives_per_layer'] <= all_of_them
  assert row['aliased_bytes'] >= row['cache_bytes']
  # All temporaries of one pass are a few activations; they do not grow with the layers. No
  # copy of even one layer's keys, which in two layers is a quarter of the target's cache.
  assert row['temporary_bytes'] < 0.2 * row['cache_bytes']
  # No gathered logits: a row of the vocabulary is the smallest such array. Nor a gathered
  # cache, which would be larger still.
  vocabulary = case.target.vocab_size
  assert row['largest_gathered_elements'] < max(vocabulary, 8 * 5 * case.target.config.width + 1)
  assert mesh or row['prefill_temporary_bytes'] > 0
  parts = [row[f'round_{part}_ms'] for part in ('draft', 'score', 'verify', 'commit')]
  assert min(parts) > 0 and row['round_ms'] == tolerance.approx(sum(parts))
  assert row['round_ms'] > row['round_bytes_ms'] > row['target_pass_ms'] / 2


def test_a_heads_loop_gathers_its_own_small_vocabulary_alone():
  """Its cache stays where it lies, in place; so do all rows of the target's vocabulary."""
  tpu_ahead.devices('v5p:2x2x2')
  settings = config(topology='v5p:2x2x2', compile_prefill=False)
  settings.target.num_layers, settings.rule.name = 1, 'greedy'
  settings.drafter.kind, settings.drafter.num_speculative_tokens = 'eagle', 1
  row = plans.row(build_plans.case(settings, 'v5p:2x2x2'))
  assert row['aliased_bytes'] >= row['cache_bytes']
  # Eight rows of the draft's logits; the cache of one layer has 8 million elements a chip.
  assert row['largest_gathered_elements'] == 8 * 32_000


def test_what_does_not_fit_says_by_how_much_and_what_would():
  settings = config(topology='v5e:2x2', compile=False)
  settings.target.num_layers = 80
  row = plans.row(build_plans.case(settings, 'v5e:2x2'))
  assert not row['fits'] and row['free_bytes'] < 0
  assert 'it lacks' in row['advice'] and 'int8' in row['advice']
  settings = config(topology='v5p:2x2x2', compile=False, context=2**20)
  settings.target.num_layers = 80
  row = plans.row(build_plans.case(settings, 'v5p:2x2x2'))
  assert not row['fits'] and 'leave room for a batch of' in row['advice']


@pytest.mark.parametrize('kind', ['model', 'eagle'])
def test_a_tree_is_planned_as_it_would_be_drafted(kind):
  settings = config(topology='v5p:2x2x2', compile=False)
  settings.drafter.kind, settings.drafter.tree = kind, '3,2,1'
  with pytest.raises(ValueError, match='block rule verifies chains only.*traversal'):
    build_plans.case(settings, 'v5p:2x2x2')
  settings.rule.name = 'traversal'
  row = plans.row(build_plans.case(settings, 'v5p:2x2x2'))
  assert (row['num_nodes'], row['num_speculative_tokens'], row['tree']) == (15, 3, '3,2,1')
  assert row['target_pass_ms'] > row['target_step_ms'] > row['draft_step_ms'] > 0


def test_a_block_costs_the_same_whatever_is_drafted():
  """Qwen3-8B with a DSpark head: the head, the target's output head, and seven Markov products."""
  settings = qwen3_blocks.get_config('plan')
  settings.update(topology='v6e:2x2', compile=False, acceptances=(0.3, 0.9))
  case = build_plans.case(settings, 'v6e:2x2')
  row = plans.row(case)
  shape = case.draft.config
  split = shape.num_parameters - shape.decoder.num_layers * 2 * shape.decoder.width
  assert 2 * split / 4 <= row['draft_weight_bytes'] < 1.02 * 2 * split / 4
  # Bytes per chip: weights and caches, what is looked up taken off, Markov's output 7 times.
  vocabulary = shape.target_vocab_size / 4
  read = row['draft_weight_bytes'] + 2 * vocabulary * (shape.target_width + 5 * 256)
  assert row['draft_step_ms'] > 1e3 * read / case.where.chip.hbm_bandwidth
  low, high = row['predictions']
  # Where a block pays, all of it does, and no larger one is thought of.
  assert high['num_speculative_tokens'] == 7 == row['num_nodes'] and high['speedup'] > 1.5
  assert low['speedup'] >= 1.0
  settings.drafter.markov_rank = 0
  plain = plans.row(build_plans.case(settings, 'v6e:2x2'))
  assert plain['draft_step_ms'] < row['draft_step_ms']
  settings.drafter.tree, settings.rule.name = '3,2', 'traversal'
  tree = plans.row(build_plans.case(settings, 'v6e:2x2'))
  assert (tree['num_nodes'], tree['num_speculative_tokens']) == (9, 2)


def test_a_heads_weights_and_cache_are_split_as_a_drafts():
  """An eighth of each on a chip; norms and the map between vocabularies are whole."""
  settings = config(topology='v5p:2x2x2', compile=False)
  settings.drafter.kind = 'eagle'
  case = build_plans.case(settings, 'v5p:2x2x2')
  row = plans.row(case)
  whole = 2 * case.draft.config.num_parameters
  assert whole / 8 <= row['draft_weight_bytes'] < 1.001 * whole / 8
  settings.target.num_layers = 1
  smaller = plans.row(build_plans.case(settings, 'v5p:2x2x2'))
  # Three layers of cache, one of them the head's, and two: all of one size.
  assert row['cache_bytes'] / smaller['cache_bytes'] == tolerance.approx(3 / 2)


def test_collectives_are_read_from_a_programs_text():
  text = """
HloModule jit_run
%body (p: f32[4]) -> f32[4] {
  %p = f32[4] parameter(0)
  %ar = bf16[8,5,8192]{2,1,0} all-reduce(%x), metadata={op_name="jit(run)/while/body/score/\
Transformer/layer_3/mlp/dot_general"}
  %ag = (f32[4]{0}, f32[16]{0}) all-gather-start(%y), metadata={op_name="a/verify/b"}
  ROOT %f = f32[4]{0} negate(%p)
}
"""
  reduce, gather = compiled_text.collectives(text)
  assert (reduce.kind, reduce.num_bytes, reduce.layer, reduce.scope) == (
      'all-reduce', 8 * 5 * 8192 * 2, 3, 'score'
  )
  assert (gather.kind, gather.num_bytes, gather.largest, gather.scope) == (
      'all-gather', 64, 16, 'verify'
  )


def model(name, where, **changes):
  shape = models.presets.get(name)
  sizes = dict(weight_bytes=2.0 * shape.num_parameters / where.num_chips, cache_bytes=0.0)
  return roofline.Model(config=shape, ways=where.num_chips, **sizes | changes)


def test_a_step_is_bound_by_reading_weights_and_then_by_computing():
  where = chips.slice_of('v5p:2x2x2')
  target = model('Llama-3.1-70B', where)
  one = roofline.step(target, where, batch_size=1, width=1, context=1)
  assert one.read == tolerance.approx(2 * 70.553706496e9 / 8 / 2765e9)
  assert one.seconds == one.read + one.collectives > one.compute
  many = roofline.step(target, where, batch_size=512, width=1, context=1)
  assert many.compute > many.read
  # The weights' products, and attention's own to a context of one: less than a thousandth.
  assert 0 <= many.compute / (2 * 70.553706496e9 / 8 * 512 / 459e12) - 1 < 1e-3


def test_speculation_pays_for_few_rows_and_not_for_many():
  where = chips.slice_of('H100:8')
  pair = model('Llama-3.1-70B', where), model('Llama-3.2-1B', where)
  costs = lambda batch_size: roofline.costs(*pair, where, batch_size=batch_size, context=1024)
  low, high = roofline.predict(costs(1), batch_size=1, acceptances=(0.5, 0.9))
  assert 1 < low.speedup < high.speedup
  assert low.num_speculative_tokens < high.num_speculative_tokens
  batch = roofline.largest_paying_batch(costs, acceptance=0.7)
  assert 8 <= batch <= 1024
  after = roofline.predict(costs(2 * batch), batch_size=2 * batch, acceptances=(0.7,))
  assert after[0].speedup < 1.05


def test_the_command_writes_rows_and_a_page(tmp_path, capsys):
  settings = config(topologies=('v5e:2x2', 'H100:8'), compile=False, context=512)
  plan.run(settings, str(tmp_path))
  rows = [json.loads(line) for line in (tmp_path / 'metrics.jsonl').read_text().splitlines()]
  assert all(row['largest_fitting_batch'] >= 0 for row in rows)
  fields = ('weight_bytes', 'cache_bytes', 'temporary_bytes', 'all_reduces_per_layer')
  assert [row['topology'] for row in rows] == ['v5e:2x2', 'H100:8']
  assert all(field in row for row in rows for field in (*fields, 'compile_seconds'))
  page = (tmp_path / 'report.html').read_text()
  assert 'H100:8 (not compiled)' in page and 'data-plot="plan-speedups"' in page
  assert 'not compiled' in capsys.readouterr().out


@pytest.mark.parametrize(
    'changes, message',
    [
        (dict(topology='v9:2x2'), "Unknown chip 'v9'"),
        (dict(topology='v5e:two'), 'does not say how many chips'),
        (dict(topology='H100:8', target=dict(name='Llama-9')), "Unknown model 'Llama-9'"),
        (dict(topology='', topologies=()), 'Name a slice'),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_is_compiled(changes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    plan.run(config(**changes), str(tmp_path / 'out'))
  assert not (tmp_path / 'out').exists()


def test_the_compiler_is_found_where_the_scripts_put_it(tmp_path, monkeypatch):
  monkeypatch.setattr(build_plans.importlib.util, 'find_spec', lambda name: None)
  monkeypatch.setattr(build_plans, 'TPU_COMPILER', tmp_path)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  with pytest.raises(FileNotFoundError) as info:
    plan.run(config(topology='v5e:2x2'), str(tmp_path / 'run'))
  message = str(info.value)
  assert f'pip install --no-deps --target={tmp_path} libtpu' in message and '\n' not in message
  assert '--config.compile=False' in message and not (tmp_path / 'run').exists()
  (tmp_path / 'libtpu').mkdir()
  build_plans._find_tpu_compiler()
  assert sys.path[-1] == str(tmp_path)


def test_the_scripts_put_it_there():
  scripts = pathlib.Path(__file__).parents[2] / 'scripts'
  assert 'TPU_COMPILER="$MARKS/tpu-aot"' in (scripts / 'test.sh').read_text()
  assert 'MARKS="$VENV/.specjax"' in (scripts / 'python_env.sh').read_text()
  assert build_plans.TPU_COMPILER == pathlib.Path(sys.prefix) / '.specjax' / 'tpu-aot'
