"""What the short run of the suite leaves out, and why.

`./scripts/test.sh` is the short run: every kind of check, and every level of every factor at
least once, but not every combination of them. `./scripts/test.sh --everything` runs all tests,
and so does pytest for tests that are named on its command line. `problems` finds what the table
below must not do: leave out the only case of a level, or name what is not there.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import os

import pytest

from tests.support import mesh_run

# Set by `scripts/test.sh --everything`, and for tests that are named on the command line.
EVERYTHING = 'SPECJAX_TEST_EVERYTHING'
# All tests that were collected, before any was left out.
COLLECTED = pytest.StashKey[list]()


@dataclasses.dataclass(frozen=True)
class Short:
  """What the short run keeps of a test.

  Attributes:
    keep: ids of the cases that stay, in brackets after the test's name. None of them where the
      whole test is left out.
    reason: what the others would add, and what they cost.
    instead: of a test that is left out: a test that the short run keeps, and that holds the same.
    elsewhere: factors that lose levels here, for other tests have them: the reason says which.
    absent: why there may be no such test at all; empty where there always is one.
  """

  keep: tuple[str, ...]
  reason: str
  instead: str = ''
  elsewhere: tuple[str, ...] = ()
  absent: str = ''


_MEMORY = 'tests/engine/test_tpu_memory.py::'
_APPEND = (
    'tests/kernels/test_append.py::'
    'test_it_compiles_for_a_tpu_in_place_where_slices_wait_for_each_row'
)
_PROCESSES = 'tests/sharding/test_processes.py::'
_CHAT = 'tests/models/test_chat.py::'
_BLOCKS = 'tests/training/test_block_training.py::'
_KILLED = 'tests/experiments/test_ablate_killed.py::'
_RESUMED = 'tests/experiments/test_ablate.py::TestResuming::test_a_killed_sweep_goes_on'
_ENGINE = 'the suite of the op holds each rule; in the engine two of them are enough'
_ONE_RULE = 'the suite of the op holds each rule; in the engine one of them is enough'
_NO_INTERPRETER = 'JAX interprets kernels for GPUs from 0.12 on'
_SIBLINGS = 'what kernels do for a tree is one mass and one draw; test_accept has all kinds'
_BOTH = 'rule x shape, of which neither knows the other; 12 s in all'

# By node id, without the parameters. Seconds are of one core, of an Intel
# Xeon at 2.6 GHz or an AMD EPYC.
TABLE: dict[str, Short] = {
    'tests/heads/test_heads_lossless.py::test_the_output_law_is_the_targets': Short(
        (
            'eagle3-chain', 'medusa-dynamic', 'exit-without replacement', 'dflash-best first',
            'rnn-with replacement',
        ),
        'head x shape, of which neither knows the other: each once, and of the Markov heads the '
        'one with a state; 130 s',
        elsewhere=('kind',),
    ),
    'tests/heads/test_heads.py::test_a_chain_is_bit_for_bit_plain_decoding': Short(
        ('eagle3', 'reduced', 'medusa', 'exit', 'dflash'),
        'EAGLE-1 and DSpark have a tree of their own there, an exit without an adapter is one; 9 s',
        elsewhere=('kind',),
    ),
    'tests/verify/test_trees.py::test_never_shorter_than_the_first_branch': Short(
        (
            'recursive-without_replacement-uneven', 'traversal-with_replacement-uneven',
            'k_sequential-with_replacement-even', 'recursive-rank-uneven',
        ),
        'rule x siblings x shape: each level once; 12 s',
    ),
    'tests/verify/test_trees.py::test_the_engines_own_numbers': Short(
        ('traversal',), 'both take their numbers by the same calls; 4 s', elsewhere=('name',)
    ),
    'tests/verify/test_lossless.py::test_output_law_is_the_targets': Short(
        (
            'rejection-draft model', 'rejection-plain', 'block-draft model', 'block-prompt lookup',
            'block-adaptive', 'greedy-draft model',
        ),
        'rule x drafter, of which neither knows the other; 7 s',
    ),
    'tests/engine/test_identity.py::TestIdentical::test_chain_is_bitwise_plain': Short(
        ('greedy-model', 'coupled-adaptive', 'greedy-ngram', 'coupled-synthetic'),
        'rule x drafter, of which neither knows the other; 40 s',
    ),
    _MEMORY + 'test_narrow_heads_left_to_the_compiler_would_be_copied': Short(
        (), 'a counter-proof: what XLA does otherwise, for a new libtpu; 35 s',
        instead=_MEMORY + 'test_narrow_heads_are_not_copied_into_padded_ones',
    ),
    _MEMORY + 'test_a_tree_read_by_a_gather_or_left_to_the_compiler_would_copy_them': Short(
        (), 'a counter-proof, as the one above; 70 s',
        instead=_MEMORY
        + 'test_a_tree_copies_narrow_heads_neither_for_its_levels_nor_for_its_path',
    ),
    _MEMORY + 'test_many_rows_written_by_a_scatter_would_be_copied': Short(
        (), 'a counter-proof, as the ones above; 12 s', instead=_APPEND
    ),
    _MEMORY + 'test_many_rows_of_narrow_heads_are_written_in_place': Short(
        (), 'the kernel that writes them is compiled by itself; 9 s', instead=_APPEND
    ),
    _MEMORY + 'test_slots_that_fill_no_tile_would_be_copied': Short(
        (), 'a counter-proof, as the ones above; 8 s',
        instead=_MEMORY
        + 'test_a_tree_copies_narrow_heads_neither_for_its_levels_nor_for_its_path',
    ),
    _MEMORY + 'test_caches_are_in_place_on_a_tpu': Short(
        (), 'chains and wide heads: a tree of narrow ones is the harder case; 26 s',
        instead=_MEMORY
        + 'test_a_tree_copies_narrow_heads_neither_for_its_levels_nor_for_its_path',
    ),
    'tests/sharding/test_plan.py::test_the_whole_loop_compiles_for_a_slice_in_place': Short(
        ('tensor',),
        'test_mesh runs the other layout, test_sharding holds its specs, test_accept_tpu_ahead '
        'compiles for a v6e; 13 s',
        elsewhere=('topology', 'mesh', 'reduces', 'all_of_them'),
    ),
    'tests/kernels/test_accept_tpu_ahead.py::test_compiles_for': Short(
        (
            'v5e:2x2-block-128256', 'v5e:2x2-rejection-7', 'v5p:2x2x1-coupled-151936',
            'v6e:2x2-greedy-32000', 'v5p:2x2x1-block-262144',
        ),
        'chip x rule x vocabulary: each level of each; 25 s',
    ),
    'tests/kernels/test_accept_gpu.py::TestGpu::test_lowers_for_an_h100': Short(
        tuple(
            f'{dtype}-{size}-{rule}'
            for dtype, size, rules in (
                ('float32', 128256, ('rejection', 'coupled')),
                ('float32', 50257, ('block', 'greedy')),
                ('bfloat16', 128256, ('block', 'greedy')),
                ('bfloat16', 50257, ('rejection', 'coupled')),
            )
            for rule in rules
        ),
        'dtype x vocabulary x rule: every two of them meet; 10 s',
    ),
    'tests/kernels/test_accept.py::TestXla::test_mixed_settings': Short(
        ('block',), 'settings are those of rows, whatever the rule; 11 s', elsewhere=('own_rule',)
    ),
    'tests/kernels/test_accept.py::TestDefinition::test_same_tokens_in_the_engine': Short(
        ('block', 'coupled'), f'{_ENGINE}; 11 s', elsewhere=('name',)
    ),
    'tests/kernels/test_accept.py::TestDefinition::test_law_in_the_engine': Short(
        ('block',), 'test_accept_one_token enumerates the rejection rule; 6 s', elsewhere=('rule',)
    ),
    'tests/kernels/test_accept.py::TestDefinition::test_law_of_trees_in_the_engine': Short(
        ('without_replacement', 'rank'), 'test_siblings holds the third; 5 s',
        elsewhere=('siblings',),
    ),
    'tests/kernels/test_accept_tpu.py::TestTpu::test_same_tokens_in_the_engine': Short(
        ('block',), f'{_ONE_RULE}; 18 s', elsewhere=('name',)
    ),
    'tests/kernels/test_accept_gpu.py::TestMosaicGpu::test_same_tokens_in_the_engine': Short(
        (), 'the engine hands all kernels the same; the suite of the op is held here too; 27 s',
        instead='tests/kernels/test_accept_tpu.py::TestTpu::test_same_tokens_in_the_engine',
        absent=_NO_INTERPRETER,
    ),
    'tests/kernels/test_accept_tpu.py::TestMosaicTpu::test_siblings': Short(
        ('recursive-without_replacement', 'traversal-without_replacement'),
        f'{_SIBLINGS}; 11 s', elsewhere=('kind',),
    ),
    'tests/kernels/test_accept_gpu.py::TestMosaicGpu::test_siblings': Short(
        ('recursive-without_replacement',), f'{_SIBLINGS}; 9 s', elsewhere=('rule', 'kind'),
        absent=_NO_INTERPRETER,
    ),
    'tests/kernels/test_accept_sharded.py::TestSharded::test_eight_devices_equal_one': Short(
        (), 'test_mesh runs the engine with the op on eight devices, under five rules; 55 s',
        instead='tests/sharding/test_mesh.py::test_eight_devices_emit_the_tokens_of_one',
    ),
    'tests/kernels/test_accept_tpu.py::TestMosaicTpu::test_one_token_is_drafted': Short(
        ('block',), 'the one with inner rows; test_accept holds the others; 14 s',
        elsewhere=('rule',),
    ),
    'tests/engine/test_expansion.py::test_output_is_plain_decodings': Short(
        ('static-coupled', 'dynamic-greedy'), _BOTH
    ),
    'tests/engine/test_trees_on_device.py::'
    'test_sixty_nodes_compile_once_and_stay_on_the_device': Short(
        ('eagle3',), 'a head reads more than a draft model; 10 s', elsewhere=('kind',)
    ),
    'tests/engine/test_trees_on_device.py::test_sixty_nodes_copy_no_cache': Short(
        ('eagle3',), 'of the same programs as the one above; 10 s', elsewhere=('kind',)
    ),
    'tests/engine/test_trees_on_device.py::'
    'test_more_nodes_take_their_scores_and_no_cache': Short(
        (), 'temporaries of sixty nodes are held beside their cache; 10 s',
        instead='tests/engine/test_trees_on_device.py::test_sixty_nodes_copy_no_cache',
    ),
    _CHAT + 'test_published_templates_have_the_texts_of_transformers': Short(
        (), 'templates of models, in a package of 77 MB that is fetched for it; 10 s',
        instead=_CHAT + 'TestRendering::test_texts_and_tokens_are_those_of_transformers',
    ),
    'tests/models/test_zoo.py::TestLossless::test_bitwise_plain_on_held_out_files': Short(
        (), 'the shipped pair on real text; the quickstart notebook counts its flips; 32 s',
        instead='tests/engine/test_identity.py::TestIdentical::test_chain_is_bitwise_plain',
    ),
    'tests/drafters/test_combined.py::test_output_is_plain_decodings': Short(
        (), 'test_heads has heads alone, and the law of a combination is enumerated here; 32 s',
        instead='tests/drafters/test_combined.py::test_output_law_is_the_targets',
    ),
    'tests/drafters/test_combined.py::'
    'test_a_learned_drafter_reads_what_the_free_one_had_accepted': Short(
        ('tree',), 'a chain is a tree without siblings; 13 s', elsewhere=('learned',)
    ),
    'tests/drafters/test_vocabulary.py::test_output_is_plain_decodings': Short(
        ('rule0-model',), 'rule x shape, of which neither knows the other; 19 s',
        elsewhere=('rule', 'make'),
    ),
    'tests/test_tutorials.py::test_both_go_through_the_command_lines': Short(
        (), 'the sweep of the tutorial goes through the same machinery; 38 s',
        instead='tests/test_tutorials.py::test_the_sweep',
    ),
    'tests/test_tutorials.py::test_a_fault_of_the_drafter_is_caught': Short(
        (), 'the fault of the rule is caught by the same sum; 21 s',
        instead='tests/test_tutorials.py::'
        'test_the_rule_leaves_the_law_as_it_is_and_its_fault_is_caught',
    ),
    'tests/test_tutorials.py::'
    'test_the_rule_leaves_the_law_as_it_is_and_its_fault_is_caught': Short(
        ('draft model',), 'the drafter of the tutorial is summed under library rules; 11 s',
        elsewhere=('name',),
    ),
    'tests/test_tutorials.py::test_what_the_brief_rule_accepts': Short(
        (), 'what rules accept in expectation is held for those of the library; 20 s',
        instead='tests/verify/test_lossless.py::test_output_law_is_the_targets',
    ),
    'tests/sharding/test_plan.py::'
    'test_a_heads_loop_gathers_its_own_small_vocabulary_alone': Short(
        (), 'collectives of a head; those of the whole loop are held; 16 s',
        instead='tests/sharding/test_plan.py::'
        'test_the_whole_loop_compiles_for_a_slice_in_place',
    ),
    _PROCESSES + 'test_a_death_ends_the_others': Short(
        (), "what JAX's runtime does, and two more processes; 58 s",
        instead=_PROCESSES + 'test_two_processes_emit_the_tokens_of_one',
    ),
    'tests/engine/test_rows_without_a_law.py::test_what_cannot_be_drawn_is_not_proposed': Short(
        ('coupled-chain', 'greedy-tree'), _BOTH
    ),
    'tests/engine/test_rows_without_a_law.py::test_a_row_that_is_never_seen_changes_nothing': Short(
        ('coupled-chain', 'greedy-tree'), _BOTH
    ),
    'tests/engine/test_rows_without_a_law.py::test_a_row_ends_where_plain_decoding_does': Short(
        ('length-coupled-chain', 'stop-greedy-tree'), _BOTH
    ),
    'tests/engine/test_rows_without_a_law.py::'
    'test_a_hook_that_allows_nothing_shows_within_a_round': Short(
        ('coupled-chain', 'greedy-tree'), _BOTH
    ),
    'tests/verify/test_empty_laws.py::test_output_law_is_the_targets': Short(
        ('chain', 'tree with replacement'),
        'drafter x rule; test_lossless, test_trees and test_heads_lossless have the others where '
        'laws are not empty; 73 s',
        elsewhere=('name',),
    ),
    'tests/verify/test_empty_laws.py::test_whatever_a_drafter_says_is_valid': Short(
        ('chain', 'tree with replacement'), 'as above; 3 s', elsewhere=('name',)
    ),
    'tests/verify/test_empty_laws.py::test_rows_that_plain_decoding_never_sees': Short(
        ('chain', 'tree with replacement'), 'as above; 3 s', elsewhere=('name',)
    ),
    'tests/models/test_widths.py::test_a_layer_at_its_real_widths_agrees_with_transformers': Short(
        ('Llama-3.2-1B',), 'the same code at larger sizes: 26 s, and 5.2 GB', elsewhere=('name',)
    ),
    'tests/sharding/test_mesh.py::test_eight_devices_emit_the_tokens_of_one': Short(
        tuple(
            '-'.join((layout, *pair)) for layout, pairs in mesh_run.SHORT.items() for pair in pairs
        ),
        'layout x drafter x rule: no rule loses its only run on a mesh, and EAGLE runs as a tree',
        elsewhere=('drafter',),
    ),
    _PROCESSES + 'test_the_script_runs_a_command_on_two_processes_and_the_first_one_writes': Short(
        (), 'the same two processes, started by the script; 23 s',
        instead=_PROCESSES + 'test_two_processes_emit_the_tokens_of_one',
    ),
    _PROCESSES + 'test_two_hosts_of_a_pod_give_the_same_bits': Short(
        (), 'the same two processes, as a pod starts them; 55 s',
        instead=_PROCESSES + 'test_two_processes_emit_the_tokens_of_one',
    ),
    _PROCESSES + 'test_training_goes_on_from_its_checkpoint': Short(
        (), 'the processes that are left by the death are held; one process resumes; 45 s',
        instead='tests/training/test_training.py::'
        'test_resumes_after_sigkill_to_bitwise_the_same_losses',
    ),
    'tests/experiments/test_notebooks.py::TestFiles::test_runs_from_top_to_bottom': Short(
        ('quickstart',),
        'what the others show is held by test_lossless, test_head_training and test_plan; 215 s',
        elsewhere=('path',),
    ),
    _KILLED + 'test_a_sweep_killed_once_has_the_same_table': Short(
        (), 'the same of a process of its own, killed by SIGKILL; 145 s', instead=_RESUMED
    ),
    _KILLED + 'test_a_sweep_killed_three_times_has_the_same_table': Short(
        (), 'as above, three times; 60 s', instead=_RESUMED
    ),
    'tests/experiments/test_ablate.py::TestExpectation::test_equals_the_enumeration': Short(
        (), 'the numbers of a finished sweep are held to each other; 15 s',
        instead='tests/experiments/test_ablate.py::TestTable::test_numbers_agree_with_each_other',
    ),
    'tests/experiments/test_experiments.py::test_every_drafter_gives_the_same_greedy_text': Short(
        (), 'test_commands runs a config of every kind, test_identity holds the tokens; 13 s',
        instead='tests/experiments/test_commands.py::test_its_smoke_form_runs',
    ),
    'tests/experiments/test_synthesize.py::TestHead::test_other_kinds_by_the_same_config': Short(
        (), 'test_experiments trains one by its recipe, an EAGLE-3 head is trained here; 40 s',
        instead='tests/experiments/test_synthesize.py::TestHead::test_the_corpus_is_the_chats',
    ),
    'tests/engine/test_refill.py::test_what_all_prompts_begin_with_is_read_once': Short(
        ('eagle tree-0.0-33',), 'states of two models, of which plain decoding has one; 20 s',
        elsewhere=('kind', 'temperature', 'length'),
    ),
    'tests/heads/test_heads.py::test_a_dynamic_tree_gives_the_tokens_of_plain_decoding': Short(
        ('eagle3-greedy',), 'EAGLE-1 has a static tree there, under the coupled rule; 25 s',
        elsewhere=('kind', 'rule'),
    ),
    'tests/kernels/test_accept_one_token.py::test_the_output_law_is_the_targets': Short(
        ('rejection-model', 'block-combined', 'recursive-tree'),
        'rule x drafter, of which neither knows the other; 18 s',
    ),
    'tests/kernels/test_attention.py::test_speculation_with_a_kernel_gives_plain_tokens': Short(
        ('pallas',), "what cuDNN is handed is held beside it, by outputs; 28 s",
        elsewhere=('kind',),
    ),
    'tests/engine/test_refill.py::test_every_prompt_has_the_tokens_that_it_has_alone': Short(
        ('eagle tree-0.0',),
        'plain decoding is filled by test_synthesize, a chain of a model is between the two; 12 s',
        elsewhere=('kind', 'temperature'),
    ),
    _BLOCKS + 'test_a_loss_is_its_definition': Short(
        ('4-dspark-dspark',),
        'the larger loss of the larger head, in parts; 25 s',
        elsewhere=('loss', 'kind', 'num_chunks'),
    ),
    _BLOCKS + 'test_many_blocks_at_once_are_those_of_decoding': Short(
        ('windows2',), 'test_dflash_files has all windows by their definition; 15 s',
        elsewhere=('windows',),
    ),
    _BLOCKS + 'test_training_lowers_the_loss_and_resumes': Short(
        (), 'the loss of these heads in the loop that is held for the others; 27 s',
        instead=_BLOCKS + 'test_a_loss_is_its_definition',
    ),
    'tests/engine/test_device.py::test_a_tree_copies_no_cache': Short(
        (), 'a larger tree of a head, which reads more, is held to the same; 14 s',
        instead='tests/engine/test_trees_on_device.py::test_sixty_nodes_copy_no_cache',
    ),
    'tests/drafters/test_best_first.py::test_output_is_plain_decodings': Short(
        (), 'the law of a best-first tree is enumerated with the heads; 28 s',
        instead='tests/heads/test_heads_lossless.py::test_the_output_law_is_the_targets',
    ),
    'tests/experiments/test_experiments.py::'
    'test_training_resumes_after_sigkill_to_the_same_curve': Short(
        (), 'the same loop is killed there, without a command line around it; 10 s',
        instead='tests/training/test_training.py::'
        'test_resumes_after_sigkill_to_bitwise_the_same_losses',
    ),
    'tests/experiments/test_own_parts.py::test_benchmark': Short(
        (), 'a sweep of the same parts goes through the same machinery; 10 s',
        instead='tests/experiments/test_own_parts.py::test_a_sweep_and_a_drafter_without_k',
    ),
    'tests/experiments/test_validate_hardware.py::test_the_whole_rehearsal': Short(
        (), 'all steps of the run for a GPU; 60 s',
        instead='tests/experiments/test_validate_hardware.py::test_a_rehearsal_of_the_first_step',
    ),
    'tests/experiments/test_experiments.py::'
    'test_a_head_is_trained_by_its_recipe_and_resumes_bitwise': Short(
        ('medusa',),
        'test_head_training trains all three, and test_mesh an EAGLE-3 head by its recipe; 65 s',
        elsewhere=('kind',),
    ),
}

# Modules that take longest with few tests begin first: the other worker then has enough left to do.
FIRST = (
    'tests/sharding/test_mesh.py',
    'tests/sharding/test_processes.py',
    'tests/engine/test_tpu_memory.py',
    'tests/experiments/test_ablate_killed.py',
    'tests/experiments/test_notebooks.py',
)


def everything() -> bool:
  """Whether this run leaves nothing out."""
  return bool(os.environ.get(EVERYTHING))


def name_of(item: pytest.Item) -> str:
  """The node id without the parameters."""
  return item.nodeid.split('[', 1)[0]


def case_of(item: pytest.Item) -> str:
  """The id of the parameters; empty where there are none."""
  return item.nodeid.split('[', 1)[1][:-1] if '[' in item.nodeid else ''


def split(items: Iterable[pytest.Item], table=None) -> tuple[list, list]:
  """What the short run keeps of the collected tests, and what it leaves out."""
  table = TABLE if table is None else table
  kept, left = [], []
  for item in items:
    entry = table.get(name_of(item))
    (kept if entry is None or case_of(item) in entry.keep else left).append(item)
  return kept, left


def ordered(items: Sequence[pytest.Item]) -> list[pytest.Item]:
  """The modules of `FIRST`, then the others as they were collected."""
  rank = {path: number for number, path in enumerate(FIRST)}
  return sorted(items, key=lambda item: rank.get(item.nodeid.split('::', 1)[0], len(rank)))


def levels(items: Iterable[pytest.Item]) -> set[tuple[str, str]]:
  """The levels of every factor, a parameter of a test, that occur in some cases."""
  return {
      (factor, repr(level))
      for item in items
      if hasattr(item, 'callspec')
      for factor, level in item.callspec.params.items()
  }


def problems(items: Sequence[pytest.Item], table=None) -> list[str]:
  """What is wrong with the table, given all tests that were collected.

  Entries of files that were not collected are not judged.
  """
  table = TABLE if table is None else table
  kept, left = split(items, table)
  files = {item.nodeid.split('::', 1)[0] for item in items}
  found = []
  for name, entry in table.items():
    if name.split('::', 1)[0] not in files:
      continue
    own, rest = ([i for i in part if name_of(i) == name] for part in (kept, left))
    if not own and not rest:
      if not entry.absent:
        found.append(f'{name}: there is no such test')
      continue
    for case in sorted(set(entry.keep) - {case_of(item) for item in own}):
      found.append(f'{name}: keeps {case!r}, which is none of its cases')
    if not rest:
      found.append(f'{name}: nothing of it is left out')
    for factor, level in sorted(levels(rest) - levels(own) if entry.keep else ()):
      if factor not in entry.elsewhere:
        found.append(f'{name}: no case of {factor}={level} is kept')
    if not entry.keep and entry.instead.split('::', 1)[0] in files:
      if entry.instead not in {name_of(item) for item in kept}:
        found.append(f'{name}: {entry.instead!r}, which is to hold the same, is not kept')
    if bool(entry.keep) == bool(entry.instead):
      found.append(f'{name}: must keep cases, or name the test that holds the same instead')
  return found
