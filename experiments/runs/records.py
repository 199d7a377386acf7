"""What `experiments.build` makes of a config, and everything else runs."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import tokenizers

from experiments.runs import origin
from specjax import models
from specjax import sharding

Prompt = tuple[str, tuple[int, ...]]  # name, tokens


@dataclasses.dataclass(frozen=True)
class Loaded:
  """A target and what comes with it.

  Attributes:
    target: the model.
    tokenizer: of the model.
    stop_tokens: ids that end a text.
    held_out: texts for prompts (`name`, `text`) that the target was not trained on.
    pair: the zoo's pair, or None for a target from a folder.
    layouts: of target and draft over several devices, or None.
    name: of the target, for people.
    chat_template: Jinja source of its chat template, or None.
    special_tokens: texts of special tokens by name, for the template.
  """

  target: models.LanguageModel
  tokenizer: tokenizers.Tokenizer
  stop_tokens: tuple[int, ...]
  held_out: tuple[Any, ...]
  pair: Any
  layouts: sharding.Layouts | None = None
  name: str = 'the target'
  chat_template: str | None = None
  special_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Target:
  """A target that is loaded when it is needed.

  Attributes:
    key: equal for equal targets.
    load: loads it.
  """

  key: str
  load: Callable[[], Loaded]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """How a drafter is made once its target is loaded.

  Attributes:
    kind: of drafter, as tables show it: 'model', 'eagle_tree', 'my_module:make'.
    create: (loaded, K, reference, reference_lengths) -> drafter.
    num_speculative_tokens: K of a chain, 0 where it is left open; None where the drafter has a
      shape of its own, as trees have.
    is_chain: whether it proposes chains.
    shape: tree, siblings and options in words; '' where there are none.
    free: of a combination, the recipe of the drafter that looks up.
    learned: of a combination, the other one.
    needs_reference: whether it drafts from what plain decoding gives.
    weights: which head drafts, and how, where it is not the one that comes with the target.
    longest: loaded -> the largest K that its head drafts, or None where there is no such bound.
  """

  kind: str
  create: Callable[..., Any]
  num_speculative_tokens: int | None
  is_chain: bool
  shape: str = ''
  free: 'Recipe | None' = None
  learned: 'Recipe | None' = None
  needs_reference: bool = False
  weights: str = ''
  longest: Callable[[Loaded], int | None] = lambda loaded: None

  def make(
      self,
      loaded: Loaded,
      *,
      num_speculative_tokens: int | None = None,
      reference: Any = None,
      reference_lengths: Any = None,
  ) -> Any:
    """The drafter; `num_speculative_tokens` replaces the recipe's K."""
    length = num_speculative_tokens or self.num_speculative_tokens
    return self.create(loaded, length, reference, reference_lengths)


