# SPDX-License-Identifier: Apache-2.0
"""What a model's ``config.json`` says of its shape, its quantisation and its weights.

All of it is pure. A config comes from anywhere, so no field is believed to be of the type that it
should have, and what is not known is ``None``: never 0 and never a guess.
"""

from __future__ import annotations

from typing import Any, Dict, List, NamedTuple, Optional, Tuple

Config = Dict[str, Any]
Geometry = Dict[str, Any]

# A larger number is no count of anything in a model; products of these stay exact and printable.
MAX_COUNT = 2**40

GEOMETRY_KEYS = (
    "architecture", "layers", "hidden", "heads", "kv_heads", "head_dim", "value_head_dim",
    "context", "vocabulary", "intermediate", "tied_embeddings", "vision", "kv_lora_rank",
    "rope_head_dim", "query_lora_rank", "sliding_window", "sliding_layers", "attention_layers",
    "state_bytes_per_sequence", "experts", "experts_per_token", "moe_intermediate",
    "shared_intermediate", "dense_layers",
)

# Where a multimodal config holds its language model.
_NESTED = ("text_config", "llm_config", "language_config", "thinker_config")

# What a field is where the config leaves it out: the defaults of transformers 4.57, which engines
# take from it. Only what was read there is here.
_DEFAULTS: Dict[str, Config] = {
    "cohere2": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "exaone4": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "gemma2": {"sliding_window": 4096, "sliding_window_pattern": 2},
    "gemma3_text": {
        "vocab_size": 262208, "max_position_embeddings": 131072, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    "gpt_oss": {"sliding_window": 128, "sliding_window_pattern": 2},
    "llama4_text": {"attention_chunk_size": 8192, "no_rope_layer_interval": 4,
                    "interleave_moe_layer_step": 1},
    "olmo3": {"sliding_window": 4096, "sliding_window_pattern": 4},
    "qwen2": {"max_window_layers": 28},
    "qwen2_moe": {"max_window_layers": 28},
    "qwen3": {"max_window_layers": 28},
    "qwen3_next": {"full_attention_interval": 4},
}
_TIED_BY_DEFAULT = frozenset((
    "cohere", "cohere2", "ernie4_5", "ernie4_5_moe", "gemma", "gemma2", "gemma3_text",
    "gemma3n_text", "gpt2", "gpt_bigcode", "jetmoe", "lfm2", "smollm3", "starcoder2",
))
_UNTIED_BY_DEFAULT = frozenset((
    "bamba", "deepseek_v2", "deepseek_v3", "dots1", "exaone4", "falcon_h1", "glm", "glm4",
    "glm4_moe", "gpt_neox", "gpt_oss", "granite", "granitemoe", "granitemoehybrid", "jamba",
    "llama", "llama4_text", "minimax", "ministral", "mistral", "mixtral", "nemotron", "olmo",
    "olmo2", "olmo3", "olmoe", "phi", "phi3", "phimoe", "qwen2", "qwen2_5_vl_text", "qwen2_moe",
    "qwen2_vl_text", "qwen3", "qwen3_moe", "qwen3_next", "seed_oss", "stablelm",
))
# A window without a pattern is every layer's in these. Elsewhere it is not known whose it is.
_WINDOW_IN_EVERY_LAYER = frozenset((
    "ministral", "mistral", "mixtral", "phi3", "phimoe", "qwen2", "qwen2_5_vl", "qwen2_moe",
    "qwen2_vl", "qwen3", "qwen3_moe", "starcoder2",
))
# Without a word in the config every layer of these has experts.
_EXPERTS_IN_EVERY_LAYER = frozenset((
    "gpt_oss", "granitemoe", "granitemoehybrid", "mixtral", "olmoe", "phimoe",
))
# These call the width of one expert intermediate_size.
_EXPERTS_OF_INTERMEDIATE = _EXPERTS_IN_EVERY_LAYER | frozenset(("jamba", "llama4_text"))
# Two matrices in the MLP instead of three.
_UNGATED = frozenset((
    "falcon", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "nemotron", "opt", "phi", "starcoder2",
))

_FULL = frozenset(("full_attention", "attention", "hybrid"))
_SLIDING = frozenset(("sliding_attention", "chunked_attention"))
# A layer of Zamba2 that is called hybrid has both.
_STATE = frozenset(("linear_attention", "mamba", "mamba2", "conv", "hybrid"))
_NEITHER = frozenset(("mlp", "moe"))
_NEMOTRON = {"*": "attention", "M": "mamba", "-": "mlp", "E": "moe"}
# A field with one of these at its start belongs to layers that are not plain attention.
_HYBRID_SIGNS = (
    "attn_layer_", "attn_type_list", "block_types", "conv_L_cache", "full_attention_interval",
    "full_attn_idxs", "hybrid", "linear_attn", "linear_conv", "linear_num", "lru_width", "mamba",
    "rwkv", "ssm_", "state_size",
)

_EXPERT_FIELDS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN_FIELDS = ("num_experts_per_tok", "experts_per_token", "moe_topk", "moe_k")
_COUNT_FIELDS = (
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "kv_lora_rank", "intermediate_size",
    "moe_intermediate_size", "vocab_size", "max_position_embeddings",
)
# 0 says in these that the model has none.
_COUNT_OR_NONE_FIELDS = (
    *_EXPERT_FIELDS, *_PER_TOKEN_FIELDS, "n_shared_experts", "shared_expert_intermediate_size",
    "first_k_dense_replace", "q_lora_rank",
)
# One number for each layer in some models.
_BY_LAYER = frozenset(("intermediate_size", "moe_intermediate_size", "num_key_value_heads"))
_KIND_FIELDS = ("layer_types", "layers_block_type", "hybrid_override_pattern")

_DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float16": "f16", "half": "f16", "fp16": "f16",
           "f16": "f16", "float32": "f32", "float": "f32", "fp32": "f32", "f32": "f32"}
