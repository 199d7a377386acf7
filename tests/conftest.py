"""What all tests share."""

import jax
import pytest


@pytest.fixture(autouse=True, scope='module')
def few_programs_at_once():
  """Forgets compiled programs behind each module.

  Each holds memory maps of its own, and a process has only so many (65,530 on Linux): with too
  many programs alive XLA aborts.
  """
  yield
  jax.clear_caches()
