"""What a run shows while it runs: training progress, coloured streams, tables."""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import re
import time
from typing import Any

import rich.box
import rich.console
import rich.progress
import rich.table
import rich.text

from specjax.analysis import traces
from specjax.detokenize import Detokenizer
from specjax.output import GenerateOutput
from specjax.stopping import as_strings
from specjax.training.train import Progress

# Colours of tokens by where they came from; all others are in the terminal's own colour.
COLOURS = {traces.ACCEPTED: 'green', 'prompt': 'bright_black'}
LEGEND = '[bright_black]prompt[/] · [green]drafted and accepted[/] · from the target itself'

# Between two lines of a training run whose output is not a terminal.
_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def training(console: rich.console.Console, num_steps: int) -> Iterator:
  """Shows a training run: a bar on a terminal, else a line now and then.

  Yields:
    A function that takes each `specjax.training.train.Progress`.
  """
  if not console.is_terminal:
    printed = [-_SECONDS_BETWEEN_LINES]

    def show_line(progress: Progress) -> None:
      last = progress.step == num_steps
      if progress.kind == 'train' and not last:
        if time.monotonic() - printed[0] < _SECONDS_BETWEEN_LINES:
          return
      printed[0] = time.monotonic()
      console.print(_line(progress), highlight=False, soft_wrap=True)

    yield show_line
    return

  bar = rich.progress.Progress(
      rich.progress.TextColumn('step {task.completed}/{task.total}'),
      rich.progress.BarColumn(),
      rich.progress.TextColumn('{task.description}'),
      rich.progress.TextColumn('{task.fields[left]}'),
      console=console,
  )
  with bar:
    task = bar.add_task('compiling …', total=num_steps, left='')

    def show_bar(progress: Progress) -> None:
      if progress.kind == 'held_out':
        bar.console.print(_line(progress), highlight=False)
        return
      text = f'loss {progress.metrics["loss"]:.4f}  {progress.tokens_per_second:,.0f} tokens/s'
      left = f'{duration(progress.seconds_left)} left'
      bar.update(task, completed=progress.step, description=text, left=left)

    yield show_bar


def _line(progress: Progress) -> str:
  values = '  '.join(f'{name} {value:.4f}' for name, value in progress.metrics.items())
  line = f'step {progress.step}/{progress.num_steps}  {progress.kind:<8}  {values}'
  if progress.kind == 'train':
    line += f'  {progress.tokens_per_second:,.0f} tokens/s'
  return f'{line}  {duration(progress.seconds_left)} left'


@contextlib.contextmanager
def steps(console: rich.console.Console) -> Iterator[Callable[[str], None]]:
  """Shows which step is taken: in place on a terminal, else one line per kind of step.

  Yields:
    A function that takes a line about a step.
  """
  kinds = set()
  with console.status('…') as status:

    def say(line: str) -> None:
      status.update(line)
      # Counts and names that follow are the status line's; the kind of step is said once.
      kind = re.split(r'[:,]| \d', line)[0].strip()
      if not console.is_terminal and kind not in kinds:
        kinds.add(kind)
        console.print(f'{kind} …', highlight=False)

    yield say


@dataclasses.dataclass
class ArmProgress:
  """Shows which arm of a study runs and how long the others will take; a context manager.

  Attributes:
    console: where to.
    total: arms of the study.
    done: finished ones.
  """

  console: rich.console.Console
  total: int
  done: int
  _bar: rich.progress.Progress | None = None
  _task: Any = None
  _label: str = ''
  _ran: int = 0
  _started: float = dataclasses.field(default_factory=time.monotonic)

  def __enter__(self):
    if self.console.is_terminal:
      self._bar = rich.progress.Progress(
          rich.progress.TextColumn('arm {task.completed}/{task.total}'),
          rich.progress.BarColumn(),
          rich.progress.TextColumn('{task.description}'),
          rich.progress.TextColumn('{task.fields[left]}'),
          console=self.console,
      )
      self._task = self._bar.add_task('', total=self.total, completed=self.done, left='')
      self._bar.start()
    return self

  def __exit__(self, *error):
    if self._bar is not None:
      self._bar.stop()

  def begin(self, label: str) -> None:
    """An arm begins."""
    self._label = label
    self.say('')

  def say(self, line: str) -> None:
    """What is done with it."""
    if self._bar is not None:
      self._bar.update(self._task, description=f'{self._label}  {line}')

  def end(self, error: str | None) -> None:
    """It is over, with an error or without."""
    self.done, self._ran = self.done + 1, self._ran + 1
    seconds = (time.monotonic() - self._started) / self._ran * (self.total - self.done)
    left = f'{duration(seconds)} left' if self.done < self.total else ''
    if self._bar is not None:
      self._bar.update(self._task, completed=self.done, left=left)
      return
    outcome = 'done' if error is None else 'failed: ' + error.splitlines()[0]
    self.console.print(
        f'arm {self.done}/{self.total}  {self._label}  {outcome}  {left}',
        highlight=False,
        soft_wrap=True,
    )


