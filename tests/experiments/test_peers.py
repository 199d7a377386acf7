"""The comparison with other engines: the pair, how their output is read, and the rows."""

import dataclasses
import itertools
import json
import os
import pathlib
import stat
import sys

import ml_collections
import ml_dtypes
import numpy as np
import pytest
import rich.console
import sentencepiece

import specjax
from benchmarks import peers
from benchmarks.peers import hugging_face
from benchmarks.peers import llama_cpp
from benchmarks.peers import own
from benchmarks.peers import pair
from benchmarks.peers import prompts as prompts_lib
from benchmarks.peers import rows as rows_lib
from benchmarks.peers import runs
from benchmarks.peers import settings as settings_lib
from benchmarks.peers import tokenizer as tokenizer_lib
from configs import benchmark_peers
from experiments import workdir as workdir_lib
from specjax import drafters
from specjax import models
from specjax import verify
from tests.support import tiny_pair
from tests.support import tolerance

SHAPE = models.TransformerConfig(
    vocab_size=96, width=64, num_layers=4, num_heads=4, num_kv_heads=4, head_dim=16, mlp_width=96
)
RECIPE = pair.Recipe(num_live=24, late_scale=2.0)
PIECES = [
    '<unk>', '<s>', '</s>', *(f'<0x{byte:02X}>' for byte in range(16)), '\u2581t', 'he',
    '\u2581the', 'in', '\u2581a', 'er', '\u2581', *'abcdefghijklmnopqrstuvwxyz.,',
]


@pytest.fixture(scope='module')
def tiny():
  """A tiny target and draft, with live tokens 40 … 95."""
  return pair.make(range(40, 96), config=SHAPE, recipe=RECIPE)


@pytest.fixture(scope='module')
def folder(tiny, tmp_path_factory):
  """A folder as scripts/make_peer_pair.py makes it, with tiny models."""
  root = tmp_path_factory.mktemp('peers') / 'pair'
  pieces = PIECES + [f'\u2581w{index}' for index in range(SHAPE.vocab_size - len(PIECES))]
  root.mkdir()
  tokenizer_lib.from_pieces(pieces).save(str(root / 'tokenizer.json'))
  for name, model in zip(('target', 'draft'), tiny):
    models.save_hf(
        model, root / name, dtype=ml_dtypes.bfloat16, extra_files=[root / 'tokenizer.json']
    )
  prompts = [prompts_lib.Prompt('', (41, 50, 60)), prompts_lib.Prompt('', (44, 45, 46, 47))]
  prompts_lib.write(prompts, root / 'prompts.jsonl')
  return root


def make_task(folder: pathlib.Path, **more) -> runs.Task:
  (task,) = settings_lib.tasks(settings_lib.from_config(make_config(folder)))
  return dataclasses.replace(task, **more)


def make_config(folder) -> ml_collections.ConfigDict:
  config = benchmark_peers.get_config('smoke')
  config.peers.pair, config.peers.zoo = str(folder), ''
  config.peers.threads = 1
  config.peers.dtypes = ('float32',)
  return config


