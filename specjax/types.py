"""The records that targets, drafters, rules and the engine hand to each other.

Dimension letters, everywhere the same: B batch, K draft tokens per round, N tree nodes,
D tree depth, M parents that have a draft law, S cache length, T tokens in a call,
V vocabulary, L layers, H query heads, G key-value heads, F feature width.

Nodes of a round are numbered 0 … N: 0 is the root (the last emitted token, not yet in the
target's cache), 1 … N are the drafted tokens in an order in which parents come first and
siblings stand in the order in which a rule tries them. Arrays over *nodes* ([B, N]) leave
the root out; arrays over *rows of the target* ([B, N + 1, V]) begin with it. A chain is the
tree whose node i has parent i - 1.

A *law* is a probability distribution over the vocabulary, kept as float32
log-probabilities, `-inf` where a token is excluded; it sums to one.
"""

from typing import Any, Protocol

from flax import struct
import jax
import jax.numpy as jnp

Array = jax.Array
PyTree = Any

# Kinds of draft law: how the nodes of a proposal came about.
ONE_HOT = 'one_hot'  # chosen, not drawn: prompt lookup, argmax drafts, nodes by rank
SAMPLED = 'sampled'  # drawn from the law of their parent, independently
WITHOUT_REPLACEMENT = 'without_replacement'  # siblings drawn from it without replacement
COUPLED = 'coupled'  # argmax of law + the noise shared with the target


@struct.dataclass
class Sampling:
  """How tokens are sampled; every setting is an array with one entry per row.

  Made by `specjax.sampling.make`, which broadcasts scalars and checks ranges.

  Attributes:
    temperature: [B] float32 >= 0; 0 is greedy.
    top_k: [B] int32; 0 keeps all.
    top_p: [B] float32 in (0, 1]; 1 keeps all.
    min_p: [B] float32 in [0, 1]; 0 keeps all.
    repetition_penalty: [B] float32 > 0; 1 is none (Keskar et al. 2019; prompt and output).
    presence_penalty: [B] float32; 0 is none (output only).
    frequency_penalty: [B] float32; 0 is none (output only).
    logit_bias: [B, V] float32 or None.
    constraint: an allowed-token hook (see `Constraint`) or None.
  """

  temperature: Array
  top_k: Array
  top_p: Array
  min_p: Array
  repetition_penalty: Array
  presence_penalty: Array
  frequency_penalty: Array
  logit_bias: Array | None = None
  constraint: Any = None


class Constraint(Protocol):
  """An allowed-token hook: a state machine over tokens, advanced along every path.

  Any pytree with these methods; pure functions, traced under jit. At least one token must
  be allowed in every reachable state.
  """

  def initial(self, batch_size: int) -> PyTree:
    """The state before the first output token; every leaf has leading axis B."""

  def advance(self, state: PyTree, tokens: Array) -> PyTree:
    """The state after `tokens` [B] int32."""

  def allowed(self, state: PyTree) -> Array:
    """[B, V] bool, the tokens allowed next."""


@struct.dataclass
class History:
  """What penalties and constraints have seen of each row, up to and with the root.

  Attributes:
    in_prompt: [B, V] bool, tokens of the prompt.
    output_counts: [B, V] int32, how often each token was emitted.
    constraint: the constraint's state, or None.
  """

  in_prompt: Array
  output_counts: Array
  constraint: PyTree = None


@struct.dataclass
class Proposal:
  """What a drafter proposes in one round.

  Attributes:
    tokens: [B, N] int32, in the target's vocabulary.
    parents: [B, N] int32, node number of each parent (0 is the root), smaller than its own.
    valid: [B, N] bool; an invalid node and everything below it is never accepted. Validity
      is decided before the token was drawn, never because of what it was. The engine makes a
      node invalid, too, whose own log-probability in its law is not finite.
    law: [B, M, V] float32 log-probabilities that nodes were drawn from, one row per parent;
      None where `kind` is `ONE_HOT` (or `COUPLED` and nobody asked for it).
    rows: [B, N] int32, the row of `law` that each node was drawn from; siblings share one.
    kind: static, one of the kinds of draft law above.
  """

  tokens: Array
  parents: Array
  valid: Array
  law: Array | None
  rows: Array
  kind: str = struct.field(pytree_node=False)

  @property
  def num_nodes(self) -> int:
    return self.tokens.shape[1]

  def log_probs(self) -> Array:
    """[B, N] float32, of each token under the law that it was drawn from; 0 where it was chosen."""
    if self.kind == ONE_HOT or not self.num_nodes:
      return jnp.zeros(self.tokens.shape, jnp.float32)
    batch = jnp.arange(self.tokens.shape[0])[:, None]
    return self.law[batch, self.rows, self.tokens]


