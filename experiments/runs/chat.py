"""A chat in the terminal: turns are typed, answers stream in colour, and all of it is kept.

The workdir's `chats.jsonl` has a row for each chat, in the format in which prompts and training
data are read (`messages`), and `metrics.jsonl` one for each answer. Both are whole after every
turn, and the next time the last chat goes on.
"""

from collections.abc import Callable
import dataclasses
import json
import math
from typing import Any

import rich.console
import rich.text

from experiments import display
from experiments import prompts as prompts_lib
from experiments import workdir as workdir_lib
from experiments.runs import generation
import specjax
from specjax import checks
from specjax.output import GenerateOutput

CHATS = 'chats.jsonl'
NEW, QUIT = '/new', '/quit'
_MARK = '> '
_QUIET = 'bright_black'
# Every length of the cache is compiled anew: a short chat needs one.
_LEAST_CACHE = 512

Message = dict[str, str]


@dataclasses.dataclass(frozen=True)
class Chat:
  """How turns are answered.

  Attributes:
    work: the target, the drafter, and how they decode; without prompts.
    first: what the user says first; '' asks for it.
    system: the system's text, of chats that begin; '' for none.
  """

  work: generation.Generation
  first: str = ''
  system: str = ''


def run(
    chat: Chat,
    results: workdir_lib.Workdir,
    console: rich.console.Console,
    *,
    ask: Callable[[str], str] | None = None,
) -> list[GenerateOutput]:
  """Answers until the input ends; returns the outputs.

  Args:
    chat: how.
    results: keeps chats and rows; those that are there are gone on with.
    console: where answers go.
    ask: shows a text and returns a line, or raises `EOFError`; None reads the terminal.

  Raises:
    ValueError: if the chats in the workdir cannot be read, or another process has it.
    FloatingPointError: if the target's logits are not numbers.
  """
  results.claim()
  ask = _from_terminal() if ask is None else ask
  session = _Session(chat, results, console, _read(results))
  session.greet()
  outputs, turn = [], chat.first
  while True:
    try:
      turn = turn or ask(_MARK)
    except KeyboardInterrupt:
      console.print(f'\nCtrl-D or {QUIT} ends the chat.', style=_QUIET, highlight=False)
      continue
    except EOFError:
      console.print()
      break
    turn, said = '', turn.strip() if chat.work.is_chat else turn
    if said.strip() == QUIT:
      break
    if said.strip() == NEW:
      session.begin()
    elif said.strip():
      output = session.answer(said)
      outputs += [] if output is None else [output]
  if outputs:
    console.print(f'Kept in {results.path}.', style=_QUIET, highlight=False, soft_wrap=True)
  return outputs


def _from_terminal() -> Callable[[str], str]:
  """Python's own `input`, with the editing of lines that a terminal's user expects."""
  try:
    import readline  # noqa: F401
  except ImportError:  # not on Windows
    pass
  return input


def _read(results: workdir_lib.Workdir) -> list[dict[str, Any]]:
  """The chats in a workdir."""
  path = results.path / CHATS
  if not path.exists():
    return []
  chats = workdir_lib.read_rows(path)
  if any(not isinstance(each, dict) or not each.get('messages') for each in chats):
    raise ValueError(f'{path} is no file of chats: give another --workdir, or move it away.')
  return chats


