"""What distinguishes one decoder family from another, as one frozen record.

The fields cover Llama 2 to 3.3, Mistral, Qwen2/2.5, Qwen3, Gemma 2 and Gemma 3.
`specjax.models.presets` names the published sizes; `specjax.models.hf` reads a `config.json` and
`specjax.models.gguf` the metadata of a GGUF file into this record, and both refuse what it cannot
express.
"""

import dataclasses
import math


def yarn_magnitude(factor: float, scale: float = 1.0) -> float:
  """YaRN's factor on cosines and sines, 0.1 ln(factor) + 1 (arXiv 2309.00071, section 3.4).

  Args:
    factor: by which the context is extended.
    scale: on the logarithm; DeepSeek's `mscale` and `mscale_all_dim`.
  """
  return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Scaling of rotary frequencies, the same at every position.

  Attributes:
    kind: 'linear' (Chen et al. 2023), 'llama3' (Llama 3.1), 'yarn' (Peng et al. 2023, arXiv
      2309.00071), or 'factors', one for each frequency.
    factor: by which long wavelengths are stretched, and with 'linear' all of them.
    low_freq_factor: 'llama3': wavelengths above original_max_positions / low_freq_factor are long.
    high_freq_factor: 'llama3': those below original_max_positions / high_freq_factor stay.
    original_max_positions: 'llama3' and 'yarn': the context before it was extended.
    beta_fast: 'yarn': a frequency with more rotations in the original context stays.
    beta_slow: 'yarn': one with fewer rotations is divided by `factor`.
    truncate: 'yarn': whether the dimensions between those two are widened to whole ones.
    attention_factor: 'yarn': factor on cosines and sines; None means 0.1 ln(factor) + 1.
    factors: 'factors': what each frequency is divided by, [head_dim / 2].
  """

  kind: str
  factor: float = 1.0
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_positions: int = 8192
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  truncate: bool = True
  attention_factor: float | None = None
  factors: tuple[float, ...] = ()

  def __post_init__(self):
    if self.kind not in ('linear', 'llama3', 'yarn', 'factors'):
      raise ValueError(
          f"RoPE scaling must be 'linear', 'llama3', 'yarn' or 'factors', not {self.kind!r}."
      )
    if bool(self.factors) != (self.kind == 'factors'):
      raise ValueError(
          f"RoPE scaling 'factors', and no other, has factors: got {self.kind!r} with "
          f'{len(self.factors)} of them.'
      )

  @property
  def magnitude(self) -> float:
    """Factor on cosines and sines."""
    if self.kind != 'yarn':
      return 1.0
    if self.attention_factor is None:
      return yarn_magnitude(self.factor)
    return self.attention_factor

  def canonical(self) -> 'RopeScaling':
    """The same scaling without what its kind does not read: equal ones give equal records."""
    is_default = self.attention_factor == yarn_magnitude(self.factor)
    fields = {
        'linear': dict(factor=self.factor),
        'llama3': dict(
            factor=self.factor,
            low_freq_factor=self.low_freq_factor,
            high_freq_factor=self.high_freq_factor,
            original_max_positions=self.original_max_positions,
        ),
        'yarn': dict(
            factor=self.factor,
            original_max_positions=self.original_max_positions,
            beta_fast=self.beta_fast,
            beta_slow=self.beta_slow,
            truncate=self.truncate,
            attention_factor=None if is_default else self.attention_factor,
        ),
        'factors': dict(factors=self.factors),
    }[self.kind]
    return RopeScaling(self.kind, **fields)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Shape and switches of one decoder-only transformer.

  Attributes:
    vocab_size: V.
    width: size of the residual stream.
    num_layers: L.
    num_heads: H, query heads.
    num_kv_heads: G, key-value heads; divides H.
    head_dim: size of a head.
    mlp_width: hidden size of the gated MLP.
    rope_theta: base of the rotary frequencies of global layers.
    rope_scaling: their scaling, or None.
    local_rope_theta: base of local (sliding) layers; None means as global, unscaled
      scaling included (Gemma 3 uses 10,000 and no scaling in local layers).
    norm_epsilon: added in every RMS norm.
    tie_embeddings: the output head is the embedding.
    qkv_bias: biases on query, key and value (Qwen2).
    qk_norm: RMS norm on each query and key head (Qwen3, Gemma 3).
    post_norms: norms after attention and MLP as well (Gemma 2 and 3).
    norm_offset: added to every stored norm scale (1 for Gemma).
    embedding_scale: factor on embeddings (sqrt(width) for Gemma).
    activation: 'silu' or 'gelu_tanh'.
    query_scale: factor on queries; None means head_dim ** -0.5.
    attention_soft_cap: bound on attention scores, or None.
    logit_soft_cap: bound on logits, or None.
    sliding_window: number of positions that a local layer sees, itself included; None
      when there are no local layers.
    local_layers: one flag per layer, True where the layer is local. Empty means none, or
      all when `sliding_window` is set.
    max_positions: longest sequence that the model was made for.
    kv_repeats: copies that are kept of every key-value head, in weights and cache, so that
      a mesh axis of more than G devices can be given one each. The model is the same.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_width: int
  rope_theta: float = 10_000.0
  rope_scaling: RopeScaling | None = None
  local_rope_theta: float | None = None
  norm_epsilon: float = 1e-5
  tie_embeddings: bool = False
  qkv_bias: bool = False
  qk_norm: bool = False
  post_norms: bool = False
  norm_offset: float = 0.0
  embedding_scale: float = 1.0
  activation: str = 'silu'
  query_scale: float | None = None
  attention_soft_cap: float | None = None
  logit_soft_cap: float | None = None
  sliding_window: int | None = None
  local_layers: tuple[bool, ...] = ()
  max_positions: int = 8192
  kv_repeats: int = 1

  def __post_init__(self):
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
          f'num_heads must be a multiple of num_kv_heads, got {self.num_heads} and '
          f'{self.num_kv_heads}.'
      )
    if (self.num_heads // self.num_kv_heads) % self.kv_repeats:
      raise ValueError(
          f'kv_repeats must divide the {self.num_heads // self.num_kv_heads} query heads of a '
          f'key-value head, got {self.kv_repeats}.'
      )
    if self.local_layers and len(self.local_layers) != self.num_layers:
      raise ValueError(
          f'local_layers needs one flag per layer: {self.num_layers} layers, '
          f'{len(self.local_layers)} flags.'
      )
    if any(self.local_layers) and self.sliding_window is None:
      raise ValueError('local_layers are given but sliding_window is None.')
    self._check_rope()
    if self.activation not in ('silu', 'gelu_tanh'):
      raise ValueError(f"activation must be 'silu' or 'gelu_tanh', not {self.activation!r}.")

  def _check_rope(self):
    scaling = self.rope_scaling
    if scaling is None:
      return
    if scaling.kind == 'factors' and len(scaling.factors) != self.head_dim // 2:
      raise ValueError(
          f'RoPE scaling needs a factor for each of {self.head_dim // 2} frequencies (half of '
          f'head_dim), got {len(scaling.factors)}.'
      )
    if scaling.kind == 'yarn' and self.rope_theta <= 1:
      raise ValueError(f"RoPE scaling 'yarn' needs rope_theta > 1, got {self.rope_theta}.")

  def window(self, layer: int) -> int | None:
    """Window of a layer: positions it sees, or None where it sees all."""
    if self.sliding_window is None:
      return None
    if not self.local_layers:
      return self.sliding_window
    return self.sliding_window if self.local_layers[layer] else None

  @property
  def num_stored_kv_heads(self) -> int:
    """Key-value heads in weights and cache, copies included."""
    return self.num_kv_heads * self.kv_repeats

  @property
  def num_parameters(self) -> int:
    """Number of parameters, embeddings counted once when tied, copies of heads not at all."""
    attention = self.width * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
    if self.qkv_bias:
      attention += self.head_dim * (self.num_heads + 2 * self.num_kv_heads)
    if self.qk_norm:
      attention += 2 * self.head_dim
    norms = self.width * (4 if self.post_norms else 2)
    layer = attention + 3 * self.width * self.mlp_width + norms
    embeddings = self.vocab_size * self.width * (1 if self.tie_embeddings else 2)
    return self.num_layers * layer + embeddings + self.width
