"""A bigram drafter: draws what followed the last token before, in the prompt and the output."""

from flax import struct
import jax.numpy as jnp
from specjax import tree, types
from specjax.drafters import base

KINDS = dict(greedy=types.ONE_HOT, sample=types.SAMPLED, coupled=types.COUPLED)


@struct.dataclass
class Bigram(base.Chain, base.Stateless):
  num_nodes: int = struct.field(pytree_node=False)
  vocab_size: int = struct.field(pytree_node=False)
  smooth: float = struct.field(pytree_node=False)

  def logits(self, context, token):  # [B, V]: log of how often each token followed `token` [B]
    before, after = context.tokens[:, :-1], context.tokens[:, 1:]
    is_known = jnp.arange(before.shape[1]) < context.lengths[:, None] - 1
    counts = ((before == token[:, None]) & is_known).astype(jnp.float32)
    start = jnp.full((len(before), self.vocab_size), self.smooth, jnp.float32)
    return jnp.log(start.at[jnp.arange(len(before))[:, None], after].add(counts))

  def propose(self, context, state):
    batch, sampler, laws = len(context.lengths), context.sampler, []
    tokens = jnp.zeros((batch, self.num_nodes), jnp.int32)
    token = jnp.take_along_axis(context.tokens, context.lengths[:, None] - 1, axis=1)[:, 0]
    for index in range(self.num_nodes):
      drafted = jnp.broadcast_to(jnp.arange(self.num_nodes) < index, tokens.shape)
      token, law, sampler = sampler.draw(self.logits(context, token), path=tokens,
          path_valid=drafted, position=context.lengths + index, node=index + 1)
      tokens, laws = tokens.at[:, index].set(token), [*laws, law]
    law = None if laws[0] is None else jnp.stack(laws, axis=1)
    parents, valid = tree.chain_parents(batch, self.num_nodes), jnp.ones(tokens.shape, bool)
    proposal = types.Proposal(tokens, parents, valid, law, parents, KINDS[sampler.mode])
    return proposal, state, context.replace(sampler=sampler)


def make(vocab_size: int, *, num_speculative_tokens: int = 4, smooth: float = 0.1) -> Bigram:
  return Bigram(num_speculative_tokens, vocab_size, smooth)
