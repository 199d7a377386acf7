"""What tests of heads' files share: outputs of their authors' code (scripts/make_golden_*.py)."""

import pathlib

import jax
import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'heads'


def golden(name: str) -> dict[str, np.ndarray]:
  arrays = np.load(GOLDEN / name / 'golden.npz')
  return {key: arrays[key] for key in arrays.files}


def same(one, other) -> bool:
  """Whether two trees of arrays are equal."""
  equal = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), one, other)
  return all(jax.tree.leaves(equal))
