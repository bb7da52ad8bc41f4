"""One-line descriptions of the strategies for readers of a report, who may not know their names.

The strategies themselves and their full descriptions are in `xfer.methods.strategies`, which needs torch.
"""

STRATEGY_DESCRIPTIONS = {
    "scratch": "training from random weights",
    "small_cnn": "training a small CNN from random weights",
    "linear_probe": "training only the new head, on frozen features",
    "ridge_probe": "ridge regression on frozen features",
    "logistic_probe": "logistic regression on frozen features",
    "freeze_then_unfreeze": "training the head for a fixed number of epochs, then everything",
    "freeze_until_converged": "training the head until it converges, then everything",
    "naive": "full fine-tuning",
    "clip": "full fine-tuning with gradient clipping",
    "freeze_first": "fine-tuning with the lowest blocks frozen",
    "train_last": "fine-tuning only the head and the last blocks",
    "early_cut": "linear classifier on the frozen features of an early stage",
    "drop_early": "new head on the frozen late stages, without the early ones",
    "gradual_unfreeze": "fine-tuning, unfreezing blocks from the top down",
    "layer_decay": "full fine-tuning with a lower learning rate in lower blocks",
    "lp_ft": "logistic regression on frozen features, then full fine-tuning",
    "bitfit": "fine-tuning only the head, biases and normalisation shifts",
    "lora": "fine-tuning the head and low-rank updates of a frozen backbone",
    "l2_sp": "full fine-tuning, regularised towards the pretrained weights",
    "surgical": "fine-tuning only the head and one quarter of the backbone",
}
