"""BasicCNN: a plain convolutional network without pretraining, what one would build who knows nothing of transfer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class BasicCNN(nn.Module):
    """Three convolutions and one hidden layer, 0.86 million parameters for 10 classes.

    The size is that of the plain network in source 000 (an EfficientNet-b0 with ten classes has 4.65 times as many
    parameters); its layers are not published, these are ours. It speaks timm's language: `forward_features`,
    `forward_head`, `get_classifier`, `group_matcher`.

    Args:
        num_classes: width of the head.
        in_chans: channels of the images.
    """

    pretrained_cfg: dict[str, Any] = {  # noqa: RUF012  # timm's name for it, read-only
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
        """Images [N, C, H, W] to features [N, 96, 5, 5]."""
        features: Tensor = self.features(images)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits [N, C], or the embeddings [N, 328] that the classifier is asked with."""
        embeddings: Tensor = self.hidden(features)
        return embeddings if pre_logits else self.classifier(embeddings)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, C] for images [N, C, H, W]."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits of embeddings."""
        return self.classifier

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters make one block, as timm's networks say it."""
        return {"stem": r"^features\.0", "blocks": [(r"^features\.(\d+)", None), (r"^hidden", (99,))]}
