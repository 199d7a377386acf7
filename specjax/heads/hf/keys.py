"""What the `config.json` of a draft head may say: every key is read, idle, or refused by name.

A key that changes what a head computes and adds no tensor would otherwise pass unnoticed. The
kinds of keys are those of `specjax.models.hf.keys`.
"""

from collections.abc import Mapping
from typing import Any

from specjax.models.hf import keys

Table = keys.Table

_NULL = dict(default=None, null=True)
_LAYERS = keys.list_of(keys.integer(0), 'layer numbers', **_NULL)
# Of what comes out of a layer: -1 is the embedding.
_OUTPUTS = keys.list_of(keys.integer(-1), 'layer numbers', **_NULL)
_FLAG = keys.flag(default=False, null=True)

# Notes of transformers, of training and of other engines' scheduling: no head computes from them.
IDLE = frozenset("""
    transformers_version name_or_path auto_map return_dict output_attentions output_hidden_states
    torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward is_encoder_decoder
    is_decoder cross_attention_hidden_size add_cross_attention tie_encoder_decoder max_length
    min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens finetuning_task id2label
    label2id tokenizer_class prefix sep_token_id decoder_start_token_id task_specific_params
    problem_type base_model_tp_plan base_model_pp_plan base_model_ep_plan use_cache
    initializer_range pretraining_tp attention_dropout gradient_checkpointing unsloth_version
    has_no_defaults_at_init base_model_name_or_path
    speculators_config speculators_version transformer_layer_architecture embed_requires_grad
    enable_sp_ulysses fusion_bias bias
    target_model_name_or_path target_model_type ttt_length step_loss_decay draft_num_hidden_layers
    next_layer_regular
    version max_paths topk max_seq_len num_lookahead_tokens
""".split())
# Decoders of heads: Llama's, whose kin differ in biases and norms, which the tensors show.
DECODER_TYPES = ('llama', 'qwen2', 'qwen3', 'mistral', 'eagle', 'eagle3', 'speculators')
# They stand at the top, or nested in `eagle_config`.
_FLAGS: Table = {
    'norm_before_residual': _FLAG,
    'norm_before_fc': _FLAG,
    'fc_norm': _FLAG,
    'norm_output': _FLAG,
}
# What NVIDIA's and SGLang's files nest: the parts of a head that they could leave out.
EAGLE_CONFIG: Table = _FLAGS | {
    'eagle_aux_hidden_state_layer_ids': _LAYERS,
    'use_aux_hidden_state': keys.only(True),
    'use_input_layernorm_in_first_layer': keys.only(True),
    'use_last_layernorm': keys.only(True),
    'use_mtp_layernorm': keys.only(False),
    'parallel_draft_step': keys.only(1, 0),
}
# An EAGLE head, beside what its decoder reads (`specjax.models.hf.config`).
EAGLE: Table = _FLAGS | {
    'architectures': keys.list_of(keys.text(), 'texts', **_NULL),
    'model_type': keys.text(**_NULL),
    'speculators_model_type': keys.text(**_NULL),
    'transformer_layer_config': keys.record(**_NULL),
    'eagle_config': keys.record(**_NULL),
    # Whether there are biases is seen from the tensors.
    'attention_bias': _FLAG,
    # vLLM and speculators count what goes into a layer, DeepSpec what comes out of it.
    'eagle_aux_hidden_state_layer_ids': _LAYERS,
    'target_layer_ids': _LAYERS,
    'num_target_layers': keys.integer(**_NULL),
    'draft_vocab_size': keys.integer(**_NULL),
    'target_hidden_size': keys.integer(**_NULL),
    'layernorms': _FLAG,
    'num_aux_hidden_states': keys.integer(**_NULL),
    'parallel_drafting': keys.only(False),
    'logit_scale': keys.only(1.0),
}
# z-lab nests what is particular to a DFlash head.
DFLASH_CONFIG: Table = {
    'target_layer_ids': _OUTPUTS,
    'mask_token_id': keys.integer(0, **_NULL),
    'block_size': keys.integer(high=1_000, **_NULL),
}
# A DFlash or DSpark head, beside what its decoder reads: z-lab's, DeepSpec's and speculators' keys.
DFLASH: Table = {
    'architectures': keys.list_of(keys.text(), 'texts', **_NULL),
    'model_type': keys.text(**_NULL),
    'speculators_model_type': keys.text(**_NULL),
    'transformer_layer_config': keys.record(**_NULL),
    'dflash_config': keys.record(**_NULL),
    'attention_bias': _FLAG,
    'block_size': keys.integer(high=1_000, **_NULL),
    'mask_token_id': keys.integer(0, **_NULL),
    'target_layer_ids': _OUTPUTS,
    'aux_hidden_state_layer_ids': _LAYERS,
    'num_target_layers': keys.integer(**_NULL),
    'target_hidden_size': keys.integer(**_NULL),
    'draft_vocab_size': keys.integer(**_NULL),
    'sample_from_anchor': _FLAG,
    'sliding_window_non_causal': _FLAG,
    'markov_rank': keys.integer(0, **_NULL),
    'markov_head_type': keys.text(**_NULL),
    'enable_confidence_head': _FLAG,
    'confidence_head_with_markov': _FLAG,
    'num_anchors': keys.integer(0, **_NULL),  # of training
}
# Medusa heads: the authors' keys, then vLLM's. Sizes of the target may stand beside them.
MEDUSA: Table = {
    'medusa_num_heads': keys.integer(high=1_000, **_NULL),
    'medusa_num_layers': keys.integer(0, 1_000, default=1),
    'num_heads': keys.integer(high=1_000, **_NULL),
    'medusa_fc_bias': _FLAG,
    'truncated_vocab_size': keys.integer(**_NULL),
    'original_lm_head': keys.only(False),
    'logit_scale': keys.only(1.0),
    'hidden_size': keys.integer(**_NULL),
    'vocab_size': keys.integer(**_NULL),
    'quantization_config': keys.MODEL['quantization_config'],
}
VLLM_MEDUSA: Table = MEDUSA | {
    'num_hidden_layers': keys.integer(0, 1_000, default=1),
    'original_lm_head': _FLAG,
}
# Our own early exits.
EXIT: Table = {
    'model_type': keys.text(),
    'exit_layer': keys.integer(),
    'intermediate_size': keys.integer(),
    'hidden_size': keys.integer(),
    'vocab_size': keys.integer(),
    'num_target_layers': keys.integer(),
}
# Every key that the decoder of a head may have: those of Llama and Qwen3.
DECODER = frozenset(keys.MODEL | keys.DECODER | keys.NO_GEMMA | keys.QWEN) - {'text_config'}


