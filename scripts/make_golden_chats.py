r"""Makes the golden chats of the tests: texts and tokens of chat templates, by `transformers`.

    python -m venv /tmp/golden
    /tmp/golden/bin/pip install transformers==5.24.0 jinja2==3.1.6
    /tmp/golden/bin/python scripts/make_golden_chats.py tests/golden/chats.json \
        --published=llama.cpp/models/templates

The templates here are small, and each has some of what published ones are written with. Of those
that are published (llama.cpp collects them; `tests/support/published_templates.py` fetches them)
only digests of the texts are kept.
"""

import argparse
import hashlib
import json
import pathlib

import jinja2
import tokenizers
import transformers

SPECIAL = ('<unk>', '<s>', '</s>', '<|im_start|>', '<|im_end|>', '<|header|>')
SPECIAL_TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}

TEMPLATES = {
    # Blocks and lines: what trim_blocks and lstrip_blocks take away, and a last line break.
    'marks': r"""
{% for message in messages %}
    {% if not loop.first %}

    {% endif %}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' -}}
{% endif %}
""",
    # A BOS of its own, a system text that is set apart, filters, slices and reversal.
    'headers': r"""
{{- bos_token }}
{%- if messages[0].role == 'system' %}
  {%- set system = messages[0].content | trim %}
  {%- set messages = messages[1:] %}
{%- else %}
  {%- set system = '' %}
{%- endif %}
{{- '<|header|>system: ' ~ system ~ ' (' ~ (messages | length) ~ ')</s>' }}
{%- for message in messages %}
  {{- '<|header|>' + message.role | upper + ': ' + (message.content | trim) + '</s>' }}
{%- endfor %}
{%- if add_generation_prompt and (messages[::-1] | first).role == 'user' %}
  {{- '<|header|>ASSISTANT: ' }}
{%- endif %}
""",
    # Roles that must alternate, a namespace, and an exception where they do not.
    'refusals': r"""
{{ bos_token }}{% set state = namespace(number=0) %}
{% for message in messages %}
    {% if message['role'] == 'system' %}
        {{ raise_exception('There is no system role here.') }}
    {% endif %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate: ' + message['role']) }}
    {% endif %}
    {%- if message['role'] == 'user' -%}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else -%}
        {{ ' ' + message['content'] + eos_token }}{% set state.number = state.number + 1 %}
    {%- endif -%}
{% endfor %}
{{ state.number }}
""",
    # Tools as JSON in several layouts, and calls that a message brings along.
    'tools': r"""
{%- if tools %}
{{- 'Tools:' }}
{%- for tool in tools %}
{{ tool | tojson }}
{{ tool | tojson(indent=2) }}
{{ tool | tojson(separators=(',', ':'), sort_keys=True) }}
{{ tool | tojson(ensure_ascii=True) }}
{%- endfor %}
{%- endif %}
{%- for message in messages %}
  {%- if message.tool_calls %}
    {%- for call in message.tool_calls %}
      {{- '<|im_start|>call ' + call.function.name + ' ' + call.function.arguments | tojson }}
    {%- endfor %}
  {%- endif %}
  {{- '<|im_start|>' + message.role + ' ' + message.content + '<|im_end|>' }}
{%- endfor %}
{%- if documents is not none %}{{ 'documents' }}{% endif %}
""",
    # Loop controls, and marks for training around an answer, with a name that is set inside.
    'controls': r"""
{%- set last = 'nothing' %}
{%- for message in messages %}
  {%- if message.role == 'system' %}{% continue %}{% endif %}
  {%- if loop.index > 4 %}{{ '…' }}{% break %}{% endif %}
  {%- if message.role == 'assistant' %}
    {%- generation %}
      {%- set last = message.content %}
      {{- message.content + '<|im_end|>' }}
    {%- endgeneration %}
    {{- '(' + last + ')' }}
  {%- else %}
    {{- '[' + message.role + '] ' + message.content }}
  {%- endif %}
{%- endfor %}
{{- ' ' + last + strftime_now(' at %%') }}
""",
    # Macros, tests of what is not defined, and thoughts that are taken out of earlier answers.
    'thoughts': r"""
{%- macro answer(content, thoughts=true) %}
  {%- if '</think>' in content and not thoughts %}
    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
  {%- endif %}
  {{- '<|im_start|>assistant\n' + content + '<|im_end|>\n' }}
{%- endmacro %}
{%- for message in messages %}
  {%- if message.role == 'assistant' %}
    {{- answer(message.content, thoughts=loop.last) }}
  {%- else %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
  {%- endif %}
  {%- if message.name is defined %}{{ '(' + message.name + ')' }}{% endif %}
{%- endfor %}
{%- if nowhere is not defined and not nowhere %}{{ nowhere | default('') }}{% endif %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\n' }}
  {%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\n\n</think>\n\n' }}
  {%- endif %}
{%- endif %}
""",
}

