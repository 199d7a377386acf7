"""Lets a model write chats, shard by shard, and keeps those that its filters let through."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import json
import pathlib
import time
from typing import Any

import numpy as np
import rich.console

from experiments import workdir as workdir_lib
from experiments.runs import arms
from specjax import detokenize
from specjax import models
from specjax import refill
from specjax import types
from specjax.models import chat as chat_lib
from specjax.models import loading
from specjax.training import chats as chats_lib
from specjax.training import synthesis as filters_lib

CHATS, CARD, SHARDS = 'chats.jsonl', 'README.md', 'shards'
# A model of which so many shards in a row bring nothing will not bring anything.
_EMPTY_SHARDS = 4
_NUM_EXAMPLES = 3

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sampler:
  """How a text is sampled.

  Attributes:
    sampling: settings of one row.
    max_tokens: of the text.
  """

  sampling: types.Sampling
  max_tokens: int


@dataclasses.dataclass(frozen=True)
class Synthesis:
  """What is written, and how.

  Attributes:
    name: of the model.
    key: everything that the chats depend on, as JSON values.
    load: reads the model.
    about: its tokenizer, template and end tokens.
    system: a system's text at the head of every chat; '' for none.
    header: where the user speaks, which the model goes on from; None with `instructions`.
    instructions: questions to answer instead of the model's own, or None.
    question: how questions are sampled.
    answer: how answers are.
    filters: what is left out.
    num_chats: how many are wanted.
    batch_size: rows that are decoded together.
    shard_size: chats that are begun between two files.
    rounds_per_chunk: tokens between two looks at what has ended.
    prefill_chunk: tokens per prefill pass.
    seed: of everything.
  """

  name: str
  key: dict[str, Any]
  load: Callable[[], models.LanguageModel]
  about: loading.Checkpoint
  system: str
  header: chat_lib.UserTurn | None
  instructions: tuple[str, ...] | None
  question: Sampler
  answer: Sampler
  filters: filters_lib.Filters
  num_chats: int
  batch_size: int
  shard_size: int
  rounds_per_chunk: int
  prefill_chunk: int
  seed: int

  @functools.cached_property
  def model(self) -> models.LanguageModel:
    """The model, read when it is first needed."""
    return self.load()

  @property
  def longest_prompt(self) -> int:
    """Tokens of a prompt that leave room for an answer in the model's positions."""
    return self.model.module.config.max_positions - self.answer.max_tokens

  def messages(self, question: str, answer: str | None = None) -> list[dict[str, str]]:
    """A chat of one question, answered or not."""
    said = [('system', self.system)] if self.system else []
    said += [('user', question)] + ([] if answer is None else [('assistant', answer)])
    return [dict(role=role, content=text) for role, text in said]

  def encode(self, question: str) -> list[int]:
    """Token ids of a chat up to its answer."""
    return self.about.encode_chat(self.messages(question))

  def sample(
      self, prompts: Sequence[Sequence[int]], sampler: Sampler, ends: Sequence[int], seeds
  ) -> tuple[list[tuple[str, str]], int]:
    """Text and finish reason of what the model writes after each prompt, and tokens in all."""
    texts: list[tuple[str, str]] = [('', '')] * len(prompts)
    count = 0
    for done in refill.generate_each(
        self.model,
        prompts,
        batch_size=self.batch_size,
        sampling=sampler.sampling,
        max_new_tokens=sampler.max_tokens,
        seeds=seeds,
        stop_tokens=ends,
        rounds_per_chunk=self.rounds_per_chunk,
        prefill_chunk=self.prefill_chunk,
    ):
      ids = done.tokens[:-1] if done.finish_reason == 'stop' else done.tokens
      count += len(done.tokens)
      texts[done.number] = detokenize.text(self.about.tokenizer, ids), done.finish_reason
    return texts, count


