"""Families of decoders: transformers with every kind of position, mixtures of experts, state-space models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from family_case import Family, family, prefixes, pretrained
from family_losses import inner_loss, next_token, next_token_masked, one_class, tokens_per_example
from torch import nn
from zoo_case import integers, prefix_mask

IDS = integers(13, 6, low=1)
TOKENS: dict[str, Any] = {"vocab_size": 13, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": False}
LLAMA: dict[str, Any] = TOKENS | {
    "hidden_size": 8,
    "intermediate_size": 11,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 17,
}
GPT: dict[str, Any] = TOKENS | {"n_positions": 11, "n_embd": 8, "n_layer": 1, "n_head": 2}
EXPERTS: dict[str, Any] = LLAMA | {"num_local_experts": 3, "num_experts_per_tok": 2, "num_hidden_layers": 1}


def decoder(name: str, model: str, config: str, options: dict[str, Any], kind: str = "decoder", **more: Any) -> Family:
    """A language model on whole sequences."""
    return family(name, kind, model, config, options, next_token, IDS, **more)


def like_llama(name: str, prefix: str, **options: Any) -> Family:
    """A language model with the options of Llama and some of its own."""
    return decoder(name, f"{prefix}ForCausalLM", f"{prefix}Config", LLAMA | options)


def own_loss(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The model with a loss per example in the place of its own, which is a mean over the tokens of the whole batch."""

    def build() -> nn.Module:
        model: Any = make()
        model.loss_function = tokens_per_example
        return model

    return build