class _Session:
  """The chats of a workdir, of which the last one goes on."""

  def __init__(self, chat: Chat, results, console, chats: list[dict[str, Any]]):
    self._chat, self._results, self._console, self._chats = chat, results, console, chats
    self._messages: list[Message] = list(chats[-1]['messages']) if chats else []
    self._is_new = not chats
    self._compiled: set[int] = set()

  def greet(self) -> None:
    """Says what is talked to, how, and what was said before."""
    say = lambda text: self._console.print(text, style=_QUIET, highlight=False, soft_wrap=True)
    name = self._chat.work.loaded.name
    what = f'A chat with {name}.' if self._chat.work.is_chat else (
        f'{name} has no chat template, or config.chat is off: it goes on with the text you type.'
    )
    say(f'{what} {NEW} begins another one, Ctrl-C stops an answer, Ctrl-D ends.')
    if display.wants_trace(self._console):
      self._console.print('[green]drafted and accepted[/] · from the target itself')
    if not self._is_new:
      turns = sum(each['role'] == 'user' for each in self._messages)
      say(f'Going on after {turns} {"turn" if turns == 1 else "turns"} in {self._results.path}:')
      for each in self._messages[-2:]:
        display.write(
            self._console, (_MARK if each['role'] == 'user' else '') + each['content'] + '\n',
            display.COLOURS['prompt'],
        )

  def begin(self) -> None:
    """Another chat; the one before stays in the file."""
    self._messages, self._is_new = [], True

  def answer(self, said: str) -> GenerateOutput | None:
    """Answers a turn and keeps it; None where there is nothing to keep."""
    messages = [*self._messages, {'role': 'user', 'content': said}]
    if not self._messages and self._chat.system and self._chat.work.is_chat:
      messages.insert(0, {'role': 'system', 'content': self._chat.system})
    try:
      output, is_cut = self._stream(messages)
    except ValueError as error:
      # Too long for the target, or refused by the template: the chat is as it was before.
      self._console.print(
          f'error: {error} {NEW} begins another chat.', style='red', highlight=False,
          markup=False, soft_wrap=True,
      )
      return None
    if output is None:
      self._console.print('Stopped before there was an answer.', style=_QUIET)
      return None
    self._keep([*messages, {'role': 'assistant', 'content': output.texts[0]}])
    record = dataclasses.asdict(generation.record(self._chat.work, [output]))
    turns = sum(each['role'] == 'user' for each in messages)
    self._results.record(record | dict(chat=len(self._chats), turn=turns, interrupted=is_cut))
    self._console.print(_line(output, is_cut), style=_QUIET, highlight=False)
    return output

  def _stream(self, messages: list[Message]) -> tuple[GenerateOutput | None, bool]:
    """The answer as it is shown, and whether it was interrupted; None where nothing came."""
    work = self._chat.work
    conversation = self._conversation(messages)
    row = generation.Row(
        conversation, sample=0, number=len(messages) // 2,
        prompt=work.encode(conversation, 0, ()),
    )
    length, most = len(row.prompt.tokens), work.options['max_new_tokens']
    checks.positions(work.loaded.target, length, most, name='The chat')
    output = None
    try:
      tokens, options = generation.request(work, [row], self._console)
      size = work.options['cache_length']
      size = size or max(specjax.generation.bucket(length + most), _LEAST_CACHE)
      options['cache_length'] = size
      if size not in self._compiled:
        generation.compile_first(work, tokens, options, self._console)
        self._compiled.add(size)
      stream = display.TokenStream(
          self._console, work.loaded.tokenizer, stop_strings=work.stop_strings
      )
      for output in specjax.stream(
          work.loaded.target, tokens, **options, rounds_per_chunk=work.rounds_per_chunk
      ):
        stream.update(output)
    except KeyboardInterrupt:
      self._console.print()
      return output, True
    self._console.print()
    return output, False

  def _conversation(self, messages: list[Message]) -> prompts_lib.Conversation:
    """A chat with all that was said, or the one text that it makes."""
    if self._chat.work.is_chat:
      return prompts_lib.Conversation('chat', (messages[-1]['content'],), tuple(messages))
    return prompts_lib.Conversation('text', (''.join(each['content'] for each in messages),))

  def _keep(self, messages: list[Message]) -> None:
    self._messages = messages
    chats = self._chats if self._is_new else self._chats[:-1]
    self._chats, self._is_new = [*chats, {'messages': messages}], False
    lines = [json.dumps(each, ensure_ascii=False) + '\n' for each in self._chats]
    self._results.write(CHATS, ''.join(lines))


def _line(output: GenerateOutput, is_cut: bool) -> rich.text.Text:
  """A line of statistics."""
  parts = [
      f'{output.num_new_tokens} tokens',
      f'{output.tokens_per_second:.1f} tokens/s',
      f'{output.mean_acceptance_length:.2f} per pass',
  ]
  rate = output.draft_acceptance_rate
  if rate is not None and math.isfinite(rate):
    parts.append(f'{100 * rate:.0f} % accepted')
  parts.append(f'{int(output.prompt_lengths[0])} read in {output.prefill_seconds:.2f} s')
  if is_cut:
    parts.append('stopped')
  elif output.finish_reasons[0] == 'length':
    parts.append('max_new_tokens')
  return rich.text.Text(' · '.join(parts))