_DTYPE_BYTES = {"bf16": 2, "f16": 2, "f32": 4}
_METHOD_BITS = {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}
_MODELOPT_BITS = {"FP8": 8, "FP8_PB_WO": 8, "NVFP4": 4, "W4A16_AWQ": 4, "W4A8_AWQ": 4,
                  "INT4_AWQ": 4, "INT8_SQ": 8}
# The block of the format itself, which its configs do not repeat.
_MXFP4_BLOCK, _BITSANDBYTES_BLOCK = 32, 64


def count(value: Any) -> Optional[int]:
    """A whole number from 1 as it is; ``None`` for anything else, which is no count or size."""
    return value if type(value) is int and 0 < value <= MAX_COUNT else None


def head_size(hidden: Optional[int], heads: Optional[int]) -> Optional[int]:
    """The size of a head in a model that does not say it."""
    return hidden // heads if hidden and heads and hidden % heads == 0 else None


def geometry(config: Any) -> Geometry:
    """The shape of a model, as far as its ``config.json`` says it: every key of GEOMETRY_KEYS."""
    top = config if isinstance(config, dict) else {}
    text = _language_model(top)
    kind = _text(text.get("model_type"))
    layers, hidden = count(text.get("num_hidden_layers")), count(text.get("hidden_size"))
    heads = count(text.get("num_attention_heads"))
    head_dim = (count(text.get("head_dim")) or count(text.get("attention_head_dim"))
                or head_size(hidden, heads))
    latent = count(text.get("kv_lora_rank"))
    rope = count(text.get("qk_rope_head_dim")) if latent else None
    if latent:
        plain = count(text.get("qk_nope_head_dim"))
        head_dim = plain + rope if plain and rope else None
    counts = _layer_counts(text, kind, layers, heads)
    experts = _first(text, _EXPERT_FIELDS)
    moe = _moe_width(text, kind) if experts else None
    return {
        "architecture": _text(top.get("model_type")) or kind,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": _widest(text.get("num_key_value_heads")) or _kv_heads(text, heads),
        "head_dim": head_dim,
        "value_head_dim": count(text.get("v_head_dim")) or (None if latent else head_dim),
        "context": count(text.get("max_position_embeddings")),
        "vocabulary": count(text.get("vocab_size")),
        "intermediate": count(text.get("intermediate_size_mlp"))
        or _widest(text.get("intermediate_size")),
        "tied_embeddings": _tied(top, text, kind),
        "vision": isinstance(top.get("vision_config"), dict)
        or isinstance(text.get("vision_config"), dict),
        "kv_lora_rank": latent,
        "rope_head_dim": rope,
        "query_lora_rank": count(text.get("q_lora_rank")) if latent else None,
        "sliding_window": counts.window,
        "sliding_layers": counts.sliding,
        "attention_layers": counts.attention,
        "state_bytes_per_sequence": _state_bytes(top, text, counts.state),
        "experts": experts,
        "experts_per_token": _first(text, _PER_TOKEN_FIELDS) if experts else None,
        "moe_intermediate": moe,
        "shared_intermediate": _shared_width(text, kind, moe) if experts else None,
        "dense_layers": _dense_layers(text, kind, layers) if experts else layers,
    }


