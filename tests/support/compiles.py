"""Which programs JAX compiles, as its log of them says."""

import collections
import contextlib
import logging
import re
from collections.abc import Iterator

import jax


class _Names(logging.Handler):

  def __init__(self):
    super().__init__(logging.WARNING)
    self.counts = collections.Counter()

  def emit(self, record):
    # 'Compiling jit(run) with …', of older versions 'Compiling run with …'.
    if found := re.match(r'Compiling (?:jit\()?(\w+)', record.getMessage()):
      self.counts[found[1]] += 1


@contextlib.contextmanager
def counted() -> Iterator[collections.Counter]:
  """Yields how often each jitted function was compiled, by its name; it fills up in the block."""
  names = _Names()
  logger = logging.getLogger('jax')
  logger.addHandler(names)
  try:
    with jax.log_compiles():
      yield names.counts
  finally:
    logger.removeHandler(names)
