"""Settings that may help or hurt on an accelerator; the first run there decides each.

Each is a flag of `experiments.validate`; 'auto' times both sides in step 3 and keeps the faster
one, in `decided.json` beside the compiled programs, for the steps and calls that follow.
"""

from collections.abc import Mapping
import json
import pathlib

# Groups of operations that XLA puts into CUDA graphs.
_GRAPHS = 'FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE'
DEFAULT = 'default'
# Values by switch, the default first. XLA's own default is no option at all.
VALUES = {
    'command_buffers': (DEFAULT, 'off', 'loop'),
    'latency_hiding': (DEFAULT, 'on', 'off'),
    'autotuning': (DEFAULT, '0', '2'),  # XLA's own is 4, the most
    'attention': (DEFAULT, 'cudnn', 'pallas'),
    'accept': ('mosaic', 'xla'),
}
_OPTIONS = {
    ('command_buffers', 'off'): {'xla_gpu_enable_command_buffer': ''},
    # All kinds, and graphs of one operation: the body of a while_loop as a whole.
    ('command_buffers', 'loop'): {
        'xla_gpu_enable_command_buffer': _GRAPHS,
        'xla_gpu_graph_min_graph_size': 1,
    },
    ('latency_hiding', 'on'): {'xla_gpu_enable_latency_hiding_scheduler': True},
    ('latency_hiding', 'off'): {'xla_gpu_enable_latency_hiding_scheduler': False},
    ('autotuning', '0'): {'xla_gpu_autotune_level': 0},
    ('autotuning', '2'): {'xla_gpu_autotune_level': 2},
}
_FILE = 'decided.json'


def attention(values: Mapping[str, str]) -> str:
  """`models.Transformer(attention=…)` for the values of switches."""
  return 'auto' if values['attention'] == DEFAULT else values['attention']


def compiler_options(values: Mapping[str, str], platform: str) -> dict[str, str | int | bool]:
  """Options of `lowered.compile` for the values of switches; none but on GPUs."""
  options = {}
  if platform == 'gpu':
    for switch, value in values.items():
      options |= _OPTIONS.get((switch, value), {})
  return options


def decided(folder: pathlib.Path, asked: Mapping[str, str | None]) -> dict[str, str]:
  """A value for each switch: what was asked for, else what was decided, else the default."""
  path = folder / _FILE
  before = json.loads(path.read_text(encoding='utf-8-sig')) if path.exists() else {}
  return {
      switch: asked.get(switch) or before.get(switch) or values[0]
      for switch, values in VALUES.items()
  }


def decide(folder: pathlib.Path, switch: str, value: str) -> None:
  """Keeps a decision, whole or not at all."""
  from specjax import atomic  # imports JAX, which only a step does

  folder.mkdir(parents=True, exist_ok=True)
  path = folder / _FILE
  before = json.loads(path.read_text(encoding='utf-8-sig')) if path.exists() else {}
  atomic.write(path, json.dumps(before | {switch: value}, indent=2))