def _language_model(config: Config) -> Config:
    """The part of a config that is the language model's, with the defaults of its class."""
    text = config
    for _ in range(2):
        inner = [text[key] for key in _NESTED if isinstance(text.get(key), dict)]
        if not inner:
            break
        text = inner[0]
    return {**_DEFAULTS.get(_text(text.get("model_type")) or "", {}), **text}


def _text(value: Any) -> Optional[str]:
    return value if isinstance(value, str) and value else None


def _first(config: Config, names: Tuple[str, ...]) -> Optional[int]:
    """The first of some fields that is a count."""
    return next((found for found in (count(config.get(name)) for name in names) if found), None)


def _widest(value: Any) -> Optional[int]:
    """A count, or the largest of a list that has one for each layer."""
    if isinstance(value, list):
        return max((one for one in map(count, value) if one), default=None)
    return count(value)


def _kv_heads(text: Config, heads: Optional[int]) -> Optional[int]:
    """How many heads of keys there are in a config that does not say it in the usual field."""
    if text.get("multi_query") is True and text.get("new_decoder_architecture") is not True:
        return 1
    return heads


def _tied(top: Config, text: Config, kind: Optional[str]) -> Optional[bool]:
    """Whether one table is both the embeddings and the head."""
    for config in (text, top):
        if isinstance(config.get("tie_word_embeddings"), bool):
            return bool(config["tie_word_embeddings"])
    if kind in _TIED_BY_DEFAULT:
        return True
    return False if kind in _UNTIED_BY_DEFAULT else None


class _Layers(NamedTuple):
    """How many layers keep keys per token, how many of them in a window, and how many a state."""

    attention: Optional[int]
    sliding: Optional[int]
    state: Optional[int]
    window: Optional[int] = None


_UNKNOWN_LAYERS = _Layers(None, None, None)


def _layer_counts(text: Config, kind: Optional[str], layers: Optional[int],
                  heads: Optional[int]) -> _Layers:
    if not layers:
        return _UNKNOWN_LAYERS
    listed = _listed_kinds(text)
    if listed is not None:
        return _counted(text, listed, layers)
    if kind == "falcon_h1":
        return _Layers(layers, 0, layers)
    attention = _attention_layers(text, layers)
    if attention is not None:
        # No hybrid that is described so has a window.
        return _Layers(attention, None if count(text.get("sliding_window")) else 0,
                       layers - attention)
    if not heads or any(name.startswith(_HYBRID_SIGNS) and text[name] is not None
                        for name in text if isinstance(name, str)):
        return _UNKNOWN_LAYERS
    window, sliding = _window(text, kind, layers)
    return _Layers(layers, sliding, 0, window)


def _listed_kinds(text: Config) -> Optional[List[Any]]:
    """The kind of each layer where the config has a list of them."""
    for name in ("layer_types", "layers_block_type"):
        if isinstance(text.get(name), list):
            return list(text[name])
    pattern, types = text.get("hybrid_override_pattern"), text.get("attn_type_list")
    if isinstance(pattern, str):
        return [_NEMOTRON.get(letter, letter) for letter in pattern]
    if isinstance(types, list):
        return ["full_attention" if one == 1 else "linear_attention" if one == 0 else one
                for one in types]
    return None


def _counted(text: Config, kinds: List[Any], layers: int) -> _Layers:
    known = _FULL | _SLIDING | _STATE | _NEITHER
    if len(kinds) != layers or not all(isinstance(one, str) and one in known for one in kinds):
        return _UNKNOWN_LAYERS
    sliding = sum(one in _SLIDING for one in kinds)
    window = (count(text.get("attention_chunk_size")) if "chunked_attention" in kinds
              else count(text.get("sliding_window")))
    return _Layers(sum(one in _FULL for one in kinds) + sliding, sliding,
                   sum(one in _STATE for one in kinds), window if sliding else None)


