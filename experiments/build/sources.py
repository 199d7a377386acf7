"""Digests of the files that a config's models are read from, for the origin of its rows."""

import functools

import ml_collections

from experiments.build import drafters as drafters_lib
from experiments.build import targets
from experiments.runs import arms
from specjax.models import hub

ConfigDict = ml_collections.ConfigDict


def digests(config: ConfigDict) -> dict[str, str | None]:
  """A digest of the target's files, and of what drafts for it, by 'target' and 'drafter'.

  Of each only once: rows come every few steps, and a hub is asked for what it has. None where the
  files are not found any more.
  """
  files = {'target': targets.source(config)}
  if 'drafter' in config:
    files['drafter'] = drafters_lib.source(config)
  return {name: _digest(str(source)) for name, source in files.items() if source}


@functools.cache
def _digest(source: str) -> str | None:
  try:
    return arms.file_digest(str(hub.fetch(source)))
  except OSError:  # hours of work end here: they are not lost for want of a digest
    return None
