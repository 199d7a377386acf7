"""Makes the golden DFlash and DSpark heads of the tests with their authors' own code, on a CPU.

    git clone https://github.com/z-lab/dflash /tmp/dflash               # 44947fbf
    git clone https://github.com/deepseek-ai/DeepSpec /tmp/DeepSpec     # afdfa7c9
    python -m venv /tmp/golden
    /tmp/golden/bin/pip install torch==2.13.0 transformers==5.24.0 safetensors==0.8.0
    /tmp/golden/bin/python scripts/make_golden_dflash.py /tmp/dflash /tmp/DeepSpec \
        tests/golden/heads

Each folder then holds a tiny random head as its authors store it and `golden.npz`: the target's
embedding and output head, features of a context, roots, and the outputs of two rounds, the second
after four more tokens of context; of DSpark also the laws of the tokens that are most probable one
after the other, and the confidences.
"""

import importlib.util
import pathlib
import sys

import torch
import transformers
from transformers import DynamicCache, Qwen3Config

from make_golden_heads import COMMON, VOCAB, WIDTH, randomise, save

BLOCK, MASK, LAYERS, TARGET_LAYERS, LENGTH, MORE = 4, 5, 2, 6, 9, 4
RANK = 8


def module_of(path: pathlib.Path, name: str):
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config_of(**fields) -> Qwen3Config:
  settings = COMMON | dict(
      num_hidden_layers=LAYERS, head_dim=8, layer_types=['full_attention'] * LAYERS,
      attention_bias=False, num_target_layers=TARGET_LAYERS, **fields,
  )
  config = Qwen3Config(**settings)
  config._attn_implementation = 'eager'
  return config


def inputs(generator):
  return dict(
      embedding=torch.randn(VOCAB, WIDTH, generator=generator) * 0.3,
      head=torch.randn(VOCAB, WIDTH, generator=generator) / WIDTH**0.5,
      features=torch.randn(1, LENGTH + MORE, 2 * WIDTH, generator=generator),
      roots=torch.tensor([7, 11]),
  )


def rounds(backbone, arrays):
  """Outputs of two rounds, as the authors' loops run them."""
  cache, positions = DynamicCache(), torch.arange(64)[None]
  results, begin = [], 0
  for root, end in zip(arrays['roots'], (LENGTH, LENGTH + MORE)):
    block = torch.full((1, BLOCK), MASK)
    block[0, 0] = root
    results.append(backbone(
        position_ids=positions[:, begin : end + BLOCK],
        noise=arrays['embedding'][block],
        features=arrays['features'][:, begin:end],
        past_key_values=cache, use_cache=True, is_causal=False,
    ))
    cache.crop(-BLOCK)
    begin = end
  return torch.stack(results)


def zlab(root, out, generator):
  module = module_of(root / 'dflash/model.py', 'zlab_dflash')
  config = config_of(block_size=BLOCK, dflash_config={'target_layer_ids': [1, 3],
                                                      'mask_token_id': MASK})
  model = module.DFlashDraftModel(config).eval()
  randomise(model, generator)
  arrays = inputs(generator)

  def backbone(noise, features, **kwargs):
    return model(noise_embedding=noise, target_hidden=features, **kwargs)

  with torch.no_grad():
    arrays['hidden'] = rounds(backbone, arrays)
  data = {k: v for k, v in config.to_dict().items() if v is not None}
  data['architectures'] = ['DFlashDraftModel']
  save(out / 'dflash', data, arrays, model=dict(model.state_dict()))


def deepspec(root, out, generator, kind):
  sys.path.insert(0, str(root))
  from deepspec.modeling.dspark.qwen3.modeling import Qwen3DSparkModel

  rank = 0 if kind is None else RANK
  config = config_of(
      block_size=BLOCK, target_layer_ids=[-1, 3], mask_token_id=MASK, num_anchors=4,
      enable_confidence_head=bool(rank), confidence_head_with_markov=kind != 'vanilla',
      markov_rank=rank, markov_head_type=kind or 'vanilla',
  )
  model = Qwen3DSparkModel(config).eval()
  randomise(model, generator)
  arrays = inputs(generator)
  model.embed_tokens.weight.data = arrays['embedding']
  model.lm_head.weight.data = arrays['head']

  def backbone(noise, features, **kwargs):
    return model._forward_backbone(
        noise_embedding=noise, target_hidden_states=features, **kwargs
    )

  with torch.no_grad():
    hidden = arrays['hidden'] = rounds(backbone, arrays)
    tokens, logits = model.sample_draft_tokens(
        model.compute_logits(hidden[:, 0]), first_prev_token_ids=arrays['roots'],
        hidden_states=hidden[:, 0],
    )
    arrays |= dict(tokens=tokens, logits=logits)
    if rank:
      before = torch.cat([arrays['roots'][:, None], tokens[:, :-1]], dim=1)
      arrays['confidence'] = model.predict_confidence_step(
          hidden[:, 0], prev_token_ids=before
      ).reshape(2, BLOCK)
  data = {k: v for k, v in config.to_dict().items() if v is not None}
  data['architectures'] = ['Qwen3DSparkModel']
  name = {None: 'deepspec_dflash', 'vanilla': 'dspark'}.get(kind, f'dspark_{kind}')
  weights = {k: v.clone() for k, v in model.state_dict().items()}
  save(out / name, data, arrays, model=weights)


def main(dflash_root: str, deepspec_root: str, folder: str) -> None:
  torch.set_num_threads(1)
  print('torch', torch.__version__, 'transformers', transformers.__version__)
  out = pathlib.Path(folder)
  zlab(pathlib.Path(dflash_root), out, torch.Generator().manual_seed(10))
  for seed, kind in enumerate((None, 'vanilla', 'gated', 'rnn'), start=11):
    deepspec(pathlib.Path(deepspec_root), out, torch.Generator().manual_seed(seed), kind)


if __name__ == '__main__':
  main(*sys.argv[1:])
