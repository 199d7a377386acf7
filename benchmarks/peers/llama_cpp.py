"""llama.cpp as one of the engines: converted weights, command lines, and what they print."""

import pathlib
import re

from benchmarks.peers import runs
from specjax import atomic

_OUTTYPES = {'float32': 'f32', 'bfloat16': 'bf16'}
_PROGRAMS = {runs.PLAIN: 'llama-completion', runs.DRAFT: 'llama-speculative-simple'}


class Engine:
  """Runs llama.cpp's methods on a task, whose weights it converts first if need be."""

  name = 'llama.cpp'
  versions: dict[str, str] = {}  # a build does not tell its own

  def __init__(
      self, task: runs.Task, dtype: str, *, build: pathlib.Path, python: str, cache_type: str,
      flash_attention: str,
  ):
    self._task, self._bin = task, build / 'bin'
    gguf = lambda folder: str(convert(folder, dtype, build=build, python=python))
    self._target = gguf(task.target)
    self._draft = None if task.draft is None else gguf(task.draft)
    self._cache_type, self._flash_attention = cache_type, flash_attention
    # The marks of a chat are special tokens, which llama.cpp reads from their texts.
    read = lambda ids: task.tokenizer.decode(list(ids), skip_special_tokens=False)
    self._texts = [read(prompt) for prompt in task.prompts]
    self._passes: dict[int, int] = {}

  def run(self) -> list[runs.Run]:
    """One round: every method and prompt.

    Raises:
      ValueError: if a program fails or does not print what is expected.
    """
    result = []
    for number in range(len(self._texts)):
      stdout, stderr = runs.call(self._command(runs.PLAIN, number))
      result.append(parse_plain(self._task, number, stdout=stdout, stderr=stderr))
    for number, text in enumerate(self._texts if self._draft else ()):
      command = self._command(runs.DRAFT, number)
      if number not in self._passes:
        # Rounds are in the verbose log alone, which takes time: this run is not the timed one.
        log = runs.call([*command, '-v'])[1]
        self._passes[number] = parse_passes(log, self._task.max_new_tokens)
      stdout, stderr = runs.call(command)
      result.append(parse_speculative(
          self._task, number, prompt_text=text.encode(), target_passes=self._passes[number],
          stdout=stdout, stderr=stderr,
      ))
    return result

  def _command(self, method: str, number: int) -> list[str]:
    task, cache, text = self._task, self._cache_type, self._texts[number]
    threads = str(task.threads)
    # Twice the context that is needed costs nothing: attention reads the slots in use.
    context = 256 * -(-2 * (len(text) + task.max_new_tokens) // 256)
    command = [
        str(self._bin / _PROGRAMS[method]), '-m', self._target, '-p', text, '--no-escape',
        '-n', str(task.max_new_tokens), '-c', str(context), '-t', threads, '-tb', threads,
        '--temp', '0', '--top-k', '1', '--seed', '1', '--ignore-eos',
        '-ctk', cache, '-ctv', cache, '-fa', self._flash_attention,
    ]
    if method == runs.PLAIN:
      return [*command, '-no-cnv', '--no-display-prompt']
    return [
        *command, '-md', self._draft, '--spec-type', 'draft-simple',
        '--spec-draft-n-max', str(task.num_speculative_tokens),
        '-td', threads, '-tbd', threads, '-ctkd', cache, '-ctvd', cache,
    ]


def check(build: pathlib.Path) -> None:
  """Raises ValueError unless `build` holds the programs that are run."""
  missing = [name for name in _PROGRAMS.values() if not (build / 'bin' / name).is_file()]
  if missing:
    raise ValueError(
        f'config.peers.llama_cpp={build} holds no bin/{", no bin/".join(missing)}: build them as '
        'in scripts/make_peer_pair.py.'
    )


def convert(folder: pathlib.Path, dtype: str, *, build: pathlib.Path, python: str) -> pathlib.Path:
  """The GGUF file of a Hugging Face folder, made beside its weights if it is not there.

  Raises:
    ValueError: if it has to be made and cannot be.
  """
  kind = _OUTTYPES[dtype]
  file = folder / f'{folder.name}-{kind}.gguf'
  if file.exists():
    return file
  if not python:
    raise ValueError(
        f'{file} is missing, and making it takes an interpreter with torch, transformers and '
        'sentencepiece: give --config.peers.python=FILE.'
    )
  script = source(build) / 'convert_hf_to_gguf.py'
  with atomic.replacing(file) as (temporary,):
    arguments = [str(folder), '--outtype', kind, '--outfile', str(temporary)]
    runs.call([python, str(script), *arguments], name=script.name)
  return file


def source(build: pathlib.Path) -> pathlib.Path:
  """The source folder that a CMake build was made from."""
  cache = build / 'CMakeCache.txt'
  text = cache.read_text(encoding='utf-8-sig') if cache.is_file() else ''
  home = re.search(r'^CMAKE_HOME_DIRECTORY:INTERNAL=(.+)$', text, re.MULTILINE)
  if home is None:
    raise ValueError(f'{build} is no CMake build folder: its CMakeCache.txt names no source.')
  return pathlib.Path(home[1])


def parse_plain(task: runs.Task, prompt: int, *, stdout: bytes, stderr: str) -> runs.Run:
  """The run from what `llama-completion` printed.

  The first token comes out of the pass that reads the prompt; the timed ones follow it. Time
  is that of their passes and of sampling, not of printing.
  """
  _check_prompt(task, prompt, _number(r'prompt eval time = .*?/ *(\d+) tokens', stderr))
  count = int(_number(r': +eval time = *[\d.]+ ms / *(\d+) runs', stderr))
  evaluation = _number(r': +eval time = *([\d.]+) ms', stderr)
  sampling = _number(r'sampling time = *([\d.]+) ms', stderr)
  return runs.Run(
      method=runs.PLAIN, prompt=prompt, text=stdout.rstrip(b'\n'), target_passes=count + 1,
      timed_tokens=count, seconds=(evaluation + sampling) / 1000,
      prefill_seconds=_number(r'prompt eval time = *([\d.]+) ms', stderr) / 1000,
  )


def parse_passes(log: str, new_tokens: int) -> int:
  """Target passes until `new_tokens` were emitted, from the verbose log.

  `llama-speculative-simple` stops after more tokens than were asked for; a round that
  accepts n drafted tokens emits n + 1.
  """
  emitted = 0
  for passes, accepted in enumerate(re.findall(r'accepted (\d+)/\d+ draft tokens', log), start=1):
    emitted += int(accepted) + 1
    if emitted >= new_tokens:
      return passes
  raise ValueError(
      f'The log of llama-speculative-simple has rounds for {emitted} of {new_tokens} tokens: '
      'another release logs otherwise.'
  )


def parse_speculative(
    task: runs.Task, prompt: int, *, prompt_text: bytes, target_passes: int, stdout: bytes,
    stderr: str,
) -> runs.Run:
  """The run from what `llama-speculative-simple` printed; its text is a little longer."""
  _check_prompt(task, prompt, _number(r'encoded *(\d+) tokens', stderr))
  text = stdout.strip(b'\n')
  if not text.startswith(prompt_text):
    raise ValueError(f'llama-speculative-simple printed another prompt: {text[:200]!r}')
  return runs.Run(
      method=runs.DRAFT, prompt=prompt, text=text.removeprefix(prompt_text),
      target_passes=target_passes, timed_tokens=int(_number(r'n_predict *= *(\d+)', stderr)),
      seconds=_number(r'decoded *\d+ tokens in *([\d.]+) seconds', stderr),
      prefill_seconds=_number(r'encoded *\d+ tokens in *([\d.]+) seconds', stderr),
      proposed=int(_number(r'n_drafted *= *(\d+)', stderr)),
      accepted=int(_number(r'n_accept *= *(\d+)', stderr)),
  )


def _number(pattern: str, text: str) -> float:
  match = re.search(pattern, text)
  if match is None:
    raise ValueError(
        f'llama.cpp did not print {pattern!r}: another release prints otherwise. It printed:\n'
        f'{text[-500:]}'
    )
  return float(match[1])


def _check_prompt(task: runs.Task, prompt: int, count: float) -> None:
  expected = len(task.prompts[prompt])
  if count != expected:
    raise ValueError(
        f'llama.cpp reads prompt {prompt} as {count:.0f} tokens, the other engines as {expected}: '
        'the tokenizers differ.'
    )
