r"""The shipped target: 16.8 M parameters, Llama architecture, Python's standard library.

    python -m experiments.train --config=configs/zoo_target.py --workdir=runs/zoo_target

Makes the corpus from the standard library of the running interpreter (the shipped weights:
Python 3.13.0; another version gives another corpus and slightly different losses), trains a
tokenizer of 4,096 tokens, and then the model for 1,400 steps of 16 x 256 tokens. Shows steps,
loss, tokens/s and time left, and the held-out loss every 100 steps. Two CPU cores with AVX-512
(bfloat16, JAX 0.12) reach about 1,600 tokens/s, or 2,700 (35 minutes) where Linux gives the step's
large arrays huge pages:

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 \
        python -m experiments.train --config=configs/zoo_target.py --workdir=runs/zoo_target

The folder `runs/zoo_target/model` then holds what `specjax/zoo/stdlib/target` does. Held-out loss
in nats per token at steps 200, 400 … 1,400: 4.644, 4.116, 3.765, 3.539, 3.417, 3.188, 3.032.

    python -m experiments.train --config=configs/zoo_target.py:smoke --workdir=/tmp/smoke

is the same in seconds: a tiny model, four files of the corpus and 20 steps.
"""

import ml_collections


def get_config(arg: str = '') -> ml_collections.ConfigDict:
  """The config; `arg` is '' or 'smoke'."""
  if arg not in ('', 'smoke'):
    raise ValueError(f"configs/zoo_target.py takes no argument or ':smoke', not {arg!r}.")
  config = ml_collections.ConfigDict()
  config.name = 'zoo_target'
  config.kind = 'model'  # eagle, medusa, early_exit train heads (configs/train_*_zoo.py)
  config.seed = 0  # of the initial weights and of the order of batches
  # A folder with a model or head of this kind and shape, to begin with in place of fresh weights.
  config.start = ''
  # The dtype of activations; weights are trained in float32 and exported in export_dtype.
  config.dtype = 'bfloat16'
  config.export_dtype = 'bfloat16'

  config.num_steps = 1400
  config.batch_size = 16
  config.seq_len = 256
  config.gradient_accumulation = 1
  config.held_out_windows = 32
  config.checkpoint_every = 50
  config.evaluate_every = 100
  config.record_every = 5
  # wandb or trackio, where installed, follow the run; TensorBoard's files are written always.
  config.tracking = ''

  config.model = ml_collections.ConfigDict(
      dict(
          vocab_size=4096,
          width=320,
          num_layers=14,
          num_heads=10,
          num_kv_heads=2,
          head_dim=32,
          mlp_width=896,
          tie_embeddings=True,
          max_positions=2048,
      )
  )
  # Muon for matrices, AdamW for the rest; warm-up, constant, linear decay to zero.
  config.optimizer = ml_collections.ConfigDict(
      dict(learning_rate=4e-3, warmup_steps=40, decay_fraction=0.3, weight_decay=0.3)
  )
  config.corpus = ml_collections.ConfigDict(
      dict(
          path='',  # a folder to write the corpus to or read it from; '': corpus/ in the workdir
          root='',  # a standard library; '': the running interpreter's
          tokenizer='',  # a tokenizer.json; '': train one, or take the target's
          max_files=0,  # 0: all
          # Instead a .jsonl of chats, several with commas between them, in the target's template;
          # losses are of answers alone.
          chats='',
          held_out_one_in=32,  # chats, for evaluation
          max_tokens=0,  # of a chat, whose rest is cut; 0: all
          # Of the training text of the shipped weights; another text is reported, not refused.
          sha256='1ebd7fa23ba5a4dfc2985437bd64d57f52bb7cfc4abe4057ddc853de7fe124a2',
      )
  )
  # Over several devices: preset fsdp or tensor; model=0 takes the devices that data leaves.
  config.mesh = ml_collections.ConfigDict(dict(preset='', data=1, model=0, sequence=1, draft=1))
  # A draft is distilled from a target (configs/train_distill_zoo.py): a Hugging Face folder, hub id
  # or .gguf file, or a pair of the zoo by name.
  config.target = ml_collections.ConfigDict(dict(name='', path='', chat_template=''))
  config.distillation = ml_collections.ConfigDict(
      dict(
          kl_weight=0.0,
          loss='forward_kl',  # reverse_kl, jsd, total_variation, acceptance
          num_chunks=1,  # of the vocabulary, for computing logits; many for 128k tokens
      )
  )
  # Train on the target's own samples instead of the text: how many, and after what prompts.
  config.samples = ml_collections.ConfigDict(
      dict(
          num_samples=0,
          prompt_tokens=64,
          new_tokens=192,
          temperature=1.0,
          batch_size=64,
          with_text=False,  # append samples to the text instead of replacing it
      )
  )
  # Features of the target, for heads: stored in advance, or computed in every step.
  config.features = ml_collections.ConfigDict(
      dict(
          stored=False,
          path='',  # a folder to write them to or read them from; '': features/ in the workdir
          layers=(),  # stored besides those that the head reads, so that other heads can use them
          max_windows=0,  # of seq_len tokens, from the beginning of the corpus; 0: all
      )
  )
  # At every evaluation, greedy decoding of held-out prompts with the model or head so far.
  config.measure = ml_collections.ConfigDict(
      dict(num_prompts=0, prompt_tokens=64, new_tokens=64, num_speculative_tokens=4)
  )
  if arg == 'smoke':
    shrink(config)
  return config


def shrink(config: ml_collections.ConfigDict) -> None:
  """Turns any config of this kind into one that takes seconds."""
  config.name += '_smoke'
  config.num_steps = 20
  config.batch_size, config.seq_len = 4, 32
  config.held_out_windows = 4
  config.checkpoint_every, config.evaluate_every, config.record_every = 10, 10, 5
  config.model.update(
      vocab_size=300, width=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
      mlp_width=48,
  )
  config.optimizer.warmup_steps = 4
  config.corpus.update(max_files=4, sha256='')
  if config.samples.num_samples:
    config.samples.update(num_samples=4, prompt_tokens=8, new_tokens=8, batch_size=4)
