"""The weights of the pair that engines are compared on: planted, not trained.

Speed depends on shapes and on how often the draft agrees with the target, so random weights
serve, provided that the text neither falls into a loop nor depends on rounding:

- The draft is the target's embedding, first layers, final norm and head.
- Only some tokens are *live*: each has two live successors, whose rows of the head hold its
  embedding, so that one of the two follows it. Which one is decided by what the layers add
  to the residual stream, that is by the whole context: the text is a walk in a graph with
  two ways out of every token, and does not repeat itself.
- `late_scale` scales the output projections of the layers that the draft lacks, and with
  them the share of positions at which draft and target choose differently.
- Every weight is a bfloat16 number, so that the pair is the same in float32.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from specjax import models

TARGET = models.TransformerConfig(
    vocab_size=8000, width=768, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64,
    mlp_width=2048, max_positions=2048,
)


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How the weights are made; the defaults give about 80 passes for 200 tokens at K = 4.

  Attributes:
    draft_layers: how many of the target's layers the draft has.
    num_live: live tokens.
    attention_gain: size of an attention's output beside the embedding's.
    mlp_gain: likewise of an MLP's.
    late_scale: factor on both in the layers that the draft lacks.
    score_spread: standard deviation of attention scores. Wide ones look at few positions, and
      make rounding errors grow from layer to layer.
    seed: of the weights.
  """

  draft_layers: int = 2
  num_live: int = 1024
  attention_gain: float = 1.0
  mlp_gain: float = 0.3
  late_scale: float = 1.0
  score_spread: float = 1.5
  seed: int = 0


def make(
    live_tokens: Sequence[int], *, config: models.TransformerConfig = TARGET, recipe: Recipe
) -> tuple[models.LanguageModel, models.LanguageModel]:
  """The target and its draft, float32 models whose weights are bfloat16 numbers.

  Args:
    live_tokens: tokens to choose `recipe.num_live` from, such as whole words.
    config: the target's shape, with a head of its own.
    recipe: how the weights are made.

  Raises:
    ValueError: if the shape ties its embeddings, the draft would not be smaller, or there are
      fewer tokens to choose from than live ones.
  """
  if config.tie_embeddings:
    raise ValueError('The pair plants successors in the head: it needs tie_embeddings=False.')
  if not 1 <= recipe.draft_layers < config.num_layers:
    raise ValueError(
        f'draft_layers must be between 1 and {config.num_layers - 1}, got {recipe.draft_layers}.'
    )
  if not 3 <= recipe.num_live <= len(live_tokens):
    raise ValueError(
        f'num_live must be between 3 and the {len(live_tokens)} tokens to choose from, got '
        f'{recipe.num_live}.'
    )
  params = _weights(np.asarray(live_tokens), config, recipe)
  small = dataclasses.replace(config, num_layers=recipe.draft_layers)
  late = {f'layer_{number}' for number in range(recipe.draft_layers, config.num_layers)}
  shared = {name: value for name, value in params.items() if name not in late}
  return (
      models.LanguageModel(models.Transformer(config), params),
      models.LanguageModel(models.Transformer(small), shared),
  )


def _weights(live_tokens: np.ndarray, config, recipe: Recipe) -> dict[str, Any]:
  """The target's parameter tree."""
  rng = np.random.default_rng(recipe.seed)
  live = rng.permutation(live_tokens)[: recipe.num_live]
  gains = {
      'embedding': 1.0,
      'qkv': 1.0,  # scaled below
      'out': recipe.attention_gain / math.sqrt(config.num_heads * config.head_dim),
      'down': recipe.mlp_gain / (0.6 * math.sqrt(config.mlp_width)),
  }

  def fill(path, leaf):
    name = path[-1].key
    if name == 'scale':
      return jnp.ones(leaf.shape, jnp.float32)
    values = rng.standard_normal(leaf.shape, np.float32)
    if name == 'head':
      return None  # planted below, from the embedding
    if name == 'qkv':
      # Queries and keys alone: values come last.
      values[:, : config.num_heads // config.num_kv_heads + 1] *= math.sqrt(recipe.score_spread)
      values /= math.sqrt(config.width)
    gain = gains.get(name, 1.0 / math.sqrt(config.width))
    if name in ('out', 'down') and int(path[0].key.removeprefix('layer_')) >= recipe.draft_layers:
      gain *= recipe.late_scale
    return _rounded(values * gain)

  params = jax.tree_util.tree_map_with_path(
      fill, models.abstract_params(models.Transformer(config))
  )
  params['head'] = _head(np.asarray(params['embedding']), live, rng)
  return params


def _head(embedding: np.ndarray, live: np.ndarray, rng: np.random.Generator):
  """The head [V, width]: a live token's row holds the embeddings of its predecessors."""
  one, two = _cycle(rng.permutation(len(live))), _cycle(rng.permutation(len(live)))
  two = np.where(two == one, one[one], two)
  head = 0.02 * rng.standard_normal(embedding.shape, np.float32)
  np.add.at(head, live[one], embedding[live])
  np.add.at(head, live[two], embedding[live])
  # A successor's logit is then about 10, where the layers add twice the embedding's size.
  return _rounded(head * (25.0 / embedding.shape[1]))


def _cycle(order: np.ndarray) -> np.ndarray:
  """What follows each number on the one cycle that visits them in `order`."""
  following = np.empty_like(order)
  following[order] = np.roll(order, -1)
  return following


def _rounded(values: np.ndarray):
  """Float32 values that bfloat16 holds exactly."""
  return jnp.asarray(values.astype(ml_dtypes.bfloat16).astype(np.float32))