def _attention_layers(text: Config, layers: int) -> Optional[int]:
    """How many layers of a hybrid model have attention, where a rule or a list of them says it."""
    period, offset = count(text.get("attn_layer_period")), text.get("attn_layer_offset")
    if period and type(offset) is int and 0 <= offset < layers:
        return len(range(offset, layers, period))
    interval = count(text.get("full_attention_interval"))
    if interval:
        return layers // interval
    for name in ("attn_layer_indices", "full_attn_idxs"):
        found = text.get(name)
        if isinstance(found, list):
            return len({one for one in found if type(one) is int and 0 <= one < layers})
    return None


def _window(text: Config, kind: Optional[str],
            layers: int) -> Tuple[Optional[int], Optional[int]]:
    """The window and how many layers of a model without other kinds of layers use it."""
    window, sliding = count(text.get("sliding_window")), None
    flag, first = text.get("use_sliding_window"), count(text.get("max_window_layers"))
    # Qwen's configs name a window that only the flag turns on.
    if flag is False or (flag is not True and (
            "max_window_layers" in text or (kind or "").startswith("qwen"))):
        return None, 0
    if window:
        pattern = count(text.get("sliding_window_pattern"))
        if first:
            sliding = max(0, layers - first)
        elif pattern:
            sliding = layers - layers // pattern
        elif kind in _WINDOW_IN_EVERY_LAYER:
            sliding = layers
    else:
        window = count(text.get("attention_chunk_size"))
        interval = count(text.get("no_rope_layer_interval"))
        with_rope = text.get("no_rope_layers")
        if not window:
            return None, 0
        if isinstance(with_rope, list) and with_rope:
            sliding = sum(one == 1 for one in with_rope) if len(with_rope) == layers else None
        elif interval:
            sliding = layers - layers // interval
    return (None if sliding == 0 else window), sliding


def dtype(config: Any) -> Optional[str]:
    """``bf16``, ``f16`` or ``f32``: what a model computes in, as its config says."""
    top = config if isinstance(config, dict) else {}
    found = _dtype(top, _language_model(top))
    return None if found == "unknown" else found


def _dtype(top: Config, text: Config) -> str:
    for config in (text, top):
        for name in ("torch_dtype", "dtype"):
            found = _text(config.get(name))
            if found:
                return _DTYPES.get(found.lower().replace("torch.", ""), "unknown")
    return "unknown"


def _state_bytes(top: Config, text: Config, layers: Optional[int]) -> Optional[int]:
    """What one sequence keeps in the layers that have a state, however long it gets.

    It is of the model's type, the recurrent part of the type that the config names for it.
    """
    if not layers:
        return layers
    size = _DTYPE_BYTES.get(_dtype(top, text))
    named = _text(text.get("mamba_ssm_dtype")) or _text(text.get("mamba_ssm_cache_dtype"))
    recurrent_size = _DTYPE_BYTES.get(_DTYPES.get(named, "")) if named else size
    weights = _delta_state(text) or _mamba_state(text) or _convolution_state(text)
    if not size or not recurrent_size or not weights:
        return None
    convolution, recurrent = weights
    return layers * (convolution * size + recurrent * recurrent_size)


def _delta_state(text: Config) -> Optional[Tuple[int, int]]:
    """Numbers in the convolution and in the state of a layer with a gated delta net."""
    kernel, keys, key_dim, values, value_dim = (
        count(text.get("linear_" + name)) for name in
        ("conv_kernel_dim", "num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim"))
    if not (kernel and keys and key_dim and values and value_dim):
        return None
    return ((kernel - 1) * (2 * keys * key_dim + values * value_dim), values * value_dim * key_dim)


