"""Optimisers and schedules for the models of this package."""

import jax
import optax

_DIMENSIONS = {
    # A stored weight's (output axes, input axes); axes in neither are orthogonalised
    # one by one: each head of the fused query-key-value weight, gate and up apart.
    'qkv': optax.contrib.MuonDimensionNumbers(reduction_axis=(3,), output_axis=(2,)),
    'out': optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
    'gate_up': optax.contrib.MuonDimensionNumbers(reduction_axis=(2,), output_axis=(1,)),
    'down': optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
    # Heads: the fusing product of EAGLE, the residual blocks of Medusa.
    'fuse': optax.contrib.MuonDimensionNumbers(reduction_axis=(1,), output_axis=(0,)),
    'blocks': optax.contrib.MuonDimensionNumbers(reduction_axis=(3,), output_axis=(2,)),
}


def warmup_stable_decay(
    *, peak: float, num_steps: int, warmup_steps: int, decay_fraction: float
) -> optax.Schedule:
  """Linear warm-up, a constant rate, and a linear decay to zero at the end.

  The rate before the decay does not depend on `num_steps`, so a run can be resumed with
  another length (Hu et al. 2024, MiniCPM, section 4).

  Args:
    peak: learning rate of the constant part.
    num_steps: steps in all.
    warmup_steps: steps of the warm-up.
    decay_fraction: part of `num_steps` spent on the decay.

  Returns:
    A schedule: step -> learning rate.
  """
  decay_steps = max(1, int(num_steps * decay_fraction))
  return optax.join_schedules(
      [
          optax.linear_schedule(peak / max(1, warmup_steps), peak, warmup_steps),
          optax.constant_schedule(peak),
          optax.linear_schedule(peak, 0.0, decay_steps),
      ],
      [warmup_steps, num_steps - decay_steps],
  )


def muon(
    learning_rate: optax.Schedule, *, weight_decay: float = 0.1
) -> optax.GradientTransformation:
  """Muon on the matrices of the layers, AdamW on embeddings, norms and biases.

  Updates have the root mean square of AdamW's, so one learning rate serves both (Jordan et
  al. 2024; Liu et al. 2025, "Muon is scalable for LLM training", section 2.2).

  Args:
    learning_rate: schedule for both parts.
    weight_decay: decoupled decay of the matrices.

  Returns:
    The transformation, gradients clipped to a global norm of 1 first.
  """

  def dimensions(params):
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _DIMENSIONS.get(getattr(path[-1], 'key', None)), params
    )

  return optax.chain(
      optax.clip_by_global_norm(1.0),
      optax.contrib.muon(
          learning_rate,
          weight_decay=weight_decay,
          adam_b2=0.95,
          muon_weight_dimension_numbers=dimensions,
          consistent_rms=0.2,
      ),
  )
