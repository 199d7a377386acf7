"""The time model of a compiled TPU program, on programs small enough to count by hand."""

import dataclasses

import pytest

from specjax.planning import chips
from specjax.planning import program as program_lib
from specjax.planning import schedules
from specjax.planning import times
from tests.support import tolerance

WHERE = chips.slice_of('v5e:2x2')
MB = 2**20
US = 1e-6

# A round: a fetch of 16 MiB ahead beside a product of 12,000 cycles, a draft loop of three trips, a
# conditional, an update in place, an all-reduce, and instructions that the compiler adds.
TEXT = '''
HloModule jit_run, is_scheduled=true

%fused_product (p0: bf16[8,8192], p1: bf16[8192,1024]) -> bf16[8,1024] {
  %p0 = bf16[8,8192]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %p1 = bf16[8192,1024]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %conv = bf16[8,1024]{1,0:T(8,128)(2,1)} convolution(%p0, %p1), dim_labels=bf_io->bf
}

%fused_slice (p0.1: f32[1024,1024], p1.1: s32[]) -> f32[8,1024] {
  %p0.1 = f32[1024,1024]{1,0:T(8,128)} parameter(0)
  %p1.1 = s32[]{:T(128)S(6)} parameter(1)
  ROOT %slice = f32[8,1024]{1,0:T(8,128)} dynamic-slice(%p0.1, %p1.1), dynamic_slice_sizes={8,1024}
}

%draft_body (d: (s32[], f32[256,1024])) -> (s32[], f32[256,1024]) {
  %d = (s32[]{:T(128)}, f32[256,1024]{1,0:T(8,128)}) parameter(0)
  %x = f32[256,1024]{1,0:T(8,128)} get-tuple-element(%d), index=1
  %negate = f32[256,1024]{1,0:T(8,128)} negate(%x), backend_config={"estimated_cycles":"2600"}
  ROOT %again = (s32[]{:T(128)}, f32[256,1024]{1,0:T(8,128)}) tuple(%d, %negate)
}

%draft_condition (c: (s32[], f32[256,1024])) -> pred[] {
  %three = s32[]{:T(128)} constant(3)
  %c = (s32[]{:T(128)}, f32[256,1024]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %three), direction=LT
}

%plain (e: f32[8]) -> f32[8] {
  %e = f32[8]{0:T(128)S(1)} parameter(0)
  ROOT %cheap = f32[8]{0:T(128)S(1)} add(%e, %e), backend_config={"estimated_cycles":"2600"}
}

%asked_for (g: f32[8]) -> f32[8] {
  %g = f32[8]{0:T(128)S(1)} parameter(0)
  ROOT %dear = f32[8]{0:T(128)S(1)} add(%g, %g), backend_config={"estimated_cycles":"3000000"}
}

%round (a: (bf16[8192,1024], bf16[8,8192], f32[1024,1024], f32[8])) -> f32[8] {
  %a = (bf16[8192,1024]{1,0:T(8,128)(2,1)}, bf16[8,8192]{1,0:T(8,128)(2,1)S(1)}, \
f32[1024,1024]{1,0:T(8,128)}, f32[8]{0:T(128)S(1)}) parameter(0)
  %weights = bf16[8192,1024]{1,0:T(8,128)(2,1)} get-tuple-element(%a), index=0
  %rows = bf16[8,8192]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%a), index=1
  %table = f32[1024,1024]{1,0:T(8,128)} get-tuple-element(%a), index=2
  %state = f32[8]{0:T(128)S(1)} get-tuple-element(%a), index=3
  %fetch = (bf16[8192,1024]{1,0:T(8,128)(2,1)S(1)}, bf16[8192,1024]{1,0:T(8,128)(2,1)}, \
u32[]{:S(2)}) copy-start(%weights)
  %first = s32[]{:T(128)S(6)} constant(0)
  %taken = f32[8,1024]{1,0:T(8,128)S(1)} fusion(%table, %first), kind=kLoop, calls=%fused_slice, \
metadata={op_name="jit(run)/while/body/verify/gather"}, backend_config={"estimated_cycles":"2150"}
  %draft_in = (s32[]{:T(128)}, f32[256,1024]{1,0:T(8,128)}) tuple(%first, %table)
  %drafted = (s32[]{:T(128)}, f32[256,1024]{1,0:T(8,128)}) while(%draft_in), \
condition=%draft_condition, body=%draft_body, metadata={op_name="jit(run)/while/body/draft/while"}
  %there = bf16[8192,1024]{1,0:T(8,128)(2,1)S(1)} copy-done(%fetch)
  %product = bf16[8,1024]{1,0:T(8,128)(2,1)S(1)} fusion(%rows, %there), kind=kOutput, \
calls=%fused_product, metadata={op_name="jit(run)/while/body/score/Transformer/layer_3/mlp/dot"}, \
backend_config={"estimated_cycles":"14000"}
  %sum = bf16[8,1024]{1,0:T(8,128)(2,1)S(1)} all-reduce(%product), replica_groups={{0,1,2,3}}, \
to_apply=%plain, metadata={op_name="jit(run)/while/body/score/Transformer/layer_3/mlp/dot"}
  %kept = f32[8]{0:T(128)S(1)} conditional(%first, %state, %state), \
branch_computations={%plain, %asked_for}, metadata={op_name="jit(run)/while/body/verify/cond"}
  %updated = f32[1024,1024]{1,0:T(8,128)} dynamic-update-slice(%table, %taken, %first, %first), \
metadata={op_name="jit(run)/while/body/commit/dynamic_update_slice"}
  ROOT %copied = f32[8]{0:T(128)S(1)} copy(%kept), backend_config={"estimated_cycles":"2600"}
}

%condition (b: s32[]) -> pred[] {
  %b = s32[]{:T(128)} parameter(0)
  ROOT %on = pred[]{:T(512)} compare(%b, %b), direction=LT
}

ENTRY %main (m: s32[]) -> f32[8] {
  %m = s32[]{:T(128)} parameter(0)
  ROOT %loop = f32[8]{0:T(128)} while(%m), condition=%condition, body=%round, \
metadata={op_name="jit(run)/while"}
}
'''.replace('\\\n', '')


