"""Rules of `specjax.verify` that decide through the op: the same rule, over rows of logits."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from specjax import randomness
from specjax import types
from specjax.kernels.accept import api
from specjax.kernels.accept import base
from specjax.kernels.accept import sharded

# On CPUs the op pays from here on: below, a round is made of small operations, and fewer are
# better.
CPU_VOCABULARY = 32_768
# Rules that walk a sampled tree with a loop of their own.
_TREE_RULES = ('recursive', 'traversal')


@dataclasses.dataclass(frozen=True)
class OpRule:
  """A rule of `specjax.verify` that decides through the op; see `through`.

  `is_chain` says that no draft branches, whatever the rule could take.
  """

  rule: Any
  implementation: str
  split: sharded.Split | None = None
  is_chain: bool = False
  # Not a field: an infinite logit has all of the mass.
  takes_infinite_logits = True

  @property
  def name(self) -> str:
    """The rule's."""
    return self.rule.name

  @property
  def lossless(self) -> bool:
    """The rule's."""
    return self.rule.lossless

  @property
  def mode(self) -> str:
    """The rule's."""
    return self.rule.mode

  @property
  def handles_trees(self) -> bool:
    """The rule's."""
    return self.rule.handles_trees

  def check(self, proposal: types.Proposal) -> None:
    """As `specjax.verify.Rule.check`."""
    self.rule.check(proposal)

  def rows(self, logits, *, sampling, proposal) -> base.Inputs:
    """The arrays of the op: its rows are made where it runs, on a mesh by every shard."""
    vocab_size = logits.shape[-1]
    is_drawn = self.mode == 'sample' and proposal.kind != types.ONE_HOT
    has_law = is_drawn and proposal.num_nodes > 0
    is_tree = self.handles_trees and not self.is_chain
    return api.inputs_of(
        logits.reshape(-1, vocab_size),
        proposal.tokens,
        sampling=sampling,
        draft=proposal.law.reshape(-1, vocab_size) if has_law else None,
        draft_is_law=True,
        draft_rows=proposal.rows,
        valid=proposal.valid,
        parents=proposal.parents if is_tree else None,
        kind=proposal.kind if has_law else types.ONE_HOT,
    )

  def decide(self, rows: base.Inputs, *, positions, source):
    """As `specjax.verify.Rule.decide`, from what `rows` gives."""
    numbers = _numbers(self, source, rows.proposal.num_nodes)
    verification, used = api.decide(
        self.rule, rows, numbers, positions if self.mode == 'coupled' else None,
        implementation=self.implementation, split=self.split,
    )
    return verification, used if numbers is source else source


def _numbers(rule: OpRule, source, num_nodes: int):
  """What the op takes its random choices from: the engine's numbers, or any other source."""
  if rule.mode == 'greedy':
    return None
  if rule.mode == 'coupled' or not hasattr(source, 'uniform'):
    return source
  return base.Uniforms(
      # Flips of all nodes at once are counted from 0, those of a walk by the node's number.
      flips=source.uniform(randomness.ACCEPT, jnp.arange(num_nodes) + rule.handles_trees),
      next_token=source.uniform(randomness.NEXT, jnp.arange(num_nodes + 1)),
  )


def through(rule: Any, implementation: str, split: sharded.Split | None = None) -> OpRule:
  """A rule that decides as `rule` does, through `specjax.kernels.accept`.

  Args:
    rule: `specjax.verify.greedy()`, `rejection()`, `block()`, `coupled()`, `recursive()` or
      `traversal()`.
    implementation: one of `IMPLEMENTATIONS`.
    split: how the logits lie on a mesh, where their vocabulary is sharded.

  Returns:
    The rule; its tokens are those of `rule`, but for rounding of sums.

  Raises:
    ValueError: for another rule or an unknown implementation.
  """
  if getattr(rule, 'name', None) not in base.RULES:
    raise ValueError(
        f'The op knows the rules {base.RULES}; got {getattr(rule, "name", rule)!r}.'
    )
  if implementation not in base.IMPLEMENTATIONS:
    raise ValueError(
        f'implementation must be one of {base.IMPLEMENTATIONS}; got {implementation!r}.'
    )
  return OpRule(rule, implementation, split)


def by_default(
    rule: Any, *, vocab_size: int, is_chain: bool = False, layout: Any = None, batch_size: int = 0
) -> Any:
  """The rule that the engine runs for `rule`: through the op where that is faster.

  Args:
    rule: any rule. One that is `through` the op already, or that the op does not know
      (classes of one's own included), is left as it is.
    vocab_size: V.
    is_chain: whether all drafts are chains; the op then needs no parents.
    layout: the target's `specjax.sharding.Layout`, or None on the default device. Where it
      splits the vocabulary into whole tiles, shards decide together and logits stay where they
      are; where it does not, laws in memory are reduced in place, and the rule is left as it is.
    batch_size: B, with a layout.
  """
  if not _is_shipped(rule):
    return rule
  split = None
  if layout is not None and layout.mesh.size > 1:
    # Trees of sampled siblings walk with a loop of their own, not tried across chips.
    split = None if rule.name in _TREE_RULES else _split(layout, batch_size, vocab_size)
    if split is None:
      return rule
  mesh = getattr(layout, 'mesh', None)
  # A mesh's devices need not be here: programs are compiled ahead for others.
  device = mesh.devices.flat[0] if isinstance(mesh, jax.sharding.Mesh) else jax.devices()[0]
  # A tree's refusals are compared one by one in the kernels: small trees only, by name.
  implementation = 'xla' if split or rule.name in _TREE_RULES else api.best(device)
  if implementation == 'xla' and device.platform == 'cpu' and vocab_size < CPU_VOCABULARY:
    return rule
  return dataclasses.replace(through(rule, implementation, split), is_chain=is_chain)


def _split(layout: Any, batch_size: int, vocab_size: int) -> sharded.Split | None:
  """How a layout splits logits; None where the op cannot follow it, or needs not."""
  vocab, batch = layout.mesh_axes('vocab'), layout.mesh_axes('batch')
  if not vocab or set(vocab) & set(batch):
    return None
  split = sharded.Split(layout.mesh, vocab, batch)
  return None if split.refusal(batch_size=batch_size, vocab_size=vocab_size) else split


def _is_shipped(rule: Any) -> bool:
  """Whether this is one of the rules that the op decides for, and not a class of its own."""
  return (
      getattr(rule, 'name', None) in base.RULES
      and type(rule).__module__.startswith('specjax.verify.')
  )
