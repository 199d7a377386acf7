"""Jinja as chat templates are written for it: the settings and names that transformers gives them.

A template comes with a model from anywhere, so that it runs in Jinja's sandbox, where it can
neither reach Python nor change what it is given. What transformers 5.24 closes of that sandbox
beyond Jinja 3.1.6 is closed here too.
"""

from collections.abc import Mapping
import datetime
import functools
import json
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
import jinja2.utils


class _Refusal(jinja2.TemplateError):
  """Raised by a template that calls `raise_exception`."""


class _Undefined(jinja2.Undefined):
  """What is not defined. A name that is not is an error where its text is asked for.

  Jinja's own writes nothing there, which would lose a BOS silently. A part that a message or a
  tool does not have stays without a text: templates write what is optional like that.
  """

  def __str__(self):
    if self._undefined_obj is jinja2.utils.missing:
      self._fail_with_undefined_error()
    return ''


class _Generation(jinja2.ext.Extension):
  """`{% generation %}` … `{% endgeneration %}`: marks for training, which write nothing."""

  tags = {'generation'}

  def parse(self, parser):
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    # As in transformers, names that are set inside are not set afterwards.
    return jinja2.nodes.CallBlock(self.call_method('_write'), [], [], body).set_lineno(line)

  def _write(self, caller):
    return caller()


class _Namespace(jinja2.utils.Namespace):
  """Jinja's `namespace` without names that begin with an underscore, which reach into Python."""

  def __init__(*args, **kwargs):  # positional, as Jinja's own: `self` may be a name of it
    for name in dict(*args[1:], **kwargs):
      _refuse_private(name)
    jinja2.utils.Namespace.__init__(*args, **kwargs)

  def __setitem__(self, name, value):
    _refuse_private(name)
    super().__setitem__(name, value)


class _Dict:
  """`dict` as templates use it, which is no type."""

  def __call__(self, *args, **kwargs):
    return dict(*args, **kwargs)

  def fromkeys(self, *args):
    return dict.fromkeys(*args)


def render(template: str, variables: Mapping[str, Any]) -> str:
  """The text of a chat template.

  Args:
    template: its source.
    variables: the names that it may use.

  Raises:
    ValueError: for a template that cannot be parsed or rendered, that refuses the messages, or
      that writes a name which is not defined.
  """
  try:
    return _compile(template).render(variables)
  except jinja2.TemplateSyntaxError as error:
    raise ValueError(
        f'The chat template is not valid Jinja: {error.message} (line {error.lineno}). Fetch it '
        'again, or give another template.'
    ) from error
  except _Refusal as error:
    raise ValueError(
        f'The chat template refuses these messages: {str(error).rstrip(".")}. Change their roles '
        'or their order, or give another template.'
    ) from error
  except jinja2.UndefinedError as error:
    raise ValueError(
        f'The chat template expects more than it was given: {error}. Give special tokens '
        '(bos_token, eos_token, …) among special_tokens, other names as arguments of their own, '
        'and what belongs to a message or a tool there.'
    ) from error
  except Exception as error:  # whatever the template does with its values
    raise ValueError(
        f'The chat template cannot be rendered ({type(error).__name__}: {error}). Check that it '
        'is a template for chats, and that it takes messages of this form.'
    ) from error


@functools.lru_cache(maxsize=16)
def _compile(template: str) -> jinja2.Template:
  return _environment().from_string(template)


@functools.cache
def _environment() -> jinja2.Environment:
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      undefined=_Undefined,
      extensions=[_Generation, jinja2.ext.loopcontrols],
  )
  environment.filters['tojson'] = _to_json
  environment.globals['dict'] = _Dict()
  environment.globals['namespace'] = _Namespace
  environment.globals['raise_exception'] = _raise
  environment.globals['strftime_now'] = lambda form: datetime.datetime.now().strftime(form)
  return environment


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
  """JSON as it is; Jinja's own filter writes <, > and & as they stand in HTML."""
  return json.dumps(
      value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _refuse_private(name):
  if str(name).startswith('_'):
    raise jinja2.sandbox.SecurityError(f'a namespace takes no name such as {name!r}')


def _raise(message):
  raise _Refusal(message)
