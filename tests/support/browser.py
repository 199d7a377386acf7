"""A real headless browser for tests: Chromium or Chrome, wherever it is on this machine."""

import functools
import os
import pathlib
import shutil
import subprocess

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable', 'chrome')
PLACES = (
    '~/.cache/ms-playwright/chromium*/*/chrome',
    '~/.cache/ms-playwright/chromium*/*/headless_shell',
    '~/Library/Caches/ms-playwright/chromium*/*/Chromium.app/Contents/MacOS/Chromium',
)
MISSING = (
    'NOT TESTED: no Chromium or Chrome was found, so no report was opened in a browser. Install '
    'one (Debian: apt install chromium), or name it with SPECJAX_BROWSER.'
)


@functools.cache
def find() -> str | None:
  """The path of a browser that runs, or None."""
  candidates = [os.environ.get('SPECJAX_BROWSER', ''), *map(shutil.which, NAMES)]
  for place in PLACES:
    pattern = pathlib.Path(place).expanduser()
    root = pathlib.Path(pattern.anchor)
    candidates += sorted(map(str, root.glob(str(pattern.relative_to(root)))))
  for candidate in filter(None, candidates):
    # Ubuntu's chromium may be a script that only says how to install the real one.
    try:
      done = subprocess.run([candidate, '--version'], capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
      continue
    if done.returncode == 0:
      return candidate
  return None
