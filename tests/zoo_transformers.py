"""Tiny randomly initialised models of the transformers library; nothing is downloaded.

Every probability of dropout is 0, so that the models are deterministic in training mode. The library is
imported inside the factories, because importing it takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

Config = TypeVar("Config")


def configuration(kind: Callable[..., Config], **options: Any) -> Config:
    """A configuration of the library; its classes take more options than their signatures say."""
    return kind(**options)


def gpt2(attention: str) -> nn.Module:
    """GPT-2 with tied embeddings."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = configuration(
        GPT2Config,
        vocab_size=13,
        n_positions=11,
        n_embd=6,
        n_layer=2,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
        attn_implementation=attention,
    )
    return GPT2LMHeadModel(config).train()


def bert(attention: str) -> nn.Module:
    """BERT with a masked-language-model head that is tied to the embeddings."""
    from transformers import BertConfig, BertForMaskedLM

    config = configuration(
        BertConfig,
        vocab_size=13,
        hidden_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=10,
        max_position_embeddings=11,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0,
        attn_implementation=attention,
    )
    return BertForMaskedLM(config).train()


def llama(attention: str) -> nn.Module:
    """Llama with grouped-query attention: four query heads, two key and value heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = configuration(
        LlamaConfig,
        vocab_size=13,
        hidden_size=8,
        intermediate_size=11,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=17,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation=attention,
    )
    return LlamaForCausalLM(config).train()


def t5() -> nn.Module:
    """T5: encoder, decoder, relative position bias, one embedding for both."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = configuration(
        T5Config,
        vocab_size=13,
        d_model=6,
        d_kv=3,
        d_ff=10,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        relative_attention_num_buckets=4,
        dropout_rate=0.0,
        use_cache=False,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config).train()


def vit(attention: str) -> nn.Module:
    """ViT with a classification head."""
    from transformers import ViTConfig, ViTForImageClassification

    config = configuration(
        ViTConfig,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=10,
        image_size=8,
        patch_size=4,
        num_labels=5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation=attention,
    )
    return ViTForImageClassification(config).train()