def _mamba_state(text: Config) -> Optional[Tuple[int, int]]:
    """Numbers in the convolution and in the state of a layer of Mamba 1 or 2."""
    state = _first(text, ("mamba_d_state", "ssm_state_size"))
    kernel = _first(text, ("mamba_d_conv", "conv_kernel"))
    heads = _first(text, ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"))
    head = _first(text, ("mamba_head_dim", "mamba_d_head", "mamba_headdim"))
    groups = _first(text, ("mamba_n_groups", "mamba_ngroups", "n_groups"))
    expand, hidden = count(text.get("mamba_expand")), count(text.get("hidden_size"))
    inner = (heads * head if heads and head else count(text.get("mamba_d_ssm"))
             or (expand * hidden if expand and hidden else None))
    if not (state and kernel and inner) or (heads and not groups):
        return None
    return (kernel - 1) * (inner + 2 * (groups or 0) * state), inner * state


def _convolution_state(text: Config) -> Optional[Tuple[int, int]]:
    """Numbers that a layer of short convolutions keeps."""
    kernel, hidden = count(text.get("conv_L_cache")), count(text.get("hidden_size"))
    return ((kernel - 1) * hidden, 0) if kernel and hidden else None


def _moe_width(text: Config, kind: Optional[str]) -> Optional[int]:
    width = _widest(text.get("moe_intermediate_size"))
    if width or kind not in _EXPERTS_OF_INTERMEDIATE:
        return width
    return _widest(text.get("intermediate_size"))


def _shared_width(text: Config, kind: Optional[str], moe: Optional[int]) -> Optional[int]:
    """The width of the experts that every token goes through; ``None`` where there are none."""
    width = _first(text, ("shared_expert_intermediate_size", "shared_intermediate_size"))
    if width:
        return width
    shared = count(text.get("n_shared_experts"))
    if kind == "llama4_text":
        shared = 1
    return shared * moe if shared and moe else None


def _dense_layers(text: Config, kind: Optional[str], layers: Optional[int]) -> Optional[int]:
    """How many layers of a model with experts have none."""
    if not layers:
        return None
    first = text.get("first_k_dense_replace")
    frequency = text.get("moe_layer_freq", 1)
    if isinstance(frequency, list):
        return layers - sum(one == 1 for one in frequency) if len(frequency) == layers else None
    if type(first) is int and first >= 0:
        step = count(frequency)
        # The first layer from `first` on whose number the step divides.
        return layers - len(range(-(-first // step) * step, layers, step)) if step else None
    step, without = count(text.get("decoder_sparse_step")), text.get("mlp_only_layers") or []
    if step and isinstance(without, list):
        dense = {one for one in without if type(one) is int and 0 <= one < layers
                 and (one + 1) % step == 0}
        return layers - layers // step + len(dense)
    period, offset = count(text.get("expert_layer_period")), text.get("expert_layer_offset")
    if period and type(offset) is int and offset >= 0:
        return layers - len(range(offset, layers, period))
    listed, step = text.get("moe_layers"), count(text.get("interleave_moe_layer_step"))
    if isinstance(listed, list):
        return layers - len({one for one in listed if type(one) is int and 0 <= one < layers})
    if step:
        return layers - layers // step
    return 0 if kind in _EXPERTS_IN_EVERY_LAYER else None


def quantisation(config: Any) -> Dict[str, Any]:
    """``{method, bits, group}`` of the weights; the method of plain ones is their type."""
    top = config if isinstance(config, dict) else {}
    text = _language_model(top)
    asked, method = _asked(top, text)
    if method is None:
        return {"method": _dtype(top, text), "bits": None, "group": None}
    return {"method": method, "bits": _bits(asked, method), "group": _group(asked, method)}


def quantisation_method(config: Any) -> Optional[str]:
    """How a config says that weights were quantised; ``None`` for plain ones."""
    top = config if isinstance(config, dict) else {}
    return _asked(top, _language_model(top))[1]


def _asked(top: Config, text: Config) -> Tuple[Config, Optional[str]]:
    """What a config says of quantisation, and the method by its name."""
    said = (top.get("quantization_config"), text.get("quantization_config"),
            top.get("compression_config"))
    asked: Config = next((one for one in said if isinstance(one, dict) and one), {})
    method = _text(asked.get("quant_method"))
    if method is None and (asked.get("load_in_4bit") is True or asked.get("load_in_8bit") is True):
        method = "bitsandbytes"
    if method is None and _text(asked.get("quant_algo")):
        method = "modelopt"
    return asked, method


def _weight_schemes(asked: Config) -> List[Config]:
    groups = asked.get("config_groups")
    return [one["weights"] for one in (groups.values() if isinstance(groups, dict) else ())
            if isinstance(one, dict) and isinstance(one.get("weights"), dict)]


def _bits(asked: Config, method: str) -> Optional[int]:
    said = _first(asked, ("bits", "w_bit", "wbits"))
    if said:
        return said
    if asked.get("load_in_4bit") is True:
        return 4
    if asked.get("load_in_8bit") is True:
        return 8
    found = {count(one.get("num_bits")) for one in _weight_schemes(asked)}
    if found:
        # More than one: no single number is true of the model.
        return found.pop() if len(found) == 1 else None
    algorithm = _text(asked.get("quant_algo"))
    if algorithm:
        return _MODELOPT_BITS.get(algorithm.upper())
    return _METHOD_BITS.get(method)


def _group(asked: Config, method: str) -> Optional[int]:
    said = _first(asked, ("group_size", "q_group_size"))
    block = asked.get("weight_block_size")
    if not said and isinstance(block, list) and block:
        said = count(block[0])
    if said:
        return said
    found = {count(one.get("group_size")) for one in _weight_schemes(asked)}
    if len(found) == 1:
        return found.pop()
    return _MXFP4_BLOCK if method == "mxfp4" else None


class _Weights(NamedTuple):
    """How many weights a model has, by what quantisation does to them."""

    table: int
    head: int
    linear: int
    experts: int
    other: int


def _weights(shape: Geometry) -> Optional[_Weights]:
    def known(name: str) -> int:
        return count(shape.get(name)) or 0

    layers, hidden, heads = known("layers"), known("hidden"), known("heads")
    kv_heads, head, value = known("kv_heads"), known("head_dim"), known("value_head_dim")
    vocabulary, tied = known("vocabulary"), shape.get("tied_embeddings")
    if (not all((layers, hidden, heads, kv_heads, head, value, vocabulary))
            or not isinstance(tied, bool) or shape.get("attention_layers") != layers
            or shape.get("state_bytes_per_sequence") != 0):
        return None
    latent, rope, query = known("kv_lora_rank"), known("rope_head_dim"), known("query_lora_rank")
    if latent:
        if not rope < head or not rope:
            return None
        attention = (hidden * query + query * heads * head if query else hidden * heads * head)
        attention += hidden * (latent + rope) + latent * heads * (head - rope + value)
    else:
        attention = hidden * (heads * head + kv_heads * (head + value))
    attention += heads * value * hidden
    experts, width, dense = known("experts"), known("intermediate"), shape.get("dense_layers")
    if type(dense) is not int or not 0 <= dense <= layers or (dense and not width):
        return None
    matrices = 2 if shape.get("architecture") in _UNGATED else 3
    linear = layers * attention + dense * matrices * hidden * width
    routed, other = 0, (2 * layers + 1) * hidden
    if dense < layers:
        if not experts or not known("moe_intermediate"):
            return None
        routed = (layers - dense) * experts * 3 * hidden * known("moe_intermediate")
        linear += (layers - dense) * 3 * hidden * known("shared_intermediate")
        other += (layers - dense) * hidden * experts
    table = vocabulary * hidden
    return _Weights(table, 0 if tied else table, linear, routed, other)


def parameters(shape: Geometry) -> Optional[Dict[str, int]]:
    """How many weights a language model of this shape has.

    ``embedding`` and ``head`` are the tables, ``layer`` is all layers together, ``total`` is their
    sum. The head is 0 where it is the embeddings' table. Biases, which are small, a vision tower
    and layers that predict more than one token are left out.

    :returns: ``None`` when a figure that it needs is not known, and for hybrid models.
    """
    found = _weights(shape) if isinstance(shape, dict) else None
    if found is None:
        return None
    return {"total": sum(found), "embedding": found.table, "head": found.head,
            "layer": found.linear + found.experts + found.other}


def weight_bytes(shape: Geometry, quantised: Dict[str, Any]) -> Optional[int]:
    """About how many bytes the files of such a model have; ``None`` when that cannot be told.

    Quantisers leave embeddings, head, norms and routers in 16 bits.
    """
    found = _weights(shape) if isinstance(shape, dict) else None
    method = quantised.get("method") if isinstance(quantised, dict) else None
    if found is None or not isinstance(method, str):
        return None
    if method in _DTYPE_BYTES:
        return sum(found) * _DTYPE_BYTES[method]
    bits, group = count(quantised.get("bits")), count(quantised.get("group"))
    if not bits or bits > 16 or method == "gguf":
        return None
    plain, packed = found.table + found.head + found.other, found.linear + found.experts
    if method == "mxfp4":
        # As published: the experts alone.
        plain, packed = plain + found.linear, found.experts
    return 2 * plain + packed * bits // 8 + _scale_bytes(packed, method, bits, group)


def _scale_bytes(weights: int, method: str, bits: int, group: Optional[int]) -> int:
    """Bytes of what brings quantised weights back to their size."""
    if method == "bitsandbytes":
        return 4 * weights // _BITSANDBYTES_BLOCK if bits == 4 else 0
    if not group:
        # One for a column or a matrix, which is nothing beside it.
        return 0
    if bits == 8 and method in ("fp8", "modelopt"):
        return 4 * weights // group**2
    if method in ("mxfp4", "modelopt"):
        return weights // group
    zero_bits = bits if method in ("awq", "gptq") else 0
    return (16 + zero_bits) * weights // group // 8


def contradictions(config: Any) -> List[str]:
    """What cannot be in a config, a sentence each that names the field; missing ones are none."""
    if not isinstance(config, dict):
        return []
    text = _language_model(config)
    return (_bad_counts(text) + _bad_heads(text) + _bad_lists(text) + _bad_experts(text))


def _bad_counts(text: Config) -> List[str]:
    found = []
    for least, names in ((1, _COUNT_FIELDS), (0, _COUNT_OR_NONE_FIELDS)):
        for name in names:
            value = text.get(name)
            values = value if isinstance(value, list) and name in _BY_LAYER else [value]
            bad = [one for one in values if one is not None
                   and not (type(one) is int and least <= one <= MAX_COUNT)
                   # A layer of a list may have none.
                   and not (values is value and type(one) is int and one == 0)]
            if bad:
                found.append("%s is %s; wanted a whole number from %d%s" % (
                    name, _shown(bad[0]), least,
                    " to %d" % MAX_COUNT if type(bad[0]) is int and bad[0] > 0 else ""))
    return found


def _shown(value: Any) -> str:
    """A value that is not trusted, in a few plain characters."""
    if isinstance(value, (bool, type(None))):
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) < 10**30 else "a number of more than 30 digits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        return ascii(value if len(value) <= 40 else value[:40] + "...")
    return "a list" if isinstance(value, list) else "an object"


def _bad_heads(text: Config) -> List[str]:
    found = []
    heads, hidden = count(text.get("num_attention_heads")), count(text.get("hidden_size"))
    kv_heads = count(text.get("num_key_value_heads"))
    if heads and kv_heads and heads % kv_heads:
        found.append("num_attention_heads is %d, which is not a multiple of num_key_value_heads, "
                     "%d" % (heads, kv_heads))
    said = [name for name in ("head_dim", "attention_head_dim", "kv_lora_rank")
            if text.get(name) is not None]
    if heads and hidden and hidden % heads and not said:
        found.append("hidden_size is %d, which num_attention_heads, %d, does not divide, and "
                     "there is no head_dim" % (hidden, heads))
    return found


def _bad_lists(text: Config) -> List[str]:
    found = []
    layers = count(text.get("num_hidden_layers"))
    for name in _KIND_FIELDS:
        value = text.get(name)
        if value is None:
            continue
        if not isinstance(value, str if name == "hybrid_override_pattern" else list):
            found.append("%s is %s; wanted the kind of each layer" % (name, _shown(value)))
        elif layers and len(value) != layers:
            found.append("%s has %d layers, and num_hidden_layers is %d"
                         % (name, len(value), layers))
    return found


def _bad_experts(text: Config) -> List[str]:
    experts, used = _first(text, _EXPERT_FIELDS), _first(text, _PER_TOKEN_FIELDS)
    if not experts or not used or used <= experts:
        return []
    name = next(name for name in _PER_TOKEN_FIELDS if count(text.get(name)))
    return ["%s is %d, and there are %d experts" % (name, used, experts)]
