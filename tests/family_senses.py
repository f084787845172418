"""Families of transformers for sound, for images with text, and for time series."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from family_case import Family, family, prefixes, pretrained, with_images
from family_encoders import BART, BERT
from family_images import VIT
from family_losses import (
    aligned,
    aligned_by_model,
    answer,
    contrastive,
    forecast,
    frames,
    hidden,
    one_class,
    pairs,
    question,
    transcription,
)
from torch import nn
from zoo_case import Draw, floats, inputs, integers

SOUND: dict[str, Any] = {
    "vocab_size": 7,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 11,
    "conv_dim": [4, 4],
    "conv_stride": [5, 2],
    "conv_kernel": [7, 3],
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "apply_spec_augment": False,
    "pad_token_id": 0,
}
LISTENER: dict[str, Any] = {name: value for name, value in BART.items() if name != "max_position_embeddings"}
TEXT: dict[str, Any] = {
    "vocab_size": 13,
    "hidden_size": 8,
    "intermediate_size": 11,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 11,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 12,
    "projection_dim": 6,
}
SIGHT: dict[str, Any] = {name: value for name, value in VIT.items() if name != "num_labels"} | {"projection_dim": 6}
CLIP: dict[str, Any] = {"text_config": TEXT, "vision_config": SIGHT, "projection_dim": 6}
IDS, PIXELS = integers(13, 6, low=3), floats(3, 8, 8)


LLAVA: tuple[str, str, dict[str, Any]] = (
    "LlavaForConditionalGeneration",
    "LlavaConfig",
    {
        "vision_config": SIGHT | {"model_type": "clip_vision_model", "num_hidden_layers": 2},
        "text_config": TEXT | {"model_type": "llama", "use_cache": False},
        "image_token_index": 2,
        "image_token_id": 2,
        "image_seq_length": 4,
    },
)


def called_once(make: Callable[[], nn.Module], *draws: Draw) -> Callable[[], nn.Module]:
    """The model after one call: its first call installs hooks and notes that it did so, which a trace refuses."""

    def build() -> nn.Module:
        model = make()
        ids, pixels = inputs(*draws)(2, torch.float32)
        model(input_ids=ids, pixel_values=pixels)
        return model

    return build


def sound(name: str, prefix: str, **options: Any) -> Family:
    """One class per frame of a raw wave; 55 samples make 5 frames."""
    wave, labels = floats(55), integers(7, 4)
    return family(name, "speech", f"{prefix}ForCTC", f"{prefix}Config", SOUND | options, frames, wave, labels)


def ctc(name: str, prefix: str) -> tuple[Family, Family]:
    """A recogniser with its own loss, per example and from labels as the model computes it."""
    wave, labels, model, config = floats(80), prefixes(7, 3), f"{prefix}ForCTC", f"{prefix}Config"
    return (
        family(f"{name}, CTC", "speech", model, config, SOUND, aligned, wave, labels),
        family(
            f"{name}, CTC from labels", "speech", model, config, SOUND, aligned_by_model, wave, labels, refused="data-dependent"
        ),
    )


SPEECH = (
    sound("wav2vec 2.0, group norm", "Wav2Vec2"),
    sound("wav2vec 2.0, layer norm", "Wav2Vec2", feat_extract_norm="layer", do_stable_layer_norm=True),
    sound("HuBERT", "Hubert"),
    *ctc("wav2vec 2.0", "Wav2Vec2"),
    *ctc("HuBERT", "Hubert"),
    sound("WavLM", "WavLM", num_buckets=4, max_bucket_distance=8),
    family("Whisper", "speech", "WhisperForConditionalGeneration", "WhisperConfig",
           LISTENER | {"num_mel_bins": 3, "max_source_positions": 4, "max_target_positions": 11}, transcription,
           floats(3, 8), integers(13, 5, low=3)),
    family("Speech2Text", "speech", "Speech2TextForConditionalGeneration", "Speech2TextConfig",
           LISTENER | {"input_feat_per_channel": 3, "conv_channels": 6, "conv_kernel_sizes": [3, 3], "max_source_positions": 17,
                       "max_target_positions": 11}, transcription, floats(8, 3), integers(13, 5, low=3)),
    family("Audio Spectrogram Transformer", "speech", "ASTForAudioClassification", "ASTConfig",
           {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 11, "patch_size": 4,
            "frequency_stride": 3, "time_stride": 3, "max_length": 8, "num_mel_bins": 7, "num_labels": 5}, one_class,
           floats(8, 7), integers(5)),
)  # fmt: skip

MULTIMODAL = (
    family("CLIP, text tower", "multimodal", "CLIPTextModel", "CLIPTextConfig", TEXT, hidden, IDS),
    family("CLIP, vision tower", "multimodal", "CLIPVisionModel", "CLIPVisionConfig", SIGHT, hidden, PIXELS),
    family("CLIP, an example's own pair", "multimodal", "CLIPModel", "CLIPConfig", CLIP, pairs, IDS, PIXELS),
    family("CLIP, contrastive loss", "multimodal", "CLIPModel", "CLIPConfig", CLIP, contrastive, IDS, PIXELS, refused="mixed"),
    family("SigLIP, vision tower", "multimodal", "SiglipVisionModel", "SiglipVisionConfig", SIGHT, hidden, PIXELS),
    family("ViLT", "multimodal", "ViltForQuestionAnswering", "ViltConfig", BERT | VIT | {"num_hidden_layers": 1}, question,
           IDS, PIXELS, integers(5), refused="data-dependent"),
    replace(
        family("LLaVA", "multimodal", *LLAVA, answer, with_images(13, 2, 4, 9), PIXELS, refused="fixed number"),
        make=called_once(pretrained(*LLAVA), with_images(13, 2, 4, 9), PIXELS),
    ),
)  # fmt: skip

SERIES = (
    family("PatchTST", "time series", "PatchTSTForPrediction", "PatchTSTConfig",
           {"num_input_channels": 2, "context_length": 12, "patch_length": 4, "patch_stride": 4, "num_hidden_layers": 1,
            "d_model": 8, "num_attention_heads": 2, "ffn_dim": 11, "norm_type": "layernorm", "prediction_length": 3},
           forecast, floats(12, 2), floats(3, 2)),
    family("PatchTSMixer", "time series", "PatchTSMixerForPrediction", "PatchTSMixerConfig",
           {"num_input_channels": 2, "context_length": 12, "patch_length": 4, "patch_stride": 4, "num_layers": 1, "d_model": 4,
            "prediction_length": 3}, forecast, floats(12, 2), floats(3, 2)),
)  # fmt: skip
