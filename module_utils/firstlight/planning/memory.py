# SPDX-License-Identifier: Apache-2.0
"""The memory of an engine on one device: a breakdown in bytes, and how far it may be off.

The forms are read in the engines' sources, the numbers are measured: catalog/engine_costs.yml.

vLLM plans with a share of the device. From that share it takes the weights, the peak of a batch of
``max_num_batched_tokens`` (or of the sampler, if that is higher) and what CUDA graphs need; the
rest is the cache. CUDA's context, NCCL's buffers and, with its second model runner, buffers and
graphs come on top of the share (vllm/v1/worker/gpu_worker.py, determine_available_memory).
"""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional

from . import kv, weights

Costs = Dict[str, Any]
Model = Dict[str, Any]


class Layout(NamedTuple):
    """How a model lies on devices."""

    tensor_parallel: int
    stages: int
    """Parts of the layers, one after the other (pipeline parallel; llama.cpp's split of layers)."""

    @property
    def devices(self) -> int:
        """How many devices there are."""
        return self.tensor_parallel * self.stages


class Settings(NamedTuple):
    """What of the engine's flags and of the release decides about memory."""

    batched_tokens: int
    sequences: int
    key_type: str = "auto"
    value_type: str = "auto"
    eager: bool = False
    eager_attention: bool = False
    """llama.cpp without flash attention."""
    second_runner: bool = False
    graphs_profiled: bool = True
    """The release takes its graphs out of its share (the first runner, from 0.20 on)."""


class Fixed(NamedTuple):
    """What a device needs before it has any cache, in bytes."""

    weights: int
    activation: int
    """The peak of a batch, and what the engine holds beside PyTorch."""
    graphs: int
    context: int
    """CUDA's context and buffers of communication."""
    graphs_in_share: bool
    """Whether graphs come out of the engine's share."""

    @property
    def in_share(self) -> int:
        """What comes out of the engine's share."""
        return self.weights + self.activation + (self.graphs if self.graphs_in_share else 0)

    @property
    def outside(self) -> int:
        """What comes on top of the engine's share."""
        return self.context + (0 if self.graphs_in_share else self.graphs)

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.activation + self.graphs + self.context


def costs_of(engine: str, rows: Any) -> Costs:
    """The numbers of one engine from ``catalog/engine_costs.yml``."""
    return {row["name"]: row["value"] for row in rows if row["engine"] == engine}


def vllm(model: Model, layout: Layout, settings: Settings, costs: Costs) -> Fixed:
    """What vLLM needs on the device that has most of the model."""
    shape, parallel = model["geometry"], layout.devices > 1
    other = costs["other_parallel_bytes" if parallel else "other_bytes"]
    context = costs["context_parallel_bytes" if parallel else "context_bytes"]
    graphs = 0
    if settings.second_runner:
        context += settings.sequences * shape["vocabulary"] * 4 + costs["second_buffer_bytes"]
    if not settings.eager:
        graphs = _graphs(shape, layout, settings, costs)
    return Fixed(
        weights.vllm_bytes(model, layout.tensor_parallel, layout.stages)
        + (costs["latent_load_bytes"] if shape["kv_lora_rank"] else 0),
        activation_bytes(shape, layout, settings, costs) + other, graphs, context,
        settings.graphs_profiled and not settings.second_runner)


def vllm_on_cpu(model: Model, settings: Settings, costs: Costs) -> Fixed:
    """What vLLM needs in RAM: its processes, the weights and a batch. Its cache comes on top."""
    shape = model["geometry"]
    wide = 2 * shape["hidden"] + 3 * max(
        (shape["intermediate"] or 0), shape["heads"] * shape["head_dim"])
    logits = settings.sequences * shape["vocabulary"] * costs["logit_bytes"]
    batch = 2 * settings.batched_tokens * wide + _expert_workspace(shape, 1) * (
        settings.batched_tokens)
    tables = costs["table_copies"] * 2 * shape["vocabulary"] * shape["hidden"]
    return Fixed(weights.vllm_bytes(model, 1, 1), int(batch + logits), 0,
                 int(costs["process_bytes"] + tables), True)