DENSE = (
    decoder("GPT-2", "GPT2LMHeadModel", "GPT2Config", GPT),
    decoder(
        "GPT-Neo", "GPTNeoForCausalLM", "GPTNeoConfig",
        TOKENS | {"hidden_size": 8, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                  "window_size": 3, "max_position_embeddings": 11},
    ),
    decoder(
        "GPT-NeoX", "GPTNeoXForCausalLM", "GPTNeoXConfig",
        TOKENS | {"hidden_size": 16, "intermediate_size": 11, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "max_position_embeddings": 11},
    ),
    decoder("GPT-J", "GPTJForCausalLM", "GPTJConfig", GPT | {"rotary_dim": 2}),
    decoder("GPT-BigCode", "GPTBigCodeForCausalLM", "GPTBigCodeConfig", GPT),
    decoder("CTRL", "CTRLLMHeadModel", "CTRLConfig", GPT | {"dff": 11}),
    family("Llama, padded batch", "decoder", "LlamaForCausalLM", "LlamaConfig", LLAMA, next_token_masked, IDS, prefix_mask(6)),
    like_llama("Mistral", "Mistral", sliding_window=3),
    like_llama("Qwen2", "Qwen2"),
    like_llama("Qwen3", "Qwen3", head_dim=4),
    like_llama("Gemma", "Gemma", head_dim=4),
    like_llama("Gemma 2", "Gemma2", num_hidden_layers=2, head_dim=4, sliding_window=3, query_pre_attn_scalar=4),
    decoder("Gemma 3", "Gemma3ForCausalLM", "Gemma3TextConfig",
            LLAMA | {"num_hidden_layers": 2, "head_dim": 4, "sliding_window": 3, "query_pre_attn_scalar": 4,
                     "layer_types": ["sliding_attention", "full_attention"]}),
    like_llama("Phi", "Phi"),
    like_llama("StableLM", "StableLm", qk_layernorm=True, use_parallel_residual=True),
    like_llama("Cohere", "Cohere"),
    like_llama("OLMo 2", "Olmo2"),
    decoder(
        "OPT", "OPTForCausalLM", "OPTConfig",
        TOKENS | {"hidden_size": 8, "word_embed_proj_dim": 6, "ffn_dim": 11, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "max_position_embeddings": 11},
    ),
    decoder("BLOOM", "BloomForCausalLM", "BloomConfig", TOKENS | {"hidden_size": 8, "n_layer": 1, "n_head": 2}),
    decoder(
        "Falcon", "FalconForCausalLM", "FalconConfig",
        TOKENS | {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 11},
    ),
    decoder("MPT", "MptForCausalLM", "MptConfig", TOKENS | {"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 11}),
    decoder(
        "BioGPT", "BioGptForCausalLM", "BioGptConfig",
        TOKENS | {"hidden_size": 8, "intermediate_size": 11, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "max_position_embeddings": 11},
    ),
)  # fmt: skip

ROUTED = (
    decoder("Mixtral, experts as one batched product", "MixtralForCausalLM", "MixtralConfig",
            EXPERTS | {"experts_implementation": "batched_mm"}, kind="mixture of experts"),
    decoder("Mixtral, experts in a loop", "MixtralForCausalLM", "MixtralConfig", EXPERTS | {"experts_implementation": "eager"},
            kind="mixture of experts", refused="shape|data"),
    decoder("Mixtral, experts as a grouped product", "MixtralForCausalLM", "MixtralConfig",
            EXPERTS | {"experts_implementation": "grouped_mm", "intermediate_size": 12}, kind="mixture of experts",
            refused="mixed at sort"),
    decoder("Qwen2-MoE", "Qwen2MoeForCausalLM", "Qwen2MoeConfig",
            EXPERTS | {"num_experts": 3, "moe_intermediate_size": 5, "shared_expert_intermediate_size": 7,
                       "experts_implementation": "batched_mm"}, kind="mixture of experts"),
    decoder("GPT-OSS", "GptOssForCausalLM", "GptOssConfig",
            EXPERTS | {"head_dim": 4, "sliding_window": 3, "experts_implementation": "batched_mm"}, kind="mixture of experts"),
)  # fmt: skip

RECURRENT = (
    decoder("Mamba", "MambaForCausalLM", "MambaConfig",
            TOKENS | {"hidden_size": 8, "state_size": 3, "num_hidden_layers": 1, "time_step_rank": 2}, kind="state space"),
    decoder("Mamba 2", "Mamba2ForCausalLM", "Mamba2Config",
            TOKENS | {"hidden_size": 8, "state_size": 4, "num_hidden_layers": 1, "num_heads": 4, "head_dim": 4, "n_groups": 2,
                      "chunk_size": 4}, kind="state space"),
    decoder("RWKV", "RwkvForCausalLM", "RwkvConfig",
            TOKENS | {"hidden_size": 8, "num_hidden_layers": 2, "context_length": 11}, kind="state space"),
    decoder("RecurrentGemma", "RecurrentGemmaForCausalLM", "RecurrentGemmaConfig",
            LLAMA | {"num_hidden_layers": 3, "lru_width": 8, "attention_window_size": 4, "num_key_value_heads": 1},
            kind="state space"),
    decoder("xLSTM", "xLSTMForCausalLM", "xLSTMConfig",
            TOKENS | {"hidden_size": 16, "num_hidden_layers": 1, "num_heads": 2, "ffn_round_up_to_multiple_of": 2,
                      "chunk_size": 3, "mode": "train", "autocast_kernel_dtype": "float32"}, kind="state space"),
)  # fmt: skip

INNER = (
    family("Llama, loss from labels", "decoder", "LlamaForCausalLM", "LlamaConfig", LLAMA, inner_loss, IDS, refused="scalar"),
    replace(
        family("Llama, loss from labels per example", "decoder", "LlamaForCausalLM", "LlamaConfig", LLAMA, inner_loss, IDS),
        make=own_loss(pretrained("LlamaForCausalLM", "LlamaConfig", LLAMA)),
    ),
    family("GPT-2, class of the last token", "decoder", "GPT2ForSequenceClassification", "GPT2Config", GPT | {"num_labels": 5},
           one_class, prefixes(13, 6), integers(5)),
)  # fmt: skip

DECODERS = DENSE + ROUTED + RECURRENT + INNER
