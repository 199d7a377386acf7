"""Rows, measurements and traces as runs write them, for the tests of reports."""

EVIL = '</script><script>alert(1)</script><b>&"\''


def evil(place: str) -> str:
  """`EVIL` with a mark by which it is found again."""
  return f'{EVIL} in {place}'


def row(name='draft model', rule='greedy', **changes):
  values = dict(
      name=name, rule=rule, drafter='model', temperature=0.0, num_speculative_tokens=2,
      dtype='float32', width=3, prompts=4, new_tokens=80, target_passes=40, seconds=2.0,
      prefill_seconds=0.5, tokens_per_second=40.0, speedup=1.5, speedup_low=1.3, speedup_high=1.7,
      predicted_speedup=1.4, mean_acceptance_length=2.0, draft_acceptance_rate=0.5,
      prediction=dict(
          tokens_per_round=1.9, num_drafted=2.0, draft_cost=0.1, pass_cost=1.05, overhead=0.03
      ),
      acceptance_rate_per_position=[0.7, 0.3], accepted_lengths=[0.3, 0.4, 0.3],
      identical_to_plain=True,
      versions={'jax': '0.12'}, hardware={'platform': 'cpu', 'device': 'a CPU', 'cpu_cores': 2},
  )
  return values | changes


def plain():
  return row(
      'plain decode', drafter='none', num_speculative_tokens=0, speedup=1.0, speedup_low=1.0,
      speedup_high=1.0, predicted_speedup=None, prediction=None, draft_acceptance_rate=None,
      acceptance_rate_per_position=[], accepted_lengths=[1.0], identical_to_plain=None,
      mean_acceptance_length=1.0,
  )


def arm(k, rule, **changes):
  """A row of a sweep."""
  fields = {'drafter.num_speculative_tokens': k, 'rule.name': rule}
  values = dict(
      arm=f'K={k} rule={rule}', fields=fields, status='done', num_speculative_tokens=k,
      mean_acceptance_length_low=1.9, mean_acceptance_length_high=2.1,
      expected_tokens_per_round=2.05, lossless='same law', gain=None, gain_low=None,
      gain_high=None, along=[[10, 5], [8, 1]], flips=0, identical_to_plain=None,
      round_seconds=dict(draft=1e-3, verify=2e-3, rest=5e-4, measured=3.7e-3),
  )
  return row(values['arm'], rule) | values | changes


ROUND = dict(
    round_ms=12.5, round_draft_ms=4.0, round_score_ms=8.0, round_verify_ms=0.25,
    round_commit_ms=0.25, round_bytes_ms=9.0, round_errors=[-0.2, 0.25],
    slowest={
        part: [dict(name='fusion.1', op_name=f'{part}/{EVIL}', ms=1.5, trips=80.0,
                    num_bytes=2e6, bound='memory')]
        for part in ('draft', 'score', 'verify', 'commit')
    },
)


def planned(topology='H100:8', **changes):
  """A row of a plan, not compiled; with a round of its program where `compiled`."""
  predictions = [
      dict(acceptance=rate, num_speculative_tokens=k, plain=500.0, speculative=500.0 * ratio,
           speedup=ratio)
      for rate, k, ratio in ((0.5, 2, 1.4), (0.7, 4, 2.0), (0.9, 8, 3.5))
  ]
  values = dict(
      name='a plan', topology=topology, batch_size=8, context=512, num_speculative_tokens=4,
      tree=None, num_nodes=4, rule='block', compiled=False, compile_seconds=None,
      collectives_per_layer=None, weight_bytes=18e9, cache_bytes=2e9, temporary_bytes=1e8,
      free_bytes=60e9, fits=True, advice=None, largest_fitting_batch=200,
      largest_paying_batch=64, predictions=predictions, roofline_predictions=predictions,
      draft_step_ms=0.5, target_pass_ms=7.0,
  )
  values |= ROUND if changes.get('compiled') else dict.fromkeys(ROUND)
  return values | changes


CALIBRATION = dict(
    dtype='float32', width=1,
    candidates=[dict(dtype='float32', width=1, seconds=0.01, pass_seconds=0.02)],
    widths=[1, 3, 5], pass_seconds=[0.01, 0.011, 0.012],
    rules=[dict(rule='greedy', plain=0.01, overhead=[[2, 0.001]], drafting={})],
    batch_size=1, cache_length=64, rounds=8, repetitions=3, noise=0.1, versions={}, hardware={},
)

TRACE = dict(
    name=EVIL, prompt=f'prompt {EVIL}',
    rounds=[
        dict(
            before=EVIL,
            emitted=[[EVIL, 'accepted'], ['x', 'recovered']],
            nodes=[
                dict(
                    number=1, parent=0, text=EVIL, accepted=True, reached=True, accept=1.0,
                    target=0.5, draft=0.4,
                ),
                dict(
                    number=2, parent=1, text='y', accepted=False, reached=True, accept=0.1,
                    target=0.1, draft=0.9,
                ),
            ],
        )
    ],
)