def activation_bytes(shape: Dict[str, Any], layout: Layout, settings: Settings,
                     costs: Costs) -> int:
    """The peak of a batch, in bytes: of the layers or of the sampler, whichever is higher.

    Grows with the batch, with the widths of the model and with the vocabulary; falls as tensor
    parallel splits the layers.
    """
    tokens, sequences, split = settings.batched_tokens, settings.sequences, layout.tensor_parallel
    hidden = 2 * shape["hidden"]
    experts = _expert_workspace(shape, split)
    # Where every layer has experts there is no MLP of this width.
    dense = shape["intermediate"] if not shape["experts"] or shape["dense_layers"] else 0
    mlp = costs["mlp_copies"] * 2 * (dense or 0) // split
    if shape["experts"]:
        query = 2 * shape["heads"] * shape["head_dim"] // split
        mlp = max(mlp, experts + costs["query_copies"] * query)
    compiled = 0 if settings.eager else costs["compiled_bytes"]
    layers = costs["workspace_bytes"] + compiled + tokens * (costs["hidden_copies"] * hidden + mlp)
    if split == 1 and not settings.eager:
        # At a first start the compiler holds a copy of the embedding; seen on one device only.
        layers = max(layers, shape["vocabulary"] * hidden
                     + costs["embedding_hidden_copies"] * hidden * tokens
                     + (costs["latent_compile_bytes"] if shape["kv_lora_rank"] else 0))
    sampler = (costs["workspace_bytes"] + tokens * (hidden + experts) + sequences * hidden
               + int(sequences * shape["vocabulary"] * _logit_bytes(settings, costs)))
    if not settings.second_runner:
        sampler += costs["sampler_fixed_bytes"]
    return int(max(layers, sampler)) + (costs["vision_bytes"] if shape["vision"] else 0)


def _expert_workspace(shape: Dict[str, Any], split: int) -> int:
    """Bytes a token of the two workspaces of the experts' kernel; they stay once taken."""
    if not shape["experts"]:
        return 0
    width, hidden = shape["moe_intermediate"] // split, shape["hidden"]
    return int(2 * shape["experts_per_token"] * (max(2 * width, hidden) + max(width, hidden)))


def _logit_bytes(settings: Settings, costs: Costs) -> float:
    if settings.second_runner:
        return float(costs["sampler_bytes_second"])
    small, large = costs["sampler_bytes_small"], costs["sampler_bytes"]
    way = min(1.0, max(0.0, (settings.sequences - 256) / (1024 - 256)))
    return float(small + (large - small) * way)