class TokenStream:
  """Writes a row's text as it grows, accepted draft tokens in colour.

  Without a terminal, or where NO_COLOR is set, it is the text alone, byte for byte. What
  could still change is held back: a character that is open, or the beginning of a stop string.
  """

  def __init__(
      self,
      console: rich.console.Console,
      tokenizer: Any,
      *,
      row: int = 0,
      stop_strings: str | Sequence[str] = (),
  ):
    """Colours need a trace: see `wants_trace`."""
    self._console = console
    self._tokenizer = tokenizer
    self._row = row
    self._held_back = max([len(string) - 1 for string in as_strings(stop_strings)], default=0)
    self._detokenizer: Detokenizer | None = None
    self._pieces: list[str] = []
    self._shown = 0

  def update(self, output: GenerateOutput) -> None:
    """Writes what is new in the output so far; all of it once the row is over."""
    row = self._row
    running = output.finish_reasons[row] == 'running'
    tokens = output.new_tokens(row)
    if self._detokenizer is None:
      prompt = output.tokens[row, : output.prompt_lengths[row]]
      self._detokenizer = Detokenizer(self._tokenizer, prompt)
    self._pieces += [self._detokenizer.push(token) for token in tokens[len(self._pieces) :]]
    if self._pieces and not running:
      self._pieces[-1] += self._detokenizer.flush()
    sources = [None] * len(self._pieces)
    if output.trace is not None:
      sources = traces.sources(output, row)
    end = sum(map(len, self._pieces)) - (self._held_back if running else 0)
    if output.texts is not None:
      # The output's own text is cut before a stop string.
      end = min(end, len(output.texts[row]))
    start = 0
    for piece, source in zip(self._pieces, sources):
      fresh = piece[max(self._shown - start, 0) : max(end - start, 0)]
      if fresh:
        write(self._console, fresh, COLOURS.get(source))
      start += len(piece)
    self._shown = max(self._shown, end)


def wants_trace(console: rich.console.Console) -> bool:
  """Whether `console` shows colours, for which a run must keep a trace."""
  return console.is_terminal and not console.no_color


def write(console: rich.console.Console, text: str, colour: str | None = None) -> None:
  """Writes model text as it is: no markup, no wrapping, colour on terminals only."""
  if colour is None or not wants_trace(console):
    console.file.write(text)
  else:
    # A style that spans lines would colour the rest of the line in some terminals.
    console.print(rich.text.Text(text, style=colour), end='', soft_wrap=True)
  console.file.flush()


def write_prompt(console: rich.console.Console, text: str) -> None:
  """The last lines of a prompt: the text goes on from them, and all might fill the screen."""
  write(console, ''.join(text.splitlines(keepends=True)[-8:]), COLOURS['prompt'])


def table(rows: Sequence[dict[str, Any]], *, title: str | None = None) -> rich.table.Table:
  """A table of rows, whose keys are its heads, in the order of their first row; numbers right.

  It has no frame, for its columns must fit 80 characters; only long heads may wrap.
  """
  result = rich.table.Table(
      title=title,
      title_justify='left',
      box=rich.box.SIMPLE_HEAD,
      show_edge=False,
      pad_edge=False,
      collapse_padding=True,
  )
  names = list(dict.fromkeys(name for row in rows for name in row))
  for name in names:
    number = any(isinstance(row.get(name), (int, float)) for row in rows)
    result.add_column(
        name,
        justify='right' if number else 'left',
        no_wrap=' ' not in name,
        min_width=max(map(len, name.split()), default=0),
    )
  for row in rows:
    result.add_row(*[_cell(row.get(name, '')) for name in names])
  return result


def _cell(value: Any) -> str:
  if value is None:
    return '–'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, float):
    return f'{value:,.1f}' if abs(value) >= 100 else f'{value:.3g}'
  return str(value)


def duration(seconds: float) -> str:
  """'42 s', '3 min 5 s' or '2 h 10 min'."""
  whole = round(seconds)
  if whole < 60:
    return f'{whole} s'
  if whole < 3600:
    return f'{whole // 60} min {whole % 60} s'
  return f'{whole // 3600} h {whole % 3600 // 60} min'