@struct.dataclass
class Verification:
  """What a rule decides.

  Attributes:
    num_accepted: [B] int32, 0 … D, the next token excluded.
    path: [B, D] int32, node numbers of the accepted path; 0 beyond `num_accepted`.
    next_token: [B] int32, recovered or bonus.
    is_bonus: [B] bool, True where the whole proposed branch was accepted.
    accept_probs: [B, N] float32, the probability with which the rule would accept each
      node given that its parent was; 0 or 1 for greedy and coupled; 0 where not valid. The
      rules for sampled trees: given too that its earlier siblings, with all below them, were
      not; 0 for nodes that they did not come to.
    log_probs: [B, N + 1] float32, of each emitted token under the target's law (after the
      sampling settings), 0 beyond; None from rules that read laws in memory.
  """

  num_accepted: Array
  path: Array
  next_token: Array
  is_bonus: Array
  accept_probs: Array
  log_probs: Array | None = None


class Source(Protocol):
  """Where a round's random choices come from; methods return the source to use next.

  The engine's own is `specjax.randomness.KeySource`. The enumeration in
  `specjax.testing` replays every outcome through another, so what is enumerated is the
  shipped code.
  """

  def draw(self, law: Array, *, purpose: int, node: Any) -> tuple[Array, 'Source']:
    """Tokens [B] int32 drawn from `law` [B, V] (log-probabilities), for one node.

    Or tokens [B, n] from [B, n, V], for the nodes `node` [n].
    """

  def flip(
      self, probs: Array, *, purpose: int, node: Array | None = None
  ) -> tuple[Array, 'Source']:
    """Independent booleans shaped like `probs`, True with these probabilities.

    `probs` is [B, n], for nodes 1 … n; or [B], for the node `node` [B] of each row, where a
    row that has none to ask for says 0 and ignores what it gets.
    """

  def gumbel(self, positions: Array, vocab_size: int) -> Array:
    """Noise [B, ..., V] float32 of (row, absolute position [B, ...], token): coupled only."""


@struct.dataclass
class Context:
  """What a drafter sees of a round, and the sampler that it draws with.

  Attributes:
    tokens: [B, S] int32; `tokens[b, :lengths[b]]` are prompt and output so far.
    lengths: [B] int32; `tokens[b, lengths[b] - 1]` is the root.
    done: [B] bool, rows that emit nothing any more.
    sampler: `specjax.sampling.Sampler`: `draw` turns draft logits into a token and the law
      it was drawn from.
    target: the target (`specjax.models.LanguageModel`), for drafters that share its layers.
    target_cache: the target's cache, `lengths - 1` positions.
    features: [B, D + 1, F] features of the tokens committed last (see `feature_layers`).
    features_valid: [B, D + 1] bool.
    active: [B] bool, rows whose proposal is wanted; None is all of them. What is proposed in the
      others is never looked at, so that a drafter may save the work, or ignore this.
  """

  tokens: Array
  lengths: Array
  done: Array
  sampler: Any
  target: Any
  target_cache: PyTree
  features: Array
  features_valid: Array
  active: Array | None = None


class Drafter(Protocol):
  """Proposes tokens: a pytree (a frozen `flax.struct.dataclass`) with pure methods.

  This is all that the library ever asks a drafter. `shape`, `for_vocabulary` and `beside` may
  be left out: `specjax.drafters.base` has their defaults, in classes to derive from and in
  `complete`, through which every drafter goes that comes from outside.

  Attributes:
    num_nodes: static, N.
    depth: static, D, the longest path; equal to N for a chain.
    is_chain: static; True lets the engine skip tree masks and the gathering of a path.
    feature_layers: static, which of the target's residual streams it wants, 0 … L.
    vocab_size: static, of its laws, or None where it has none; checked against the target.
    shape: static, the shape of `specjax.tree` that it proposes; None (the default) where no
      shape describes it. Forecasts read from it what a round costs.
  """

  num_nodes: int
  depth: int
  is_chain: bool
  feature_layers: tuple[int, ...]
  vocab_size: int | None
  shape: Any

  def init(self, *, batch_size: int, cache_length: int, max_append: int) -> PyTree:
    """The state before any token. `max_append` is the longest prefill chunk."""

  def prefill(
      self, state: PyTree, *, target: Any, tokens: Array, num_new: Array, features: Array
  ) -> PyTree:
    """Reads a chunk of the prompts (the root excluded).

    Args:
      state: the state.
      target: the target (`specjax.models.LanguageModel`), for drafters that share its layers.
      tokens: [B, T] int32, the chunk.
      num_new: [B] int32, how many of the T are real in each row.
      features: [B, T, F] of the target at these tokens.
    """

  def propose(self, context: Context, state: PyTree) -> tuple[Proposal, PyTree, Context]:
    """Drafts one round; returns the context with its sampler (and target cache) advanced."""

  def update(self, state: PyTree, verification: Verification, context: Context) -> PyTree:
    """After the commit: `context` holds the new tokens, lengths and features."""

  def for_vocabulary(self, vocab_size: int) -> 'Drafter | None':
    """The same drafter for a target whose vocabulary differs from its own by padding.

    None, the default, where it cannot be had.
    """

  def beside(self, depth: int) -> 'Drafter':
    """The same drafter for rounds that another one may draft (see `specjax.drafters.combined`).

    Up to `depth` tokens and the next one were then committed that its last proposal did not
    have. Itself, the default, where `propose` reads whatever was committed.
    """