@dataclasses.dataclass
class Kept:
  """The chats that are kept, over all shards so far.

  Attributes:
    most: how many are wanted.
    rows: of `chats.jsonl`.
    left_out: how many were left out, by reason.
    tokens: that the model wrote.
    empty_shards: the last so many brought nothing.
  """

  most: int
  rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  left_out: dict[str, int] = dataclasses.field(default_factory=dict)
  tokens: int = 0
  empty_shards: int = 0
  _seen: set[str] = dataclasses.field(default_factory=set)

  @property
  def is_full(self) -> bool:
    """Whether there are as many as are wanted."""
    return len(self.rows) >= self.most

  def add(self, shard: dict[str, Any]) -> int:
    """Adds a shard's chats but those that were asked before; returns how many are new."""
    before = len(self.rows)
    self.tokens += shard['tokens']
    for reason, count in shard['left_out'].items():
      self.left_out[reason] = self.left_out.get(reason, 0) + count
    for row in shard['rows']:
      question = next(m['content'] for m in row['messages'] if m['role'] == 'user')
      key = chats_lib.normalized(question)
      if key in self._seen:
        self.left_out['duplicate'] = self.left_out.get('duplicate', 0) + 1
      elif not self.is_full:
        self._seen.add(key)
        self.rows.append(row)
    new = len(self.rows) - before
    self.empty_shards = 0 if new else self.empty_shards + 1
    return new


def run(
    work: Synthesis, results: workdir_lib.Workdir, console: rich.console.Console
) -> pathlib.Path:
  """Writes shards until there are enough chats, then `chats.jsonl` and its card.

  Raises:
    ValueError: if the workdir holds other chats, or the model writes nothing that is kept.
  """
  say = lambda text: console.print(text, highlight=False, soft_wrap=True)
  results.claim()
  kept = Kept(work.num_chats)
  seconds, made = 0.0, 0
  for number in itertools.count():
    questions = work.instructions
    if kept.is_full or (questions and number * work.shard_size >= len(questions)):
      break
    shard, spent = _load(work, results, number), 0.0
    if shard is None:
      started = time.perf_counter()
      with console.status(f'shard {number + 1} …', refresh_per_second=4):
        shard = _write(work, results, number)
      spent = time.perf_counter() - started
      results.record({
          'name': 'chats', 'shard': number, 'kept': len(shard['rows']), 'tokens': shard['tokens'],
          'seconds': spent, 'tokens_per_second': shard['tokens'] / spent,
      })
    new = kept.add(shard)
    if questions is None and kept.empty_shards >= _EMPTY_SHARDS:
      say(
          f'The last {_EMPTY_SHARDS} shards of {work.shard_size} chats that {work.name} wrote '
          f'brought no new one ({_counts(kept.left_out)} in all), and more are not tried. Look at '
          f'{results.path / SHARDS}. With other config.filters, another config.question or '
          'template, and another --workdir there may be more.'
      )
      break
    seconds, made = seconds + spent, made + new if spent else made
    say(_progress(kept, number, new, shard['tokens'], spent, seconds / max(made, 1)))
  if not kept.rows:
    raise ValueError(
        f'None of the chats is kept: {_counts(kept.left_out)}. Look at {results.path / SHARDS}, '
        'change config.filters, config.question, or the template, and give another --workdir.'
    )
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in kept.rows)
  path = results.write(CHATS, lines)
  results.write(CARD, card(work, kept))
  say(f'{len(kept.rows):,} chats in {path}; {results.path / CARD} says how they were made.')
  return path


def _progress(kept: Kept, number: int, new: int, tokens: int, spent: float, each: float) -> str:
  """A line about a shard; `each` is the seconds that a kept chat takes."""
  line = f'Shard {number + 1}: {new} kept, {len(kept.rows):,} of {kept.most:,} chats'
  if not spent:
    return f'{line}; it was there.'
  left = each * (kept.most - len(kept.rows))
  return f'{line}; {tokens / spent:,.0f} tokens/s, {left / 60:.0f} min left.'


def _load(work: Synthesis, results: workdir_lib.Workdir, number: int) -> dict[str, Any] | None:
  """A shard that is there already, or None.

  Raises:
    ValueError: if it was made otherwise.
  """
  file = results.path / SHARDS / f'{number:05d}.json'
  if not file.exists():
    return None
  shard = json.loads(file.read_text(encoding='utf-8-sig'))
  if shard['key'] != arms.digest(work.key):
    raise ValueError(
        f'{results.path} holds chats of another config or model. Give another --workdir, or the '
        'same config to go on with it.'
    )
  return shard


