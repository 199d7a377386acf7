"""A GPU's kernels are a default only where a record says that a device has passed the check."""

import json
import pathlib

import pytest

from specjax.kernels.accept import api

RECORD = pathlib.Path(__file__).resolve().parents[2] / 'results/accept/gpu.jsonl'
RULES, SIZES = {'greedy', 'rejection', 'block', 'coupled'}, {1, 4, 8, 16}


def proven(rows: list[dict], kind: str) -> bool:
  """Whether rows of `scripts/check_accept_gpu.py` prove the kernels on this kind of device."""
  rows = [row for row in rows if row['device'] == kind]
  found = {(row['name'].split(',')[0], row['num_speculative_tokens']) for row in rows}
  clean = all(
      row['equal'] and row['jax'] and row['commit'] and not row['commit'].endswith('-dirty')
      for row in rows
  )
  return clean and found >= {(rule, size) for rule in RULES for size in SIZES}


def rows_of(**changes):
  return [
      dict(
          name=f'{rule}, B=1, K={size}', num_speculative_tokens=size, device='some', equal=True,
          jax='0.12.0', commit='1f' * 20,
      ) | changes
      for rule in RULES for size in SIZES
  ]


def test_every_default_on_gpus_has_a_record():
  rows = [json.loads(line) for line in RECORD.read_text().splitlines()] if RECORD.exists() else []
  for kind in api.PROVEN_GPUS:
    assert proven(rows, kind), kind


@pytest.mark.parametrize('rows, wanted', [
    (rows_of(), True), (rows_of()[1:], False), (rows_of(equal=False), False),
    (rows_of(device='other'), False), (rows_of(commit=''), False),
    (rows_of(commit='1f1f-dirty'), False), (rows_of(jax=''), False), ([], False),
])
def test_what_a_record_must_say(rows, wanted):
  assert proven(rows, 'some') == wanted
