"""Eight devices give what one gives: every layout, drafter and rule, in float32."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jax.numpy as jnp
import pytest

from tests.support import mesh_run
from tests.support import short_run
from tests.support import tiny
from tests.support import tolerance

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Added up in a step of training: over 8 rows of 16 tokens, and in the products of a layer (six,
# none longer than 96), forwards and twice backwards.
TERMS = 8 * 16 + 3 * 6 * 96


@functools.cache
def tolerated() -> float:
  target = tiny.model(0, **mesh_run.TARGET)
  logits = target(jnp.arange(tiny.VOCAB)[None]).logits
  return tolerance.of_logprobs(target.module.config, size=tolerance.largest(logits))


@functools.cache
def results():
  with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / 'out.json'
    command = [sys.executable, '-m', 'tests.support.mesh_run', str(out), '--devices=8']
    if not short_run.everything():
      command.append('--short')
    subprocess.run(
        command,
        cwd=ROOT, check=True, env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    'layout, drafter, rule',
    [(layout, *pair) for layout in mesh_run.LAYOUTS for pair in mesh_run.pairs_of(layout)],
)
def test_eight_devices_emit_the_tokens_of_one(layout, drafter, rule):
  # These fixed prompts and seeds come to no choice that rounding decides: no row may differ.
  case = f'{drafter}, {rule}'
  here, there = results()[layout][case], results()['one device'][case]
  assert here['tokens'] == there['tokens']
  assert (here['passes'], here['accepted']) == (there['passes'], there['accepted'])
  tolerance.assert_close(here['logprobs'], there['logprobs'], tolerated())


def test_the_runs_are_of_use():
  found = results()['one device']
  assert found['model, block']['tokens'] != found['tree, coupled']['tokens']
  for case, each in found.items():
    assert each['accepted'] > 10, case
  for case in ('model, block', 'tree, coupled'):
    assert found[case]['passes'] < mesh_run.NEW_TOKENS


@pytest.mark.parametrize('fact', ['files', 'placed', 'split', 'saved', 'int8', 'heads'])
def test_a_folder_is_loaded_in_parts(fact):
  assert results()['loading'][fact]


def test_training_is_that_of_one_device_and_moves_to_another_mesh():
  found = results()['training']
  assert len(found['one']) == 6 and found['one'][-1] < found['one'][0] - 0.1
  # Six steps, each after sums over the positions and the widths.
  close = lambda x: x == tolerance.approx(found['one'], roundings=6 * TERMS, dtype='float32')
  assert close(found['fsdp']) and close(found['moved'])


def test_an_eagle_head_is_trained_with_fsdp_as_on_one_device():
  found = results()['head training']
  assert len(found['one']) == len(found['fsdp']) > 2
  for one, many in zip(found['one'], found['fsdp']):
    assert (one['kind'], one['step']) == (many['kind'], many['step'])
    for name in ('loss', 'gradient_norm', 'acceptance_1'):
      assert (name in one) == (name in many)
      if name in one:
        steps = one['step']
        wanted = tolerance.approx(one[name], roundings=steps * TERMS, dtype='float32')
        assert many[name] == wanted, name
  assert found['one'][-1]['loss'] < found['one'][0]['loss']
  assert found['fsdp'][-1]['acceptance_length'] >= 1.0