class TestTokenizer:

  def test_merges_as_sentencepiece_does(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    rng = np.random.default_rng(0)
    for _ in range(100):
      text = ''.join(rng.choice(list('thein ar'), size=30))
      ids = tokenizer.encode(text, add_special_tokens=False).ids
      assert [tokenizer.id_to_token(i) for i in ids] == join_greedily(text)
      assert tokenizer.decode(ids) == text
      assert tokenizer_lib.to_bytes(tokenizer, ids) == text.encode()

  def test_bytes_of_byte_pieces(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    ids = tokenizer.encode('a\n\tb', add_special_tokens=False).ids
    assert tokenizer_lib.to_bytes(tokenizer, ids) == b'a\n\tb'

  def test_bytes_of_byte_level_pieces(self):
    tokenizer = tiny_pair.loaded().tokenizer
    text = 'a\n\u00e9 \u4e2d\x00\U0001f600'
    assert tokenizer_lib.to_bytes(tokenizer, tokenizer.encode(text).ids) == text.encode()

  def test_words(self):
    tokenizer = tokenizer_lib.from_pieces(PIECES)
    assert [tokenizer.id_to_token(i) for i in tokenizer_lib.words(tokenizer)] == ['\u2581the']

  def test_trained_one_is_read_alike(self, tmp_path):
    text = pathlib.Path(json.__file__).read_text()
    model = tokenizer_lib.train([text], 400)
    tokenizer_lib.write(model, tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = models.load_tokenizer(tmp_path)
    assert ours.get_vocab_size() == 400
    for start in range(0, 4000, 500):
      cut = text[start : start + 500]
      assert ours.encode(cut, add_special_tokens=False).ids == theirs.encode(cut)


def join_greedily(text: str) -> list[str]:
  """SentencePiece's BPE, straight from its definition."""
  pieces = list(text.replace(' ', '\u2581'))
  while True:
    joined = [
        (PIECES.index(a + b), i)
        for i, (a, b) in enumerate(itertools.pairwise(pieces))
        if a + b in PIECES
    ]
    if not joined:
      return pieces
    place = min(joined)[1]
    pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]


class TestPair:

  def test_the_draft_is_a_part_of_the_target(self, tiny):
    target, draft = tiny
    assert draft.module.config.num_layers == RECIPE.draft_layers
    assert set(draft.params) < set(target.params)
    for name, value in draft.params.items():
      assert value is target.params[name]

  def test_every_weight_is_a_bfloat16_number(self, tiny):
    import jax

    for value in jax.tree.leaves(tiny[0].params):
      value = np.asarray(value)
      np.testing.assert_array_equal(value, value.astype(ml_dtypes.bfloat16).astype(np.float32))

  def test_every_live_token_has_two_successors_and_none_is_itself(self, tiny):
    embedding, head = (np.asarray(tiny[0].params[name]) for name in ('embedding', 'head'))
    live = np.flatnonzero(np.linalg.norm(head, axis=1) > 1.0)
    assert len(live) == RECIPE.num_live and live.min() >= 40
    scores = embedding[live] @ head[live].T
    following = scores > 0.5 * scores.max()
    np.testing.assert_array_equal(following.sum(1), 2)
    assert not np.diag(following).any()

  def test_same_seed_same_weights(self, tiny):
    again, _ = pair.make(range(40, 96), config=SHAPE, recipe=RECIPE)
    np.testing.assert_array_equal(again.params['head'], tiny[0].params['head'])
    other, _ = pair.make(
        range(40, 96), config=SHAPE, recipe=dataclasses.replace(RECIPE, seed=1)
    )
    assert (other.params['head'] != again.params['head']).any()

  @pytest.mark.parametrize(
      'shape, recipe, message',
      [
          (dict(tie_embeddings=True), {}, 'tie_embeddings'),
          ({}, dict(draft_layers=4), 'draft_layers'),
          ({}, dict(num_live=100), 'num_live'),
      ],
  )
  def test_refuses(self, shape, recipe, message):
    with pytest.raises(ValueError, match=message):
      pair.make(
          range(40, 96),
          config=dataclasses.replace(SHAPE, **shape),
          recipe=dataclasses.replace(RECIPE, **recipe),
      )

  def test_full_size(self):
    assert round(pair.TARGET.num_parameters / 1e6) == 97
    draft = dataclasses.replace(pair.TARGET, num_layers=2)
    assert round(draft.num_parameters / 1e6) == 26


class TestPrompts:

  @pytest.mark.usefixtures('compiled_fast')
  def test_passes_are_those_of_the_engine(self, tiny):
    target, draft = tiny
    prompts = [prompts_lib.Prompt('', (41, 50, 60)), prompts_lib.Prompt('', (70, 71))]
    chosen = prompts_lib.choose(
        target, draft, prompts, count=2, num_speculative_tokens=3, new_tokens=24
    )
    assert chosen[0].flips <= chosen[1].flips
    for prompt in chosen:
      output = specjax.generate(
          target,
          [prompt.tokens],
          drafter=drafters.model(draft, num_speculative_tokens=3),
          rule=verify.greedy(),
          max_new_tokens=24,
      )
      assert output.target_passes == prompt.passes
      assert 6 < prompt.passes < 24

  def test_written_and_read(self, tmp_path):
    prompts = [prompts_lib.Prompt('a\n', (1, 2), 7, 0, 1.5), prompts_lib.Prompt('b', (3,))]
    prompts_lib.write(prompts, tmp_path / 'prompts.jsonl')
    assert prompts_lib.read(tmp_path / 'prompts.jsonl') == prompts


# As printed by the build of llama-cpp-python 0.3.36, cut.
COMPLETION = """\
0.00.166.964 I generate: n_ctx = 512, n_batch = 2048, n_predict = 16, n_keep = 0
0.00.985.787 I common_perf_print:    sampling time =       0.62 ms
0.00.985.858 I common_perf_print:    samplers time =       0.18 ms /    80 tokens
0.00.985.901 I common_perf_print:        load time =     124.57 ms
0.00.985.937 I common_perf_print: prompt eval time =     263.16 ms /     3 tokens (    4.11 ms …)
0.00.985.973 I common_perf_print:        eval time =     522.59 ms /    15 runs   (   34.84 ms …)
0.00.986.008 I common_perf_print:       total time =     819.42 ms /    79 tokens
"""
SPECULATIVE = """\
0.21.088.722 I encoded    3 tokens in    0.364 seconds, speed:  175.884 t/s
0.21.088.766 I decoded   18 tokens in   20.445 seconds, speed:    0.880 t/s
0.21.088.801 I
0.21.088.836 I n_draft   = 4
0.21.088.871 I n_predict = 18
0.21.088.906 I n_drafted = 34
0.21.088.941 I n_accept  = 9
0.21.088.975 I accept    = 26.471%
"""
VERBOSE = """\
0.00.316.111 D accepted 0/4 draft tokens, the last target token is: (7282)
0.00.353.090 D accepted 1/4 draft tokens, the last target token is: (1943)
0.00.423.992 D accepted 2/3 draft tokens, the last target token is: (4906)
0.00.475.179 D spec draft:  - seq_id 0, draft candidate   1, pos   3:   5147 (   0.447) ' accepted'
0.00.500.548 D accepted 0/4 draft tokens, the last target token is: (2128)
"""


class TestLlamaCpp:

  def test_plain(self, folder):
    run = llama_cpp.parse_plain(make_task(folder), 0, stdout=b' the end\n\n', stderr=COMPLETION)
    assert run.text == b' the end'
    assert (run.target_passes, run.timed_tokens) == (16, 15)
    assert run.seconds == tolerance.approx(0.52259 + 0.00062)
    assert run.prefill_seconds == tolerance.approx(0.26316)

  def test_speculative(self, folder):
    run = llama_cpp.parse_speculative(
        make_task(folder),
        0,
        prompt_text=b'for\nit',
        target_passes=9,
        stdout=b'\n\nfor\nit the end\n\n\n\n',
        stderr=SPECULATIVE,
    )
    assert run.text == b' the end'
    assert (run.timed_tokens, run.seconds) == (18, 20.445)
    assert (run.proposed, run.accepted) == (34, 9)

  @pytest.mark.parametrize('new_tokens, passes', [(1, 1), (2, 2), (3, 2), (6, 3), (7, 4)])
  def test_passes_until_there_are_enough_tokens(self, new_tokens, passes):
    assert llama_cpp.parse_passes(VERBOSE, new_tokens) == passes

  def test_says_what_it_does_not_understand(self, folder):
    task = make_task(folder)
    with pytest.raises(ValueError, match='another release'):
      llama_cpp.parse_passes(VERBOSE, 8)
    with pytest.raises(ValueError, match='another release'):
      llama_cpp.parse_plain(task, 0, stdout=b'', stderr='something else')
    with pytest.raises(ValueError, match='tokenizers differ'):
      llama_cpp.parse_plain(task, 0, stdout=b'', stderr=COMPLETION.replace(' 3 tok', ' 4 tok'))
    with pytest.raises(ValueError, match='another prompt'):
      llama_cpp.parse_speculative(
          task, 0, prompt_text=b'a', target_passes=1, stdout=b'b', stderr=SPECULATIVE
      )

  def test_a_folder_that_is_no_build(self, tmp_path):
    with pytest.raises(ValueError, match='llama-completion'):
      llama_cpp.check(tmp_path)
    with pytest.raises(ValueError, match=r'CMakeCache\.txt'):
      llama_cpp.source(tmp_path)
    (tmp_path / 'CMakeCache.txt').write_text('A:B=C\nCMAKE_HOME_DIRECTORY:INTERNAL=/src/x\n')
    assert llama_cpp.source(tmp_path) == pathlib.Path('/src/x')


class TestTransformers:

  def test_what_its_script_writes(self, folder):
    task = make_task(folder, max_new_tokens=3)
    row = dict(
        method='assisted', round=0, prompt=1, tokens=[41, 42, 43], target_passes=2,
        emitted=[1, 2], timed_tokens=2, seconds=0.5, prefill_seconds=0.25,
    )
    (run,) = hugging_face.parse(task, [row])
    assert run == runs.Run(runs.DRAFT, 1, task.to_bytes([41, 42, 43]), 2, 2, 0.5, 0.25)
    with pytest.raises(ValueError, match='2 tokens where 3'):
      hugging_face.parse(task, [row | {'tokens': [41, 42]}])

  def test_a_failing_interpreter_is_quoted(self, folder, tmp_path):
    program = write_program(tmp_path / 'python', "raise SystemExit('No module named torch')")
    with pytest.raises(ValueError, match='No module named torch'):
      hugging_face.Engine(make_task(folder), 'float32', python=program).run()


def measured(engine: str, seconds: dict[str, float], text: bytes = b'abc', passes: int = 10):
  """An engine that continued two prompts by 20 tokens."""
  return rows_lib.Measured(
      engine,
      {},
      tuple(
          runs.Run(method, prompt, text, 20 if method == runs.PLAIN else passes, 20, each, 0.1)
          for method, each in seconds.items()
          for prompt in (1, 0)
      ),
  )


@pytest.fixture(scope='module')
def rows(folder):
  """The rows of three engines, by engine and drafter."""
  task = make_task(folder, max_new_tokens=20)
  engines = [
      measured('specjax', {runs.PLAIN: 2.0, runs.DRAFT: 1.0, runs.LOOKUP: 2.0}),
      measured('transformers', {runs.PLAIN: 4.0, runs.DRAFT: 2.0, runs.LOOKUP: 4.0}, passes=11),
      measured('llama.cpp', {runs.PLAIN: 1.0, runs.DRAFT: 1.0}, text=b'abcd'),
  ]
  all_rows = rows_lib.rows(task, 'float32', engines)
  return {(row['engine'], row['drafter']): row for row in all_rows}


class TestRows:

  def test_ratios(self, rows):
    assert len(rows) == 8
    own_row = rows['specjax', 'model']
    assert own_row['tokens_per_second'] == 20
    assert own_row['speedup'] == 2
    assert (own_row['over_transformers'], own_row['over_llama_cpp']) == (2, 1)
    assert rows['specjax', 'ngram']['over_llama_cpp'] is None
    assert rows['transformers', 'none']['over_llama_cpp'] == 0.25
    assert own_row['mean_acceptance_length'] == 2

  def test_the_fields_of_every_row_and_more(self, rows):
    names = {field.name for field in dataclasses.fields(rows_lib.records.Record)}
    for row in rows.values():
      assert names < set(row)
      assert row['new_tokens'] / row['seconds'] == tolerance.approx(row['tokens_per_second'])

  def test_equal_passes(self, rows):
    assert rows['llama.cpp', 'model']['equal_passes'] is True
    assert rows['transformers', 'model']['equal_passes'] is False
    assert rows['transformers', 'ngram']['equal_passes'] is None
    assert 'passes [11, 11] where specjax takes [10, 10]' in rows_lib.differences(
        list(rows.values())
    )[0]

  def test_text_may_be_a_little_longer(self, rows):
    assert all(row['identical_to_plain'] for row in rows.values())
    assert rows['llama.cpp', 'model']['same_text_as_specjax'] == 2

  def test_bytes(self, rows, tiny):
    target, draft = (model.module.config for model in tiny)
    embedding = 96 * 64
    plain = 4 * (target.num_parameters - embedding)
    row = rows['specjax', 'none']
    assert row['weight_bytes_per_token'] == plain
    assert row['gigabytes_per_second'] == tolerance.approx(plain * 10 / 1e9)
    both = plain + 4 * 4 * (draft.num_parameters - embedding)
    assert rows['specjax', 'model']['weight_bytes_per_token'] == both / 2

  def test_account(self, rows):
    (line,) = rows_lib.account(list(rows.values()))
    assert 'specjax' in line and 'llama.cpp' in line

  def test_other_text_is_counted(self, folder):
    engines = [
        measured('specjax', {runs.PLAIN: 2.0}),
        measured('transformers', {runs.PLAIN: 2.0}, text=b'xyz'),
    ]
    rows = rows_lib.rows(make_task(folder), 'float32', engines)
    assert rows[1]['same_text_as_specjax'] == 0
    assert 'in 0 of 2 prompts' in rows_lib.differences(rows)[-1]

  def test_the_fastest_round_counts(self):
    run = runs.Run(runs.PLAIN, 0, b'a', 4, 4, 2.0, 0.1)
    quick = dataclasses.replace(run, seconds=1.0)
    assert runs.fastest([run, quick, run]) == [quick]
    with pytest.raises(ValueError, match='different texts'):
      runs.fastest([run, dataclasses.replace(run, text=b'b')])


FAKE_TRANSFORMERS = """
import json, sys
request = json.load(sys.stdin)
out = sys.argv[2].removeprefix('--out=')
count = request['max_new_tokens']
with open(out, 'w') as file:
  print(json.dumps({'versions': {'torch': '0', 'transformers': '0'}}), file=file)
  for method in request['methods']:
    for index, _ in enumerate(request['prompts']):
      print(json.dumps({
          'method': method, 'round': 0, 'prompt': index, 'tokens': [50] * count,
          'target_passes': count, 'timed_tokens': count - 1, 'seconds': 1.0,
          'prefill_seconds': 0.1}), file=file)
"""


def write_program(path: pathlib.Path, text: str) -> str:
  """A program that runs `text` with this interpreter."""
  path.write_text(f'#!{sys.executable}\n{text}\n')
  path.chmod(path.stat().st_mode | stat.S_IXUSR)
  return str(path)


class TestRun:

  def test_all_engines(self, folder, tmp_path):
    config = make_config(folder)
    config.peers.python = write_program(tmp_path / 'python', FAKE_TRANSFORMERS)
    build = tmp_path / 'B'
    (build / 'bin').mkdir(parents=True)
    log = COMPLETION.replace('16', '8').replace('15 runs', ' 7 runs')
    program = f'import sys; sys.stderr.write({log!r}); print(" aa")'
    write_program(build / 'bin' / 'llama-completion', program)
    log = SPECULATIVE + VERBOSE.replace('2/3', '4/4')
    text = 'print(sys.argv[sys.argv.index("-p") + 1] + " aab")'
    program = f'import sys; sys.stderr.write({log!r}); {text}'
    write_program(build / 'bin' / 'llama-speculative-simple', program)
    config.peers.llama_cpp = str(build)
    for name in ('target', 'draft'):
      (folder / name / f'{name}-f32.gguf').touch()
    (folder / 'target' / 'tokenizer.model').touch()

    workdir, cores = tmp_path / 'run', os.sched_getaffinity(0)
    with open(tmp_path / 'console', 'w') as file:
      peers.run(config, str(workdir), console=rich.console.Console(file=file, width=200))
    rows = workdir_lib.read_rows(workdir)
    assert [row['name'] for row in rows] == [
        'specjax: plain', 'transformers: plain', 'llama.cpp: plain',
        'specjax: draft model', 'transformers: draft model', 'llama.cpp: draft model',
        'specjax: prompt lookup', 'transformers: prompt lookup',
    ]
    assert all(row['new_tokens'] == 8 for row in rows)
    assert all(row['identical_to_plain'] for row in rows)
    assert rows[1]['versions']['torch'] == '0'
    text = (tmp_path / 'console').read_text()
    assert 'not run' not in text and 'target passes' in text
    assert os.sched_getaffinity(0) == cores

  def test_a_model_without_a_draft(self, folder, tmp_path):
    file = tmp_path / 'question.jsonl'
    file.write_text('{"turns": ["the in a er", "more"]}\n{"prompt": "in the"}\n')
    config = make_config(folder)
    config.peers.pair, config.peers.model = '', str(folder / 'target')
    with pytest.raises(ValueError, match='config.peers.model needs prompts'):
      settings_lib.from_config(config)
    config.prompt_file, config.num_prompts = str(file), 0
    with open(tmp_path / 'console', 'w') as screen:
      rows = peers.run(config, str(tmp_path / 'run'), console=rich.console.Console(file=screen))
    assert [row['name'] for row in rows] == ['specjax: plain', 'specjax: prompt lookup']
    assert [row['prompts'] for row in rows] == [2, 2]
    assert all(row['identical_to_plain'] for row in rows)

  def test_says_what_was_not_run(self, folder):
    lines = settings_lib.absent(settings_lib.from_config(make_config(folder)))
    assert 'transformers was not run' in lines[0] and 'llama.cpp was not run' in lines[1]

  @pytest.mark.parametrize(
      'field, value, message',
      [
          ('threads', 0, 'threads'),
          ('dtypes', ('float16',), 'dtypes'),
          ('pair', '/nowhere', 'make_peer_pair'),
          ('pair', '', 'nothing to run'),
          ('python', '/nowhere', 'not a program'),
          ('llama_cpp', '/nowhere', 'llama-completion'),
      ],
  )
  def test_refuses(self, folder, tmp_path, field, value, message):
    config = make_config(folder)
    with config.peers.ignore_type():
      config.peers[field] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
      peers.run(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()

  def test_the_zoo_pair_is_a_task(self):
    config = benchmark_peers.get_config('smoke')
    (task,) = settings_lib.tasks(settings_lib.from_config(config))
    assert len(task.prompts) == 1 and len(task.prompts[0]) == config.prompt_tokens
    assert (task.target / 'config.json').is_file() and (task.draft / 'config.json').is_file()


def test_own_engine_counts_what_the_other_engines_count(folder):
  engine = own.Engine(make_task(folder), 'float32')
  by_method = {run.method: run for run in engine.run() if not run.prompt}
  assert set(by_method) == {runs.PLAIN, runs.DRAFT, runs.LOOKUP}
  assert {run.text for run in by_method.values()} == {by_method[runs.PLAIN].text}
  assert by_method[runs.PLAIN].target_passes == 8
  # Where the last round's own token is cut off, one token fewer than accepted + 1 is emitted.
  drafted = by_method[runs.DRAFT]
  assert drafted.target_passes - (8 - drafted.accepted) in (0, 1)
