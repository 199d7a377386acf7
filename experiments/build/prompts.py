"""The prompts of a study: held-out windows, texts of a file, or turns of chats."""

from collections.abc import Sequence

import ml_collections
import numpy as np

import specjax
from experiments import prompts as prompts_lib
from experiments.build import values
from experiments.runs import records

ConfigDict = ml_collections.ConfigDict

CHAT = ('auto', 'on', 'off')
# Fewer prompts make no interval worth the name.
FEWEST = 4


def prompts(settings: ConfigDict, loaded: records.Loaded) -> records.Prompts:
  """The prompts of an arm, and the others, from which its acceptance is foretold.

  Raises:
    ValueError: if there are too few, or a chat is asked for and the target has no template.
  """
  num_other = settings.acceptance.num_prompts if 'acceptance' in settings else 0
  shares = num_other and settings.acceptance.may_share
  wanted, note = settings.num_prompts + num_other, ''
  if loaded.held_out and not settings.prompt_file:
    tokens = loaded.pair.prompts(wanted, length=settings.prompt_tokens)
    rows = [(f'held out/{i}', tuple(each)) for i, each in enumerate(tokens)]
  elif is_chat(settings, loaded):
    rows, note = _of_chats(settings, loaded, wanted), _note_on_length(settings)
  else:
    encoded = _of_texts(settings, loaded, wanted)
    rows = [(each.name, each.tokens) for each in encoded]
    note = prompts_lib.describe_cuts(encoded)
  count = min(settings.num_prompts, len(rows)) if shares else settings.num_prompts
  if shares and FEWEST <= len(rows) < wanted:
    shared = f'The forecast knows the acceptance of the same {len(rows)} prompts that are timed.'
    return records.Prompts(rows[:count], rows, ' '.join(filter(None, [note, shared])))
  if len(rows) < wanted:
    fields = 'config.num_prompts' + (' and config.acceptance.num_prompts' if num_other else '')
    raise ValueError(
        f'{fields}: {wanted} prompts were asked for, {settings.prompt_file} holds {len(rows)}. '
        + (f'At least {FEWEST} are needed.' if shares else 'Ask for fewer.')
    )
  return records.Prompts(rows[:count], rows[count:], note)


def _note_on_length(settings: ConfigDict) -> str:
  if not settings.prompt_tokens:
    return ''
  return 'Chats are never cut: config.prompt_tokens is not looked at.'


def is_chat(settings: ConfigDict, loaded: records.Loaded) -> bool:
  """Whether prompts are turns of chats, in the target's template.

  Raises:
    ValueError: for `chat='on'` where the target has none.
  """
  values.choice('chat', settings.chat, CHAT)
  if settings.chat == 'on' and loaded.chat_template is None:
    raise ValueError(
        f'config.chat=on, but {loaded.name} has no chat template: give one with '
        '--config.target.chat_template=FILE, or set --config.chat=off.'
    )
  return settings.chat != 'off' and loaded.chat_template is not None


def _of_texts(settings, loaded: records.Loaded, wanted: int) -> list[prompts_lib.Prompt]:
  texts = prompts_lib.texts(
      file=settings.prompt_file,
      held_out=loaded.held_out,
      category=settings.get('prompt_category', ''),
  )
  return prompts_lib.encode(
      prompts_lib.by_turns(texts),
      loaded.tokenizer,
      max_tokens=settings.prompt_tokens,
      num_prompts=wanted,
  )


def _of_chats(settings, loaded: records.Loaded, wanted: int) -> list[records.Prompt]:
  """Every turn of so many chats that there are enough prompts; answers are plain decoding's."""
  conversations = prompts_lib.conversations(
      file=settings.prompt_file, category=settings.get('prompt_category', '')
  )
  chosen, count = [], 0
  for each in prompts_lib.by_turns(conversations):
    if count >= wanted:
      break
    chosen.append(each)
    count += len(each.turns)
  rows, answers = [], {each.name: [] for each in chosen}
  for turn in range(max((len(each.turns) for each in chosen), default=0)):
    here = [each for each in chosen if turn < len(each.turns)]
    tokens = {
        each.name: tuple(chat_tokens(settings, loaded, each, turn, answers[each.name]))
        for each in here
    }
    rows += [(each.name_of_turn(turn), tokens[each.name]) for each in here]
    following = [each for each in here if turn + 1 < len(each.turns)]
    if following:
      texts = _answers(settings, loaded, [tokens[each.name] for each in following])
      for each, text in zip(following, texts):
        answers[each.name].append(text)
  return rows[:wanted]


def chat_tokens(
    settings: ConfigDict,
    loaded: records.Loaded,
    conversation: prompts_lib.Conversation,
    turn: int,
    answers: Sequence[str],
) -> list[int]:
  """A chat up to one of its turns, in the target's template."""
  return prompts_lib.chat_tokens(
      conversation, turn, answers, template=loaded.chat_template, tokenizer=loaded.tokenizer,
      special_tokens=loaded.special_tokens, system=settings.system,
  )


def _answers(settings, loaded: records.Loaded, tokens: Sequence[tuple[int, ...]]) -> list[str]:
  """What the target answers to each, greedily: the same whatever is measured later."""
  output = specjax.decode(
      loaded.target,
      [list(each) for each in tokens],
      max_new_tokens=settings.max_new_tokens,
      stop_tokens=loaded.stop_tokens,
      tokenizer=loaded.tokenizer,
      prefill_chunk=settings.prefill_chunk,
      seeds=np.zeros(len(tokens), np.int32),
  )
  return list(output.texts)
