"""Where a model lies: a folder, a `.gguf` file, or the Hugging Face hub's cache.

A hub id is `organisation/model`, with `@revision` after it for a branch, a tag or a commit, or
`organisation/model/file.gguf`. huggingface_hub fetches the files that are needed into its own
cache, and none that it has; its switches hold (`HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`).
"""

import errno
import os
import pathlib
import re

# Not: other frameworks' weights, pictures, examples.
_SMALL = ('*.json', '*.jinja', 'tokenizer.model')
_WEIGHTS = ('*.safetensors', 'pytorch_model*.bin', 'medusa_lm_head.pt')
_ID = re.compile(
    r'(?P<repo>[\w.-]+/[\w.-]+?)(/(?P<file>[\w./-]+\.gguf))?(@(?P<revision>[\w./-]+))?'
)


def fetch(source: str | os.PathLike, *, without_weights: bool = False) -> pathlib.Path:
  """The folder or file of a model, fetched from the hub where it is no path.

  Args:
    source: a folder, a file, or a hub id.
    without_weights: fetch the small files alone, for a config or a tokenizer.

  Returns:
    The folder, or the `.gguf` file.

  Raises:
    FileNotFoundError: if there is neither a path nor a model of this name, or it is not in the
      cache and the hub cannot be reached.
    PermissionError: if the model may be read only by those to whom access was granted.
    ModuleNotFoundError: if huggingface_hub is not installed and a hub id is given.
    OSError: if the disk has no room for it.
  """
  path = pathlib.Path(source).expanduser()
  if path.exists():
    return path
  match = _ID.fullmatch(str(source))
  if match is None or str(source).startswith(('.', '~')):
    raise FileNotFoundError(
        f'{source} is not a folder, nor a .gguf file, nor the id of a model on the hub '
        "('organisation/model', with '@revision' after it if another one than main is meant)."
    )
  return _from_hub(match['repo'], match['file'], match['revision'], without_weights)


def _from_hub(
    repo: str, file: str | None, revision: str | None, without_weights: bool
) -> pathlib.Path:
  """Fetches from the hub, or finds it in the cache."""
  try:
    import huggingface_hub
    from huggingface_hub import errors
  except ImportError as error:
    raise ModuleNotFoundError(
        f'{repo} is no folder here, and fetching it from the hub needs huggingface_hub: '
        '`pip install huggingface_hub`, or give a folder.'
    ) from error
  name = f'{repo}@{revision}' if revision else repo
  try:
    if file:
      return pathlib.Path(huggingface_hub.hf_hub_download(repo, file, revision=revision))
    folder = huggingface_hub.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=[*_SMALL, *(() if without_weights else _WEIGHTS)],
        ignore_patterns=['*/*'],
    )
    return pathlib.Path(folder)
  except errors.GatedRepoError as error:
    raise PermissionError(
        f'{name} is gated: ask for access on its page on the hub, then log in with `hf auth '
        'login` or set HF_TOKEN.'
    ) from error
  except errors.RevisionNotFoundError as error:
    raise FileNotFoundError(f'{repo} has no revision {revision!r} on the hub.') from error
  except errors.RepositoryNotFoundError as error:
    raise FileNotFoundError(
        f'There is no folder {name}, and no model {repo} on the hub, or it is private: check the '
        'id, and log in with `hf auth login` if it is yours.'
    ) from error
  except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError) as error:
    raise _offline(name) from error
  except errors.EntryNotFoundError as error:
    raise FileNotFoundError(f'{repo} has no file {file!r} on the hub.') from error
  except OSError as error:
    if error.errno == errno.ENOSPC:
      raise OSError(
          f'There is no room for {name} in the cache of huggingface_hub: free some, or set '
          'HF_HOME to a folder on another disk. What was fetched is kept, and a second call goes '
          'on from there.'
      ) from error
    if isinstance(error, FileNotFoundError) or 'connect' in str(error).lower():
      raise _offline(name) from error
    raise


def _offline(name: str) -> FileNotFoundError:
  return FileNotFoundError(
      f'{name} is not a folder, it is not in the cache of huggingface_hub, and the hub cannot be '
      'reached (or HF_HUB_OFFLINE is set). Fetch it on a machine with a network (`hf download '
      f'{name.partition("@")[0]}`) and copy the cache or the folder here.'
  )
