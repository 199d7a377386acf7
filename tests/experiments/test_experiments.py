"""The command lines, run in this process on tiny random models, and what they refuse."""

import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from configs import train_eagle3_zoo
from configs import train_early_exit_zoo
from configs import train_medusa_zoo
from configs import zoo
from configs import train_distill_zoo
from experiments import build
from experiments import cli
from experiments import display
from experiments import generate
from experiments import prompts
from experiments import train
from experiments import workdir as workdir_lib
from experiments.runs import corpus
from specjax import engine
from specjax import heads
from specjax import models
from specjax import stats
from specjax.analysis import traces
from specjax.output import GenerateOutput
from specjax.training import data
from tests.support import tiny_folders
from tests.support import tolerance

pytestmark = pytest.mark.usefixtures('compiled_fast')
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with target/ and draft/, and files/ of a corpus."""
  folder = tmp_path_factory.mktemp('models')
  files = folder / 'files'
  files.mkdir()
  for i in range(6):
    (files / f'module_{i}.py').write_text(''.join(tiny_folders.TEXTS) * (20 + i) + f'x = {i}\n')
  (files / 'queue.py').write_text(''.join(tiny_folders.TEXTS[::-1]) * 20)  # a held-out name
  source = ROOT.joinpath('tests/support/tiny.py').read_text()
  tokenizer = data.train_tokenizer([''.join(tiny_folders.TEXTS), source], tiny_folders.VOCAB)
  tokenizer.save(str(folder / 'tokenizer.json'))
  extra = dict(extra_files=[folder / 'tokenizer.json'], eos_ids=(0,))
  tiny_folders.save(folder / 'target', 0, **extra)
  tiny_folders.save(folder / 'draft', 1)
  other = folder / 'other.json'  # another tokenizer
  shouted = [''.join(tiny_folders.TEXTS).upper(), source.upper()]
  data.train_tokenizer(shouted, tiny_folders.VOCAB).save(str(other))
  tiny_folders.save(folder / 'other', 2, vocab_size=tiny_folders.VOCAB + 1)
  shutil.copy(other, folder / 'other' / 'tokenizer.json')
  return folder


def config_for(folder, **fields):
  """configs/zoo.py for the tiny models; fields by dotted name with __ for the dots."""
  config = zoo.get_config('smoke')
  config.dtype = 'float32'
  config.target.path, config.drafter.path = str(folder / 'target'), str(folder / 'draft')
  config.prompt = 'def main():\n  '
  for name, value in fields.items():
    *parents, last = name.split('__')
    node = config
    for parent in parents:
      node = node[parent]
    node[last] = value
  return config


def console(**kwargs):
  return rich.console.Console(file=io.StringIO(), width=200, **kwargs)


def run(config, workdir, **kwargs):
  """Generates; returns the outputs, the rows of outputs.jsonl and what was shown."""
  screen = console(**kwargs)
  outputs = generate.run(config, str(workdir), console=screen)
  rows = [json.loads(line) for line in (workdir / 'outputs.jsonl').read_text().splitlines()]
  return outputs, rows, screen.file.getvalue()


# Generation.


def test_every_drafter_gives_the_same_greedy_text(folder, tmp_path):
  _, rows, shown = run(config_for(folder, drafter__kind='none'), tmp_path / 'plain')
  assert len(rows) == 1 and rows[0]['finish_reason'] in ('length', 'stop')
  assert rows[0]['text'] in shown and '\x1b' not in shown
  (metrics,) = workdir_lib.read_rows(tmp_path / 'plain')
  assert metrics['drafter'] == 'none' and metrics['new_tokens'] == len(rows[0]['tokens'])
  assert json.loads((tmp_path / 'plain' / 'config.json').read_text())['max_new_tokens'] == 16
  for kind, fields in {
      'model': dict(stream=True, drafter__min_confidence=0.01, trace=True, logprobs='raw'),
      'synthetic': dict(drafter__parents=(0, 0, 1)),
      'model_tree': dict(drafter__tree='dynamic 8,3,3'),
      'combined': dict(drafter__learned='model_tree', drafter__min_match=2),
  }.items():
    config = config_for(folder, drafter__kind=kind, **fields)
    _, others, shown = run(config, tmp_path / kind)
    assert others[0]['tokens'] == rows[0]['tokens'], kind
    assert rows[0]['text'] in shown
  (metrics,) = workdir_lib.read_rows(tmp_path / 'model')
  assert metrics['num_speculative_tokens'] == 4 and metrics['draft_acceptance_rate'] is not None
  traced = json.loads((tmp_path / 'model' / 'outputs.jsonl').read_text())
  assert ''.join(traced['pieces']) == traced['text']
  assert sum(len(r['emitted']) for r in traced['rounds']) == len(traced['tokens'])
  assert len(traced['logprobs']) == len(traced['tokens']) and traced['logprobs_of'] == 'raw'


def test_a_draft_with_another_tokenizer(folder, tmp_path):
  other = dict(drafter__path=str(folder / 'other'), drafter__translate=True)
  _, rows, _ = run(config_for(folder, drafter__kind='none'), tmp_path / 'plain')
  _, others, _ = run(config_for(folder, drafter__kind='model_tree', **other), tmp_path / 'tree')
  assert others[0]['tokens'] == rows[0]['tokens']
  (metrics,) = workdir_lib.read_rows(tmp_path / 'tree')
  assert metrics['drafter'] == 'model_tree'


@pytest.mark.parametrize('text, parents', [
    ('3', (0, 0, 0)), ('2,1', (0, 0, 1, 2)), ('0 1 0.0', (0, 0, 1)),
])
def test_trees_by_text(text, parents):
  assert build.tree(text).parents == parents


def test_samples_have_seeds_of_their_own_and_do_not_depend_on_batches(folder, tmp_path):
  file = tmp_path / 'question.jsonl'
  lines = [
      {'question_id': i, 'category': 'code', 'turns': [text, 'more']}
      for i, text in enumerate(tiny_folders.TEXTS)
  ]
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  fields = dict(
      prompt='', prompt_file=str(file), num_prompts=0, num_samples=2, sampling__temperature=1.0,
      rule__name='coupled', max_new_tokens=8,
  )
  _, rows, shown = run(config_for(folder, **fields), tmp_path / 'all')
  assert [row['prompt'] for row in rows] == ['code/0', 'code/0', 'code/1', 'code/1']
  assert [row['seed'] for row in rows] == [0, 1, 2, 3]
  assert rows[0]['tokens'] != rows[1]['tokens']
  assert 'code/1, sample 2 of 2' in shown
  # Coupled: the drafter does not matter, and nor does who else is in the batch.
  fields |= dict(batch_size=2, drafter__kind='ngram')
  _, others, _ = run(config_for(folder, **fields), tmp_path / 'pairs')
  assert [row['tokens'] for row in others] == [row['tokens'] for row in rows]


@pytest.mark.parametrize('rule', ['auto', 'typical'])
def test_other_rules_run(folder, tmp_path, rule):
  config = config_for(
      folder, rule__name=rule, sampling__temperature=0.7, sampling__top_p=0.9,
      stop_strings=('zzz',), max_new_tokens=8,
  )
  run(config, tmp_path / 'run')
  (metrics,) = workdir_lib.read_rows(tmp_path / 'run')
  assert metrics['rule'].startswith('block' if rule == 'auto' else rule)


def test_nothing_is_left_behind_where_nothing_was_generated(folder, tmp_path):
  with pytest.raises(ValueError, match='There is no prompt'):
    generate.run(config_for(folder, prompt=''), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(drafter__kind='eagel'), "config.drafter.kind must be one of 'none', 'combined'"),
        (dict(drafter__tree='3,x'), "must be children by depth .*got '3,x'"),
        (dict(drafter__tree='dynamic 9,1,2'), '2 candidates'),
        (dict(drafter__tree='0 1.0'), r'needs \(1,\)'),
        (dict(drafter__siblings='best'), "siblings must be one of '', 'rank'"),
        (dict(drafter__kind='combined', drafter__free='model'), 'drafter.free must be one of'),
        (dict(drafter__kind='combined', drafter__path='OTHER'), 'drafter.translate'),
        (dict(rule__name='fast'), "config.rule.name must be one of 'auto', 'greedy'"),
        (dict(dtype='int4'), "config.dtype must be one of 'auto', 'bfloat16'"),
        (dict(logprobs='both'), "config.logprobs must be one of '', 'raw'"),
        (dict(sampling__temperature=-1.0), 'temperature must be finite and >= 0'),
        (dict(sampling__top_p=0.0), r'top_p must be in \(0, 1\]'),
        (dict(sampling__top_p=1.5), r'top_p must be in \(0, 1\]'),
        (dict(rule__name='greedy', sampling__temperature=0.5), 'set it to 0, or take another rule'),
        (dict(rule__name='typical', rule__epsilon=2.0, sampling__temperature=1.0), 'epsilon'),
        (dict(drafter__num_speculative_tokens=0), 'num_speculative_tokens must be at least 1'),
        (dict(drafter__min_confidence=1.5), 'min_confidence must be in'),
        (dict(num_samples=0), 'config.num_samples must be at least 1'),
        (dict(num_samples=2), 'would give equal samples'),
        (dict(batch_size=0), 'config.batch_size must be at least 1'),
        (dict(max_new_tokens=0), 'max_new_tokens must be at least 1'),
        (dict(max_new_tokens=250), 'more than the 256 positions'),
        (dict(cache_length=8), 'cache_length is 8. Shorten the prompt'),
        (dict(prompt=''), 'There is no prompt: give --config.prompt'),
        (dict(prompt_file='x.txt'), 'either config.prompt or config.prompt_file'),
        (dict(prompt='', prompt_file='x.txt'), 'There is no prompt file x.txt'),
        (dict(target__path='nowhere'), 'nowhere is not a folder'),
        (dict(target__path='', target__name='nothing'), "no pair named 'nothing'; there are"),
        (dict(drafter__path=''), 'comes without a draft: give --config.drafter.path'),
        (dict(drafter__path='OTHER'), 'vocabulary of 301 tokens, the target of 300'),
        (dict(stop_strings=('',)), 'A stop string is empty'),
    ],
)
def test_bad_input_is_refused_before_any_compute(folder, tmp_path, fields, message, monkeypatch):
  fields = {k: str(folder / 'other') if v == 'OTHER' else v for k, v in fields.items()}
  monkeypatch.setattr(engine, 'prefill_chunk', None)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    generate.run(config_for(folder, **fields), str(tmp_path / 'run'), console=console())
  assert not (tmp_path / 'run').exists()


def test_logits_that_are_not_numbers_leave_nothing_behind(folder, tmp_path):
  extra = dict(extra_files=[folder / 'tokenizer.json'])
  tiny_folders.save(tmp_path / 'broken', 0, scale=float('nan'), **extra)
  config = config_for(folder, target__path=str(tmp_path / 'broken'), drafter__kind='none')
  with pytest.raises(FloatingPointError, match='Check the weights'):
    generate.run(config, str(tmp_path / 'run'), console=console())
  assert not (tmp_path / 'run').exists()


def test_a_truncated_model_is_refused(folder, tmp_path):
  shutil.copytree(folder / 'target', tmp_path / 'cut')
  weights = tmp_path / 'cut' / 'model.safetensors'
  weights.write_bytes(weights.read_bytes()[:-100])
  config = config_for(folder, target__path=str(tmp_path / 'cut'))
  with pytest.raises(ValueError, match=r'model\.safetensors'):
    generate.run(config, str(tmp_path / 'run'), console=console())
  assert not (tmp_path / 'run').exists()


# Prompts.


def test_prompts_come_from_text_files_and_standard_input(tmp_path):
  (tmp_path / 'a.py').write_text('x = 1\n')
  rows = [{'question_id': 7, 'category': 'math', 'turns': ['one?', 'two?']}, {'turns': ['three?']}]
  (tmp_path / 'b.jsonl').write_text('\n'.join(json.dumps(row) for row in rows) + '\n\n')
  assert prompts.texts(prompt='hello') == [('prompt', 'hello')]
  assert prompts.texts(file=str(tmp_path / 'a.py')) == [('a.py', 'x = 1\n')]
  assert prompts.texts(file='-', stdin=io.StringIO('typed\n')) == [('stdin', 'typed\n')]
  found = prompts.texts(file=str(tmp_path / 'b.jsonl'))
  assert [text for _, text in found] == ['one?', 'three?'] and found[0][0] == 'math/7'


@pytest.mark.parametrize(
    'content, message',
    [
        ('{"turns": ["a"]}\nnot json\n', r'b.jsonl, line 2 is not JSON'),
        ('{"turns": []}\n', 'line 1 must be an object with "turns"'),
        ('{"answer": "x"}\n', 'line 1 must be an object with "turns"'),
        ('{"prompt": 3}\n', 'line 1 must be an object with "turns"'),
        ('["x"]\n', 'line 1 must be an object with "turns"'),
        ('\n', 'has no rows'),
        ('{"question_id": 1, "turns": [""]}', 'question/1 is empty'),
    ],
)
def test_a_wrong_row_of_prompts_is_named(tmp_path, content, message):
  (tmp_path / 'b.jsonl').write_text(content)
  with pytest.raises(ValueError, match=message):
    prompts.texts(file=str(tmp_path / 'b.jsonl'))


def test_a_binary_prompt_file_is_refused(tmp_path):
  (tmp_path / 'a.bin').write_bytes(b'\xff\xfe\x00')
  with pytest.raises(ValueError, match='not UTF-8'):
    prompts.texts(file=str(tmp_path / 'a.bin'))


def test_prompts_are_cut_by_tokens(folder):
  tokenizer = models.load_tokenizer(folder)
  (prompt,) = prompts.encode([('a', ''.join(tiny_folders.TEXTS))], tokenizer, max_tokens=3)
  assert len(prompt.tokens) == 3 and ''.join(tiny_folders.TEXTS).startswith(prompt.text)
  with pytest.raises(ValueError, match='at least 0'):
    prompts.encode([('a', 'b')], tokenizer, max_tokens=-1)


# Display.


class Letters:
  """A tokenizer of one character a token; 0 and 1 together are one character, é."""

  def decode(self, ids):
    data = b''.join({0: b'\xc3', 1: b'\xa9'}.get(i, bytes([i])) for i in ids)
    return data.decode(errors='replace')


def output_of(text_ids, *, running=False, text=None):
  """An output of one row with a trace: tokens in pairs, an accepted one and a bonus."""
  count = len(text_ids)
  rounds = (count + 1) // 2
  fields = dict(
      tokens=np.array([[65, *text_ids]], np.int32), prompt_lengths=np.array([1]),
      lengths=np.array([1 + count]), finish_reasons=('running' if running else 'length',),
      logprobs=None, logprobs_of=None, stats=None, target_passes=rounds, seconds=1.0,
      prefill_seconds=0.0, drafter_state=None,
      texts=(Letters().decode(text_ids) if text is None else text,),
  )
  ones = np.ones((1, rounds, 1), np.int32)
  trace = stats.Trace(
      starts=1 + 2 * np.arange(rounds)[None], tokens=ones, parents=0 * ones, valid=ones > 0,
      path=ones, num_accepted=ones[..., 0], next_token=ones[..., 0], is_bonus=ones[..., 0] > 0,
      accept_probs=ones, target_probs=ones, draft_probs=ones,
  )
  return GenerateOutput(**fields, trace=trace)


def test_accepted_tokens_are_coloured_on_a_terminal_only():
  output = output_of([ord(c) for c in 'ab[c\n'])
  coloured, plain = console(force_terminal=True, color_system='standard'), console()
  none = console(force_terminal=True, color_system='standard', no_color=True)
  for screen in (coloured, plain, none):
    display.TokenStream(screen, Letters()).update(output)
  assert plain.file.getvalue() == none.file.getvalue() == 'ab[c\n'
  green = '\x1b[32m'
  shown = coloured.file.getvalue()
  assert shown.startswith(f'{green}a\x1b[0mb{green}[\x1b[0mc') and shown.count(green) == 2
  assert display.wants_trace(coloured) and not display.wants_trace(none)


def test_a_stream_holds_back_what_may_still_change():
  ids = [ord('x'), 0, 1, ord('s'), ord('t'), ord('o'), ord('p'), ord('y')]
  screen = console()
  stream = display.TokenStream(screen, Letters(), stop_strings=('stop',))
  seen = []
  for count in range(1, 8):
    over = count == 7
    stream.update(output_of(ids[:count], running=not over, text='xé' if over else None))
    seen.append(screen.file.getvalue())
  assert seen == ['', '', '', '', 'x', 'xé', 'xé']
  # Without stop strings only the unfinished character is held back.
  screen = console()
  stream = display.TokenStream(screen, Letters())
  for count in (1, 2, 3):
    stream.update(output_of(ids[:count], running=True))
    seen.append(screen.file.getvalue())
  assert seen[-3:] == ['x', 'x', 'xé']


def test_tables_and_durations():
  screen = console()
  row = {'name': 'a', 'speed': 1234.56, 'rate': 0.123456, 'same': True, 'none': None}
  screen.print(display.table([row]))
  shown = screen.file.getvalue()
  assert '1,234.6' in shown and '0.123 ' in shown and ' yes ' in shown and '–' in shown
  durations = [display.duration(s) for s in (41.7, 185, 7800)]
  assert durations == ['42 s', '3 min 5 s', '2 h 10 min']


# Training.


def test_training_resumes_after_sigkill_to_the_same_curve(folder, tmp_path):
  whole = tmp_path / 'whole'
  model = train.run(tiny_folders.train_config(folder), str(whole), console=console())
  expected = [
      {k: v for k, v in row.items() if not k.startswith(('tokens', 'seconds', 'origin'))}
      for row in workdir_lib.read_rows(whole)
  ]
  assert [row['step'] for row in expected] == [5, 10, 10, 15, 20, 20]
  assert expected[-1]['kind'] == 'held_out' and expected[-1]['loss'] < expected[0]['loss']
  described = json.loads((model / 'training.json').read_text())
  assert described['held_out']['loss'] == expected[-1]['loss']
  assert described['corpus']['train']['files'] == 4 and 'PSF' in described['corpus_licence']
  assert models.load_hf(model).params['embedding'].dtype == jnp.bfloat16
  assert models.load_eos_ids(model) == (0,)
  assert str(tmp_path.parent) not in (model / 'training.json').read_text()

  killed = tmp_path / 'killed'
  child = subprocess.Popen(
      [sys.executable, '-m', 'tests.support.tiny_folders', str(folder), str(killed)],
      stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {'JAX_PLATFORMS': 'cpu'},
  )
  while child.stdout.readline().strip() != '15':
    assert child.poll() is None
  deadline = time.monotonic() + 30
  while not list((killed / 'checkpoints').glob('10/_CHECKPOINT_METADATA')):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  child.send_signal(signal.SIGKILL)
  child.communicate()
  assert not (killed / 'model').exists()
  assert workdir_lib.read_rows(killed)[-1]['step'] == 15

  screen = console()
  train.run(tiny_folders.train_config(folder), str(killed), console=screen)
  assert 'Going on from step 10' in screen.file.getvalue()
  again = workdir_lib.read_rows(killed)
  for row, other in zip(again, expected, strict=True):
    assert {k: row[k] for k in other} == other

  with pytest.raises(ValueError, match='seed was 0 and is 5.*another --workdir'):
    train.run(tiny_folders.train_config(folder, seed=5), str(killed), console=console())


def test_a_draft_is_distilled_from_a_target(folder, tmp_path):
  config = tiny_folders.train_config(folder, train_distill_zoo, num_steps=10)
  config.target.path = str(folder / 'target')
  config.corpus.tokenizer = ''
  screen = console(force_terminal=True, color_system=None)
  model = train.run(config, str(tmp_path / 'run'), console=screen)
  assert models.load_config(model).num_layers == 1
  row = workdir_lib.read_rows(tmp_path / 'run')[-1]
  mixed = 0.9 * row['kl'] + 0.1 * row['cross_entropy']
  assert row['loss'] == tolerance.approx(mixed, roundings=64, dtype='float32')
  assert 0 < row['acceptance'] < 1 and 0 <= row['agreement'] <= 1
  assert models.load_tokenizer(model).to_str() == models.load_tokenizer(folder).to_str()
  assert 'Saved the model' in screen.file.getvalue()


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(model__vocab_size=400), 'has 300 tokens, the model 400'),
        (dict(target__path='TARGET', model__vocab_size=400), 'of 300 tokens, the draft of 400'),
        (dict(target__path='DRAFT', corpus__tokenizer='no.json'), 'no.json does not exist'),
        (dict(distillation__kl_weight=0.5), 'no target to distil from'),
        (dict(distillation__kl_weight=1.5, target__path='TARGET'), r'must be in \[0, 1\]'),
        (dict(corpus__root='nowhere'), 'expected the folder of a standard library'),
        (dict(batch_size=10_000), 'lower batch_size'),
        (dict(held_out_windows=10_000), 'lower n or seq_len'),
        (dict(gradient_accumulation=3), 'choose a divisor'),
        (dict(model__num_kv_heads=3), 'num_heads must be a multiple'),
    ],
)
def test_training_that_cannot_work_is_refused(folder, tmp_path, fields, message):
  config = tiny_folders.train_config(folder)
  paths = {'TARGET': str(folder / 'target'), 'DRAFT': str(folder / 'draft')}
  for name, value in fields.items():
    parent, _, last = name.rpartition('__')
    node = config[parent] if parent else config
    node[last] = paths.get(value, value)
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    train.run(config, str(tmp_path / 'run'), console=console())
  assert not (tmp_path / 'run' / 'metrics.jsonl').exists()


def test_a_corpus_is_made_once_and_belongs_to_its_tokenizer(folder, tmp_path):
  said = []
  options = dict(vocab_size=280, root=folder / 'files', say=said.append)
  made = corpus.prepare(tmp_path / 'corpus', **options)
  again = corpus.prepare(tmp_path / 'corpus', **options)
  assert len(said) == 3 and said[-1].startswith('Using the corpus')
  np.testing.assert_array_equal(made.train.ids, again.train.ids)
  assert made.info == again.info and made.info['held_out']['files'] == 1
  with pytest.raises(ValueError, match='another tokenizer'):
    corpus.prepare(tmp_path / 'corpus', **options, tokenizer=models.load_tokenizer(folder))


# The command line.


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'Say what to run'),
        (['--config=configs/no.py'], 'no config file configs/no.py. In its folder:.*zoo.py'),
        (['--config=configs/zoo.py:tiny'], "no argument or ':smoke', not 'tiny'"),
        (['--config', 'configs/zoo.py', '--config.promt=x'], 'Did you mean --config.prompt.'),
        (['--config=configs/zoo.py', '--config.drafter.K=3'], 'config.drafter has no field .K.'),
        (['--config=configs/zoo.py', '--config.qqq=3'], 'It has: batch_size'),
        (['--config=configs/zoo.py', '--config.seed.x=3'], 'config.seed is a value'),
    ],
)
def test_the_command_line_says_what_exists(arguments, message, monkeypatch):
  monkeypatch.chdir(ROOT)
  with pytest.raises(ValueError, match=message):
    cli._check_config_flags(['prog', *arguments])


def test_a_right_command_line_passes(monkeypatch):
  monkeypatch.chdir(ROOT)
  cli._check_config_flags(['prog', '--config=configs/zoo.py:smoke', '--config.stream'])
  cli._check_config_flags(['prog', '--help'])


def test_a_mistake_ends_in_one_line(tmp_path):
  command = [
      sys.executable, '-m', 'experiments.generate', '--config=configs/zoo.py',
      '--config.sampling.temperature=-1', f'--workdir={tmp_path / "run"}',
  ]
  ended = subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {'JAX_PLATFORMS': 'cpu'}
  )
  assert ended.returncode == 1 and not (tmp_path / 'run').exists()
  assert ended.stderr.startswith('error: temperature must be finite and >= 0')
  assert ended.stderr.count('\n') == 1


def test_sources_are_those_of_the_analysis():
  assert set(display.COLOURS) == {traces.ACCEPTED, 'prompt'}


def test_auto_dtype_follows_the_release(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'cpu')
  monkeypatch.setattr(jax, '__version__', '0.10.2')
  assert build.dtype('auto') == jnp.float32
  monkeypatch.setattr(jax, '__version__', '0.12.0.1')
  assert build.dtype('auto') == jnp.bfloat16


# Heads.


@pytest.mark.parametrize('kind', ['eagle', 'medusa', 'early_exit'])
def test_a_head_is_trained_by_its_recipe_and_resumes_bitwise(folder, tmp_path, kind):
  """Stored features, acceptance length measured, and the head loads again for its target."""
  deep = tmp_path / 'target'
  tiny_folders.save(deep, 3, num_layers=3, extra_files=[folder / 'tokenizer.json'])
  recipe = {'eagle': train_eagle3_zoo, 'medusa': train_medusa_zoo,
            'early_exit': train_early_exit_zoo}[kind]
  config = tiny_folders.train_config(folder, recipe, num_steps=20 if kind == 'eagle' else 10)
  config.target.path, config.corpus.tokenizer = str(deep), ''
  config.corpus.path = str(tmp_path / 'corpus')
  config.batch_size, config.evaluate_every = 4, 10
  config.features.update(stored=kind == 'eagle', layers=(), max_windows=8)
  config.model.update(width=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_width=16)
  if kind == 'early_exit':
    config.head.exit_layer = 1
  screen = console()
  model = train.run(config, str(tmp_path / 'whole'), console=screen)
  rows = workdir_lib.read_rows(tmp_path / 'whole')
  assert rows[-1]['kind'] == 'held_out' and 1.0 <= rows[-1]['acceptance_length'] <= 5.0
  assert rows[-1]['loss'] < rows[0]['loss'] and 0 < rows[-1]['acceptance_1'] < 1
  loaded = models.load_hf(deep)
  load = {'eagle': heads.load_eagle, 'medusa': heads.load_medusa,
          'early_exit': heads.load_early_exit}[kind]
  assert load(model, loaded).config.target_width == 16
  if kind != 'eagle':
    return
  assert 'Storing features of 256 tokens' in screen.file.getvalue()
  # Cut at step 10 and gone on with: the same curve to the last bit.
  config.features.path = str(tmp_path / 'whole' / 'features')
  kept = pathlib.Path('checkpoints', '10')
  shutil.copytree(tmp_path / 'whole' / kept, tmp_path / 'cut' / kept)
  train.run(config, str(tmp_path / 'cut'), console=console())
  again = {r['step']: r for r in workdir_lib.read_rows(tmp_path / 'cut') if r['kind'] == 'train'}
  whole = {r['step']: r for r in rows if r['kind'] == 'train'}
  assert set(again) == {15, 20}
  for step, row in again.items():
    for name in ('loss', 'gradient_norm'):
      assert row[name] == whole[step][name]


def test_training_of_heads_that_cannot_work_is_refused(folder, tmp_path):
  config = tiny_folders.train_config(folder, train_eagle3_zoo)
  config.target.path = ''
  with pytest.raises(ValueError, match="kind='eagle' trains a head of a target"):
    train.run(config, str(tmp_path / 'a'), console=console())
  config.kind = 'other'
  with pytest.raises(ValueError, match='config.kind must be one of'):
    train.run(config, str(tmp_path / 'b'), console=console())
  config = tiny_folders.train_config(folder)
  config.samples.num_samples = 4
  with pytest.raises(ValueError, match='samples of a target, and there is none'):
    train.run(config, str(tmp_path / 'c'), console=console())
