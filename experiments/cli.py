"""The command line that all experiments share: `--config=FILE[:arg]`, `--workdir=DIR`, `--help`."""

from collections.abc import Callable, Sequence
import io
import os
import pathlib
import re
import sys
import traceback
from typing import Any

from absl import app
from absl import flags
from absl import logging
import jax
from ml_collections import config_flags
import rich.console

from experiments import compile_cache
from experiments import fields
from specjax.sharding import processes

_HELP = ('-h', '-?', '--help', '-help', '--helpshort', '-helpshort')


def main(
    run: Callable[[Any, str], Any], *, workdir: str | None = None, keeps_programs: bool = True
) -> None:
  """Runs `run(config, workdir)` with flags from the command line.

  What a user can mend (a wrong value, a missing file, a number that is not finite) ends
  with one line that says how, and exit code 1; anything else with its traceback.

  Args:
    run: the experiment.
    workdir: the default of `--workdir`; None makes the flag required.
    keeps_programs: whether compiled programs are kept on disk (`experiments.compile_cache`).
  """
  config = config_flags.DEFINE_config_file(
      'config', None, 'What to run: a file in configs/, with :ARGUMENT for its variants.'
  )
  directory = flags.DEFINE_string('workdir', workdir, 'The folder for results.')
  cache = None
  if keeps_programs:
    cache = flags.DEFINE_string(
        'compile_cache', '',
        'A folder for compiled programs, which are found there the next time; by default one in '
        f"the user's cache folder; '{compile_cache.OFF}' for none.",
    )
  address = flags.DEFINE_string(
      'coordinator_address', None, 'HOST:PORT of process 0, for several processes.'
  )
  count = flags.DEFINE_integer('num_processes', None, 'How many processes there are.')
  number = flags.DEFINE_integer('process_id', None, 'Which of them this one is.')
  flags.mark_flags_as_required(['config'] + ([] if workdir else ['workdir']))

  def call(argv: Sequence[str]) -> None:
    if len(argv) > 1:
      raise app.UsageError(f'What is {argv[1]!r}? Settings are given as --config.FIELD=VALUE.')
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it writes
    several = ''
    try:
      several = processes.start(
          coordinator_address=address.value, num_processes=count.value, process_id=number.value
      )
      # The first process talks and writes; the others compute the same.
      quiet = several and not processes.is_first()
      if several and not quiet:
        print(several, flush=True)
      chosen = compile_cache.OFF if cache is None else cache.value
      line = compile_cache.start(chosen, several=bool(several))
      if line and not quiet:
        print(line, flush=True)
      run(config.value, directory.value, **({'console': _silent()} if quiet else {}))
    except (ValueError, OSError, FloatingPointError) as error:
      if several:
        # Leaving as usual would wait for the others, which wait for this one.
        print(f'error: {error}', file=sys.stderr, flush=True)
        os._exit(1)
      sys.exit(f'error: {error}')
    except jax.errors.JaxRuntimeError as error:
      if not several:
        raise
      # Leaving as usual would wait for processes that are no more.
      traceback.print_exc()
      print(
          f'error: process {jax.process_index()} of {jax.process_count()} could not go on '
          f'({str(error).splitlines()[0]}). Most likely another process of this run has died; its '
          'own output says why. Start all of them again: training goes on from its newest '
          'checkpoint.',
          file=sys.stderr,
          flush=True,
      )
      os._exit(1)
    except KeyboardInterrupt:
      sys.exit('\nInterrupted.')

  app.run(call, flags_parser=_parse)


def _silent() -> rich.console.Console:
  return rich.console.Console(file=io.StringIO(), quiet=True)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  """Parses flags; what is wrong with them ends the program in one line."""
  try:
    if set(argv[1:]) & set(_HELP):
      _show(_help(argv))
      sys.exit(0)
    _check_config_flags(argv)
    return flags.FLAGS(argv)
  except (flags.Error, ValueError) as error:
    sys.exit(f'error: {error}')


def _show(text: str) -> None:
  """Prints a text of which the reader, such as `head`, may want the beginning alone."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help(argv: Sequence[str]) -> str:
  """What the command does, its flags, and the fields of its config with their comments.

  The config is that of the command line, or else the first that the command's own text names.

  Raises:
    ValueError: as `_load_config`.
  """
  about = (sys.modules['__main__'].__doc__ or '').strip()
  own = flags.FLAGS.module_help(__name__).partition(':\n')[2]
  parts = [about, f'Flags:\n{own.rstrip()}']
  files = _config_files(argv) or re.findall(r'--config=(\S+)', about)[:1]
  if files:
    name, path = files[-1], pathlib.Path(files[-1].partition(':')[0])
    described = fields.describe(_load_config(argv[0], name), fields.comments(path))
    parts += [f'Fields of {name}, with their values:', described.strip('\n')]
  return '\n\n'.join(parts)


def _config_files(argv: Sequence[str]) -> list[str]:
  """What `--config` was given, '--config FILE' too."""
  joined = re.sub(r'(^|\n)(--?config)\n', r'\1\2=', '\n'.join(argv))
  return re.findall(r'^--?config=(.*)$', joined, re.MULTILINE)


def _check_config_flags(argv: Sequence[str]) -> None:
  """Says which config files, arguments and fields there are, where one does not exist.

  Raises:
    ValueError: if there is no such file, argument or field.
  """
  if any(re.match(r'--?help', arg) for arg in argv):
    return
  files = _config_files(argv)
  if not files:
    raise ValueError('Say what to run: --config=FILE, one of those in configs/.')
  config = _load_config(argv[0], files[-1])
  for arg in argv:
    field = re.match(r'--?(?:no)?config\.([^=]+)', arg)
    if field:
      fields.check(config, field[1])


def _load_config(program: str, name: str) -> Any:
  """The config of a file, with `:ARGUMENT` after it, as it is without any flag.

  Raises:
    ValueError: if there is no such file, or it does not know the argument.
  """
  path = pathlib.Path(name.partition(':')[0])
  if not path.is_file():
    known = ', '.join(sorted(str(file) for file in path.parent.glob('[!_]*.py'))) or 'none'
    raise ValueError(f'There is no config file {path}. In its folder: {known}.')
  alone = flags.FlagValues()
  argument = [program, f'--config={name}']
  holder = config_flags.DEFINE_config_file('config', flag_values=alone, sys_argv=argument)
  try:
    alone(argument)
  except (flags.Error, ValueError) as error:
    # The message holds a traceback; what the config itself said is its last line.
    lines = [line for line in str(error).splitlines() if line.strip()]
    raise ValueError(lines[-1].partition('Error: ')[2] or str(error)) from error
  return holder.value
