"""Heads and outputs that their authors' own code made (scripts/make_golden_*.py)."""

import pathlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'heads'


def golden(name: str) -> dict[str, np.ndarray]:
  arrays = np.load(GOLDEN / name / 'golden.npz')
  return {key: arrays[key] for key in arrays.files}
