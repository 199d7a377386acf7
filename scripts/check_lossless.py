r"""Checks on real prompts that speculation changes nothing: the sweep of `configs/lossless.py`.

    python scripts/check_lossless.py --prompts=200 --out=runs/lossless
    python scripts/check_lossless.py --parts=heads,trees --dtypes=float32

Started again with the same settings and `--out` it goes on with the first arm that is missing.
Exits with 1 if an arm fails. `--config.FIELD=VALUE` sets any field of the sweep.
"""

from collections.abc import Sequence
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script's own folder comes first, not the repository

from experiments import ablate  # noqa: E402
from experiments import cli  # noqa: E402

# Short names of fields of the sweep.
FIELDS = dict(
    batch='config.batch_size', new_tokens='config.max_new_tokens', out='workdir',
    pair='config.target.name', prompt_length='config.prompt_tokens', prompts='config.num_prompts',
)  # fmt: skip


def expand(arguments: Sequence[str]) -> list[str]:
  """The arguments of `experiments.ablate`.

  >>> expand(['--prompts=8', '--parts=trees', '--out=x'])[1:]
  ['--config.num_prompts=8', '--workdir=x']
  """
  names, rest = [], []
  for argument in arguments:
    name, _, value = argument.lstrip('-').partition('=')
    if name in ('parts', 'dtypes'):
      names += value.split(',')
    else:
      rest.append(re.sub(r'^--?\w+', f'--{FIELDS[name]}', argument) if name in FIELDS else argument)
  return [f'--config={ROOT}/configs/lossless.py:{",".join(names)}', *rest]


def run(config, workdir, **options) -> None:
  """Runs the sweep; exits with 1 if an arm failed."""
  rows = ablate.run(config, workdir, **options)
  if any(row['status'] != 'done' for row in rows):
    sys.exit(1)


if __name__ == '__main__':
  sys.argv[1:] = expand(sys.argv[1:])
  cli.main(run, workdir='runs/lossless')
