"""Where models come from: paths first, then the hub's cache, each failure with what to do."""

import errno
import pathlib
import types

import huggingface_hub
from huggingface_hub import errors
import pytest

from specjax.models import hub



def response(status: int):
  """What the errors of huggingface_hub ask for."""
  request = types.SimpleNamespace(url='', method='GET', headers={})
  return types.SimpleNamespace(
      status_code=status, headers={}, request=request, url='', text='', history=()
  )


@pytest.fixture
def fetched(monkeypatch, tmp_path):
  """What is asked of the hub; it gives a folder."""
  calls = []

  def snapshot(repo, **options):
    calls.append((repo, options))
    return str(tmp_path)

  def download(repo, file, **options):
    calls.append((repo, file, options))
    return str(tmp_path / file)

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
  monkeypatch.setattr(huggingface_hub, 'hf_hub_download', download)
  return calls


def test_a_path_comes_first(fetched, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('org/model').mkdir(parents=True)
  assert hub.fetch('org/model') == pathlib.Path('org/model') and not fetched


def test_a_repository_gives_the_files_that_are_needed(fetched, tmp_path):
  assert hub.fetch('org/model-1.5@v2.0') == tmp_path
  (repo, options), = fetched
  assert repo == 'org/model-1.5' and options['revision'] == 'v2.0'
  assert {'*.json', '*.safetensors', '*.jinja'} <= set(options['allow_patterns'])
  hub.fetch('org/model', without_weights=True)
  assert fetched[-1][1]['revision'] is None
  assert not {'*.safetensors', 'pytorch_model*.bin'} & set(fetched[-1][1]['allow_patterns'])


def test_a_file_of_a_repository(fetched, tmp_path):
  assert hub.fetch('org/model/model.Q4.gguf@main') == tmp_path / 'model.Q4.gguf'
  assert fetched == [('org/model', 'model.Q4.gguf', {'revision': 'main'})]


@pytest.mark.parametrize('source', ['nowhere', './org/model', '/a/b/c', 'a/b/c/d', 'model.gguf'])
def test_what_is_neither_is_refused(source, fetched):
  with pytest.raises(FileNotFoundError, match='not a folder, nor a .gguf file, nor the id'):
    hub.fetch(source)
  assert not fetched


@pytest.mark.parametrize('error, kind, message', [
    (lambda: errors.GatedRepoError('x', response=response(403)), PermissionError,
     'is gated: ask for access .* HF_TOKEN'),
    (lambda: errors.RepositoryNotFoundError('x', response=response(404)), FileNotFoundError,
     'no model org/model on the hub, or it is private'),
    (lambda: errors.RevisionNotFoundError('x', response=response(404)), FileNotFoundError,
     "no revision 'v9'"),
    (lambda: errors.LocalEntryNotFoundError('x'), FileNotFoundError, 'the hub cannot be reached'),
    (lambda: errors.OfflineModeIsEnabled('x'), FileNotFoundError, 'HF_HUB_OFFLINE'),
    (lambda: OSError(errno.ENOSPC, 'No space left'), OSError, 'no room .* set HF_HOME'),
])
def test_failures_say_what_to_do(error, kind, message, monkeypatch):
  def fail(*args, **options):
    raise error()

  monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
  with pytest.raises(kind, match=message):
    hub.fetch('org/model@v9')
