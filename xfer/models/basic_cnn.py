"""BasicCNN: a plain convolutional network without pretraining, the baseline without transfer learning."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class BasicCNN(nn.Module):
    """Three convolutions and one hidden layer, 0.86 million parameters for 10 classes.

    It has the size of the plain network in source 000 (an EfficientNet-b0 with ten classes has 4.65 times as many
    parameters), whose layers are not published. It has the methods of timm's networks: `forward_features`,
    `forward_head`, `get_classifier`, `group_matcher`.

    Args:
        num_classes: number of classes.
        in_chans: number of input channels.
    """

    pretrained_cfg: dict[str, Any] = {  # noqa: RUF012  # timm's name, read-only
        "input_size": (3, 64, 64),
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "classifier": "classifier",
        "first_conv": "features.0",
    }
    num_features = 328

    def __init__(self, num_classes: int, in_chans: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(in_chans, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 96, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool2d(5)),
        )
        self.hidden = nn.Sequential(nn.Dropout(0.25), nn.Flatten(), nn.Linear(96 * 25, self.num_features), nn.ReLU())
        self.classifier = nn.Linear(self.num_features, num_classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Return features [N, 96, 5, 5] of images [N, in_chans, H, W]."""
        features: Tensor = self.features(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits [N, num_classes], or with `pre_logits` the embeddings [N, 328] before the classifier."""
        embeddings: Tensor = self.hidden(features)
        return embeddings if pre_logits else self.classifier(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, num_classes] of images [N, in_chans, H, W]."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """Return the layer that maps embeddings to logits."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return the patterns that group parameters into blocks, in timm's format."""
        return {"stem": r"^features\.0", "blocks": [(r"^features\.(\d+)", None), (r"^hidden", (99,))]}