@pytest.fixture(scope='module')
def found():
  return times.walk(program_lib.parse(TEXT), WHERE)


def named(found: times.Times, name: str) -> times.Cost:
  (cost,) = (each for each in found.costs if each.name == name)
  return cost


def trips(found: times.Times, name: str) -> list[float]:
  return [each.seconds for each in found.costs if each.name == name]


def test_a_program_is_read_as_it_is_scheduled():
  program = program_lib.parse(TEXT)
  assert program.entry == 'main' and times.round_of(program) == 'round'
  round_ = program.computations['round']
  assert [each.name for each in round_.instructions][5:8] == ['fetch', 'first', 'taken']
  assert round_.root.name == 'copied'
  product = round_.by_name['product']
  assert (product.opcode, product.operands, product.cycles) == ('fusion', ('rows', 'there'), 14_000)
  assert [user.name for user in round_.users['there']] == ['product']
  assert product.arrays[0].space == 1 and round_.by_name['weights'].arrays[0].space == 0
  with pytest.raises(ValueError, match='no computation'):
    program_lib.parse('HloModule nothing')


def test_bytes_are_those_that_move():
  program = program_lib.parse(TEXT)
  round_ = program.computations['round']
  moved = lambda name: program_lib.moved_bytes(program, round_, round_.by_name[name])
  assert moved('taken') == 8 * 1024 * 4  # eight rows of the table, not the table
  assert moved('product') == 0  # all of it is in VMEM
  assert moved('updated') == 8 * 1024 * 4  # what is written, in place
  # Eight numbers fill a tile of 128, and five rows of bfloat16 one of eight.
  assert program_lib.arrays('f32[8]{0:T(128)}')[0].num_bytes == 512
  assert program_lib.arrays('bf16[5,128]{1,0:T(8,128)(2,1)}')[0].num_bytes == 8 * 128 * 2


def test_what_is_fetched_ahead_moves_beside_other_work(found):
  """16 MiB at 819 GB/s: less what moved while the table was read and the draft loop ran."""
  clock, bandwidth = WHERE.chip.clock, WHERE.chip.hbm_bandwidth
  gather = times.LAUNCH_SECONDS + max(150 / clock, 8 * 1024 * 4 / bandwidth)
  step = times.LAUNCH_SECONDS + max(600 / clock, 2 * MB / bandwidth)
  assert named(found, 'taken').seconds == tolerance.approx(gather)
  assert trips(found, 'negate') == [tolerance.approx(step)] * 3
  free = gather + 3 * step - (8 * 1024 * 4 + 3 * 2 * MB) / bandwidth
  expected = 16 * MB / bandwidth - free
  assert named(found, 'there').seconds == tolerance.approx(expected)
  assert named(found, 'there').bound == 'wait'
  assert named(found, 'product').seconds == tolerance.approx(times.LAUNCH_SECONDS + 8 * US)


def test_a_conditional_takes_what_most_do_and_an_update_waits_for_its_tiles(found):
  assert 'dear' not in {each.name for each in found.costs}
  assert named(found, 'cheap').seconds == tolerance.approx(times.LAUNCH_SECONDS + 600 / 1.5e9)
  written = 8 * 1024 * 4 / WHERE.chip.hbm_bandwidth
  assert named(found, 'updated').seconds == tolerance.approx(times.UPDATE_SECONDS + written)


def test_a_conditional_says_where_the_other_branch_is_the_usual_one():
  text = TEXT.replace('body/verify/cond', 'body/verify/often/cond')
  found = times.walk(program_lib.parse(text), WHERE)
  assert named(found, 'dear').seconds > 1e-3
  assert 'cheap' not in {each.name for each in found.costs}


