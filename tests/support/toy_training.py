"""A bigram model that learns to count, trained by the library's loop; also a program to kill.

    python -m tests.support.toy_training WORKDIR PAUSE

prints the step and the metrics of each record, and waits PAUSE seconds after it.
"""

import json
import sys
import time

import jax
import numpy as np
import optax

from specjax.training import losses
from specjax.training import train

VOCAB = 7


def bigram(seed: int = 0):
  """A bigram model: its parameters and its loss."""
  params = {'table': 0.1 * jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))}

  def loss_fn(params, batch):
    loss = losses.cross_entropy(params['table'][batch[:, :-1]], batch[:, 1:])
    return loss, {'loss': loss}

  return params, loss_fn


def counting(step: int) -> np.ndarray:
  """A toy corpus [4, 9] in which every token is followed by the next number."""
  starts = np.random.default_rng(step).integers(VOCAB, size=(4, 1))
  return ((starts + np.arange(9)) % VOCAB).astype(np.int32)


def fit(workdir, **kwargs):
  """A short run; returns the state and the records."""
  params, loss_fn = bigram()
  records = []
  options = dict(
      params=params,
      loss_fn=loss_fn,
      optimizer=optax.adam(0.1),
      batches=counting,
      num_steps=20,
      workdir=workdir,
      checkpoint_every=10,
      evaluate_every=10,
      record_every=5,
      record=records.append,
  )
  return train.fit(**(options | kwargs)), records


def main(workdir: str, pause: str):
  def record(progress):
    print(json.dumps([progress.step, progress.metrics]), flush=True)
    time.sleep(float(pause))

  fit(workdir, num_steps=40, record=record)


if __name__ == '__main__':
  main(*sys.argv[1:])
