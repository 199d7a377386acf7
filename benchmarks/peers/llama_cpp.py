"""llama.cpp as one of the engines: converted weights, command lines, and what they print."""

import pathlib
import re
import subprocess

from benchmarks.peers import runs
from specjax import atomic

_OUTTYPES = {'float32': 'f32', 'bfloat16': 'bf16'}
_PROGRAMS = {runs.PLAIN: 'llama-completion', runs.DRAFT: 'llama-speculative-simple'}


class Engine:
  """Runs llama.cpp's methods of a task; converts the weights when made, if need be.

  Attributes:
    name: of the engine.
    versions: of its source, where the build knows it.
  """

  name = 'llama.cpp'

  def __init__(
      self,
      task: runs.Task,
      dtype: str,
      *,
      build: pathlib.Path,
      python: str,
      cache_type: str,
      flash_attention: str,
  ):
    check(build)
    self._task, self._build = task, build
    self._cache_type, self._flash = cache_type, flash_attention
    self._files = {
        folder.name: convert(folder, dtype, build=build, python=python)
        for folder in (task.target, task.draft)
    }
    self._passes: dict[int, int] = {}
    self.versions: dict[str, str] = {}

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt.

    Raises:
      ValueError: if a program fails or does not print what is expected.
    """
    found = []
    for number, prompt in enumerate(self._task.prompts):
      text = self._task.tokenizer.decode(list(prompt))
      stdout, stderr = _call(self._command(runs.PLAIN, text))
      found.append(parse_plain(self._task, number, stdout=stdout, stderr=stderr))
    for number, prompt in enumerate(self._task.prompts):
      text = self._task.tokenizer.decode(list(prompt))
      command = self._command(runs.DRAFT, text)
      if number not in self._passes:
        # Rounds are told of in the log of everything, which is not for a run that is timed.
        _, stderr = _call([*command, '-v'])
        self._passes[number] = parse_passes(stderr, self._task.max_new_tokens)
      stdout, stderr = _call(command)
      found.append(
          parse_speculative(
              self._task,
              number,
              prompt_text=text.encode(),
              target_passes=self._passes[number],
              stdout=stdout,
              stderr=stderr,
          )
      )
    return found

  def _command(self, method: str, text: str) -> list[str]:
    task, cache = self._task, self._cache_type
    threads = str(task.threads)
    # Twice the context that is needed costs nothing: attention reads what is filled.
    context = 256 * -(-2 * (len(text) + task.max_new_tokens) // 256)
    command = [
        str(self._build / 'bin' / _PROGRAMS[method]),
        *('-m', str(self._files[task.target.name])),
        *('-p', text, '--no-escape'),
        *('-n', str(task.max_new_tokens), '-c', str(context)),
        *('--temp', '0', '--top-k', '1', '--seed', '1', '--ignore-eos'),
        *('-t', threads, '-tb', threads),
        *('-ctk', cache, '-ctv', cache, '-fa', self._flash),
    ]
    if method == runs.PLAIN:
      return [*command, '-no-cnv', '--no-display-prompt']
    return [
        *command,
        *('-md', str(self._files[task.draft.name])),
        *('--spec-type', 'draft-simple'),
        *('--spec-draft-n-max', str(task.num_speculative_tokens)),
        *('-td', threads, '-tbd', threads),
        *('-ctkd', cache, '-ctvd', cache),
    ]


def check(build: pathlib.Path) -> None:
  """Raises ValueError unless `build` holds the programs that are run."""
  missing = [name for name in _PROGRAMS.values() if not (build / 'bin' / name).is_file()]
  if missing:
    raise ValueError(
        f'config.peers.llama_cpp={build} holds no bin/{", no bin/".join(missing)}: build them as '
        'scripts/make_peer_pair.py says.'
    )


def convert(folder: pathlib.Path, dtype: str, *, build: pathlib.Path, python: str) -> pathlib.Path:
  """The GGUF file of a Hugging Face folder, made beside its weights if it is not there.

  Raises:
    ValueError: if it has to be made and cannot be.
  """
  file = folder / f'{folder.name}-{_OUTTYPES[dtype]}.gguf'
  if file.exists():
    return file
  if not python:
    raise ValueError(
        f'{file} is missing, and making it takes an interpreter with torch, transformers and '
        'sentencepiece: give --config.peers.python=FILE.'
    )
  script = source(build) / 'convert_hf_to_gguf.py'
  command = [python, str(script), str(folder), '--outtype', _OUTTYPES[dtype]]
  with atomic.replacing(file) as (temporary,):
    done = subprocess.run(
        [*command, '--outfile', str(temporary)], capture_output=True, text=True, check=False
    )
    if done.returncode:
      last = '\n'.join(done.stderr.strip().splitlines()[-5:])
      raise ValueError(f'{script.name} failed. It said:\n{last}')
  return file


def source(build: pathlib.Path) -> pathlib.Path:
  """The source folder that a CMake build was made from."""
  cache = build / 'CMakeCache.txt'
  home = None
  if cache.is_file():
    text = cache.read_text(encoding='utf-8-sig')
    home = re.search(r'^CMAKE_HOME_DIRECTORY:INTERNAL=(.+)$', text, re.MULTILINE)
  if home is None:
    raise ValueError(f'{build} is no CMake build folder: its CMakeCache.txt names no source.')
  return pathlib.Path(home[1])


def _call(command: list[str]) -> tuple[bytes, str]:
  """Runs a program; returns what it printed to standard output and error.

  Raises:
    ValueError: if it fails.
  """
  done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, check=False)
  stderr = done.stderr.decode(errors='replace')
  if done.returncode:
    last = '\n'.join(stderr.strip().splitlines()[-5:])
    raise ValueError(f'{command[0]} failed. It said:\n{last}')
  return done.stdout, stderr


def parse_plain(task: runs.Task, prompt: int, *, stdout: bytes, stderr: str) -> runs.Run:
  """The run of which `llama-completion` printed this.

  The first token comes out of the pass that reads the prompt; the timed ones follow it. Time
  is that of their passes and of sampling, not of printing.
  """
  count = int(_number(r': +eval time = *[\d.]+ ms / *(\d+) runs', stderr))
  evaluated = _number(r': +eval time = *([\d.]+) ms', stderr)
  sampling = _number(r'sampling time = *([\d.]+) ms', stderr)
  read = _number(r'prompt eval time = *([\d.]+) ms', stderr)
  _check_prompt(task, prompt, int(_number(r'prompt eval time = .*?/ *(\d+) tokens', stderr)))
  return runs.Run(
      method=runs.PLAIN,
      prompt=prompt,
      text=stdout.rstrip(b'\n'),
      target_passes=count + 1,
      timed_tokens=count,
      seconds=(evaluated + sampling) / 1000,
      prefill_seconds=read / 1000,
  )


def parse_passes(log: str, new_tokens: int) -> int:
  """Target passes until `new_tokens` were emitted, from the log of everything (`-v`).

  `llama-speculative-simple` stops after more tokens than were asked for; a round that
  accepts n drafted tokens emits n + 1.
  """
  emitted = 0
  for passes, accepted in enumerate(re.findall(r'accepted (\d+)/\d+ draft tokens', log), start=1):
    emitted += int(accepted) + 1
    if emitted >= new_tokens:
      return passes
  raise ValueError(
      f'The log of llama-speculative-simple tells of {emitted} of {new_tokens} tokens: another '
      'release logs otherwise.'
  )


def parse_speculative(
    task: runs.Task,
    prompt: int,
    *,
    prompt_text: bytes,
    target_passes: int,
    stdout: bytes,
    stderr: str,
) -> runs.Run:
  """The run of which `llama-speculative-simple` printed this; its text is a little longer."""
  count = int(_number(r'n_predict *= *(\d+)', stderr))
  _check_prompt(task, prompt, int(_number(r'encoded *(\d+) tokens', stderr)))
  text = stdout.strip(b'\n')
  if not text.startswith(prompt_text):
    raise ValueError(f'llama-speculative-simple printed another prompt: {text[:200]!r}')
  return runs.Run(
      method=runs.DRAFT,
      prompt=prompt,
      text=text.removeprefix(prompt_text),
      target_passes=target_passes,
      timed_tokens=count,
      seconds=_number(r'decoded *\d+ tokens in *([\d.]+) seconds', stderr),
      prefill_seconds=_number(r'encoded *\d+ tokens in *([\d.]+) seconds', stderr),
      proposed=int(_number(r'n_drafted *= *(\d+)', stderr)),
      accepted=int(_number(r'n_accept *= *(\d+)', stderr)),
  )


def _number(pattern: str, text: str) -> float:
  found = re.search(pattern, text)
  if found is None:
    raise ValueError(
        f'llama.cpp did not print {pattern!r}: another release prints otherwise. It printed:\n'
        f'{text[-500:]}'
    )
  return float(found[1])


def _check_prompt(task: runs.Task, prompt: int, count: int) -> None:
  expected = len(task.prompts[prompt])
  if count != expected:
    raise ValueError(
        f'llama.cpp reads prompt {prompt} as {count} tokens, the other engines as {expected}: '
        'the tokenizers differ.'
    )