@dataclasses.dataclass(frozen=True)
class Method:
  """A way of decoding.

  Attributes:
    rule: the verification rule; for plain decoding, its sampler.
    temperature: 0 is greedy.
    sampling: batch size -> `specjax.types.Sampling`.
    drafter: or None for plain decoding.
    kind: of drafter; 'none' for plain decoding.
  """

  rule: Any
  temperature: float
  sampling: Callable[[int], Any]
  drafter: Any = None
  kind: str = 'none'

  @property
  def num_nodes(self) -> int:
    """Drafted tokens per round."""
    return 0 if self.drafter is None else self.drafter.num_nodes

  @property
  def samples(self) -> bool:
    """Whether it draws tokens that plain decoding would not draw with the same seed."""
    return self.rule.mode == 'sample' and bool(self.temperature)


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What the programs of an arm are compiled for, and the seeds of its rows.

  Attributes:
    batch_size: rows that run together.
    max_new_tokens: of each prompt.
    cache_length: S; None takes what the longest prompt needs.
    prefill_chunk: tokens of a prefill pass.
    width: tokens per pass of plain decoding; None takes the fast one.
    seed: of the first row; row i has seed + i.
    stops: whether a row ends at the model's end tokens.
  """

  batch_size: int
  max_new_tokens: int
  cache_length: int | None
  prefill_chunk: int
  width: int | None
  seed: int
  stops: bool = False


@dataclasses.dataclass(frozen=True)
class Prompts:
  """What an arm runs on.

  Attributes:
    timed: names and tokens.
    other: more prompts, from which acceptance is learned for the forecast.
    note: a sentence about those that were cut, or that serve twice; '' for none.
  """

  timed: Sequence[Prompt]
  other: Sequence[Prompt] = ()
  note: str = ''

  @property
  def longest(self) -> int:
    """Tokens of the longest one."""
    return max(len(tokens) for _, tokens in (*self.timed, *self.other))


# What is traced of an arm: every round of all rows, the first row in a run of its own, or nothing.
TRACE_ALL, TRACE_FIRST, TRACE_NONE = 'all', 'first', ''


@dataclasses.dataclass(frozen=True)
class Arm:
  """One drafter under one rule: a row of a sweep, or a method of a benchmark.

  Attributes:
    key: digest of all that its numbers depend on.
    name: in tables.
    label: in messages.
    fields: (field, value) pairs that it changes in the config.
    target: its target.
    recipe: of its drafter.
    rule: the verification rule.
    temperature: 0 is greedy.
    sampling: batch size -> `specjax.types.Sampling`.
    sizes: of its programs.
    prompts: loaded -> `Prompts`.
    prompts_key: digest of what they depend on.
    num_seeds: runs of each prompt above temperature 0.
    plain_key: digest of what plain decoding depends on, but for rule and width.
    cost_key: digest of what costs depend on, but for drafter, rule and K.
    trace: `TRACE_ALL`, `TRACE_FIRST` or `TRACE_NONE`.
    models: digests of its models' files.
  """

  key: str
  name: str
  label: str
  fields: tuple[tuple[str, Any], ...]
  target: Target
  recipe: Recipe
  rule: Any
  temperature: float
  sampling: Callable[[int], Any]
  sizes: Sizes
  prompts: Callable[[Loaded], Prompts]
  prompts_key: str
  num_seeds: int
  plain_key: str
  cost_key: str
  trace: str
  models: origin.Models

  def method(self, drafter: Any) -> Method:
    """Decoding with a drafter; None is plain decoding with the arm's own rule."""
    kind = 'none' if drafter is None else self.recipe.kind
    return Method(self.rule, self.temperature, self.sampling, drafter, kind)


@dataclasses.dataclass(frozen=True)
class Costs:
  """How costs are calibrated.

  Attributes:
    rounds: timed in one go.
    repetitions: of every program.
    dtypes: to choose from; () keeps the target's.
    max_num_speculative_tokens: the least K to measure up to.
    curve: whether target passes of 2, 3, 5, 8 … tokens are measured, besides the arms' own.
  """

  rounds: int
  repetitions: int
  dtypes: tuple[str, ...] = ()
  max_num_speculative_tokens: int = 1
  curve: bool = False


@dataclasses.dataclass(frozen=True)
class Study:
  """Arms to run, and what is done with each.

  Attributes:
    arms: in the order of the table.
    repetitions: timings of each run; 0 times nothing.
    law: whether sampled tokens are tested against the target's law.
    strict: whether an arm that is not lossless fails; else its row says so.
    acceptance_batch: rows of a batch of the other prompts.
    costs: how they are calibrated, or None.
    question: that the arms answer; '' for none.
    baseline: (field, value) pairs: the arm that each one is compared with.
    retry_failed: whether failed arms run again.
    fresh: whether finished arms run again, and costs are measured again.
  """

  arms: tuple[Arm, ...]
  repetitions: int
  law: bool
  strict: bool
  acceptance_batch: int = 1
  costs: Costs | None = None
  question: str = ''
  baseline: tuple[tuple[str, Any], ...] = ()
  retry_failed: bool = False
  fresh: bool = False