SYSTEM = {'role': 'system', 'content': '  Be brief. '}
QUESTION = {'role': 'user', 'content': 'What is <2> & "2"?\n'}
ANSWER = {'role': 'assistant', 'content': '<think>\neasy\n</think>\n\n Four: été, 四.'}
NEXT = {'role': 'user', 'content': 'And <s>the next one</s>?'}
TOOL = {
    'type': 'function',
    'function': {
        'name': 'weather', 'description': 'The weather “there” & <now>.',
        'parameters': {
            'type': 'object', 'properties': {'town': {'type': 'string'}}, 'required': ['town'],
        },
    },
}
CALL = {
    'role': 'assistant', 'content': '',
    'tool_calls': [{
        'type': 'function', 'id': 'abcdefghi',
        'function': {'name': 'weather', 'arguments': {'town': 'Zürich'}},
    }],
}
RESULT = {'role': 'tool', 'content': '{"sky": "grey"}', 'tool_call_id': 'abcdefghi'}

CHATS = {
    'question': dict(messages=[QUESTION]),
    'system': dict(messages=[SYSTEM, QUESTION]),
    'turns': dict(messages=[QUESTION, ANSWER, NEXT]),
    'everything': dict(messages=[SYSTEM, QUESTION, ANSWER, NEXT, ANSWER, NEXT]),
    'answered': dict(messages=[QUESTION, ANSWER], add_generation_prompt=False),
    'two questions': dict(messages=[QUESTION, NEXT]),
    'tools': dict(messages=[QUESTION, CALL, RESULT], tools=[TOOL]),
    'without thoughts': dict(messages=[QUESTION], enable_thinking=False),
}
# Of the published templates, which write a date unless they are given one.
PUBLISHED = (
    'meta-llama-Llama-3.1-8B-Instruct', 'meta-llama-Llama-3.2-3B-Instruct',
    'meta-llama-Llama-3.3-70B-Instruct', 'Qwen-Qwen2.5-7B-Instruct', 'Qwen-Qwen3-0.6B',
    'google-gemma-2-2b-it', 'mistralai-Mistral-Nemo-Instruct-2407',
)  # fmt: skip
DATE = dict(date_string='26 Jul 2024')


def byte_tokenizer() -> tokenizers.Tokenizer:
  """A token for each byte, the special ones, and a BOS that is added to plain texts."""
  pieces = [*SPECIAL, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())]
  vocab = {piece: number for number, piece in enumerate(pieces)}
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.add_special_tokens(list(SPECIAL))
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
      single='<s> $A', pair=None, special_tokens=[('<s>', 1)]
  )
  return tokenizer


def rendered(tokenizer, template: str, chat: dict) -> dict:
  """Text and tokens, or the error of a template that refuses the chat."""
  options = dict(add_generation_prompt=True) | chat
  messages = options.pop('messages')
  apply = lambda **more: tokenizer.apply_chat_template(
      messages, chat_template=template, **options, **more
  )
  try:
    text = apply(tokenize=False)
  except jinja2.TemplateError as error:
    return dict(error=str(error))
  tokens = apply(tokenize=True, return_dict=False)
  return dict(text=text, tokens=' '.join(map(str, tokens)))


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('output', type=pathlib.Path)
  parser.add_argument('--published', type=pathlib.Path, required=True, help='Folder of templates.')
  arguments = parser.parse_args()
  tokenizer = transformers.PreTrainedTokenizerFast(
      tokenizer_object=byte_tokenizer(), **SPECIAL_TOKENS
  )
  published = {}
  for name in PUBLISHED:
    template = (arguments.published / f'{name}.jinja').read_text(encoding='utf-8-sig')
    published[name] = {}
    for title, chat in CHATS.items():
      result = rendered(tokenizer, template, chat | DATE)
      digest = hashlib.sha256(result.get('text', '').encode()).hexdigest()
      published[name][title] = digest if 'text' in result else None
  golden = dict(
      versions=dict(transformers=transformers.__version__, jinja2=jinja2.__version__),
      special_tokens=SPECIAL_TOKENS,
      tokenizer=json.loads(byte_tokenizer().to_str()),
      templates=TEMPLATES,
      chats=CHATS,
      results={
          name: {title: rendered(tokenizer, template, chat) for title, chat in CHATS.items()}
          for name, template in TEMPLATES.items()
      },
      date=DATE,
      published=published,
  )
  # In the order of the objects here: a template writes a tool as it comes.
  text = json.dumps(golden, indent=1, ensure_ascii=False)
  arguments.output.write_text(text + '\n', encoding='utf-8')


if __name__ == '__main__':
  main()
