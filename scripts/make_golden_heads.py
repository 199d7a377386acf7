"""Makes the golden heads of the tests with their authors' own code: tiny, random, on a CPU.

    git clone https://github.com/SafeAILab/EAGLE /tmp/EAGLE            # cb7e0841
    git clone https://github.com/FasterDecoding/Medusa /tmp/Medusa     # e2a5d20c
    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    /tmp/golden/bin/python scripts/make_golden_heads.py /tmp/EAGLE /tmp/Medusa tests/golden/heads

Each folder then holds a head as its authors store it (`config.json`, and `pytorch_model.bin`,
`medusa_lm_head.pt` or safetensors, float32) and `golden.npz`: the inputs (tokens, features, and
for a draft step tokens and tree mask) and the outputs. Norm scales are random too.
"""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
from safetensors.torch import save_file
import torch
import transformers

WIDTH, VOCAB, DRAFT_VOCAB, LENGTH = 32, 96, 40, 12
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=WIDTH,
    intermediate_size=48,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=3e-3,
    rope_theta=1000.0,
    hidden_act='silu',
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)


def load(path: pathlib.Path, package: str):
  """Imports a file of the authors without running the `__init__` of its package."""
  folder = types.ModuleType(package)
  folder.__path__ = [str(path.parent)]
  sys.modules[package] = folder
  name = f'{package}.{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module
  spec.loader.exec_module(module)
  return module


def randomise(model: torch.nn.Module, generator: torch.Generator) -> None:
  """Fills every parameter with widely spread values."""
  for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if 'norm' in name:
      parameter.data = 1.0 + 0.4 * noise
    elif 'embed_tokens' in name or name.endswith('bias'):
      parameter.data = 0.3 * noise
    else:
      parameter.data = 1.2 * noise / parameter.shape[-1] ** 0.5


def config(**fields):
  settings = types.SimpleNamespace(**COMMON, **fields)
  settings.pretraining_tp, settings.rope_scaling = 1, None
  settings.output_attentions = settings.output_hidden_states = False
  return settings


def run(model, features, tokens, level_tokens, level_mask):
  """Outputs for the pairs, and for one level of a tree drafted after them."""
  with torch.no_grad():
    model.reset()
    hidden, cache = model(features, input_ids=tokens, use_cache=True)
    model.tree_mask = level_mask[None, None]
    width = len(level_tokens)
    positions = torch.full((width,), features.shape[1])
    own = hidden[:, -1:].expand(-1, width, -1)
    level, _ = model(
        own, input_ids=level_tokens[None], past_key_values=cache, position_ids=positions,
        use_cache=True,
    )
  return hidden, level


def save(folder, data, arrays, **weights):
  folder.mkdir(parents=True, exist_ok=True)
  (folder / 'config.json').write_text(json.dumps(data, indent=2, sort_keys=True) + '\n')
  for name, tensors in weights.items():
    if name == 'model':
      save_file(tensors, folder / 'model.safetensors')
    else:
      torch.save(tensors, folder / f'{name}.{"bin" if name == "pytorch_model" else "pt"}')
  np.savez(folder / 'golden.npz', **{k: v.numpy() for k, v in arrays.items()})


def eagle1(root, out, generator):
  module = load(root / 'eagle/model/cnets1.py', 'eagle_one')
  settings = config(num_hidden_layers=1)
  model = module.Model(settings, load_emb=False, bias=True).eval()
  randomise(model, generator)
  model.gradient_checkpointing = False
  head = torch.randn(VOCAB, WIDTH, generator=generator)
  arrays = inputs(generator, WIDTH)
  hidden, level = run(model, **arrays)
  arrays |= dict(hidden=hidden, level=level, head=head, logits=hidden @ head.T,
                 level_logits=level @ head.T)
  data = COMMON | dict(architectures=['LlamaForCausalLM'], model_type='llama', bias=True,
                       num_hidden_layers=1)
  save(out / 'eagle1', data, arrays, pytorch_model=model.state_dict())


def eagle3(root, out, generator):
  module = load(root / 'eagle/model/cnets.py', 'eagle_three')
  settings = config(num_hidden_layers=1, draft_vocab_size=DRAFT_VOCAB)
  model = module.Model(settings, load_emb=False).eval()
  randomise(model, generator)
  ids = torch.randperm(VOCAB, generator=generator)[:DRAFT_VOCAB].sort().values
  model.d2t = ids - torch.arange(DRAFT_VOCAB)
  model.t2d = torch.zeros(VOCAB, dtype=torch.bool)
  model.t2d[ids] = True
  arrays = inputs(generator, 3 * WIDTH)
  hidden, level = run(model, **arrays)
  with torch.no_grad():
    arrays |= dict(hidden=hidden, level=level, logits=model.lm_head(model.norm(hidden)),
                   level_logits=model.lm_head(model.norm(level)))
  data = COMMON | dict(architectures=['LlamaForCausalLM'], model_type='llama',
                       num_hidden_layers=1, draft_vocab_size=DRAFT_VOCAB)
  save(out / 'eagle3', data, arrays, model=model.state_dict())


def inputs(generator, feature_width):
  return dict(
      features=torch.randn(1, LENGTH, feature_width, generator=generator),
      tokens=torch.randint(VOCAB, (1, LENGTH), generator=generator),
      level_tokens=torch.randint(VOCAB, (3,), generator=generator),
      level_mask=torch.eye(3),
  )


def medusa(root, out, generator):
  sys.modules['fastchat'] = types.ModuleType('fastchat')
  source = (root / 'medusa/model/medusa_model.py').read_text(encoding='utf-8-sig')
  # The file imports models of older transformers, which the block of a head does not need.
  start, end = source.index('class ResBlock'), source.index('class MedusaModelABC')
  names = {'nn': torch.nn, 'torch': torch}
  exec(source[start:end], names)
  heads = torch.nn.ModuleList([
      torch.nn.Sequential(names['ResBlock'](WIDTH), torch.nn.Linear(WIDTH, VOCAB, bias=False))
      for _ in range(3)
  ])
  randomise(heads, generator)
  features = torch.randn(1, LENGTH, WIDTH, generator=generator)
  with torch.no_grad():
    logits = torch.stack([head(features) for head in heads], dim=-2)
  # Published configs say two heads, however many the file holds.
  data = dict(medusa_num_heads=2, medusa_num_layers=1, base_model_name_or_path='target')
  save(out / 'medusa', data, dict(features=features, logits=logits),
       medusa_lm_head=heads.state_dict())


def main(eagle_root: str, medusa_root: str, folder: str) -> None:
  torch.set_num_threads(1)
  print('torch', torch.__version__, 'transformers', transformers.__version__)
  out = pathlib.Path(folder)
  for seed, make in enumerate((eagle1, eagle3)):
    make(pathlib.Path(eagle_root), out, torch.Generator().manual_seed(seed))
  medusa(pathlib.Path(medusa_root), out, torch.Generator().manual_seed(2))


if __name__ == '__main__':
  main(*sys.argv[1:])