def test_an_all_reduce_goes_there_and_back(found):
  sent = 8 * 1024 * 2 * 3 / 4 / WHERE.chip.link_bandwidth
  assert named(found, 'sum').seconds == tolerance.approx(2 * (2 * US + sent))
  gather = dataclasses.replace(
      program_lib.parse(TEXT).computations['round'].by_name['sum'], opcode='all-gather'
  )
  assert times.collective_seconds(gather, WHERE) == tolerance.approx(2 * US + sent)


def test_the_start_of_a_collective_has_its_operand_and_scalars_beside_what_is_received():
  permute = (
      '  %p = (u32[8,1]{1,0:T(8,128)S(1)}, u32[8,1]{1,0:T(8,128)}, u32[]{:S(2)}, u32[]{:S(2)}) '
      'collective-permute-start(%x), source_target_pairs={{1,0}}'
  )
  gather = '  %g = (f32[4]{0}, f32[16]{0}) all-gather-start(%y)'
  text = '\n'.join(['ENTRY %main (m: f32[8]) -> f32[8] {', permute, gather, '}'])
  starts = program_lib.parse(text).computations['main'].instructions
  assert [[array.dims for array in each.received] for each in starts] == [[(8, 1)], [(16,)]]


def test_every_instruction_has_a_part_and_the_sum_is_never_below_its_bytes(found):
  assert {each.scope for each in found.costs} == set(times.SCOPES)
  assert named(found, 'there').scope == 'score'  # of what it is fetched for
  assert named(found, 'copied').scope == 'verify'  # of what it copies
  assert found.seconds == tolerance.approx(sum(found.of(scope) for scope in times.SCOPES))
  assert found.seconds > found.least_seconds
  assert found.num_bytes == 16 * MB + 3 * 2 * MB + 2 * 8 * 1024 * 4
  (longest, *_) = found.largest(1)
  assert longest.name == 'there'


def test_a_kernels_cycles_are_those_of_its_schedule():
  kernel = (
      '  ROOT %copied = f32[8]{0:T(128)S(1)} custom-call(%kept), '
      'custom_call_target="tpu_custom_call", backend_config={"custom_call_config":'
      '{"cost_estimate":{"flops":"0","bytes_accessed":"819000"}}}'
  )
  lines = [kernel if line.startswith('  ROOT %copied') else line for line in TEXT.splitlines()]
  program = program_lib.parse('\n'.join(lines))
  bytes_alone = named(times.walk(program, WHERE), 'copied')
  assert bytes_alone.num_bytes == 819_000
  assert bytes_alone.seconds == tolerance.approx(times.LAUNCH_SECONDS + 1 * US)
  scheduled = named(times.walk(program, WHERE, kernels={'copied': 3_000}), 'copied')
  assert scheduled.seconds == tolerance.approx(times.LAUNCH_SECONDS + 2 * US)


# A loop of eight trips, whose last branch goes back to its region; another one leaves bundles out.
SCHEDULE = '''
     0   : {  %s1 = smov 0 }
   0x1 LB: > {  %s2 = sadd.s32 1, %s1 /* a comment of
two lines */  ;;  %4 = sbr.rel (!%p5) target = $region9 } /* Start region 1 :: Start region 8 */
   0x2   : > {  %p3 = scmp.ge.s32.totalorder %s2, 8 /* loop exit test */  ;;
  %6 = sbr.rel (!%p3) target = $region1 }
   0x3   : {  nop }
   0x4   : {  nop }
   0x5   : {  nop }
   0x6   : {  nop }
   0x7   : {  nop }
'''


def test_schedules_are_counted_with_their_loops_and_shared_by_equal_kernels(tmp_path, monkeypatch):
  assert schedules.cycles(SCHEDULE) == 1 + 8 * 6 + 1
  monkeypatch.setattr(schedules, '_folder', tmp_path)
  (tmp_path / '17-write.2-01-final_bundles.txt').write_text(SCHEDULE)
  (tmp_path / '17-write.2-00-schedule-analysis_final_bundles.txt').write_text('not a schedule')
  call = (
      '  %{name} = f32[{size}]{{0}} custom-call(%m), custom_call_target="tpu_custom_call", '
      'operand_layout_constraints={{f32[{size}]{{0}}}}, metadata={{op_name="x"}}'
  )
  kernels = [('write.2', 8), ('write.3', 8), ('write.4', 16)]
  lines = [call.format(name=name, size=size) for name, size in kernels]
  text = '\n'.join(['ENTRY %main (m: f32[8]) -> f32[8] {', *lines, '}'])
  program = program_lib.parse(text)
  assert schedules.of_program(program) == {'write.2': 50, 'write.3': 50}
  schedules.forget()
  assert schedules.of_program(program) == {}


def test_gpus_have_no_such_estimates():
  with pytest.raises(ValueError, match='no slice of TPUs'):
    times.walk(program_lib.parse(TEXT), chips.slice_of('H100:8'))