def _write(work: Synthesis, results: workdir_lib.Workdir, number: int) -> dict[str, Any]:
  """A shard: a function of the config and its number alone."""
  rng = np.random.default_rng([work.seed, number])
  first_seeds = rng.integers(2**31, size=2)
  left_out: dict[str, int] = {}
  tokens = 0
  if work.instructions is not None:
    here = slice(number * work.shard_size, (number + 1) * work.shard_size)
    asked = [(text, 'stop') for text in work.instructions[here]]
  else:
    header, ends = work.header
    asked, tokens = work.sample(
        [header] * work.shard_size, work.question, (*ends, *work.about.end_tokens),
        int(first_seeds[0]),
    )
  questions, prompts = [], []
  for text, reason in asked:
    text = text.strip()
    why = 'unfinished' if reason != 'stop' else work.filters.question(text)
    prompt = [] if why else work.encode(text)
    if not why and len(prompt) > work.longest_prompt:
      why = 'too long'
    if why:
      left_out[why] = left_out.get(why, 0) + 1
    else:
      questions.append(text)
      prompts.append(prompt)
  rows = []
  if questions:
    answers, written = work.sample(
        prompts, work.answer, work.about.end_tokens, int(first_seeds[1])
    )
    tokens += written
    for question, (text, reason) in zip(questions, answers):
      if why := work.filters.answer(text):
        left_out[why] = left_out.get(why, 0) + 1
      else:
        rows.append(dict(messages=work.messages(question, text), finish_reason=reason))
  shard = dict(key=arms.digest(work.key), tokens=tokens, left_out=left_out, rows=rows)
  results.write(f'{SHARDS}/{number:05d}.json', json.dumps(shard, ensure_ascii=False) + '\n')
  return shard


def _counts(left_out: dict[str, int]) -> str:
  """Reasons and how often each was met, the most frequent first."""
  ranked = sorted(left_out.items(), key=lambda entry: (-entry[1], entry[0]))
  return ', '.join(f'{count:,} {reason}' for reason, count in ranked) or 'nothing was left out'


def card(work: Synthesis, kept: Kept) -> str:
  """What was made, and how, as Markdown; the same for the same chats."""
  finished = sum(row['finish_reason'] == 'stop' for row in kept.rows)
  lengths = [len(row['messages'][-1]['content']) for row in kept.rows]
  asked = 'given' if work.instructions is not None else 'its own'
  sampled = lambda each: (
      f'temperature {float(each.sampling.temperature[0]):g}, top-p '
      f'{float(each.sampling.top_p[0]):g}, at most {each.max_tokens} tokens'
  )
  text = [
      f'# Chats of {work.name}',
      '',
      f'{len(kept.rows):,} chats of one question and one answer, which {work.name} wrote itself; '
      f'questions are {asked}. {finished:,} answers came to their end, the others were cut '
      '(`"finish_reason": "length"`).',
      '',
      '| | |',
      '|---|---|',
      f'| tokens written in all | {kept.tokens:,} |',
      f'| characters of an answer, mean | {sum(lengths) / len(lengths):,.0f} |',
      f'| questions | {sampled(work.question) if asked != "given" else "given"} |',
      f'| answers | {sampled(work.answer)} |',
      f'| left out | {_counts(kept.left_out)} |',
      f'| prompts that questions must not share | {len(work.filters.excluded):,} |',
      f'| seed | {work.seed} |',
      '',
      'Questions are sampled after the chat template up to the user\'s first word (Magpie, Xu et '
      'al. 2024, arXiv 2406.08464).' if asked != 'given' else '',
      '',
      '## The first of them',
      '',
  ]
  for row in kept.rows[:_NUM_EXAMPLES]:
    for message in row['messages']:
      said = ' '.join(message['content'].split())
      said = said if len(said) <= 240 else said[:239] + '…'
      text.append(f'- **{message["role"]}**: {said}')
    text.append('')
  return '\n'.join(text)
