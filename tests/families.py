"""The table of model families: architectures of transformers, of vision written here, and adapters on one of them."""

from __future__ import annotations

import family_networks as networks
from family_adapters import ADAPTERS
from family_case import own
from family_decoders import DECODERS
from family_encoders import ENCODERS, TRANSLATORS
from family_images import IMAGES
from family_senses import MULTIMODAL, SERIES, SPEECH
from torch import nn
from zoo_case import floats, integers

SMALL, CLASS = floats(3, 8, 8), integers(5)
LOSS = nn.CrossEntropyLoss()

WRITTEN = (
    own("AlexNet", "written here", networks.alexnet, LOSS, floats(3, 16, 16), CLASS),
    own("VGG", "written here", networks.vgg, LOSS, SMALL, CLASS),
    own("DenseNet", "written here", networks.densenet, LOSS, SMALL, CLASS),
    own("MobileNet v2", "written here", networks.mobilenet_v2, LOSS, SMALL, CLASS),
    own("MobileNet v3", "written here", networks.mobilenet_v3, LOSS, SMALL, CLASS),
    own("EfficientNet", "written here", networks.efficientnet, LOSS, SMALL, CLASS),
    own("Inception", "written here", networks.inception, LOSS, SMALL, CLASS),
    own("ResNeXt", "written here", networks.resnext, LOSS, SMALL, CLASS),
    own("Attention U-Net", "written here", networks.AttentionUNet, LOSS, SMALL, integers(5, 8, 8)),
    own("MLP-Mixer", "written here", networks.mixer, LOSS, SMALL, CLASS),
    own("ShuffleNet v2", "written here", networks.shufflenet, LOSS, SMALL, CLASS),
    own("ConvMixer", "written here", networks.convmixer, LOSS, SMALL, CLASS),
    own("SqueezeNet", "written here", networks.squeezenet, LOSS, floats(3, 16, 16), CLASS),
)

FAMILIES = DECODERS + ENCODERS + TRANSLATORS + IMAGES + SPEECH + MULTIMODAL + SERIES + ADAPTERS + WRITTEN