def _graphs(shape: Dict[str, Any], layout: Layout, settings: Settings, costs: Costs) -> int:
    layers = -(-shape["layers"] // layout.stages)
    if settings.second_runner:
        return int(costs["second_graph_bytes"] + layers * costs["second_graph_layer_bytes"])
    width = costs["graph_hidden_bytes" if settings.sequences > 256 else "graph_hidden_bytes_small"]
    return int(costs["graph_base_bytes"] + shape["hidden"] * width
               + layers * costs["graph_layer_bytes"])


def compute_bytes(shape: Dict[str, Any], settings: Settings) -> int:
    """llama.cpp's compute and output buffers, but for what grows with the context.

    The form was found from 220 starts on a CPU, which it meets within 0.1 MiB; on an H100 the
    buffers are 3 to 8 % smaller.
    """
    if shape["kv_lora_rank"]:
        rope = shape["rope_head_dim"]
        attention = shape["heads"] * (2 * shape["kv_lora_rank"] + 3 * rope
                                      + shape["head_dim"] - rope)
    else:
        attention = 2 * shape["heads"] * shape["head_dim"]
    wide = 3 * (shape["intermediate"] or 0)
    if shape["experts"]:
        used, width = shape["experts_per_token"], shape["moe_intermediate"]
        experts = 3 * used * width + (used * shape["hidden"] if shape["hidden"] > 2 * width else 0)
        wide = max(experts, wide if shape["dense_layers"] else 0)
    batch = 4 * settings.batched_tokens * (5 * shape["hidden"] + max(wide, attention))
    window = (shape["sliding_window"] or 0) * settings.sequences + settings.batched_tokens
    mask = 2 * settings.batched_tokens * (window if shape["sliding_layers"] else 0)
    return int(batch + mask + 4 * settings.sequences * shape["vocabulary"])


def _bytes_of_a_token(shape: Dict[str, Any], settings: Settings) -> int:
    """What llama.cpp's compute buffer needs for each token of the context."""
    count = settings.batched_tokens * 2
    if settings.eager_attention:
        # Without flash attention all scores of a batch are there at once, in 32 bits.
        count = settings.batched_tokens * 4 * (1 + shape["heads"])
    if kv.ELEMENT_BITS[settings.key_type] < 16 and not shape["kv_lora_rank"]:
        # A quantised cache is unpacked, layer by layer.
        count += shape["kv_heads"] * shape["head_dim"] * 3 // 2
    return int(count)


def llama_cpp(model: Model, layout: Layout, settings: Settings, costs: Costs,
              on_gpu: bool) -> Fixed:
    """What llama.cpp needs on a GPU, or in RAM."""
    shape = model["geometry"]
    compute = compute_bytes(shape, settings)
    if not on_gpu:
        process = costs["process_bytes"] + shape["vocabulary"] * costs["process_token_bytes"]
        return Fixed(model["bytes"], compute, 0, process, True)
    compute += costs["pool_bytes"]
    return Fixed(weights.llama_cpp_bytes(model, layout.stages), compute, 0,
                 costs["context_bytes"], True)


def cache_of(engine: str, model: Model, layout: Layout, settings: Settings,
             costs: Costs) -> kv.Cache:
    """The cache of the device that has most of it."""
    shape = model["geometry"]
    of_vllm = engine == "vllm"
    in_flight = settings.batched_tokens
    if not of_vllm:
        # With one cache for all requests each has a window of its own (llama-kv-cache-iswa.cpp).
        in_flight += 1 + (shape["sliding_window"] or 0) * (settings.sequences - 1)
    found = kv.cache(
        shape, layout.tensor_parallel, layout.stages, kv.ELEMENT_BITS[settings.key_type],
        kv.ELEMENT_BITS[settings.value_type], costs["block_tokens"], in_flight, of_vllm)
    return found if of_vllm else found._replace(token_bytes=_bytes_of_a_token(shape, settings))


SEEN = {"weights_bytes": "weights", "activation_bytes": "activation", "graph_bytes": "graphs",
        "context_bytes": "context"}
"""What a passport may have observed, by the names that a plan has for it."""
# A figure that is so many times off, and so much more, is no observation of the same thing.
CREDIBLE_TIMES = 4
CREDIBLE_BYTES = 2**30
# Weights are known from the files, and what lies on a device is no more than it.
CREDIBLE_WEIGHTS = 1.25
CREDIBLE_SUM = 1.05


def observed(fixed: Fixed, seen: Dict[str, Any], share_bytes: int,
             limit_bytes: int) -> Optional[Fixed]:
    """What was seen of the same engine, model and flags in place of what is reckoned.

    :param seen: ``memory.observed`` of a passport: bytes for each device, as a plan names them,
        weights and cache at least. What it does not have follows from the cache.
    :param share_bytes: vLLM's share of the device then; 0 for another engine.
    :param limit_bytes: all that the device has.
    :returns: ``None`` where the figures cannot be what they say.
    """
    given = {part: seen[key] for key, part in SEEN.items() if key in seen}
    cache: Any = seen.get("kv_bytes")
    if "weights" not in given or not _is_size(cache):
        return None
    for part, count in given.items():
        if not _is_size(count) or count > CREDIBLE_TIMES * getattr(fixed, part) + CREDIBLE_BYTES:
            return None
    if not fixed.weights <= CREDIBLE_WEIGHTS * given["weights"] <= CREDIBLE_WEIGHTS**2 * (
            fixed.weights):
        return None
    found = fixed._replace(**given)
    if "activation" not in given and share_bytes:
        # What the share lost beside weights and cache is the engine's own.
        rest = share_bytes - int(cache) - found.weights - (
            found.graphs if found.graphs_in_share else 0)
        if not 0 <= rest <= CREDIBLE_TIMES * fixed.activation + CREDIBLE_BYTES:
            return None
        found = found._replace(activation=rest)
    if found.total + cache > CREDIBLE_SUM * limit_bytes or (
            share_bytes and found.in_share + cache > CREDIBLE_SUM * share_bytes):
        return None
    return found


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**50
