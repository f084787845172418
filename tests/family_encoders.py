"""Families of text encoders, and of encoders with decoders."""

from __future__ import annotations

from typing import Any

from family_case import Family, family, rectangles
from family_losses import boxes, labelled_token, labelled_token_unmasked, one_class, span, translation
from zoo_case import Draw, integers, labels, prefix_mask

IDS = integers(13, 6, low=3)
BERT: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 11,
    "max_position_embeddings": 17,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BART: dict[str, Any] = {
    "vocab_size": 13,
    "d_model": 8,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 11,
    "decoder_ffn_dim": 11,
    "max_position_embeddings": 17,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "use_cache": False,
}
T5: dict[str, Any] = {
    "vocab_size": 13,
    "d_model": 8,
    "d_kv": 3,
    "d_ff": 11,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "relative_attention_num_buckets": 4,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
    "use_cache": False,
}


def encoder(name: str, model: str, config: str, options: dict[str, Any], ids: Draw = IDS, length: int = 6, **more: Any) -> Family:
    """A masked-language model on padded sequences with some tokens labelled."""
    draws = (ids, prefix_mask(length), labels(13, length))
    return family(name, "encoder", model, config, options, labelled_token, *draws, **more)


def like_bert(name: str, prefix: str, **options: Any) -> Family:
    """A masked-language model with the options of BERT and some of its own."""
    return encoder(name, f"{prefix}ForMaskedLM", f"{prefix}Config", BERT | options)


def seq2seq(name: str, model: str, config: str, options: dict[str, Any], source: int = 6, **more: Any) -> Family:
    """A translation of padded sources into targets of another length."""
    draws = (integers(13, source, low=3), prefix_mask(source), integers(13, 5, low=3))
    return family(name, "encoder-decoder", model, config, options, translation, *draws, **more)


def like_bart(name: str, model: str, config: str, **options: Any) -> Family:
    """A translation with the options of BART and some of its own."""
    return seq2seq(name, model, config, BART | options)


ENCODERS = (
    like_bert("BERT", "Bert"),
    like_bert("RoBERTa", "Roberta", max_position_embeddings=19),
    like_bert("ELECTRA", "Electra", embedding_size=6),
    like_bert("ALBERT, layers shared", "Albert", embedding_size=6, num_hidden_layers=2),
    encoder("DistilBERT", "DistilBertForMaskedLM", "DistilBertConfig",
            {"vocab_size": 13, "dim": 8, "n_layers": 1, "n_heads": 2, "hidden_dim": 11, "max_position_embeddings": 17}),
    like_bert("DeBERTa", "Deberta", relative_attention=True, pos_att_type=["c2p", "p2c"], legacy=False),
    like_bert("DeBERTa-v2", "DebertaV2", relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=4,
              share_att_key=True, norm_rel_ebd="layer_norm", legacy=False),
    like_bert("MPNet", "MPNet"),
    like_bert("ConvBERT", "ConvBert", num_attention_heads=4, embedding_size=6, conv_kernel_size=3),
    like_bert("RoFormer", "RoFormer", embedding_size=6),
    like_bert("SqueezeBERT", "SqueezeBert", embedding_size=8, q_groups=2, k_groups=2, v_groups=2, intermediate_size=12,
              intermediate_groups=2, output_groups=2),
    like_bert("MobileBERT", "MobileBert", embedding_size=4, intra_bottleneck_size=4, num_feedforward_networks=2,
              true_hidden_size=4),
    like_bert("ModernBERT", "ModernBert", local_attention=4, cls_token_id=1, sep_token_id=2),
    like_bert("ESM", "Esm", mask_token_id=3, position_embedding_type="rotary", token_dropout=True),
    encoder("Funnel", "FunnelForMaskedLM", "FunnelConfig",
            {"vocab_size": 13, "d_model": 8, "n_head": 2, "d_head": 4, "d_inner": 11, "block_sizes": [1, 1],
             "num_decoder_layers": 1, "pad_token_id": 0}, integers(13, 8, low=3), 8, refused="forward writes"),
    encoder("XLNet", "XLNetLMHeadModel", "XLNetConfig",
            {"vocab_size": 13, "d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 11}),
    encoder("Longformer", "LongformerForMaskedLM", "LongformerConfig", BERT | {"attention_window": 4, "sep_token_id": 2},
            integers(13, 8, low=3), 8, refused="data-dependent"),
    family("Perceiver", "encoder", "PerceiverForMaskedLM", "PerceiverConfig",
           {"vocab_size": 13, "num_latents": 3, "d_latents": 8, "d_model": 8, "num_self_attends_per_block": 1,
            "num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 4, "v_channels": 8,
            "max_position_embeddings": 6}, labelled_token_unmasked, integers(13, 6), labels(13, 6)),
    family("BERT, multiple choice", "encoder", "BertForMultipleChoice", "BertConfig", BERT, one_class, integers(13, 3, 6, low=3),
           integers(3)),
    family("BERT, answer spans", "encoder", "BertForQuestionAnswering", "BertConfig", BERT, span, IDS, integers(6), integers(6)),
    family("LayoutLM", "encoder", "LayoutLMForSequenceClassification", "LayoutLMConfig",
           BERT | {"max_2d_position_embeddings": 16, "num_labels": 5}, boxes, IDS, rectangles(16, 6), integers(5)),
)  # fmt: skip

TRANSLATORS = (
    seq2seq("T5", "T5ForConditionalGeneration", "T5Config", T5),
    seq2seq("LongT5, local attention", "LongT5ForConditionalGeneration", "LongT5Config", T5 | {"local_radius": 2}),
    like_bart("BART", "BartForConditionalGeneration", "BartConfig"),
    like_bart("Pegasus", "PegasusForConditionalGeneration", "PegasusConfig"),
    like_bart("M2M-100", "M2M100ForConditionalGeneration", "M2M100Config"),
    seq2seq("ProphetNet", "ProphetNetForConditionalGeneration", "ProphetNetConfig",
            {"vocab_size": 13, "hidden_size": 8, "encoder_ffn_dim": 11, "decoder_ffn_dim": 11, "num_encoder_layers": 1,
             "num_decoder_layers": 1, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "num_buckets": 4,
             "max_position_embeddings": 17, "use_cache": False}, refused="mixed at gather"),
    seq2seq("LED", "LEDForConditionalGeneration", "LEDConfig",
            {name: value for name, value in BART.items() if name != "max_position_embeddings"}
            | {"max_encoder_position_embeddings": 17, "max_decoder_position_embeddings": 17, "attention_window": 4}, 8,
            refused="data-dependent"),
    seq2seq("Switch Transformer", "SwitchTransformersForConditionalGeneration", "SwitchTransformersConfig",
            T5 | {"num_experts": 3, "expert_capacity": 4, "num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1,
                  "router_jitter_noise": 0.0}, refused="swap Linear.weight"),
)  # fmt: skip