def read(
    data: Mapping[str, Any], table: Table, *, is_nested: bool, num_layers: int, where: str
) -> tuple[dict[str, Any], Mapping[str, Any], str]:
  """What a head's config says by a table, and the part of it that describes the decoder.

  Args:
    data: the content of a `config.json`.
    table: `EAGLE` or `DFLASH`.
    is_nested: whether the decoder stands in `transformer_layer_config` (speculators).
    num_layers: of the target.
    where: the file, for messages.

  Returns:
    The values of the table's keys, the decoder's object, and its place for messages.

  Raises:
    ValueError: for a key that is not known or says what is not allowed, a nested decoder that is
      missing, or a target of another depth.
  """
  values = keys.read(data, table, where=where)
  known = IDLE | DECODER
  keys.refuse_unknown(data, known | set(table), where=where)
  depth = values['num_target_layers']
  if depth is not None and depth != num_layers:
    raise ValueError(
        f'{where}: num_target_layers={depth}, the target has {num_layers}. Use the head that was '
        'made for it.'
    )
  if not is_nested:
    return values, data, where
  decoder, decoder_where = values['transformer_layer_config'], f'{where}: transformer_layer_config'
  if decoder is None:
    raise ValueError(f'{where}: config.json has no transformer_layer_config.')
  keys.refuse_unknown(decoder, known, where=decoder_where)
  keys.read(data, keys.MODEL, where=where)
  return values, decoder, decoder_where
