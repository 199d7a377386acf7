"""Makes `report.html` of a finished run from what lies in its workdir.

    python -m experiments.report --workdir=runs/benchmark_zoo

Reads `metrics.jsonl`, and `calibration.json`, `traces.json` and `config.json` where they are
there. The page is one file that works without a network: no script, style, font or picture is
loaded from anywhere. The same numbers go into `tensorboard/`, which TensorBoard reads.
"""

from collections.abc import Sequence
import pathlib

from absl import app
from absl import flags

from experiments import report
from experiments import workdir as workdir_lib


def main(argv: Sequence[str]) -> None:
  if len(argv) > 1:
    raise app.UsageError(f'What is {argv[1:]}? The folder is given as --workdir=DIR.')
  path = pathlib.Path(_WORKDIR.value)
  try:
    config = workdir_lib.read_json(path / workdir_lib.CONFIG)
    print(f'Wrote {report.write(workdir_lib.Workdir(path=path, config=config))}.')
  except (ValueError, OSError) as error:
    raise SystemExit(f'error: {error}') from error


if __name__ == '__main__':
  _WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of a finished run.')
  _CONFIG = flags.DEFINE_string('config', None, 'Not needed: the workdir has its config.json.')
  flags.mark_flags_as_required(['workdir'])
  app.run(main)
